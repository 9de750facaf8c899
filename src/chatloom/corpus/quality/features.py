"""Texts -> windows of units -> the set of hashed n-grams in each window: what the quality classifier looks at.

A window is a stretch of about as many units for every text, so that length tells nothing and a long text is an average
of its windows. Each n-gram of 1 to `max_n` units (see `units`: words, or characters where words are not spaced) is a
bucket of the hash (Weinberger et al. 2009, arXiv 0902.2206, without signs); how often it occurs in the window is no
matter, and a window of k different buckets is a vector of length 1 with k equal entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chatloom.corpus.text.units import I64, U64, Units, cut, join


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of some texts; an entry is a bucket that occurs in a window. Texts without units have no window."""

    texts: I64  # [windows], number of the text that a window is of
    windows: I64  # [entries], ascending for the n-grams of each length
    buckets: I64  # [entries], different ones within a window
    entries: I64  # [entries], number of the n-gram among all, which `spelling` takes
    units: Units
    _ends: tuple[I64, ...]

    def sizes(self) -> I64:
        """Number of different buckets in each window: [windows]."""
        return np.bincount(self.windows, minlength=len(self.texts))

    def spelling(self, entry: int) -> str:
        """The units of an n-gram, parted by spaces."""
        for n, ends in enumerate(self._ends):
            if entry < len(ends):
                return " ".join(self.units.spelling(int(unit)) for unit in range(ends[entry] - n, ends[entry] + 1))
            entry -= len(ends)
        raise IndexError(entry)


def windows_of(texts: Sequence[str], *, window_units: int, max_n: int, bits: int) -> Windows:
    """Cut texts into equal windows of at most `window_units` units, with the buckets of their n-grams."""
    units = cut(texts)
    starts, owners = _bounds(units.offsets, window_units)
    lengths = np.diff(np.append(starts, len(units.hashes)))
    window = np.repeat(np.arange(len(starts)), lengths)
    labels = window.astype(np.uint64) << np.uint64(bits)
    keys, drop = units.hashes, np.uint64(64 - bits)
    ends, codes = [np.arange(len(keys))], [labels | (keys >> drop)]
    for n in range(1, max_n):
        keys = join(keys[:-1], units.hashes[n:])
        inside = np.flatnonzero(window[n:] == window[: max(len(window) - n, 0)])
        ends.append(inside + n)
        codes.append(labels[n:][inside] | (keys[inside] >> drop))
    code = np.concatenate(codes)
    kept = np.flatnonzero(one_of_each(code))
    code = code[kept]
    own, buckets = code >> np.uint64(bits), code & np.uint64((1 << bits) - 1)
    return Windows(owners, own.view(np.int64), buckets.view(np.int64), kept, units, tuple(ends))


def _bounds(offsets: I64, window_units: int) -> tuple[I64, I64]:
    """Where each window starts, and which text it is of: a text of u units has ceil(u / window_units) of them."""
    lengths = np.diff(offsets)
    counts = -(-lengths // window_units)
    owners = np.repeat(np.arange(len(lengths)), counts)
    number = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    return offsets[owners] + number * lengths[owners] // np.maximum(counts[owners], 1), owners


def one_of_each(codes: U64) -> NDArray[np.bool_]:
    """Marks the last entry of each different code, in time that grows with their number only.

    All entries write their place into a table at their hash, where the last one stays. Who finds an equal code there is
    a repeat or the one that is kept; who finds another code goes on to the next round, with another hash.
    """
    keep = np.zeros(len(codes), bool)
    shift = max(8, (2 * len(codes)).bit_length())
    table = np.empty(1 << shift, np.int64)
    active, own, factor = np.arange(len(codes)), codes, 0x9E3779B97F4A7C15
    while len(active):
        slots = ((own * np.uint64(factor)) >> np.uint64(64 - shift)).view(np.int64)
        table[slots] = active
        winner = table[slots]
        keep[winner] = True
        other = np.flatnonzero(codes[winner] != own)
        active, own = active[other], own[other]
        factor = factor * 0xD1342543DE82EF95 % (1 << 64)
    return keep
