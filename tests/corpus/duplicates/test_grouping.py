"""Groups are the same wherever the stream of records is cut."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, groupby

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from chatloom.corpus.duplicates import books
from chatloom.corpus.duplicates.grouping import candidate_pairs, followers, later_members, members_of_repeats
from chatloom.corpus.text.units import U64

RECORDS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 30)), max_size=40, unique=True).map(sorted)
CUTS = st.sets(st.integers(1, 39), max_size=12)


def blocks(records: list[tuple[int, ...]], cuts: set[int]) -> Iterator[U64]:
    table = np.array(records, np.uint64).reshape(len(records), -1 if records else 2)
    return (block for block in np.split(table, sorted(cuts)) if len(block))


def listed(arrays: Iterator[U64]) -> list[tuple[int, ...]]:
    return [tuple(row) for array in arrays for row in array.tolist()]


def groups(records: list[tuple[int, ...]], columns: int = 1) -> list[list[tuple[int, ...]]]:
    return [list(group) for _, group in groupby(records, key=lambda record: record[:columns])]


@settings(max_examples=200, deadline=None)
@given(RECORDS, CUTS, st.integers(1, 50))
def test_every_pair_of_a_group_is_given_once_up_to_the_limit(
    records: list[tuple[int, ...]], cuts: set[int], most: int
) -> None:
    expected = []
    for group in groups(records):
        expected += [(a[1], b[1]) for (i, a), (_, b) in combinations(enumerate(group), 2) if i < most]
    assert sorted(listed(candidate_pairs(blocks(records, cuts), most))) == sorted(expected)


@settings(max_examples=200, deadline=None)
@given(RECORDS, CUTS)
def test_followers_later_members_and_repeats(records: list[tuple[int, ...]], cuts: set[int]) -> None:
    by_key = groups(records)
    assert listed(followers(blocks(records, cuts), 1)) == [(g[0][1], r[1]) for g in by_key for r in g[1:]]
    assert listed(later_members(blocks(records, cuts), 1)) == [record for group in by_key for record in group[1:]]
    repeated = [record for group in by_key if len(group) > 1 for record in group]
    assert listed(members_of_repeats(blocks(records, cuts))) == repeated


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=40).map(sorted), CUTS)
def test_counting_repeats(records: list[tuple[int, ...]], cuts: set[int]) -> None:
    expected = [(*record, len(list(group))) for record, group in groupby(records)]
    assert listed(books._counted(blocks(records, cuts))) == expected
    sums = [(*pair, sum(r[2] for r in group)) for pair, group in groupby(expected, key=lambda record: record[:2])]
    assert listed(books._summed(blocks(expected, cuts))) == sums
