"""What a sorted stream of records says: which records share a key, and which pairs of documents are to be compared.

All functions take the arrays that `merge` yields, where a group may go on from one array to the next, and hold of a
group what they need to go on: a key that fills the whole disk costs no memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from chatloom.corpus.text.units import I64, U64

PAIRS_AT_ONCE = 1 << 17


def candidate_pairs(blocks: Iterable[U64], most: int) -> Iterator[U64]:
    """Pairs [n, 2] (lower, higher) of values that share a key, from records (key, value) sorted by both.

    In a group of more than `most` every member is paired with the first `most` only: the cost stays linear, and which
    members are first depends on the values, not on how the records came.
    """
    carried = np.empty((0, 2), np.uint64)
    for block in blocks:
        records = np.concatenate([carried, block])
        starts = _group_starts(records[:, 0])
        ranks = np.arange(len(records)) - starts
        counts = np.minimum(ranks, most)
        counts[: len(carried)] = 0  # these have met
        ends = np.cumsum(counts)
        first = 0
        while first < len(records):
            done = int(ends[first - 1]) if first else 0
            last = max(first + 1, int(np.searchsorted(ends, done + PAIRS_AT_ONCE, side="right")))
            some = counts[first:last]
            if some.any():
                later = np.repeat(np.arange(first, last), some)
                earlier = starts[later] + np.arange(len(later)) - np.repeat(np.cumsum(some) - some, some)
                pairs = np.stack([records[earlier, 1], records[later, 1]], axis=1)
                yield pairs[pairs[:, 0] != pairs[:, 1]]
            first = last
        start = int(starts[-1])
        carried = records[start : start + most].copy()


def followers(blocks: Iterable[U64], key_columns: int) -> Iterator[U64]:
    """(value of the group's first record, own value) [n, 2] of every record but the first of its group.

    A group is of records with equal first `key_columns` columns; the value is the last column.
    """
    carried: U64 | None = None
    for block in blocks:
        records = block if carried is None else np.concatenate([carried[None, :], block])
        same = (records[1:, :key_columns] == records[:-1, :key_columns]).all(axis=1)
        starts = np.arange(len(records))
        starts[1:][same] = 0
        np.maximum.accumulate(starts, out=starts)
        later = np.flatnonzero(same) + 1
        yield np.stack([records[starts[later], -1], records[later, -1]], axis=1)
        carried = records[starts[-1]].copy()


def later_members(blocks: Iterable[U64], key_columns: int) -> Iterator[U64]:
    """Every record but the first of its group (equal first `key_columns` columns)."""
    carried: U64 | None = None
    for block in blocks:
        records = block if carried is None else np.concatenate([carried[None, :], block])
        same = (records[1:, :key_columns] == records[:-1, :key_columns]).all(axis=1)
        yield records[1:][same]
        carried = records[-1].copy()


def members_of_repeats(blocks: Iterable[U64]) -> Iterator[U64]:
    """Every record whose first column occurs more than once."""
    carried: U64 | None = None
    given = False  # whether the carried record was yielded already
    for block in blocks:
        records = block if carried is None else np.concatenate([carried[None, :], block])
        same = records[1:, 0] == records[:-1, 0]
        repeated = np.zeros(len(records), bool)
        repeated[1:] |= same
        repeated[:-1] |= same
        wanted = repeated.copy()
        if carried is not None and given:
            wanted[0] = False
        last_given = bool(repeated[-1]) or (len(records) == 1 and given)
        yield records[wanted]
        carried, given = records[-1].copy(), last_given


def _group_starts(keys: U64) -> I64:
    """Place of the first record of each record's group."""
    starts = np.arange(len(keys))
    starts[1:][keys[1:] == keys[:-1]] = 0
    return np.maximum.accumulate(starts)
