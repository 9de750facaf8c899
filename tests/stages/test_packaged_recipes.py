"""Promises of the recipes that come with chatloom: they can be read, and expand to what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chatloom import recipe
from chatloom.recipe import RecipeError
from chatloom.recipe.reading import packaged, read_values

SEEDS = (0, 1, 2)
SHARED = ("corpus", "questions", "tokenizer", "tokens")
TRAINED = ("pretrain", "sft", "sft-random", "reward", "best-of-n", "dpo", "ppo", "evaluate")


@pytest.mark.parametrize("name", sorted(packaged()))
def test_every_packaged_recipe_can_be_read(name: str) -> None:
    graph = recipe.read(name)
    assert graph.name == name
    assert "report" in graph.nodes


def test_the_full_demo_trains_everything_for_three_seeds_on_the_same_data() -> None:
    nodes = recipe.read("demo-full").nodes
    assert set(nodes) == {*SHARED, *(f"{name}-seed{seed}" for name in TRAINED for seed in SEEDS), "report"}
    for name in SHARED:
        assert nodes[name].seed == 0
    for name in TRAINED:
        for seed in SEEDS:
            node = nodes[f"{name}-seed{seed}"]
            assert node.seed == seed
            assert all(parent in SHARED or parent.endswith(f"-seed{seed}") for parent in node.parents)
    assert set(nodes["report"].parents) == set(nodes) - {"report"}


def test_the_random_row_differs_from_instruction_tuning_in_its_start_alone() -> None:
    nodes = recipe.read("demo-full").nodes
    tuned, random = (nodes[f"{name}-seed0"] for name in ("sft", "sft-random"))
    assert random.settings.result() == {**tuned.settings.result(), "init": "random"}
    assert random.inputs == tuned.inputs
    evaluate = nodes["evaluate-seed0"]
    labels = dict(zip((source.stage for source in evaluate.inputs["models"]), evaluate.settings.labels, strict=True))
    assert labels["sft-random-seed0"] == "sft from random weights"
    assert next(iter(labels)) == "sft-seed0"


def test_the_full_demo_changes_nothing_else() -> None:
    demo, full = recipe.read("demo").nodes, recipe.read("demo-full").nodes
    for name, node in demo.items():
        if name in SHARED:
            assert full[name].settings.result() == node.settings.result()
        elif name not in ("evaluate", "report"):
            assert full[f"{name}-seed0"].settings.result() == node.settings.result()


def test_bring_your_own_names_the_folder_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(recipe.PlanRefused, match="data/pretrain: no such file or folder"):
        recipe.plan(recipe.read("bring-your-own"), tmp_path / "runs", measure=False)


def test_bring_your_own_is_ready_once_the_three_folders_hold_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = {
        "pretrain": [{"text": "A page of text. " * 20}],
        "sft": [{"instruction": "Say hello.", "output": "Hello."}],
        "preference": [{"prompt": "Say hello.", "chosen": "Hello, gladly.", "rejected": "No."}],
    }
    for folder, records in rows.items():
        (tmp_path / "data" / folder).mkdir(parents=True)
        file = tmp_path / "data" / folder / "mine.jsonl"
        file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    report = recipe.plan(recipe.read("bring-your-own"), tmp_path / "runs", measure=False)
    report.check()
    assert [stage.state for stage in report.stages] == ["to do"] * len(report.stages)


def test_bring_your_own_never_reads_outside_its_folders() -> None:
    stages = read_values(packaged()["bring-your-own"])["stages"]
    paths = [
        given["path"]
        for entry in stages.values()
        for given in entry.values()
        if isinstance(given, dict) and "path" in given
    ]
    assert paths == ["data/pretrain", "data/sft", "data/preference"]


def test_an_unknown_recipe_names_those_that_there_are() -> None:
    with pytest.raises(RecipeError, match="did you mean `bring-your-own`"):
        recipe.read("bring-your-ow")
