"""A model made here asked as an endpoint is: the same replies whenever and however often it is cut off."""

from __future__ import annotations

from pathlib import Path

import pytest
from toys import CONTEXT, World

from chatloom.endpoints import Recorded, Refused, Reply, Request
from chatloom.generation import completions
from chatloom.generation.completions import Completions
from chatloom.training.bundle import load_bundle


def requests(count: int = 12, **values: object) -> list[Request]:
    return [
        Request("toy", (("user", f"colour of thing {i}?"),), **{"max_tokens": 8, "seed": i, **values})  # type: ignore[arg-type]
        for i in range(count)
    ]


def local(world: World, name: str = "sft", group: int = 4) -> Completions:
    bundle = load_bundle(world[name].path)
    return Completions(bundle.model, bundle.vocabulary, bundle.template, group)


def all_of(model: Completions, path: Path, asked: list[Request]) -> list[Reply | Refused]:
    with Recorded(path) as recorded:
        return list(model.complete_many(asked, recorded))


def test_every_reply_is_recorded_and_given_again_without_the_model(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, file = local(world), tmp_path / "replies.jsonl"
    first = all_of(model, file, requests())
    assert [outcome.key for outcome in first] == [request.key for request in requests()]
    assert all(isinstance(outcome, Reply) and outcome.finish in ("stop", "length") for outcome in first)
    assert any(isinstance(outcome, Reply) and outcome.text for outcome in first)
    monkeypatch.setattr(completions, "generate", None)
    assert all_of(model, file, requests()) == first


def test_a_record_cut_off_at_any_reply_ends_in_the_same_replies(world: World, tmp_path: Path) -> None:
    model, file = local(world), tmp_path / "replies.jsonl"
    first = all_of(model, file, requests(10, temperature=1.5))
    lines = file.read_bytes().splitlines(keepends=True)
    for n in range(len(lines)):
        file.write_bytes(b"".join(lines[:n]) + lines[n][: n + 1])
        assert all_of(model, file, requests(10, temperature=1.5)) == first


def test_a_seed_decides_the_reply_and_another_one_changes_it(world: World, tmp_path: Path) -> None:
    model = local(world)
    text = "colour of thing 0?"
    asked = [Request("toy", (("user", text),), max_tokens=8, seed=s, temperature=2.0) for s in (1, 2, 3, 4, 5, 6)]
    found = [outcome.text for outcome in all_of(model, tmp_path / "a", asked) if isinstance(outcome, Reply)]
    assert len(set(found)) > 1
    again = [outcome.text for outcome in all_of(model, tmp_path / "b", asked[::-1]) if isinstance(outcome, Reply)]
    assert again == found[::-1]


def test_a_prompt_without_room_is_refused_and_does_not_hold_up_its_group(world: World, tmp_path: Path) -> None:
    model, file = local(world), tmp_path / "replies.jsonl"
    asked = requests(4)
    asked[2] = Request("toy", (("user", "colour " * CONTEXT),), max_tokens=8, seed=2)
    found = all_of(model, file, asked)
    assert [isinstance(outcome, Reply) for outcome in found] == [True, True, False, True]
    refused = found[2]
    assert isinstance(refused, Refused)
    assert (refused.status, refused.message.endswith("tokens leave 0 of the 8 asked for")) == (413, True)
    assert all_of(model, file, asked) == found
    assert len(file.read_bytes().splitlines()) == 3


def test_a_base_model_goes_on_with_a_text(world: World, tmp_path: Path) -> None:
    model = local(world, "pretrain")
    asked = [Request("toy", prompt=text, max_tokens=8, seed=1) for text in ("the colour of", "雪的颜色", "")]
    found = all_of(model, tmp_path / "r", asked)
    assert all(isinstance(outcome, Reply) and outcome.text for outcome in found)
    with pytest.raises(ValueError, match="takes messages if it has a chat template, else a prompt"):
        all_of(model, tmp_path / "s", requests(1))


def test_what_a_model_here_has_no_use_for_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no stop, no extra"):
        all_of(local(world), tmp_path / "r", requests(1, stop=("x",)))
