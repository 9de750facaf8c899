"""Promises of the reward model's figures: hand-computed values, honest calibration, length bias seen."""

from __future__ import annotations

import math

import numpy as np
import pytest

from chatloom.evaluation.calibration import (
    brier,
    correlation,
    expected_calibration_error,
    judge_pairs,
    length_bias,
    reliability_bins,
)
from chatloom.evaluation.statistics import EvaluationError


def test_figures_of_four_pairs_equal_those_computed_by_hand() -> None:
    # margins ln 3, -ln 3, 0, ln 9: P(chosen better) = 3/4, 1/4, 1/2, 9/10
    report = judge_pairs([math.log(3), 0.0, 1.0, math.log(9)], [0.0, math.log(3), 1.0, 0.0])
    assert report["accuracy"] == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert report["brier"] == pytest.approx((0.25**2 + 0.75**2 + 0.5**2 + 0.1**2) / 4)
    assert report["loss"] == pytest.approx(-sum(math.log(p) for p in (0.75, 0.25, 0.5, 0.9)) / 4)
    # bins of width 0.05: [0.5] right half, [0.75, 0.75] right half, [0.9] right
    assert report["ece"] == pytest.approx((0.0 + 2 * abs(0.5 - 0.75) + abs(1.0 - 0.9)) / 4)


def test_a_calibrated_model_has_no_error_and_an_overconfident_one_has() -> None:
    generator = np.random.default_rng(0)
    margins = np.abs(generator.normal(0, 2, 40_000))
    right = generator.uniform(size=len(margins)) < 1 / (1 + np.exp(-margins))
    signed = np.where(right, margins, -margins)
    calibrated = reliability_bins(signed)
    assert expected_calibration_error(calibrated) < 0.01
    assert expected_calibration_error(reliability_bins(4 * signed)) > 0.1
    assert sum(row["n"] for row in calibrated) == 40_000
    assert brier(4 * signed) > brier(signed)


def test_enormous_margins_overflow_nothing() -> None:
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        report = judge_pairs([1e6, -1e6], [-1e6, 1e6])
    assert report["accuracy"] == 0.5
    assert report["brier"] == pytest.approx(0.5)
    assert report["ece"] == pytest.approx(0.5)


def test_accuracy_is_told_apart_by_kind() -> None:
    report = judge_pairs(
        [1, 1, 0, 2], [0, 0, 1, 1], kinds=["cut off", "cut off", "another function", "another function"]
    )
    assert report["by_kind"]["cut off"]["accuracy"] == 1.0
    assert report["by_kind"]["another function"]["accuracy"] == 0.5
    assert report["by_kind"]["another function"]["n"] == 2


def test_a_model_that_only_likes_length_is_seen_through() -> None:
    generator = np.random.default_rng(2)
    long, short = generator.integers(50, 90, 200), generator.integers(5, 40, 200)
    chosen = np.where(np.arange(200) % 2, long, short)
    rejected = np.where(np.arange(200) % 2, short, long)
    bias = length_bias(0.1 * (chosen - rejected), chosen, rejected)
    assert bias["correlation"] == pytest.approx(1.0)
    assert bias["rank_correlation"] == pytest.approx(1.0)
    assert (bias["longer"]["accuracy"], bias["shorter"]["accuracy"]) == (1.0, 0.0)


def test_correlation_of_something_constant_is_unknown_not_zero() -> None:
    assert correlation([1, 1, 1], [1, 2, 3]) is None


def test_bad_scores_are_refused() -> None:
    with pytest.raises(EvaluationError, match="finite"):
        judge_pairs([1.0, math.nan], [0.0, 0.0])
    with pytest.raises(EvaluationError):
        judge_pairs([], [])
    with pytest.raises(EvaluationError, match="kinds"):
        judge_pairs([1.0], [0.0], kinds=["a", "b"])
