"""Promises of the batch ramp: whole steps without gap, sizes that rise with the rows read, the run's length kept."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatloom.errors import ChatloomError
from chatloom.settings import SettingsError
from chatloom.tokens.batch_sizes import BatchRamp, BatchSizes, batch_sizes


def test_by_hand() -> None:
    sizes = batch_sizes(32, BatchRamp(first_rows=8, share=0.24), 1000)  # 240 rows: 80 at each of 8, 16, 24
    assert sizes == BatchSizes(32, ((8, 10), (16, 5), (24, 3)))
    assert (sizes.ramp_steps, sizes.ramp_rows, sizes.sizes) == (18, 232, (8, 16, 24, 32))
    assert [sizes.rows(step) for step in (0, 9, 10, 14, 15, 17, 18, 99)] == [8, 8, 16, 16, 24, 24, 32, 32]
    assert [sizes.start(step) for step in (0, 1, 10, 11, 18, 19)] == [0, 8, 80, 96, 232, 264]
    assert sizes.n_steps(1000) == 18 + 24  # 768 rows more
    assert sizes.n_steps(1001) == 18 + 25
    assert sizes.nearest(1000) == 1000
    assert sizes.nearest(1015) == 1000
    assert sizes.nearest(1017) == 1032
    uneven = batch_sizes(30, BatchRamp(first_rows=8, increment=10, share=0.1), 1000)
    assert uneven.sizes == (8, 18, 28, 30)


RUNS = st.tuples(
    st.integers(2, 64), st.integers(1, 63), st.integers(1, 40), st.floats(0.01, 0.6), st.integers(3000, 20_000)
)


@settings(deadline=None)
@given(RUNS)
def test_steps_follow_each_other_without_gap_and_grow_with_the_rows_read(run: tuple[int, int, int, float, int]) -> None:
    last, first, increment, share, n_rows = run
    if first >= last:
        first = last - 1
    sizes = batch_sizes(last, BatchRamp(first_rows=first, increment=increment, share=share), n_rows)
    whole = sizes.nearest(n_rows)
    steps = sizes.n_steps(whole)
    rows = [sizes.rows(step) for step in range(steps)]
    assert sum(rows) == whole
    assert abs(whole - n_rows) <= last / 2
    assert [sizes.start(step) for step in range(steps + 1)] == list(accumulate(rows, initial=0))
    assert rows == sorted(rows)
    assert (rows[0], rows[-1]) == (first, last)
    assert set(rows) == set(range(first, last, increment)) | {last}
    # equally many rows at each size, to within half a step of it, or one step
    each = share * n_rows / (len(set(rows)) - 1)
    for size in set(rows) - {last}:
        assert abs(size * rows.count(size) - each) <= max(size / 2, size if each < size else 0) + 1e-6
    assert sizes.n_steps(whole + 1) == steps + 1


@given(st.integers(1, 50), st.integers(1, 5000), st.floats(0.01, 4))
def test_without_a_ramp_every_step_is_alike(rows: int, n_rows: int, epochs: float) -> None:
    sizes = batch_sizes(rows, BatchRamp(), epochs * n_rows)
    assert sizes == BatchSizes(rows)
    assert sizes.nearest(epochs * n_rows) == max(1, round(epochs * n_rows / rows)) * rows
    assert sizes.n_steps(n_rows) == -(-n_rows // rows)
    assert (sizes.rows(7), sizes.start(7)) == (rows, 7 * rows)


def test_a_ramp_that_cannot_be_is_refused() -> None:
    with pytest.raises(ChatloomError, match=r"first_rows is 32 and batch_rows 32: the batch would not grow"):
        batch_sizes(32, BatchRamp(first_rows=32), 1000)
    with pytest.raises(
        ChatloomError, match=r"growing from 1 to 32 rows in 31 rises takes 496 rows, and the run has about 300"
    ):
        batch_sizes(32, BatchRamp(first_rows=1), 300)
    with pytest.raises(SettingsError, match="share"):
        BatchRamp.parse({"first_rows": 1, "share": 1.5})
