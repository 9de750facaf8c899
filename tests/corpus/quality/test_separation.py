"""Promises of the measures: they are the textbook's, with ties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatloom.corpus.quality.separation import auc, auc_error, brier, calibration_error, log_loss, reliability

GROUP = st.lists(st.integers(0, 5), min_size=1, max_size=20)


@given(GROUP, GROUP)
def test_auc_is_the_share_of_pairs_in_the_right_order(high: list[int], low: list[int]) -> None:
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in high for b in low]
    assert auc(high, low) == pytest.approx(sum(pairs) / len(pairs))


def test_auc_of_an_empty_group_is_not_a_number() -> None:
    assert math.isnan(auc([], [1.0]))


def test_error_of_an_area_is_that_of_hanley_and_mcneil() -> None:
    # A = 0.85, 20 and 30 texts: Q1 = 0.85 / 1.15, Q2 = 2 * 0.7225 / 1.85
    by_hand = math.sqrt((0.85 * 0.15 + 19 * (0.85 / 1.15 - 0.7225) + 29 * (1.445 / 1.85 - 0.7225)) / 600)
    assert auc_error(0.85, 20, 30) == pytest.approx(by_hand)
    assert auc_error(1.0, 20, 30) == 0.0


def test_losses_by_hand() -> None:
    assert log_loss([0.9, 0.2], [True, False]) == pytest.approx(-(math.log(0.9) + math.log(0.8)) / 2)
    assert brier([0.9, 0.2], [True, False]) == pytest.approx((0.01 + 0.04) / 2)
    assert brier([0.9, 0.2], [True, False], np.array([3.0, 1.0])) == pytest.approx((0.03 + 0.04) / 4)
    assert math.isfinite(log_loss([0.0], [True]))


def test_reliability_bins_hold_everything_once_and_weigh_it() -> None:
    scores, truths = [0.05, 0.07, 0.95, 1.0, 0.55], [False, True, True, True, False]
    rows = reliability(scores, truths)
    assert [row["n"] for row in rows] == [2, 1, 2]
    assert rows[0]["share"] == 0.5
    assert rows[0]["low"] < 0.5 < rows[0]["high"]
    assert calibration_error(rows) == pytest.approx((2 * 0.44 + 0.55 + 2 * 0.025) / 5)
    heavier = reliability(scores, truths, np.array([1.0, 3.0, 1.0, 1.0, 1.0]))
    assert heavier[0]["share"] == 0.75
