"""How sure a comparison is: intervals over prompts, win rates with ties, and exact tests; pure functions over numbers.

Two methods answer the same prompts, so everything here is paired: per prompt differences are resampled, never the
two means apart (Miller 2024, arXiv 2411.00640, section 4). Prompts about one fact belong to one cluster and are
resampled together.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from chatloom.errors import ChatloomError

_DRAWS_AT_ONCE = 4_000_000


class EvaluationError(ChatloomError):
    """Scores that cannot be compared: of different prompts, empty, or not finite."""


@dataclass(frozen=True)
class Interval:
    """An estimate between its lower and upper bound at a confidence level."""

    estimate: float
    low: float
    high: float
    level: float = 0.95

    def excludes(self, value: float = 0.0) -> bool:
        """Whether the interval lies wholly above or wholly below a value."""
        return self.low > value or self.high < value


@dataclass(frozen=True)
class WinRate:
    """Wins of a method over a baseline on the same prompts; `rate` counts a tie as half a win."""

    wins: int
    ties: int
    losses: int
    interval: Interval
    p_value: float  # of the two-sided sign test

    @property
    def rate(self) -> float:
        """(wins + ties / 2) / prompts."""
        return self.interval.estimate


def paired_bootstrap(
    differences: ArrayLike,
    *,
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of the mean of per-prompt differences [n] (Efron & Tibshirani 1993, chapter 13).

    clusters: one label a prompt; whole clusters are drawn, and a draw's mean is over all prompts in it. The same
    seed and data give the same interval. Raises EvaluationError for empty or non-finite data.
    """
    values = _finite(differences, "differences")
    _check_level(level)
    if clusters is None:
        sums, counts = values, np.ones_like(values)
    else:
        if len(clusters) != len(values):
            raise EvaluationError(f"{len(values)} differences, {len(clusters)} cluster labels: give one label a prompt")
        index: dict[Hashable, int] = {}
        members = np.array([index.setdefault(label, len(index)) for label in clusters])
        sums = np.bincount(members, weights=values)
        counts = np.bincount(members).astype(float)
    generator = np.random.default_rng(seed)
    n, means = len(sums), np.empty(resamples)
    chunk = max(1, _DRAWS_AT_ONCE // n)
    for start in range(0, resamples, chunk):
        draws = generator.integers(0, n, size=(min(chunk, resamples - start), n))
        means[start : start + chunk] = sums[draws].sum(axis=1) / counts[draws].sum(axis=1)
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return Interval(float(values.mean()), float(low), float(high), level)


def wilson(successes: float, n: int, *, level: float = 0.95) -> Interval:
    """Wilson score interval of a proportion (Wilson 1927), right at 0 and n successes too."""
    if n <= 0 or not 0 <= successes <= n:
        raise EvaluationError(f"{successes} successes of {n}: expected 0 <= successes <= n and n at least 1")
    _check_level(level)
    z = NormalDist().inv_cdf(0.5 + level / 2)
    p = successes / n
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(p, min(p, max(0.0, center - half)), max(p, min(1.0, center + half)), level)


def sign_test(differences: ArrayLike) -> float:
    """Two-sided p-value that gains and losses are equally likely; ties are dropped (exact binomial).

    On right/wrong answers this is McNemar's exact test. 1.0 when every pair is a tie.
    """
    values = _finite(differences, "differences")
    gains, losses = int((values > 0).sum()), int((values < 0).sum())
    n, k = gains + losses, min(gains, losses)
    if n == 0:
        return 1.0
    # P(X <= k), X ~ Binomial(n, 1/2), term by term in logs so that thousands of prompts do not underflow
    terms = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(k + 1)]
    return min(1.0, 2 * math.fsum(math.exp(term) for term in terms))


def win_rate(
    scores: ArrayLike,
    baseline: ArrayLike,
    *,
    tolerance: float = 0.0,
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> WinRate:
    """Share of prompts on which `scores` beat `baseline`, a tie (difference within `tolerance`) counting one half.

    The interval is the paired bootstrap over prompts; where all outcomes are alike (nothing but wins, say)
    resampling has no width and the Wilson interval, which is the wider, is given.
    """
    first, second = _finite(scores, "scores"), _finite(baseline, "baseline scores")
    if len(first) != len(second):
        raise EvaluationError(f"{len(first)} scores, {len(second)} of the baseline: both must be of the same prompts")
    differences = first - second
    differences[np.abs(differences) <= tolerance] = 0.0
    outcomes = 0.5 + 0.5 * np.sign(differences)
    if np.all(outcomes == outcomes[0]):
        interval = wilson(float(outcomes.sum()), len(outcomes), level=level)
    else:
        interval = paired_bootstrap(outcomes, clusters=clusters, level=level, resamples=resamples, seed=seed)
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    return WinRate(wins, len(outcomes) - wins - losses, losses, interval, sign_test(differences))


def minimum_detectable_difference(differences: ArrayLike, *, level: float = 0.95, power: float = 0.8) -> float:
    """Smallest true mean difference that this many prompts would show as significant with probability `power`.

    (z_level + z_power) * sd / sqrt(n) (Miller 2024, section 5); sd is of the per-prompt differences.
    """
    values = _finite(differences, "differences")
    if len(values) < 2:
        return math.inf
    z = NormalDist()
    return float((z.inv_cdf(0.5 + level / 2) + z.inv_cdf(power)) * values.std(ddof=1) / math.sqrt(len(values)))


def mean_or_none(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are there; None if there is none."""
    present = [float(value) for value in values if value is not None]
    return math.fsum(present) / len(present) if present else None


def _finite(values: ArrayLike, what: str) -> np.ndarray:
    array = np.array(values, dtype=float).reshape(-1)
    if len(array) == 0:
        raise EvaluationError(f"no {what}: at least one prompt is needed")
    bad = np.flatnonzero(~np.isfinite(array))
    if len(bad):
        raise EvaluationError(f"{what}: entry {bad[0]} is {array[bad[0]]}, expected finite numbers ({len(bad)} bad)")
    return array


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise EvaluationError(f"confidence level {level}: expected a number between 0 and 1, such as 0.95")
