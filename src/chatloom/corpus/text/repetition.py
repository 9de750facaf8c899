"""Repeated n-grams of many texts at once: which runs of n units occur again in their own text, and how much they cover.

An (n+1)-gram can occur twice only where both n-grams inside it do. So all positions are looked at once, for the
shortest n, and each longer n only sorts what is left: in ordinary prose next to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIX = np.uint64(0x9E3779B97F4A7C15)
SHIFT = np.uint64(29)
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Repeats:
    """N-grams that occur more than once in their text: where each begins (ascending), and which are equal.

    group: int64 [positions], 0 .. n_groups - 1; first: position of each group's first member [n_groups]; count: its
    members [n_groups].
    """

    width: int
    position: Ints
    group: Ints
    first: Ints
    count: Ints

    def longer(self, width: int) -> Repeats:
        """The same for a width of at most twice this one, from what is known here."""
        shift = width - self.width
        if not 0 < shift <= self.width:
            raise ValueError(f"from n-grams of {self.width} those of {width} do not follow")
        if not len(self.position):
            return _none(width)
        partner = np.searchsorted(self.position, self.position + shift)
        there = np.flatnonzero(partner < len(self.position))
        there = there[self.position[partner[there]] == self.position[there] + shift]
        # Equal on the left and equal on the right, and the two overlap or touch: equal.
        keys = self.group[there] * len(self.first) + self.group[partner[there]]
        return _grouped(width, self.position[there], keys)


def repeats(codes: NDArray[np.uint64], ends: Ints, width: int) -> Repeats:
    """Repeated runs of `width` units; codes: a 64-bit hash of each unit, [units] of all texts, and ends of the texts.

    Equal units have equal codes in one text; the codes of two texts must differ (add a salt), for nothing is looked
    for across texts.
    """
    n = len(codes) - width + 1
    if n <= 0:
        return _none(width)
    keys = codes[:n].copy()
    for offset in range(1, width):
        keys *= MIX
        keys ^= keys >> SHIFT
        keys += codes[offset : offset + n]
    keys *= MIX
    whole = np.ones(n, bool)  # all of its units in one text
    crossing = (ends[:-1, None] - np.arange(1, width)[None, :]).ravel()
    whole[crossing[(crossing >= 0) & (crossing < n)]] = False
    # A key alone in its bucket is unique: no need to sort it.
    bits = max(4, n.bit_length() + 2)
    buckets = (keys >> np.uint64(64 - bits)).astype(np.int64)
    kept = np.flatnonzero((np.bincount(buckets, minlength=1 << bits)[buckets] > 1) & whole)
    return _grouped(width, kept, keys[kept])


def _none(width: int) -> Repeats:
    empty = np.zeros(0, np.int64)
    return Repeats(width, empty, empty, empty, empty)


def _grouped(width: int, position: Ints, keys: NDArray[np.uint64] | Ints) -> Repeats:
    """Groups of equal keys of at least two members."""
    if len(keys) < 2:
        return _none(width)
    order = np.argsort(keys)
    ordered = keys[order]
    new = np.ones(len(ordered), bool)
    new[1:] = ordered[1:] != ordered[:-1]
    starts = np.flatnonzero(new)
    counts = np.diff(starts, append=len(ordered))
    several = counts > 1
    kept = np.repeat(several, counts)
    member, count = position[order[kept]], counts[several]
    begins = np.cumsum(count) - count
    first = np.minimum.reduceat(member, begins) if len(begins) else begins
    by_position = np.argsort(member)
    return Repeats(width, member[by_position], np.repeat(np.arange(len(count)), count)[by_position], first, count)


def covered(found: Repeats, edges: Ints, starts: Ints) -> Ints:
    """Characters of each text inside n-grams that occurred earlier in it, each counted once, [texts].

    edges: characters before each unit and in all, [units + 1]; starts: each text's first unit, ascending, [texts].
    """
    if not len(found.position):
        return np.zeros(len(starts), np.int64)
    again = np.ones(len(found.position), bool)
    again[np.searchsorted(found.position, found.first)] = False
    begin = found.position[again]
    if not len(begin):
        return np.zeros(len(starts), np.int64)
    end = begin + found.width
    np.minimum(end[:-1], begin[1:], out=end[:-1])
    text = np.searchsorted(starts, begin, side="right") - 1
    return np.bincount(text, edges[end] - edges[begin], minlength=len(starts)).astype(np.int64)


def most_frequent(found: Repeats, edges: Ints, starts: Ints) -> Ints:
    """Occurrences times length in characters of each text's most frequent n-gram, [texts]; 0 where none repeats.

    Of equally frequent ones the earliest.
    """
    result = np.zeros(len(starts), np.int64)
    if not len(found.first):
        return result
    last = int(found.first.max())
    rank = found.count * (last + 1) + (last - found.first)
    text = np.searchsorted(starts, found.first, side="right") - 1
    best = np.full(len(starts), -1, np.int64)
    np.maximum.at(best, text, rank)
    some = best >= 0
    count, first = best[some] // (last + 1), last - best[some] % (last + 1)
    result[some] = count * (edges[first + found.width] - edges[first])
    return result
