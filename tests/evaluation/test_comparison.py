"""Promises of the comparison: paired by prompt, groups apart, no method judged on other prompts."""

from __future__ import annotations

import random
from typing import Any

import pytest

from chatloom.evaluation.comparison import HEADLINE, KINDS, LANGUAGES, compare, visible_columns
from chatloom.evaluation.seeds import COLUMNS as SEED_COLUMNS
from chatloom.evaluation.seeds import across_seeds
from chatloom.evaluation.statistics import EvaluationError


def answers(right: float, seed: int = 0, n: int = 60, **extra: Any) -> list[dict[str, Any]]:
    """Scored answers to n prompts of which about a share `right` is right."""
    generator = random.Random(seed)
    rows = []
    for prompt in range(n):
        exact = generator.random() < right
        kind = "trained_function" if prompt < 40 else "heldout_function" if prompt < 50 else "invented_name"
        rows.append(
            {
                "prompt": prompt,
                "f1": 1.0 if exact else 0.4,
                "exact": exact,
                "reward": float(exact),
                "length": 10 + prompt % 5,
                "ended": prompt % 10 != 0,
                "kl": 0.5,
                "language": "zh" if prompt % 2 else "en",
                "kind": kind,
                **extra,
            }
        )
    return rows


def row(rows: list[dict[str, Any]], method: str, group: str = HEADLINE) -> dict[str, Any]:
    (found,) = [r for r in rows if r["method"] == method and r["group"] == group]
    return found


def test_figures_are_means_over_the_prompts_of_the_group() -> None:
    given = answers(0.5)
    rows = compare({"sft": given, "ppo": answers(0.9, 1)}, resamples=200)
    headline = row(rows, "sft")
    assert headline["n"] == 60
    assert headline["f1"] == pytest.approx(sum(a["f1"] for a in given) / 60)
    assert headline["ended"] == pytest.approx(54 / 60)
    assert headline["f1_low"] < headline["f1"] < headline["f1_high"]
    chinese = row(rows, "sft", LANGUAGES["zh"])
    assert chinese["exact"] == pytest.approx(sum(a["exact"] for a in given if a["language"] == "zh") / 30)
    assert row(rows, "sft", KINDS["heldout_function"])["n"] == 10


def test_gain_and_wins_are_paired_and_their_sign_is_right() -> None:
    base = answers(0.5)
    better = [{**a, "f1": min(1.0, a["f1"] + 0.05)} for a in base]
    rows = compare({"sft": base, "dpo": better, "worse": [{**a, "f1": a["f1"] - 0.1} for a in base]}, resamples=500)
    gain = row(rows, "dpo")
    assert 0 < gain["f1_gain_low"] <= gain["f1_gain"] <= 0.05  # far narrower than the spread of the scores
    assert gain["win_low"] > 0.5
    assert gain["losses"] == 0
    assert row(rows, "worse")["f1_gain_high"] < 0
    assert row(rows, "worse")["win_rate"] == 0.0
    assert "f1_gain" not in row(rows, "sft")


def test_the_baseline_against_itself_gains_nothing() -> None:
    rows = compare({"sft": answers(0.5), "same": answers(0.5)}, resamples=200)
    same = row(rows, "same")
    assert (same["f1_gain"], same["win_rate"], same["p_value"]) == (0.0, 0.5, 1.0)
    assert same["win_low"] < 0.5 < same["win_high"]


def test_the_order_of_answers_does_not_matter() -> None:
    base, other = answers(0.5), answers(0.8, 3)
    shuffled = random.Random(1).sample(other, len(other))
    assert compare({"sft": base, "ppo": other}, resamples=200) == compare({"sft": base, "ppo": shuffled}, resamples=200)


def test_several_samples_of_a_prompt_count_once() -> None:
    base = answers(0.5)
    twice = [{**a, "f1": 0.0} for a in base] + [{**a, "f1": 1.0} for a in base]
    rows = compare({"sft": base, "sampled": twice}, resamples=200)
    assert row(rows, "sampled")["n"] == 60
    assert row(rows, "sampled")["f1"] == pytest.approx(0.5)


def test_the_headline_can_leave_kinds_out_while_they_keep_rows_of_their_own() -> None:
    rows = compare({"sft": answers(0.5)}, headline_kinds=["trained_function", "invented_name"], resamples=50)
    headline = f"{KINDS['trained_function']} + {KINDS['invented_name']}"
    assert rows[0]["group"] == headline
    assert row(rows, "sft", headline)["n"] == 50
    assert row(rows, "sft", KINDS["heldout_function"])["n"] == 10


def test_a_headline_of_one_kind_bears_its_name_and_no_second_row_repeats_it() -> None:
    rows = compare({"sft": answers(0.5)}, headline_kinds=["trained_function"], resamples=50)
    assert rows[0]["group"] == KINDS["trained_function"]
    assert [r["group"] for r in rows].count(KINDS["trained_function"]) == 1


def test_an_analytic_kl_takes_the_place_of_a_measured_one() -> None:
    rows = compare({"sft": answers(0.5), "best-of-16": answers(0.8, 2)}, kl={"best-of-16": 1.84}, resamples=50)
    assert row(rows, "best-of-16")["kl"] == 1.84
    assert row(rows, "sft")["kl"] == 0.5


def test_prompts_without_a_true_answer_are_compared_by_another_score() -> None:
    base = [{**a, "f1": None, "exact": None, "polite": i % 4 == 0} for i, a in enumerate(answers(0.5))]
    polite = [{**a, "polite": True} for a in base]
    rows = compare({"sft": base, "dpo": polite}, score="polite", resamples=200)
    assert row(rows, "dpo")["f1"] is None
    assert row(rows, "dpo")["polite_gain"] == pytest.approx(0.75)
    assert row(rows, "dpo")["polite_gain_low"] > 0.6
    keys = [column.key for column in visible_columns(rows)]
    assert "polite_gain" in keys
    assert not {"f1", "f1_gain", "refused"} & set(keys)
    by_gold = compare({"sft": base, "dpo": polite}, resamples=50)
    assert "win_rate" not in row(by_gold, "dpo")


def test_methods_that_answered_other_prompts_are_not_compared() -> None:
    with pytest.raises(EvaluationError, match="1 missing, 0 extra"):
        compare({"sft": answers(0.5), "ppo": answers(0.5)[1:]})
    with pytest.raises(EvaluationError, match="0 missing, 1 extra"):
        compare({"sft": answers(0.5)[1:], "ppo": answers(0.5)})
    with pytest.raises(EvaluationError, match="baseline 'sft'"):
        compare({"ppo": answers(0.5)})
    with pytest.raises(EvaluationError, match="no answers"):
        compare({"sft": answers(0.5), "ppo": []})
    with pytest.raises(EvaluationError, match="lacks exact"):
        compare({"sft": [{"prompt": 1, "f1": 0.5}]})
    with pytest.raises(EvaluationError, match="no prompt is of the kinds"):
        compare({"sft": answers(0.5)}, headline_kinds=["typo"])


def test_seeds_are_summed_up_without_hiding_the_worst() -> None:
    tables = [
        compare({"sft": answers(0.4, 0), "ppo": answers(0.95, seed), "null": answers(0.4, 0)}, resamples=300)
        for seed in (1, 2, 3)
    ]
    summary = {r["method"]: r for r in across_seeds(tables)}
    assert summary["ppo"]["better"] == "3 of 3"
    assert summary["null"]["better"] == "0 of 3"
    assert summary["sft"]["better"] is None
    assert summary["ppo"]["f1_lowest"] == min(row(table, "ppo")["f1"] for table in tables)
    assert summary["ppo"]["f1_lowest"] <= summary["ppo"]["f1"] <= summary["ppo"]["f1_highest"]
    with pytest.raises(EvaluationError, match="seed 1"):
        across_seeds([tables[0], compare({"sft": answers(0.4)}, resamples=10)])


def test_seeds_without_true_answers_are_summed_up_by_politeness() -> None:
    base = [{**a, "f1": None, "exact": None, "polite": i % 4 == 0} for i, a in enumerate(answers(0.5))]
    dpo = [[{**a, "polite": i % 4 < kept} for i, a in enumerate(base)] for kept in (2, 4, 3)]
    tables = [compare({"sft": base, "dpo": found, "null": base}, score="polite", resamples=300) for found in dpo]
    rows = across_seeds(tables)
    summary = {r["method"]: r for r in rows}
    assert summary["dpo"]["polite"] == pytest.approx(0.75)
    assert (summary["dpo"]["polite_lowest"], summary["dpo"]["polite_highest"]) == (0.5, 1.0)
    assert summary["dpo"]["polite_gain"] == pytest.approx(0.5)
    assert [summary[name]["better"] for name in ("sft", "dpo", "null")] == [None, "3 of 3", "0 of 3"]
    keys = [column.key for column in visible_columns(rows, SEED_COLUMNS)]
    assert "polite" in keys
    assert not {"f1", "exact"} & set(keys)
    by_gold = across_seeds([compare({"sft": answers(0.4), "ppo": answers(0.9, 1)}, resamples=50)])
    assert "polite" not in [column.key for column in visible_columns(by_gold, SEED_COLUMNS)]
