"""How well a score parts two groups, and whether a probability can be believed: plain NumPy, no ties ignored."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

F64 = NDArray[np.float64]


def auc(high: ArrayLike, low: ArrayLike) -> float:
    """Probability that a random member of the first group has the higher score; equal scores count half.

    The Mann-Whitney statistic over ranks. NaN where a group is empty.
    """
    first, second = np.asarray(high, float), np.asarray(low, float)
    if not len(first) or not len(second):
        return math.nan
    _, inverse, counts = np.unique(np.concatenate([first, second]), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # from 1, the mean rank of equal scores
    above = float(ranks[: len(first)].sum()) - len(first) * (len(first) + 1) / 2
    return above / (len(first) * len(second))


def auc_error(value: float, n_high: int, n_low: int) -> float:
    """Standard error of an area under the curve (Hanley & McNeil 1982, Radiology 143)."""
    both_high, both_low = value / (2 - value), 2 * value**2 / (1 + value)
    variance = value * (1 - value) + (n_high - 1) * (both_high - value**2) + (n_low - 1) * (both_low - value**2)
    return math.sqrt(max(variance, 0.0) / (n_high * n_low))


def log_loss(probabilities: ArrayLike, truths: ArrayLike, weights: F64 | None = None) -> float:
    """Mean of -log(probability given to what is true), nats."""
    p, truth = np.clip(np.asarray(probabilities, float), 1e-12, 1 - 1e-12), np.asarray(truths, bool)
    return float(np.average(-np.log(np.where(truth, p, 1 - p)), weights=weights))


def brier(probabilities: ArrayLike, truths: ArrayLike, weights: F64 | None = None) -> float:
    """Mean squared error of a probability (Brier 1950): 0 is perfect, 0.25 a coin."""
    return float(np.average((np.asarray(probabilities, float) - np.asarray(truths, float)) ** 2, weights=weights))


def reliability(
    probabilities: ArrayLike, truths: ArrayLike, weights: F64 | None = None, *, bins: int = 10
) -> list[dict[str, Any]]:
    """For each tenth of the scale that is used: n, mean score, share of positives with its 95 % interval (Wilson).

    `weights` balance the groups; the interval takes the number of texts that the weights are worth (Kish 1965).
    """
    p, truth = np.asarray(probabilities, float), np.asarray(truths, float)
    weight = np.ones(len(p)) if weights is None else np.asarray(weights, float)
    rows = []
    places = np.minimum((p * bins).astype(int), bins - 1)
    for bin_ in range(bins):
        inside = places == bin_
        if not inside.any():
            continue
        own = weight[inside]
        share = float(np.average(truth[inside], weights=own))
        low, high = _wilson(share, float(own.sum() ** 2 / (own**2).sum()))
        rows.append(
            {
                "n": int(inside.sum()),
                "weight": float(own.sum()),
                "score": float(np.average(p[inside], weights=own)),
                "share": share,
                "low": low,
                "high": high,
            }
        )
    return rows


def calibration_error(rows: list[dict[str, Any]]) -> float:
    """Expected calibration error: mean distance between score and share of positives (Guo et al. 2017)."""
    total = sum(row["weight"] for row in rows)
    return float(sum(row["weight"] * abs(row["score"] - row["share"]) for row in rows) / total) if total else math.nan


def _wilson(share: float, n: float, z: float = 1.96) -> tuple[float, float]:
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
