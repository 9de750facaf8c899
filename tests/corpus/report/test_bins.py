"""Promises of the spreads: exact counts in bins that add up, no value on the wrong side of an edge, bounded size."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatloom.corpus.report.bins import (
    HIGHEST,
    LAST,
    LOWEST,
    Spread,
    binned,
    display_edges,
    edge,
    places,
    united,
)

NUMBERS = (
    st.floats(-1e12, 1e12).filter(lambda value: abs(value) >= 2.0**LOWEST)
    | st.integers(-300, 300).map(float)
    | st.sampled_from([0.0, -0.0, 0.1, 1.0])
)


def spread_of(values: list[float | None]) -> Spread:
    spread = Spread()
    spread.add(values)
    return spread


@given(st.floats(2.0**LOWEST, 2.0**HIGHEST, exclude_max=True))
def test_a_value_lies_in_its_bin_and_a_bin_is_at_most_a_64th_wide(value: float) -> None:
    for number in (value, -value):
        place = int(places([number])[0])
        assert math.copysign(1, place) == math.copysign(1, number)
        low, high = abs(edge(place)), abs(edge(place + (1 if number > 0 else -1)))
        assert low <= abs(number) < high
        assert high - low <= low / 64 * (1 + 1e-12)


def test_what_is_tiny_is_with_zero_and_what_is_huge_has_a_bin() -> None:
    assert places([0.0, -0.0, 2.0**-30, -(2.0**-30), 1e300, -1e300]).tolist() == [0, 0, 0, 0, LAST, -LAST]
    assert len(set(places(np.arange(-127, 128)).tolist())) == 255


@given(st.lists(st.none() | NUMBERS | st.sampled_from([math.nan, math.inf, -math.inf])), st.integers(0, 50))
def test_spreads_of_parts_add_up_to_that_of_the_whole(values: list[float | None], cut: int) -> None:
    whole = spread_of(values)
    parts = [spread_of(values[:cut]), spread_of(values[cut:])]
    again = [Spread.of(json.loads(json.dumps(part.values()))) for part in parts]
    assert united(again) == whole
    finite = [value for value in values if value is not None and math.isfinite(value)]
    assert (whole.n, whole.absent, whole.odd) == (
        len(finite),
        values.count(None),
        len(values) - values.count(None) - len(finite),
    )
    assert whole.whole == all(value == round(value) for value in finite)


@given(st.lists(NUMBERS, min_size=1), st.lists(st.floats(-1e6, 1e6), max_size=2))
def test_bins_of_a_figure_hold_every_value_on_its_own_side(values: list[float], marks: list[float]) -> None:
    spread = spread_of(list(values))
    _, edges = display_edges(spread, marks)
    assert edges == sorted(set(edges))
    assert 2 <= len(edges) <= 400
    counts = binned(spread, edges)
    assert sum(counts) == len(values)
    inner = np.array([value for value in values if edges[0] <= value < edges[-1]])
    seen = np.bincount(np.searchsorted(edges, inner, side="right") - 1, minlength=len(counts)) if len(inner) else 0
    outside = [value for value in values if not edges[0] <= value < edges[-1]]
    assert int(np.abs(np.asarray(counts) - seen).sum()) == len(outside)


@given(st.lists(NUMBERS, min_size=1), st.sampled_from([0.05, 0.5, 0.95]))
def test_quantiles_are_right_to_the_width_of_a_bin(values: list[float], share: float) -> None:
    exact = sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]
    found = spread_of(list(values)).quantile(share)
    assert found == pytest.approx(exact, rel=1 / 64, abs=max(2.0**LOWEST, 1.0 if exact % 1 == 0 else 0.0))


def test_small_whole_numbers_have_a_bar_each_and_wide_ranges_a_logarithmic_axis() -> None:
    assert display_edges(spread_of([1, 2, 2, 5])) == ("linear", [1, 2, 3, 4, 5, 6])
    scale, edges = display_edges(spread_of([0.0, 1.0, 10.0, 1e5, *[300.0] * 20]))
    assert scale == "log"
    assert edges[0] == 0
    assert edges[1] <= 1.0
    assert edges[-1] > 1e5
    assert display_edges(Spread()) == ("linear", [])


def test_a_limit_beyond_the_values_is_inside_the_figure() -> None:
    _, edges = display_edges(spread_of([0.1, 0.2, 0.3, 0.31]), [0.6])
    assert edges[0] <= 0.1
    assert edges[-1] > 0.6
