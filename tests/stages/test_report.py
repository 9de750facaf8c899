"""Promises of the report stage: the corpus shows what every step let through, seeds are summed up by the score that
their methods were compared by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chatloom.artifact import Artifact
from chatloom.corpus.selection.funnel import selection_funnel
from chatloom.evaluation.comparison import compare
from chatloom.reporting.report import render_report
from chatloom.stages.report import Run, _corpus, _results


def answers(share: float, *, gold: bool) -> list[dict[str, Any]]:
    """Answers to 40 prompts, a share of them right (or, where there is no true answer, polite)."""
    found = []
    for prompt in range(40):
        good = prompt < 40 * share
        scores = {"f1": float(good), "exact": good} if gold else {"f1": None, "exact": None, "polite": good}
        found.append({"prompt": prompt, "kind": "prompt", "reward": 0.0, "ended": True, **scores})
    return found


@pytest.mark.parametrize(("gold", "shown", "hidden"), [(True, "gold F1", "polite"), (False, "polite", "gold F1")])
def test_seeds_are_summed_up_by_gold_or_else_by_politeness(tmp_path: Path, gold: bool, shown: str, hidden: str) -> None:
    score = "f1" if gold else "polite"
    evaluations = []
    for seed in (0, 1):
        methods = {"sft": answers(0.2, gold=gold), "dpo": answers(0.7 + 0.1 * seed, gold=gold)}
        folder = tmp_path / f"evaluate-seed{seed}"
        folder.mkdir()
        (folder / "table.json").write_text(json.dumps({"sampled": compare(methods, score=score, resamples=100)}))
        evaluations.append(Artifact(folder, {"stage": "evaluate", "kind": "evaluation", "files": {}, "metrics": {}}))
    section = _results(Run(evaluations))
    assert section is not None
    page = render_report([section], "")
    summary = page[page.index("<table") : page.index("</table>")]
    assert "2 of 2" in summary
    assert "75.0" in summary
    assert shown in summary
    assert hidden not in summary


def test_the_corpus_section_shows_every_step_of_the_chain_and_what_each_rule_took(tmp_path: Path) -> None:
    read = {"records": 30, "documents": 27, "characters": 9000, "quarantined": 1, "dropped": {"empty": 2}}
    counts = {
        "removed|language|other_language|de|documents": 4, "removed|language|other_language|de|characters": 400,
        "removed|copies|near|en|documents": 3, "removed|copies|near|en|characters": 1111,
        "kept|train|en|documents": 20, "kept|train|en|characters": 7489,
    }  # fmt: skip
    manifest = {"stage": "selection", "kind": "selection", "files": {}, "metrics": selection_funnel(counts, read)}
    section = _corpus(Run([Artifact(tmp_path / "corpus.selection", manifest)]))
    assert section is not None
    page = render_report([section], "")
    for step in ("extraction", "language", "rules", "keep", "copies", "edits"):
        assert step in page
    for shown in ("empty", "other_language", "near", "1,111"):
        assert shown in page
    assert _corpus(Run([])) is None
