"""Promises of kinds that stand for several stages: they are read as these, and the short way is the long way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chatloom import recipe, stages
from chatloom.errors import ChatloomError
from chatloom.recipe import Recipe, RecipeError
from chatloom.recipe.graph import Source
from chatloom.recipe.reading import from_values

SHORT: dict[str, Any] = {
    "corpus": {
        "stage": "corpus",
        "pages": {"path": "crawl"},
        "labels": {"labellers": {"language": {}}},
        "duplicates": {"held_out_share": 0.02},
        "selection": {"language": {"keep": ["en"]}},
    },
    "words": {"stage": "tokenizer", "documents": [{"from": "corpus"}]},
}
LONG: dict[str, Any] = {
    "corpus.documents": {"stage": "documents", "pages": {"path": "crawl"}},
    "corpus.labels": {
        "stage": "labels", "documents": {"from": "corpus.documents"}, "labellers": {"language": {}},
    },
    "corpus.duplicates": {"stage": "duplicates", "documents": {"from": "corpus.documents"}, "held_out_share": 0.02},
    "corpus.selection": {
        "stage": "selection", "documents": {"from": "corpus.documents"}, "labels": {"from": "corpus.labels"},
        "duplicates": {"from": "corpus.duplicates"}, "language": {"keep": ["en"]},
    },
    "words": {"stage": "tokenizer", "documents": [{"from": "corpus.selection"}]},
}  # fmt: skip
PARTS = [f"corpus.{kind}" for kind in ("documents", "labels", "duplicates", "selection")]


def read(corpus: dict[str, Any] | None = None, **others: Any) -> Recipe:
    """SHORT with changes to its corpus and with other keys of a recipe."""
    return from_values({"stages": {**SHORT, "corpus": {**SHORT["corpus"], **(corpus or {})}}, **others})


def test_a_chain_is_read_as_the_stages_it_stands_for() -> None:
    short, long = read(), from_values({"stages": LONG})
    assert list(short.nodes) == list(long.nodes)
    for name, node in long.nodes.items():
        assert short.nodes[name].settings == node.settings
        assert short.nodes[name].inputs == node.inputs
        assert short.nodes[name].stage is node.stage
    assert short.nodes["words"].inputs["documents"] == (Source(stage="corpus.selection"),)


def test_the_chain_s_name_means_all_its_stages_where_stages_are_named() -> None:
    graph = read()
    assert graph.named("corpus") == PARTS
    assert graph.named("corpus.labels") == ["corpus.labels"]
    with pytest.raises(RecipeError, match=r"no stage `corpus\.label`; did you mean `corpus\.labels`"):
        graph.named("corpus.label")


def test_a_group_may_give_inputs_and_may_wire_its_stage_otherwise() -> None:
    models = {"models": [{"from": "lm"}], "labellers": {"language": {}, "perplexity": {"model": "lm"}}}
    more = {"labels": [{"from": "corpus.labels"}, {"path": "others"}]}
    entries = {
        **SHORT,
        "corpus": {**SHORT["corpus"], "labels": models, "selection": more},
        "lm": {"stage": "ngram-model", "reference": {"from": "corpus.documents"}},
    }
    nodes = from_values({"stages": entries}).nodes
    assert nodes["corpus.labels"].parents == ("corpus.documents", "lm")
    assert nodes["corpus.selection"].inputs["labels"] == (Source(stage="corpus.labels"), Source(path="others"))


def test_what_is_given_once_reaches_every_stage_and_a_group_has_the_last_word() -> None:
    nodes = read({"engine": {"workers": 3}, "seed": 7, "labels": {"engine": {"workers": 1}, "seed": 8}}).nodes
    settings = {name: nodes[name].settings.everything() for name in PARTS}
    workers = {name: values["engine"]["workers"] for name, values in settings.items() if "engine" in values}
    assert workers == {**dict.fromkeys(workers, 3), "corpus.labels": 1}
    assert {"corpus.documents", "corpus.labels", "corpus.selection"} <= set(workers)
    assert [nodes[name].seed for name in PARTS] == [7, 8, 7, 7]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rules": {"preset": "web"}}, r"stages\.corpus\.rules: `corpus` has no such .*; write `selection: \{rules: "),
        ({"extraction": {}}, r"stages\.corpus\.extraction: .*; write `documents: \{extraction: "),
        ({"selectoin": {}}, r"stages\.corpus\.selectoin: .*; did you mean `selection`"),
        ({"labels": 3}, r"stages\.corpus\.labels: expected a group with what `labels` holds, found 3"),
        ({"duplicates": {"treshold": 0.7}}, r"stages\.corpus\.duplicates\.treshold: .*did you mean `threshold`"),
        ({"selection": {"rules": {"preset": "wbe"}}}, r"stages\.corpus\.selection\.rules\.preset: "),
        ({"seed": -1}, r"stages\.corpus\.documents\.seed: expected a whole number"),
    ],
)
def test_mistakes_in_a_chain_are_named_where_they_stand(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read(change)


def test_a_stage_of_the_same_name_is_not_replaced() -> None:
    entries = {**SHORT, "corpus.labels": {"stage": "labels", "documents": {"from": "corpus.documents"}}}
    with pytest.raises(RecipeError, match=r"stages\.corpus\.labels: `corpus` makes a stage of this name"):
        from_values({"stages": entries})


def test_a_reference_to_what_the_chain_s_last_stage_does_not_make_names_the_stage_that_does() -> None:
    entries = {**SHORT, "again": {"stage": "labels", "documents": {"from": "corpus"}}}
    with pytest.raises(RecipeError, match=r"`corpus\.selection` makes selection; made by `corpus\.documents`"):
        from_values({"stages": entries})


def test_a_matrix_over_the_selection_makes_the_rest_once() -> None:
    values = {"corpus.selection.rules.preset": ["web", "curated"]}
    nodes = read(matrix={"values": values, "stages": ["corpus.selection"]}).nodes
    chosen = {f"corpus.selection-preset{name}": name for name in ("web", "curated")}
    assert set(nodes) == {*PARTS[:3], *chosen, "words-presetweb", "words-presetcurated"}
    assert {name: nodes[name].settings.everything()["rules"]["preset"] for name in chosen} == chosen
    assert nodes["words-presetweb"].parents == ("corpus.selection-presetweb",)


def test_a_matrix_over_a_chain_repeats_all_of_it_and_old_names_are_still_understood() -> None:
    graph = read(matrix={"values": {"seed": [0, 1], "corpus.duplicates.threshold": [0.8]}, "stages": ["corpus"]})
    assert len(graph.nodes) == 2 * 5
    for seed in (0, 1):
        node = graph.nodes[f"corpus.duplicates-seed{seed}-threshold0.8"]
        assert (node.seed, node.settings.everything()["threshold"]) == (seed, 0.8)
        assert node.parents == (f"corpus.documents-seed{seed}-threshold0.8",)
    assert graph.named("corpus.duplicates") == [f"corpus.duplicates-seed{seed}-threshold0.8" for seed in (0, 1)]
    assert len(graph.named("corpus")) == 8


def test_overrides_reach_into_the_groups(tmp_path: Path) -> None:
    file = tmp_path / "short.yaml"
    file.write_text("stages:\n  corpus: {stage: corpus, pages: {path: crawl}}\n", encoding="utf-8")
    graph = recipe.read(file, ["corpus.documents.limit=5", "corpus.pages={path: other}"])
    assert graph.nodes["corpus.documents"].settings.everything()["limit"] == 5
    assert graph.nodes["corpus.documents"].inputs["pages"] == (Source(path="other"),)


def test_a_chain_runs_alone_into_a_folder_of_its_stages(tmp_path: Path) -> None:
    page = tmp_path / "page.txt"
    page.write_text("The cat sat on the mat, and that was the end of it.", encoding="utf-8")
    settings = {"selection": {"rules": {"preset": "none"}}, "engine": {"workers": 1}}
    made = recipe.run_stage("corpus", settings, {"pages": [page]}, tmp_path / "out", seed=3, quiet=True)
    assert (made.kind, made.path, made.manifest["seed"]) == ("selection", tmp_path / "out/corpus.selection", 3)
    assert made.metrics["documents"] == 1
    again = recipe.run_stage("corpus", settings, {"pages": [page]}, tmp_path / "out", seed=3, quiet=True)
    assert again.manifest["finished"] == made.manifest["finished"]
    over = recipe.run_stage(
        "corpus", settings, {"pages": [page]}, tmp_path / "out", seed=3, start_over=True, quiet=True
    )
    assert over.manifest["finished"] > made.manifest["finished"]


def test_a_chain_is_no_stage_and_is_known_where_kinds_are_misspelt() -> None:
    with pytest.raises(ChatloomError, match="`corpus` stands for the stages `documents`, `labels`"):
        stages.find("corpus")
    with pytest.raises(RecipeError, match="`corpsu`; did you mean `corpus`"):
        from_values({"stages": {"pages": {"stage": "corpsu"}}})
