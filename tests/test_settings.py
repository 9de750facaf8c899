"""Promises of `chatloom.settings`: strict, typed, with errors that name the cure."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from chatloom.settings import Settings, SettingsError, difference, digest, nearest, override, read_yaml, runtime


class Optimizer(Settings):
    lr: float = Field(1e-3, gt=0, description="rate")
    betas: tuple[float, float] = Field((0.9, 0.95), description="moments")
    fused: bool = runtime(False, description="faster")


class Example(Settings):
    steps: int = Field(description="steps")
    optimizer: Optimizer = Field(Optimizer(), description="optimizer")
    groups: dict[str, Optimizer] = Field({}, description="by name")
    device: str = runtime("auto", description="where")


def test_an_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"stages\.sft\.stepz: there is no such setting; did you mean `steps`\?"):
        Example.parse({"steps": 1, "stepz": 2}, where="stages.sft")


def test_an_unknown_nested_setting_names_the_nearest_of_its_own_group() -> None:
    with pytest.raises(SettingsError, match=r"settings\.optimizer\.beta: .*did you mean `betas`"):
        Example.parse({"steps": 1, "optimizer": {"beta": [0, 0]}})


def test_every_mistake_is_reported_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        Example.parse({"optimizer": {"lr": -1, "x": 1}, "device": 3})
    text = str(caught.value)
    assert len(text.splitlines()) == 4
    assert "settings.steps: this setting is required" in text
    assert "settings.optimizer.lr" in text
    assert "found -1" in text


def test_settings_cannot_be_changed_after_parsing() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Example.parse({"steps": 1}).steps = 2  # type: ignore[misc]


def test_a_group_given_in_part_keeps_the_other_defaults_of_its_field() -> None:
    class Gentle(Settings):
        optimizer: Optimizer = Field(
            Optimizer(lr=1e-5, betas=(0.5, 0.6)), description="other defaults than the class's"
        )

    assert Gentle.parse({"optimizer": {"lr": 2e-5}}).optimizer == Optimizer(lr=2e-5, betas=(0.5, 0.6))
    assert Gentle.parse({}).optimizer == Optimizer(lr=1e-5, betas=(0.5, 0.6))
    with pytest.raises(SettingsError, match=r"settings\.optimizer\.beta: .*did you mean `betas`"):
        Gentle.parse({"optimizer": {"beta": [0, 0]}})


def test_runtime_settings_stay_out_of_the_result_at_every_depth() -> None:
    first = Example.parse({"steps": 1, "groups": {"a": {"fused": True}}})
    second = Example.parse({"steps": 1, "device": "cpu", "optimizer": {"fused": True}, "groups": {"a": {}}})
    assert first.result() == second.result()
    assert "device" not in first.result()
    assert "fused" not in first.result()["optimizer"]
    assert first.everything() != second.everything()
    assert Example.parse({"steps": 2}).result() != first.result()


def test_overrides_are_typed_and_leave_the_original_alone() -> None:
    before = {"a": {"b": 1}, "list": [1]}
    after = override(before, ["a.b=2", "a.c.d=true", "list=[3, 4]", "text=x=y", "nothing=null", "rate=1.0e-3"])
    assert after == {"a": {"b": 2, "c": {"d": True}}, "list": [3, 4], "text": "x=y", "nothing": None, "rate": 1e-3}
    assert before == {"a": {"b": 1}, "list": [1]}


def test_a_rate_written_without_a_point_is_still_a_number() -> None:
    values = override({"steps": 1}, ["optimizer.lr=1e-3"])  # YAML 1.1 reads 1e-3 as text
    assert Example.parse(values).optimizer.lr == 1e-3


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("a", "expected NAME=VALUE"),
        ("=1", "expected NAME=VALUE"),
        ("a.b.c=1", "`b` is a value"),
        ("a=[1", "not valid YAML"),
    ],
)
def test_a_bad_override_says_what_is_wrong(assignment: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        override({"a": {"b": 1}}, [assignment])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"a: [1", "not valid YAML"),
        (b"\xff\xfe\x00", "not UTF-8|not valid YAML"),
        (b"- 1\n- 2\n", "expected a mapping"),
    ],
)
def test_a_bad_file_says_what_is_wrong(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "x.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingsError, match=message):
        read_yaml(file)


def test_an_empty_file_is_no_settings(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("# nothing\n", encoding="utf-8")
    assert read_yaml(tmp_path / "x.yaml") == {}


def test_a_difference_lists_leaves_with_both_values() -> None:
    old, new = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}, "e": 4}
    assert difference(old, new) == ["a.c: 2 -> 5", "d: 3 -> (absent)", "e: (absent) -> 4"]


def test_a_digest_depends_on_values_and_not_on_their_order() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 1.5})
    assert digest([1, 2]) != digest([2, 1])


def test_nothing_is_near_to_nonsense() -> None:
    assert nearest("qqqq", ["alpha", "beta"]) is None
    assert nearest("aplha", ["alpha", "beta"]) == "alpha"


def test_a_key_given_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("stages:\n  sft: {epochs: 1}\n  dpo: {}\n  sft: {epochs: 2}\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"recipe.yaml, line 4: `sft` is given twice"):
        read_yaml(file)
