"""Promises of the order of a run: every row once a pass across stages, fair shares anywhere, one number as state."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatloom.tokens.mixture import Mixture, Source, interleave, interleaved_before
from chatloom.tokens.order import Order
from chatloom.tokens.packing_index import PackingIndex

COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any)


def source(name: str, documents: int, number: int, seed: int = 3, row_length: int = 8) -> Source:
    lengths = np.random.default_rng(number).integers(2, 20, documents)
    index = PackingIndex(lengths, row_length)
    return Source(name, index, Order(index.n_rows, seed, stream=number), 100 * number + np.arange(documents))


def mixture(stages: list[tuple[int, ...]], seed: int = 3) -> Mixture:
    sources = [source(f"s{number}", 5 + 7 * number, number, seed) for number in range(len(stages[0]))]
    return Mixture(sources, [(f"stage{n}", rows) for n, rows in enumerate(stages)])


def slow_merge(counts: list[int]) -> list[tuple[int, int]]:
    items = [(Fraction(2 * j + 1, 2 * n), k, j) for k, n in enumerate(counts) for j in range(n)]
    return [(k, j) for _, k, j in sorted(items)]


@settings(max_examples=200, deadline=None)
@given(counts=COUNTS, data=st.data())
def test_any_stretch_of_the_merge_is_found_without_the_rest(counts: list[int], data: st.DataObject) -> None:
    merged = slow_merge(counts)
    start = data.draw(st.integers(0, len(merged)))
    count = data.draw(st.integers(0, len(merged) - start))
    assert interleave(counts, start, count) == merged[start : start + count]
    before = Counter(k for k, _ in merged[:start])
    assert interleaved_before(counts, start) == [before[k] for k in range(len(counts))]


def test_any_stretch_of_a_long_merge_holds_every_source_in_its_share() -> None:
    counts = [600_000_000, 300_000_001, 99_999_999, 7]
    for start in (0, 123_456_789, 999_999_000):
        found = Counter(k for k, _ in interleave(counts, start, 1000))
        assert [found[k] for k in range(3)] == pytest.approx([600, 300, 100], abs=2)
    with pytest.raises(IndexError):
        interleave([3, 2], 4, 2)
    with pytest.raises(IndexError, match=r"fewer than 2\*\*31"):
        interleave([2**31, 2], 4, 2)


STAGES = st.integers(1, 3).flatmap(
    lambda k: st.lists(st.tuples(*[st.integers(0, 60)] * k).filter(any), min_size=1, max_size=4)
)


@settings(max_examples=60, deadline=None)
@given(stages=STAGES, seed=st.integers(0, 2**40))
def test_no_row_is_read_again_before_all_others_of_its_source_whatever_the_stages(
    stages: list[tuple[int, ...]], seed: int
) -> None:
    run = mixture(stages, seed)
    rows = run.rows(0, run.n_rows)
    assert len(rows) == run.n_rows == sum(map(sum, stages))
    for number, each in enumerate(run.sources):
        assert each is not None
        mine = [row for row in rows if row.source == number]
        n = each.index.n_rows
        assert len(mine) == sum(stage[number] for stage in stages)
        assert [(row.epoch, row.cursor) for row in mine] == [divmod(i, n) for i in range(len(mine))]
        for first in range(0, len(mine) - n + 1, n):
            assert sorted(row.row for row in mine[first : first + n]) == list(range(n))
        rest = [row.row for row in mine[len(mine) // n * n :]]
        assert len(set(rest)) == len(rest)
    for number, counts in enumerate(stages):
        assert Counter(row.source for row in rows if row.stage == number) == Counter(
            {k: n for k, n in enumerate(counts) if n}
        )


def test_what_a_stage_left_unread_of_a_document_is_read_in_the_next() -> None:
    run = mixture([(2, 9), (3, 5), (3, 0)])
    read: Counter[tuple[int, int]] = Counter()
    for row in run.rows(0, run.n_rows):
        read.update((piece.document, t) for piece in run.pieces(row) for t in range(piece.start + 1, piece.end))
    first = run.sources[0]
    assert first is not None
    assert first.index.n_rows == 8 == 2 + 3 + 3  # one pass, in three stages
    expected = {(d, t): 1 for d, n in enumerate(first.index.lengths.tolist()) for t in range(1, n)}
    assert {key: n for key, n in read.items() if key[0] < 100} == expected


@settings(max_examples=60, deadline=None)
@given(stages=STAGES, data=st.data())
def test_a_run_goes_on_from_every_place_as_if_it_had_never_stopped(
    stages: list[tuple[int, ...]], data: st.DataObject
) -> None:
    whole = mixture(stages).rows(0, 10_000)
    place = data.draw(st.integers(0, len(whole)))
    again = mixture(stages)
    assert again.rows(place, 10_000) == whole[place:]
    assert [row for position in range(len(whole)) for row in again.rows(position, 1)] == whole


@settings(max_examples=40, deadline=None)
@given(stages=STAGES, data=st.data())
def test_the_state_tells_stage_pass_and_cursor_of_every_source(
    stages: list[tuple[int, ...]], data: st.DataObject
) -> None:
    run = mixture(stages)
    rows = run.rows(0, run.n_rows)
    place = data.draw(st.integers(0, len(rows)))
    state = run.state(place)
    read = Counter(row.source for row in rows[:place])
    for number, each in enumerate(run.sources):
        assert each is not None
        epoch, cursor = divmod(read[number], each.index.n_rows)
        assert state["sources"][each.name] == {"epoch": epoch, "cursor": cursor, "rows": each.index.n_rows}
    if place < len(rows):
        assert state["stage"] == f"stage{rows[place].stage}"
        assert state["next_row"] == rows[place].row
        assert state["cursor"] == place - next(i for i, row in enumerate(rows) if row.stage == rows[place].stage)
    else:
        assert state["next_row"] is None


def test_counts_are_exact() -> None:
    run = mixture([(3, 40), (0, 11), (17, 1)])
    rows = run.rows(0, run.n_rows)
    found = {(item["stage"], item["source"]): item for item in run.counts()}
    assert set(found) == {("stage0", "s0"), ("stage0", "s1"), ("stage1", "s1"), ("stage2", "s0"), ("stage2", "s1")}
    for (stage, name), item in found.items():
        mine = [row for row in rows if (f"stage{row.stage}", f"s{row.source}") == (stage, name)]
        assert item["rows"] == len(mine)
        assert item["tokens"] == sum(p.end - p.start - 1 for row in mine for p in run.pieces(row))


def test_one_source_alone_is_read_in_its_own_order() -> None:
    run = mixture([(30,)])
    only = run.sources[0]
    assert only is not None
    assert [row.row for row in run.rows(0, 30)] == only.order.items(0, 30)


def test_a_source_that_no_stage_reads_may_be_missing() -> None:
    run = Mixture([source("a", 9, 0), None], [("only", (4, 0))])
    assert [row.source for row in run.rows(0, 9)] == [0] * 4
    assert list(run.state(2)["sources"]) == ["a"]
    with pytest.raises(IndexError, match="read in no stage"):
        run.source(1)
