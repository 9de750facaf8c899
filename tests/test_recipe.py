"""Promises of `chatloom.recipe`: mistakes are found on paper; done is skipped, half done goes on, changed is said."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from chatloom import artifact, recipe, stages
from chatloom.recipe import PlanRefused, RecipeError, StageFailed, hashes, planning
from chatloom.recipe.reading import from_values, merge
from chatloom.stage import Line, Plan, PlanContext

FAKES = Path(__file__).with_name("fake_stages.py")
RECIPE: dict[str, Any] = {
    "name": "toy",
    "seed": 5,
    "stages": {
        "pages": {"stage": "write", "text": "x"},
        "words": {"stage": "join", "documents": {"from": "pages"}},
        "base": {"stage": "train", "vocabulary": {"from": "words"}},
        "tuned": {"stage": "train", "vocabulary": {"from": "words"}, "model": {"from": "base"}, "seed": 9},
        "table": {"stage": "judge", "models": [{"from": "base"}, {"from": "tuned", "gather": True}]},
    },
}


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("fake_stages", FAKES)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fake_stages", module)  # where pydantic looks up the names in annotations
    spec.loader.exec_module(module)
    monkeypatch.setattr(stages, "MODULES", module.table())
    return module


def changed(**stages_changes: Any) -> dict[str, Any]:
    """RECIPE with keys of stages changed: changed(base={"steps": 4}); None removes."""
    return merge(RECIPE, {"stages": stages_changes})


def fails(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        from_values(values)


# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_recipe_becomes_nodes_with_parents_before_children() -> None:
    shuffled = {**RECIPE, "stages": dict(reversed(RECIPE["stages"].items()))}
    graph = from_values(shuffled)
    order = list(graph.nodes)
    for node in graph.nodes.values():
        assert all(order.index(parent) < order.index(node.name) for parent in node.parents)
    assert graph.nodes["base"].seed == 5
    assert graph.nodes["tuned"].seed == 9
    assert graph.nodes["table"].parents == ("base", "tuned")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": {"stage": "trian"}}, r"stages\.base\.stage: .*`trian`; did you mean `train`\?"),
        ({"base": {"stepps": 4}}, r"stages\.base\.stepps: `train` has no such setting or input; did you mean `steps`"),
        ({"base": {"optimizer": {"rat": 1}}}, r"stages\.base\.optimizer\.rat: .*did you mean `rate`"),
        ({"base": {"vocabulery": {"from": "words"}}}, "did you mean `vocabulary`"),
        ({"base": {"vocabulary": {"from": "wrods"}}}, "there is no stage `wrods`; did you mean `words`"),
        ({"base": {"vocabulary": None}}, r"stages\.base\.vocabulary: `train` needs this input \(words; vocabulary\)"),
        ({"base": {"vocabulary": {"from": "pages"}}}, "expected vocabulary, but stage `pages` makes documents"),
        ({"base": {"vocabulary": "words"}}, "expected `{from: STAGE}` or `{path: PATH}`, found 'words'"),
        ({"base": {"vocabulary": [{"from": "words"}, {"from": "words"}]}}, "takes one vocabulary, found a list of 2"),
        ({"base": {"vocabulary": {"from": "words", "path": "x"}}}, "expected `{from: STAGE}` or"),
        ({"base": {"vocabulary": {"from": "words", "gather": True}}}, "takes one artifact, so it cannot `gather`"),
        ({"table": {"models": []}}, "the list is empty"),
        ({"base": {"seed": -1}}, r"stages\.base\.seed: expected a whole number"),
        ({"base": {"seed": True}}, r"stages\.base\.seed: expected a whole number"),
        ({"base": {"steps": "many"}}, r"stages\.base\.steps: .*found 'many'"),
        ({"base/x": {"stage": "write"}}, "a stage's name becomes a folder"),
        ({"wirds": {"text": "x"}}, "stages.wirds: does not say what it is.*did you mean the stage `words`"),
        ({"base": 3}, r"stages\.base: expected `{stage: KIND, ...}`, found 3"),
    ],
)  # fmt: skip
def test_a_mistake_on_paper_names_the_place_and_the_cure(change: dict[str, Any], message: str) -> None:
    fails(changed(**change), message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stags": {}}, "a recipe has no `stags`; did you mean `stages`"),
        ({"stages": {}}, "`stages` must map names to stages"),
        ({"seed": "x"}, "seed: expected a whole number"),
    ],
)
def test_a_mistake_at_the_top_is_named(change: dict[str, Any], message: str) -> None:
    fails({**RECIPE, **change}, message)


def test_all_mistakes_are_listed_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        from_values(changed(base={"stepps": 1}, tuned={"optimizer": {"x": 1}}, pages={"txt": ""}))
    assert len(str(caught.value).splitlines()) == 3


def test_a_cycle_is_named() -> None:
    fails(changed(base={"model": {"from": "tuned"}}), "wait for each other: base -> tuned -> base")


def test_overrides_reach_any_stage_and_the_leading_word_may_be_left_out(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    graph = recipe.read(file, ["stages.base.steps=7", "tuned.optimizer.rate=0.5", "seed=1"])
    assert graph.nodes["base"].settings.steps == 7  # type: ignore[attr-defined]
    assert graph.nodes["tuned"].settings.optimizer.rate == 0.5  # type: ignore[attr-defined]
    assert graph.nodes["base"].seed == 1
    with pytest.raises(RecipeError, match=r"r\.yaml: .*no such setting or input; did you mean `steps`"):
        recipe.read(file, ["base.stps=7"])
    with pytest.raises(RecipeError, match="did you mean"):
        recipe.read(file, ["bse.steps=7"])


def test_a_recipe_builds_upon_another(tmp_path: Path) -> None:
    (tmp_path / "low.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    top = {"extends": "low.yaml", "stages": {"base": {"steps": 8}, "table": None, "tuned": {"model": {"path": "m"}}}}
    (tmp_path / "top.yaml").write_text(yaml.safe_dump(top), encoding="utf-8")
    graph = recipe.read(tmp_path / "top.yaml")
    assert graph.name == "top"
    assert list(graph.nodes) == ["pages", "words", "base", "tuned"]
    assert graph.nodes["base"].settings.steps == 8  # type: ignore[attr-defined]
    assert graph.nodes["tuned"].inputs["model"][0].path == "m"
    (tmp_path / "low.yaml").write_text("extends: top.yaml\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="extends itself"):
        recipe.read(tmp_path / "top.yaml")


def test_a_recipe_that_is_nowhere_is_named() -> None:
    with pytest.raises(RecipeError, match=r"nowhere\.yaml: no such file"):
        recipe.read("nowhere.yaml")


# --- matrix -----------------------------------------------------------------------------------------------------------


def test_a_matrix_repeats_the_listed_stages_and_all_that_depend_on_them() -> None:
    graph = from_values({**RECIPE, "matrix": {"values": {"seed": [0, 1, 2]}, "stages": ["base"]}})
    names = {"pages", "words", *(f"{name}-seed{n}" for name in ("base", "tuned", "table") for n in range(3))}
    assert set(graph.nodes) == names  # `table` takes `base` without gathering, so it is repeated
    assert graph.nodes["tuned-seed2"].inputs["model"][0].stage == "base-seed2"
    assert graph.nodes["tuned-seed2"].seed == 2
    assert [item.stage for item in graph.nodes["table-seed1"].inputs["models"]] == [
        "base-seed1", "tuned-seed0", "tuned-seed1", "tuned-seed2",
    ]  # fmt: skip
    assert graph.named("tuned") == ["tuned-seed0", "tuned-seed1", "tuned-seed2"]


def test_a_stage_that_gathers_is_not_repeated() -> None:
    values = changed(table={"models": {"from": "tuned", "gather": True}})
    graph = from_values({**values, "matrix": {"values": {"seed": [0, 1]}, "stages": ["base"]}})
    assert graph.nodes["table"].parents == ("tuned-seed0", "tuned-seed1")
    assert graph.nodes["table"].seed == 5


def test_a_matrix_of_settings_reaches_the_stages_that_it_names() -> None:
    values = {"optimizer.rate": [0.1, 0.2], "tuned.steps": [4]}
    graph = from_values({**RECIPE, "matrix": {"values": values, "stages": ["base"]}})
    node = graph.nodes["base-rate0.2-steps4"]
    assert (node.settings.optimizer.rate, node.settings.steps) == (0.2, 3)  # type: ignore[attr-defined]
    node = graph.nodes["tuned-rate0.2-steps4"]
    assert (node.settings.optimizer.rate, node.settings.steps) == (1.0, 4)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ({"values": {"seed": [0]}, "stages": ["bse"]}, "no stage `bse`; did you mean `base`"),
        ({"values": {"seed": 0}, "stages": ["base"]}, "expected settings with lists"),
        ({"value": {}}, "matrix: expected"),
        ({"values": {"seed": [0]}, "stages": []}, "expected a list of stages"),
        ({"values": {"rate": [1]}, "stages": ["base"]}, "has no such setting"),
    ],
)
def test_a_wrong_matrix_is_explained(matrix: Any, message: str) -> None:
    fails({**RECIPE, "matrix": matrix}, message)


# --- planning ---------------------------------------------------------------------------------------------------------


def states(values: dict[str, Any], out: Path, **options: Any) -> dict[str, str]:
    report = recipe.plan(from_values(values), out, measure=False, **options)
    return {stage.node.name: stage.state for stage in report.stages}


def test_a_plan_writes_nothing_and_adds_up_what_is_to_do(tmp_path: Path) -> None:
    report = recipe.plan(from_values(RECIPE), tmp_path / "out", measure=False)
    assert not (tmp_path / "out").exists()
    assert report.totals["flops"].value == 6e9
    assert report.totals["parameters"].value == 10
    assert report.totals["parameters"].exact
    assert not report.totals["time"].exact
    assert report.refusals == ()


def test_a_plan_tells_done_stale_half_done_and_to_do(tmp_path: Path) -> None:
    assert set(states(RECIPE, tmp_path).values()) == {"to do"}
    recipe.run(from_values(RECIPE), tmp_path, until="base", quiet=True)
    assert states(RECIPE, tmp_path) == {
        "pages": "done",
        "words": "done",
        "base": "done",
        "tuned": "to do",
        "table": "to do",
    }
    other = changed(words={"separator": "-"})
    assert states(other, tmp_path) == {
        "pages": "done",
        "words": "stale",
        "base": "stale",
        "tuned": "to do",
        "table": "to do",
    }
    report = recipe.plan(from_values(other), tmp_path, measure=False)
    assert report.stages[1].difference == ("settings.separator: ' ' -> '-'",)
    with pytest.raises(StageFailed):
        recipe.run(from_values(changed(tuned={"fail_with": "chatloom"})), tmp_path, quiet=True)
    assert states(RECIPE, tmp_path)["tuned"] == "half done"
    assert list(states(RECIPE, tmp_path, until="words")) == ["pages", "words"]


def test_a_plan_refuses_with_all_reasons_before_anything_runs(tmp_path: Path) -> None:
    values = changed(base={"steps": 10**9}, tuned={"steps": 10**9})
    with pytest.raises(PlanRefused) as caught:
        recipe.run(from_values(values), tmp_path / "out", quiet=True)
    assert "stage `base`: a billion steps are too many" in str(caught.value)
    assert "stage `tuned`: a billion steps are too many" in str(caught.value)
    assert not (tmp_path / "out" / "pages").exists()


def test_a_plan_refuses_what_does_not_fit_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 100

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    with pytest.raises(PlanRefused, match=r"needs about .* of disk, 0\.0 MB are free"):
        recipe.run(from_values(RECIPE), tmp_path, quiet=True)


def test_disk_that_stages_need_only_while_they_run_is_counted_once(
    fakes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(context: PlanContext) -> Plan:
        size = 100.0 * context.settings.steps
        return Plan((Line("disk", size, "bytes"), Line("disk_meanwhile", 3 * size, "bytes")))

    kinds = {item.kind: replace(item, plan=plan if item.kind == "train" else None) for item in fakes.STAGES}
    monkeypatch.setattr(stages, "find", kinds.__getitem__)
    report = recipe.plan(from_values(changed(base={"steps": 2}, tuned={"steps": 5})), tmp_path, measure=False)
    assert report.totals["disk"].value == 200 + 500 + 1500


@pytest.mark.parametrize("is_file", [False, True])
def test_what_no_stage_made_is_not_replaced_unasked(tmp_path: Path, is_file: bool) -> None:
    mine = tmp_path / "words" if is_file else tmp_path / "words" / "notes.txt"
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine", encoding="utf-8")
    with pytest.raises(PlanRefused, match=r"words is there, and is nothing that a stage finished.*--start-over words"):
        recipe.run(from_values(RECIPE), tmp_path, quiet=True)
    assert mine.read_text(encoding="utf-8") == "mine"
    assert not (tmp_path / "pages").exists()
    recipe.run(from_values(RECIPE), tmp_path, until="words", start_over=["words"], quiet=True)
    assert artifact.exists(tmp_path / "words")


def test_an_empty_folder_may_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "words").mkdir()
    recipe.run(from_values(RECIPE), tmp_path, until="words", quiet=True)
    assert artifact.exists(tmp_path / "words")


def test_a_place_that_cannot_be_written_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(PlanRefused, match="file is a file, not a folder; choose another place with --out"):
        recipe.run(from_values(RECIPE), tmp_path / "file" / "out", quiet=True)
    recipe.run(from_values(RECIPE), tmp_path / "done", quiet=True)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(PlanRefused, match="cannot be written to; choose another place with --out"):
        recipe.run(from_values(RECIPE), tmp_path / "out", quiet=True)
    recipe.plan(from_values(RECIPE), tmp_path / "done", measure=False).check()  # nothing is to be written there


def test_inputs_that_were_made_anew_are_told_in_short(tmp_path: Path) -> None:
    recipe.run(from_values(RECIPE), tmp_path, quiet=True)
    report = recipe.plan(from_values(changed(pages={"text": "other"})), tmp_path, measure=False)
    told = {stage.node.name: stage.difference for stage in report.stages}
    assert told["pages"] == ("settings.text: 'x' -> 'other'",)
    assert len(told["words"]) == 1
    assert re.fullmatch(r"parents\.documents: [0-9a-f]{8} -> [0-9a-f]{8}", told["words"][0])
    assert re.fullmatch(r"parents\.models: ([0-9a-f]{8}(, | -> |$)){4}", told["table"][0])
    many = planning._short(["0123456789abcdef"] * 11)
    assert many == "11 artifacts"


def test_a_missing_outside_input_is_found_by_the_plan(tmp_path: Path) -> None:
    values = changed(pages={"pages": [{"path": str(tmp_path / "a.html")}, {"path": str(tmp_path / "*.txt")}]})
    with pytest.raises(PlanRefused, match=r"a\.html: no such file(.|\n)*\*\.txt: no file matches"):
        recipe.plan(from_values(values), tmp_path / "out", measure=False)


# --- running ----------------------------------------------------------------------------------------------------------


def test_a_run_makes_everything_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = recipe.run(from_values(RECIPE), tmp_path)
    assert list(made) == list(RECIPE["stages"])
    assert made["table"].metrics == {"models": 2}
    written = {name: item.manifest["finished"] for name, item in made.items()}
    capfd.readouterr()
    again = recipe.run(from_values(RECIPE), tmp_path)
    assert {name: item.manifest["finished"] for name, item in again.items()} == written
    assert capfd.readouterr().err.count("done before") == 5


def test_a_runtime_setting_does_not_make_anything_again(tmp_path: Path) -> None:
    recipe.run(from_values(RECIPE), tmp_path, quiet=True)
    assert set(states(changed(pages={"workers": 4}, base={"seconds_a_step": 0.1}), tmp_path).values()) == {"done"}


def test_a_changed_setting_remakes_what_depends_on_it_and_keeps_the_old(tmp_path: Path) -> None:
    first = recipe.run(from_values(RECIPE), tmp_path, quiet=True)
    second = recipe.run(from_values(changed(base={"steps": 4})), tmp_path, quiet=True)
    same = {name for name in first if first[name].fingerprint == second[name].fingerprint}
    assert same == {"pages", "words"}
    for name in ("base", "tuned", "table"):
        assert artifact.load(tmp_path / f"{name}@{first[name].fingerprint[:8]}").fingerprint == first[name].fingerprint
    # going back finds nothing to make but what was moved aside
    assert states(RECIPE, tmp_path) == {
        "pages": "done",
        "words": "done",
        "base": "stale",
        "tuned": "stale",
        "table": "stale",
    }


def test_a_manifest_tells_parents_and_all_ancestors_without_machine_paths(tmp_path: Path) -> None:
    page = tmp_path / "in" / "p.html"
    page.parent.mkdir()
    page.write_text("page", encoding="utf-8")
    values = changed(pages={"pages": {"path": str(page)}})
    made = recipe.run(from_values(values), tmp_path / "out", quiet=True)
    manifest = made["tuned"].manifest
    assert manifest["inputs"]["model"] == [
        {"name": "base", "path": "../base", "kind": "model", "fingerprint": made["base"].fingerprint}
    ]
    assert set(manifest["lineage"]) == {made[name].fingerprint for name in ("pages", "words", "base")}
    assert manifest["lineage"][made["pages"].fingerprint]["data"] == ["pages.0/p.html"]
    assert str(tmp_path) not in json.dumps(manifest)
    assert manifest["wall_seconds"] >= 0
    assert manifest["peak_memory_bytes"] > 1e6


def test_the_summary_holds_every_stage_with_its_numbers(tmp_path: Path) -> None:
    recipe.run(from_values(RECIPE), tmp_path, quiet=True)
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert summary["complete"]
    assert summary["stages"]["base"]["metrics"] == {"steps": 3}
    assert set(summary["stages"]["base"]) >= {"wall_seconds", "peak_memory_bytes", "fingerprint"}


def test_outside_data_is_known_by_content_and_not_by_place(tmp_path: Path) -> None:
    prints = []
    for folder, text in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "p.html").write_text(text, encoding="utf-8")
        values = changed(pages={"pages": {"path": str(tmp_path / folder / "*.html")}})
        prints.append(recipe.run(from_values(values), tmp_path / folder / "out", quiet=True)["table"].fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_an_artifact_from_outside_is_a_parent_and_its_kind_is_checked(tmp_path: Path) -> None:
    first = recipe.run(from_values(RECIPE), tmp_path / "one", quiet=True)
    entry = {
        "stage": "train",
        "vocabulary": {"path": str(tmp_path / "one/words")},
        "model": {"path": str(tmp_path / "one/base")},
    }
    made = recipe.run(from_values({"stages": {"more": entry}}), tmp_path / "two", quiet=True)["more"]
    assert made.manifest["parents"] == {"vocabulary": first["words"].fingerprint, "model": first["base"].fingerprint}
    entry["vocabulary"] = {"path": str(tmp_path / "one/pages")}
    with pytest.raises(PlanRefused, match="is a documents artifact, expected vocabulary"):
        recipe.plan(from_values({"stages": {"more": entry}}), tmp_path / "two", measure=False)


def test_a_model_folder_of_another_program_is_taken_by_its_content(tmp_path: Path) -> None:
    recipe.run(from_values(RECIPE), tmp_path / "one", until="words", quiet=True)
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}', encoding="utf-8")
    entry = {"stage": "train", "vocabulary": {"path": str(tmp_path / "one/words")}, "model": {"path": str(folder)}}
    first = recipe.plan(from_values({"stages": {"more": entry}}), tmp_path, measure=False).stages[0].identity
    (folder / "model.safetensors").write_bytes(b"weights")
    second = recipe.plan(from_values({"stages": {"more": entry}}), tmp_path, measure=False).stages[0].identity
    assert first.fingerprint != second.fingerprint
    (folder / "config.json").write_text('{"architectures": ["LlamaForSequenceClassification"]}', encoding="utf-8")
    with pytest.raises(PlanRefused, match="no artifact here"):
        recipe.plan(from_values({"stages": {"more": entry}}), tmp_path, measure=False)


def test_a_stage_alone_follows_the_same_rules(tmp_path: Path) -> None:
    page = tmp_path / "p.html"
    page.write_text("page", encoding="utf-8")
    pages = recipe.run_stage("write", {"text": "t"}, {"pages": [page]}, tmp_path / "pages", quiet=True)
    words = recipe.run_stage("join", {}, {"documents": [pages]}, tmp_path / "words", seed=3, quiet=True)
    assert words.file("text.txt").read_text(encoding="utf-8") == "t\npage"
    assert words.manifest["seed"] == 3
    again = recipe.run_stage(
        "join", {}, {"documents": [{"path": str(pages.path)}]}, tmp_path / "words", seed=3, quiet=True
    )
    assert again.manifest["finished"] == words.manifest["finished"]
    with pytest.raises(RecipeError, match=r"join\.separatr: .*did you mean `separator`"):
        recipe.run_stage("join", {"separatr": ""}, {"documents": [pages]}, tmp_path / "words")


@pytest.mark.parametrize("change", ["other content", "gone"])
def test_outside_data_that_changes_while_a_stage_runs_is_never_taken_for_what_was_planned(
    tmp_path: Path, fakes: ModuleType, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    file = tmp_path / "p.html"
    file.write_text("one", encoding="utf-8")
    toy = from_values(changed(pages={"pages": {"path": str(file)}}))
    read = fakes.write

    def disturbed(context: Any) -> None:
        read(context)
        file.unlink() if change == "gone" else file.write_text("two", encoding="utf-8")

    _, about = stages.MODULES["write"]
    stage = replace(sys.modules["fake_stage_write"].STAGE, run=disturbed)
    monkeypatch.setattr(sys.modules["fake_stage_write"], "STAGE", stage)
    monkeypatch.setitem(stages.MODULES, "write", ("fake_stage_write", about))
    toy = from_values(changed(pages={"pages": {"path": str(file)}}))
    with pytest.raises(StageFailed, match=r"`pages`: p.html changed while the stage ran.*--start-over pages"):
        recipe.run(toy, tmp_path / "out", quiet=True)
    stage = replace(stage, run=read)
    monkeypatch.setattr(sys.modules["fake_stage_write"], "STAGE", stage)
    toy = from_values(changed(pages={"pages": {"path": str(file)}}))
    for text in ("two", "one"):  # also what was planned at first is not what was read
        file.write_text(text, encoding="utf-8")
        with pytest.raises(PlanRefused, match="changed while it was read"):
            recipe.run(toy, tmp_path / "out", quiet=True)
    made = recipe.run(toy, tmp_path / "out", start_over=["pages"], quiet=True)
    assert (made["pages"].path / "text.txt").read_text(encoding="utf-8") == "x\none"


# --- remembered hashes ------------------------------------------------------------------------------------------------


class Outside:
    """A file outside the recipe, the plan of a stage that takes it, and how often its bytes are read."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.file, self.out, self.reads = folder / "in" / "p.html", folder / "out", 0
        self.file.parent.mkdir()
        self.recipe = from_values(changed(pages={"pages": {"path": str(self.file)}}))
        hash_file = artifact.sha256_file

        def counting(path: Path) -> str:
            self.reads += path == self.file
            return hash_file(path)

        monkeypatch.setattr(artifact, "sha256_file", counting)

    def write(self, text: str, seconds_ago: float) -> None:
        self.file.write_text(text, encoding="utf-8")
        then = time.time_ns() - int(seconds_ago * 1e9)
        os.utime(self.file, ns=(then, then))

    def plan(self, *, new_process: bool = True) -> tuple[str, int]:
        """Fingerprint of the stage, and how often the file was read for it."""
        if new_process:
            hashes._of_folder.cache_clear()
        before = self.reads
        found = recipe.plan(self.recipe, self.out, until="pages", measure=False).stages[0].identity.fingerprint
        return found, self.reads - before

    def run(self) -> None:
        hashes._of_folder.cache_clear()
        recipe.run(self.recipe, self.out, until="pages", quiet=True)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Outside:
    return Outside(tmp_path, monkeypatch)


def test_outside_data_that_has_not_changed_is_read_once(data: Outside) -> None:
    data.write("one", seconds_ago=60)
    first = data.plan()
    assert first[1] == 1
    assert data.plan(new_process=False) == (first[0], 0)
    assert not data.out.exists()  # a plan writes nothing, so another process reads again until a run has begun
    data.run()
    assert data.plan() == (first[0], 0)
    assert [item.name for item in data.out.iterdir() if "hashes" in item.name] == [hashes.NAME]


def test_changed_outside_data_is_seen_also_when_its_size_is_the_same(data: Outside) -> None:
    data.write("one", seconds_ago=60)
    data.run()
    one, _ = data.plan()
    data.write("two", seconds_ago=30)
    two, reads = data.plan()
    assert (two != one, reads) == (True, 1)
    data.write("one", seconds_ago=20)
    assert data.plan(new_process=False) == (one, 1)
    kept = data.file.stat()
    data.file.rename(data.file.with_suffix(".old"))
    data.file.write_text("two", encoding="utf-8")
    os.utime(data.file, ns=(kept.st_atime_ns, kept.st_mtime_ns))  # as a copy that keeps times
    assert data.plan(new_process=False) == (two, 1)


def test_outside_data_changed_a_moment_ago_is_read_again(data: Outside) -> None:
    data.write("one", seconds_ago=0)
    data.run()
    assert data.plan()[1] == 1
    assert data.plan(new_process=False)[1] == 1
    data.write("one", seconds_ago=-3600)  # a clock that is ahead
    data.run()
    assert data.plan()[1] == 1


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        '{"format": 1}',
        '{"format": 2, "files": {}}',
        '{"format": 1, "files": {"FILE": [3, 0]}}',
        '{"format": 1, "files": {"FILE": [SIZE, TIME, INODE, "short"]}}',
        '{"format": 1, "files": {"FILE": [SIZE, TIME, INODE, null]}}',
    ],
)
def test_damaged_hashes_are_ignored_and_written_anew(data: Outside, damage: str) -> None:
    data.write("one", seconds_ago=60)
    data.run()
    first, _ = data.plan()
    state = data.file.stat()
    for word, value in (("FILE", data.file), ("SIZE", state.st_size), ("TIME", state.st_mtime_ns)):
        damage = damage.replace(word, str(value))
    (data.out / hashes.NAME).write_text(damage.replace("INODE", str(state.st_ino)), encoding="utf-8")
    assert data.plan() == (first, 1)
    data.run()
    assert data.plan() == (first, 0)


def test_a_remembered_folder_has_the_hash_of_its_content(data: Outside) -> None:
    data.write("one", seconds_ago=60)
    (data.file.parent / "sub").mkdir()
    (data.file.parent / "sub" / "q.html").write_text("two", encoding="utf-8")
    known = hashes.Hashes(data.out)
    for _ in range(2):
        assert known.content(data.file.parent) == artifact.sha256_tree(data.file.parent)
    assert data.reads == 1


def test_hashes_that_cannot_be_written_stop_nothing(data: Outside) -> None:
    data.write("one", seconds_ago=60)
    (data.out / hashes.NAME).mkdir(parents=True)
    data.run()
    assert data.plan()[1] == 1
    assert artifact.exists(data.out / "pages")
    assert not list(data.out.glob("*.tmp"))


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_an_error_in_a_stage_starts_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match="stage `base`: the weights are upside down; turn them"):
        recipe.run(from_values(changed(base={"fail_with": "chatloom"})), tmp_path, quiet=True)


def test_a_mistake_in_the_program_is_not_dressed_up(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        recipe.run(from_values(changed(base={"fail_with": "bug"})), tmp_path, quiet=True)


@pytest.mark.parametrize("how", ["disk", "disk text"])
def test_a_full_disk_ends_in_a_sentence_and_the_run_goes_on_after_it(tmp_path: Path, how: str) -> None:
    with pytest.raises(StageFailed, match=r"stage `base`: the disk is full at .* make room and run the same command"):
        recipe.run(from_values(changed(base={"fail_with": how})), tmp_path, quiet=True)
    assert not artifact.exists(tmp_path / "base")
    recipe.run(from_values(RECIPE), tmp_path, quiet=True)
    assert artifact.load(tmp_path / "base", verify=True).metrics == {"steps": 3}


@pytest.mark.parametrize(
    ("how", "message"),
    [("gone", "page-that-was-there.html: is not there any more; put it back"), ("memory", "needs more memory than")],
)
def test_what_the_machine_lacks_is_told_in_a_sentence_that_says_how_to_go_on(
    tmp_path: Path, how: str, message: str
) -> None:
    with pytest.raises(StageFailed, match=f"stage `base`: .*{message}.* run the same command to go on"):
        recipe.run(from_values(changed(base={"fail_with": how})), tmp_path, quiet=True)
    recipe.run(from_values(RECIPE), tmp_path, quiet=True)
    assert artifact.load(tmp_path / "base", verify=True).metrics == {"steps": 3}


def test_a_file_that_may_not_be_read_is_named_by_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.html"
    page.write_text("words", encoding="utf-8")

    def refuse(path: Path) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(artifact, "sha256_file", refuse)
    graph = from_values(changed(pages={"pages": {"path": str(page)}}))
    with pytest.raises(
        artifact.ArtifactError, match=r"page\.html: cannot be read \(Permission denied\); give the right"
    ):
        recipe.plan(graph, tmp_path / "out", measure=False)


def test_a_really_full_disk_ends_in_a_sentence(tmp_path: Path, fakes: ModuleType) -> None:
    # RLIMIT_FSIZE lets no file grow beyond a size, which is as near to a full disk as a test without root comes.
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(changed(pages={"text": "x" * 50_000})), encoding="utf-8")
    limit = "import resource, runpy, sys\nresource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
    code = limit + "sys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code, str(FAKES), str(tmp_path / "r.yaml"), str(tmp_path / "out")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "the disk is full at" in done.stderr
    assert "Traceback" not in done.stderr
    assert not artifact.exists(tmp_path / "out" / "pages")


def child(tmp_path: Path, values: dict[str, Any], *more: str) -> subprocess.Popen[str]:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    command = [sys.executable, str(FAKES), str(tmp_path / "r.yaml"), str(tmp_path / "out"), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_run_goes_on_where_it_was_and_counts_all_attempts(tmp_path: Path) -> None:
    process = child(tmp_path, changed(base={"die_at": 2}))
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    partial = tmp_path / "out" / "base.partial"
    assert len((partial / "steps.txt").read_text(encoding="utf-8").splitlines()) == 2
    made = recipe.run(from_values(RECIPE), tmp_path / "out", quiet=True)
    whole = recipe.run(from_values(RECIPE), tmp_path / "whole", quiet=True)
    assert made["base"].file("steps.txt").read_bytes() == whole["base"].file("steps.txt").read_bytes()
    assert (made["base"].manifest["attempts"], whole["base"].manifest["attempts"]) == (2, 1)
    # `page.html` shows the seconds and the memory of its own run.
    files = [
        {k: v for k, v in item.manifest["files"].items() if k != "page.html"} for item in (made["base"], whole["base"])
    ]
    assert files[0] == files[1]
    assert files[0]


def test_a_changed_setting_on_a_half_done_stage_is_refused_with_the_difference(tmp_path: Path) -> None:
    child(tmp_path, changed(base={"die_at": 2})).communicate(timeout=60)
    other = changed(base={"steps": 4})
    with pytest.raises(PlanRefused, match=r"stage `base` is half done with other settings:\s+settings\.steps: 3 -> 4"):
        recipe.run(from_values(other), tmp_path / "out", quiet=True)
    made = recipe.run(from_values(other), tmp_path / "out", start_over=["base"], quiet=True)
    assert len(made["base"].file("steps.txt").read_text(encoding="utf-8").splitlines()) == 4


def test_starting_over_makes_a_done_stage_again(tmp_path: Path) -> None:
    first = recipe.run(from_values(RECIPE), tmp_path, quiet=True)
    second = recipe.run(from_values(RECIPE), tmp_path, start_over=["base"], quiet=True)
    assert second["base"].manifest["finished"] > first["base"].manifest["finished"]
    assert second["tuned"].manifest["finished"] == first["tuned"].manifest["finished"]
    assert not list(tmp_path.glob("*.partial"))


def test_a_stage_that_began_and_did_nothing_is_begun_anew_with_other_settings(tmp_path: Path) -> None:
    """A stage that refuses its data leaves nothing to go on with; the cure it named must work without --start-over."""
    with pytest.raises(StageFailed):
        recipe.run(from_values(changed(base={"fail_with": "chatloom", "steps": 3})), tmp_path, quiet=True)
    assert states(changed(base={"steps": 3}), tmp_path)["base"] == "half done"
    assert states(changed(base={"steps": 4}), tmp_path)["base"] == "to do"
    made = recipe.run(from_values(changed(base={"steps": 4})), tmp_path, quiet=True)
    assert made["base"].metrics == {"steps": 4}


def test_a_file_that_may_not_be_written_ends_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbid(*arguments: Any, **named: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", "/there/words")

    monkeypatch.setattr(artifact, "begin", forbid)
    with pytest.raises(StageFailed, match="stage `pages`: /there/words: Permission denied; give the right"):
        recipe.run(from_values(RECIPE), tmp_path, quiet=True)


def test_a_damaged_artifact_is_refused_and_can_be_made_again(tmp_path: Path) -> None:
    recipe.run(from_values(RECIPE), tmp_path, quiet=True)
    (tmp_path / "base" / "steps.txt").write_text("short", encoding="utf-8")
    with pytest.raises(PlanRefused, match=r"stage `base`: damaged: .*--start-over base"):
        recipe.run(from_values(RECIPE), tmp_path, quiet=True)
    recipe.run(from_values(RECIPE), tmp_path, start_over=["base"], quiet=True)
    artifact.load(tmp_path / "base", verify=True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_being_stopped_says_how_to_go_on(tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = child(tmp_path, changed(base={"seconds_a_step": 0.2, "steps": 200}))
    steps = tmp_path / "out" / "base.partial" / "steps.txt"
    deadline = time.monotonic() + 60
    while not steps.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, number)
    _, text = process.communicate(timeout=60)
    assert process.returncode == code, text
    assert "Stopped in stage `base`" in text
    assert "To go on:\n  chatloom " in text
    assert "Traceback" not in text
    assert states(changed(base={"steps": 200}), tmp_path / "out")["base"] == "half done"


def test_two_runs_do_not_write_one_stage(tmp_path: Path) -> None:
    process = child(tmp_path, changed(base={"seconds_a_step": 0.5, "steps": 200}))
    try:
        steps = tmp_path / "out" / "base.partial" / "steps.txt"
        deadline = time.monotonic() + 60
        while not steps.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(StageFailed, match=rf"stage `base`: .*another process \(pid {process.pid} "):
            recipe.run(from_values(changed(base={"steps": 200})), tmp_path / "out", quiet=True)
    finally:
        process.kill()
        process.communicate(timeout=60)
