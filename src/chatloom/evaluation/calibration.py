"""Judging a reward model on held-out pairs: how often it is right, on what, and whether its confidence can be believed.

A pairwise reward model says P(chosen better than rejected) = sigmoid(margin), margin = score of chosen - score of
rejected (Bradley-Terry). Its confidence in the answer it prefers is max(p, 1 - p); calibrated means: of pairs judged
with confidence 0.8, four in five are right (Guo et al. 2017, arXiv 1706.04599).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from chatloom.evaluation.statistics import EvaluationError, wilson


def judge_pairs(
    chosen: ArrayLike,
    rejected: ArrayLike,
    *,
    kinds: Sequence[str] | None = None,
    chosen_lengths: ArrayLike | None = None,
    rejected_lengths: ArrayLike | None = None,
    bins: int = 10,
) -> dict[str, Any]:
    """Every held-out figure of a reward model as plain data, from its scores of chosen and rejected answers [n] each.

    Gives n, accuracy with its Wilson interval, mean and standard deviation of the margin, loss (nats), brier, ece,
    `reliability` (a list of bins), `by_kind`, and with lengths (tokens) `length`. Equal scores count as half right.
    """
    margins = _scores(chosen, "chosen") - _scores(rejected, "rejected")
    correct = _correct(margins)
    reliability = reliability_bins(margins, bins=bins)
    report: dict[str, Any] = {
        "n": len(margins),
        **_accuracy(correct),
        "margin_mean": float(margins.mean()),
        "margin_std": float(margins.std()),
        "loss": float(np.logaddexp(0.0, -margins).mean()),  # -log sigmoid(margin)
        "brier": brier(margins),
        "ece": expected_calibration_error(reliability),
        "reliability": reliability,
    }
    if kinds is not None:
        _same_length(kinds, margins, "kinds")
        report["by_kind"] = {
            kind: _accuracy(correct[[other == kind for other in kinds]]) for kind in sorted(set(kinds))
        }
    if chosen_lengths is not None and rejected_lengths is not None:
        report["length"] = length_bias(margins, chosen_lengths, rejected_lengths)
    return report


def reliability_bins(margins: ArrayLike, *, bins: int = 10) -> list[dict[str, float]]:
    """Pairs grouped by confidence in [0.5, 1]: `low`, `high`, `n`, mean `confidence`, `accuracy` and its interval.

    Bins without pairs are left out.
    """
    margins = np.asarray(margins, dtype=float)
    confidence = 1.0 / (1.0 + np.exp(-np.minimum(np.abs(margins), 700.0)))
    correct = _correct(margins)
    index = np.minimum((bins * (confidence - 0.5) / 0.5).astype(int), bins - 1)
    rows = []
    for bin_ in range(bins):
        members = index == bin_
        if members.any():
            row = {"low": 0.5 + 0.5 * bin_ / bins, "high": 0.5 + 0.5 * (bin_ + 1) / bins}
            rows.append({**row, "confidence": float(confidence[members].mean()), **_accuracy(correct[members])})
    return rows


def expected_calibration_error(reliability: Sequence[dict[str, float]]) -> float:
    """Mean distance between confidence and accuracy over pairs: sum of n_bin / n * |accuracy - confidence|."""
    total = sum(row["n"] for row in reliability)
    return float(sum(row["n"] * abs(row["accuracy"] - row["confidence"]) for row in reliability) / total)


def brier(margins: ArrayLike) -> float:
    """Mean squared distance between P(chosen better) and 1 (Brier 1950): 0 is perfect, 0.25 is a coin."""
    margins = np.clip(np.asarray(margins, dtype=float), -700.0, 700.0)
    return float(np.mean((1.0 / (1.0 + np.exp(margins))) ** 2))


def length_bias(margins: ArrayLike, chosen_lengths: ArrayLike, rejected_lengths: ArrayLike) -> dict[str, Any]:
    """Whether the reward follows length: correlation of margin with length difference, accuracy by which is longer.

    `longer` holds pairs whose chosen answer is the longer one. A model that likes length is right there and wrong in
    `shorter`.
    """
    margins = np.asarray(margins, dtype=float)
    difference = _scores(chosen_lengths, "chosen lengths") - _scores(rejected_lengths, "rejected lengths")
    _same_length(difference, margins, "lengths")
    correct = _correct(margins)
    groups = {"longer": difference > 0, "shorter": difference < 0, "same": difference == 0}
    return {
        "correlation": correlation(margins, difference),
        "rank_correlation": correlation(_ranks(margins), _ranks(difference)),
        **{name: _accuracy(correct[members]) for name, members in groups.items() if members.any()},
    }


def correlation(first: ArrayLike, second: ArrayLike) -> float | None:
    """Pearson correlation; None where one side does not vary."""
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float((a * a).sum()) * float((b * b).sum()))
    return float((a * b).sum() / scale) if scale > 0 else None


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks with ties sharing their mean rank (Spearman)."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _correct(margins: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.sign(margins)


def _accuracy(correct: np.ndarray) -> dict[str, float]:
    interval = wilson(float(correct.sum()), len(correct))
    return {"n": len(correct), "accuracy": interval.estimate, "low": interval.low, "high": interval.high}


def _scores(values: ArrayLike, what: str) -> np.ndarray:
    array = np.array(values, dtype=float).reshape(-1)
    if len(array) == 0 or not np.isfinite(array).all():
        raise EvaluationError(
            f"{what}: found {array.tolist()[:5]}..., expected at least one number and all of them finite"
        )
    return array


def _same_length(found: Any, margins: np.ndarray, what: str) -> None:
    if len(found) != len(margins):
        raise EvaluationError(f"{what}: found {len(found)} for {len(margins)} pairs, expected one for each")
