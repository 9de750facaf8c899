"""Promises of the statistics: published and hand-computed numbers, pairing, ties, seeds and coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest

from chatloom.evaluation.statistics import (
    EvaluationError,
    mean_or_none,
    minimum_detectable_difference,
    paired_bootstrap,
    sign_test,
    wilson,
    win_rate,
)


def test_wilson_gives_the_textbook_interval() -> None:
    # 8 of 10 at 95 %: 0.4902 to 0.9433 (Newcombe 1998 prints the method; computed by hand from the formula)
    interval = wilson(8, 10)
    assert (round(interval.low, 4), round(interval.high, 4)) == (0.4902, 0.9433)
    nothing = wilson(0, 20)
    assert nothing.low == 0.0
    assert nothing.high == pytest.approx(0.1611, abs=1e-4)
    assert wilson(20, 20).low == pytest.approx(1 - 0.1611, abs=1e-4)


def test_bootstrap_is_the_same_for_the_same_seed_and_close_for_another() -> None:
    differences = np.random.default_rng(1).normal(0.1, 1.0, 300)
    first, again, other = (paired_bootstrap(differences, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert other.low == pytest.approx(first.low, abs=0.02)
    normal = 1.96 * differences.std() / math.sqrt(300)
    assert first.high - first.low == pytest.approx(2 * normal, rel=0.05)


def test_bootstrap_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(7)
    hits = 0
    for trial in range(300):
        interval = paired_bootstrap(generator.binomial(1, 0.7, 80), resamples=400, seed=trial)
        hits += interval.low <= 0.7 <= interval.high
    assert 0.90 <= hits / 300 <= 0.99


def test_pairing_finds_a_small_steady_gain_that_the_two_means_alone_would_hide() -> None:
    generator = np.random.default_rng(3)
    difficulty = generator.uniform(0, 1, 200)
    gain = paired_bootstrap((difficulty + 0.02 + generator.normal(0, 0.01, 200)) - difficulty)
    assert gain.excludes(0.0)
    assert gain.low > 0.01
    # unpaired, the standard error of a difference of two such means is larger than the gain itself
    assert math.sqrt(2) * difficulty.std() / math.sqrt(200) > 0.02


def test_prompts_of_one_cluster_count_as_one_not_as_many() -> None:
    facts = np.random.default_rng(5).normal(0, 1, 40)
    repeated = np.repeat(facts, 10)
    naive = paired_bootstrap(repeated)
    clustered = paired_bootstrap(repeated, clusters=[i // 10 for i in range(400)])
    assert clustered.high - clustered.low == pytest.approx(math.sqrt(10) * (naive.high - naive.low), rel=0.15)
    assert clustered.estimate == pytest.approx(naive.estimate)


def test_clusters_of_other_sizes_weigh_by_their_prompts() -> None:
    interval = paired_bootstrap([1.0, 1.0, 1.0, 0.0], clusters=["a", "a", "a", "b"])
    assert interval.estimate == 0.75
    assert (interval.low, interval.high) == (0.0, 1.0)


def test_sign_test_gives_the_exact_binomial() -> None:
    assert sign_test([1] * 8 + [-1] * 2 + [0] * 5) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert sign_test([0, 0, 0]) == 1.0
    assert sign_test([1]) == 1.0
    assert sign_test([1] * 5 + [-1] * 5) == 1.0
    assert 0 < sign_test([1] * 3000 + [-1] * 2000) < 1e-40


def test_win_rate_counts_a_tie_as_half_and_uses_the_pairs() -> None:
    result = win_rate([1, 1, 0.5, 0.2], [0, 0, 0.5, 0.9])
    assert (result.wins, result.ties, result.losses, result.rate) == (2, 1, 1, 0.625)
    assert win_rate([1, 1, 0.5], [0, 0, 0.45], tolerance=0.1).ties == 1


def test_win_rate_against_oneself_is_a_half_with_a_width_and_without_significance() -> None:
    result = win_rate([0.3] * 50, [0.3] * 50)
    assert result.rate == 0.5
    assert result.interval.low < 0.5 < result.interval.high
    assert result.p_value == 1.0
    assert not result.interval.excludes(0.5)


def test_nothing_but_wins_still_has_an_interval_of_some_width() -> None:
    result = win_rate([1] * 10, [0] * 10)
    assert result.rate == 1.0
    assert result.interval.low == pytest.approx(0.7225, abs=1e-4)


def test_minimum_detectable_difference_shrinks_with_the_root_of_n() -> None:
    values = np.tile([-1.0, 1.0], 200)
    assert minimum_detectable_difference(values) == pytest.approx(
        2.8016 / math.sqrt(400) * values.std(ddof=1), rel=1e-3
    )
    assert minimum_detectable_difference([1.0]) == math.inf


@pytest.mark.parametrize(
    "call",
    [
        lambda: paired_bootstrap([]),
        lambda: paired_bootstrap([1.0, math.nan]),
        lambda: paired_bootstrap([1.0, 2.0], clusters=["a"]),
        lambda: paired_bootstrap([1.0], level=95),
        lambda: win_rate([1.0], [1.0, 2.0]),
        lambda: wilson(3, 2),
        lambda: wilson(0, 0),
    ],
)
def test_scores_that_cannot_be_compared_are_refused(call: object) -> None:
    with pytest.raises(EvaluationError):
        call()  # type: ignore[operator]


def test_mean_of_nothing_is_none_not_zero() -> None:
    assert mean_or_none([None, 2.0, 4.0]) == 3.0
    assert mean_or_none([None]) is None
