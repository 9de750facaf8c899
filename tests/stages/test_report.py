"""Promises of the report stage: seeds are summed up by the score that their methods were compared by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chatloom.artifact import Artifact
from chatloom.evaluation.comparison import compare
from chatloom.reporting.report import render_report
from chatloom.stages.report import Run, _results


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
