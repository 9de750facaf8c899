"""Repeated substrings across shards, out of core: what `substring.py` finds, for any amount of text.

    write_anchors    (a shard)            (anchor, place) of each document's windows
    write_shared     (a range of anchors)   (place, anchor) of anchors that occur more than once
    write_windows    (a shard)            (hash, place, offset) of the windows whose anchor does
    write_repeats    (a range of hashes)    (place, offset) of every window but the first of its hash
    repeats_in_shard (a shard)            (row, spans)

A window is `min_characters` characters. Its anchor is the least hash among its half-windows (winnowing: Schleimer,
Wilkerson and Aiken 2003): equal windows have equal anchors, and a text has few different ones, about four in the length
of a window; every window is hashed only where text repeats. Hashes have 64 bits; of n windows one is taken for another
with a chance of n / 2^64.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from chatloom.corpus.duplicates.external_sort import MEMORY, external_sort, merge, open_runs
from chatloom.corpus.duplicates.grouping import later_members, members_of_repeats
from chatloom.corpus.duplicates.passages import Rows
from chatloom.corpus.duplicates.places import place, rows_within
from chatloom.corpus.duplicates.shingling import powers
from chatloom.corpus.duplicates.substring import spans_of_windows
from chatloom.corpus.ranged import partition
from chatloom.corpus.text import characters
from chatloom.corpus.text.units import U64, mix

ANCHORS, SHARED, WINDOWS, REPEATS = "anchors", "shared anchors", "windows", "repeats"
PIECE = 1 << 18  # windows worked on at once
RECORDS_AT_ONCE = 1 << 16


def write_anchors(
    shard: int, texts: Iterable[tuple[int, str]], path: Path, *, min_characters: int, memory_bytes: int = MEMORY
) -> int:
    """Run of (anchor, place) of (row, text), twice where the text has the anchor twice; returns the records.

    Raises ValueError for windows of fewer than 2 characters.
    """
    if min_characters < 2:
        raise ValueError(f"min_characters is {min_characters}; expected at least 2")

    def records() -> Iterator[U64]:
        for row, text in texts:
            keys = _anchor_records(text, min_characters)
            yield np.stack([keys, np.full(len(keys), place(shard, row), np.uint64)], axis=1)

    columns, about = ("anchor", "place"), _about(min_characters)
    return external_sort(_chunks(records(), 2), path, ANCHORS, columns, about, memory_bytes=memory_bytes)


def write_shared(
    paths: Sequence[Path], path: Path, *, part: int = 0, parts: int = 1, memory_bytes: int = MEMORY
) -> int:
    """Run of (place, anchor) of the anchors of one range that occur more than once; returns their number."""
    within = partition(part, parts)
    runs = open_runs(paths, ANCHORS, within=within)
    found = members_of_repeats(merge(runs, *within, memory_bytes=memory_bytes))
    return external_sort(
        (records[:, ::-1] for records in found), path, SHARED, ("place", "anchor"), runs[0].about, unique=True,
        memory_bytes=memory_bytes,
    )  # fmt: skip


def write_windows(
    shard: int, texts: Iterable[tuple[int, str]], shared: Sequence[Path], path: Path, *, min_characters: int,
    memory_bytes: int = MEMORY,
) -> int:  # fmt: skip
    """Run of (hash, place, offset) of the windows of (row, text) whose anchor is shared; rows ascending."""
    anchors = Rows(open_runs(shared, SHARED, _about(min_characters), rows_within(shard)), shard)

    def records() -> Iterator[U64]:
        for row, text in texts:
            wanted = anchors.of(row)
            if not len(wanted):
                continue
            codes = _codes()[characters.code_points(text)]
            for start, halves in _pieces(codes, min_characters // 2, min_characters):
                offsets = np.flatnonzero(np.isin(_anchors(halves, min_characters), wanted))
                hashes = _hashes(codes[start : start + PIECE + min_characters - 1], min_characters)
                where = np.full(len(offsets), place(shard, row), np.uint64)
                yield np.stack([hashes[offsets], where, (offsets + start).astype(np.uint64)], axis=1)

    columns, about = ("hash", "place", "offset"), _about(min_characters)
    return external_sort(_chunks(records(), 3), path, WINDOWS, columns, about, memory_bytes=memory_bytes)


def write_repeats(
    paths: Sequence[Path], path: Path, *, part: int = 0, parts: int = 1, memory_bytes: int = MEMORY
) -> int:
    """Run of (place, offset) of the windows of one range of hashes that occur earlier; returns their number."""
    within = partition(part, parts)
    runs = open_runs(paths, WINDOWS, within=within)
    found = later_members(merge(runs, *within, memory_bytes=memory_bytes), 1)
    return external_sort((r[:, 1:] for r in found), path, REPEATS, ("place", "offset"), runs[0].about,
                         memory_bytes=memory_bytes)  # fmt: skip


def repeats_in_shard(
    shard: int, rows: Iterable[int], repeats: Sequence[Path], *, min_characters: int
) -> Iterator[tuple[int, list[int]]]:
    """(row, spans that repeat what stood earlier) of the rows of a shard, ascending."""
    offsets = Rows(open_runs(repeats, REPEATS, _about(min_characters), rows_within(shard)), shard)
    for row in rows:
        starts = np.sort(offsets.of(row).astype(np.int64))
        # One text, as long as need be: the windows are known to lie in it.
        length = np.array([int(starts[-1]) + min_characters if len(starts) else 0])
        yield row, spans_of_windows(starts, length, min_characters)[0]


def _about(min_characters: int) -> str:
    return f"windows of {min_characters} characters"


def _chunks(records: Iterable[U64], width: int) -> Iterator[U64]:
    """Small arrays put together to bigger ones."""
    held, size = [np.empty((0, width), np.uint64)], 0
    for some in records:
        held.append(some)
        size += len(some)
        if size >= RECORDS_AT_ONCE:
            yield np.concatenate(held)
            held, size = [], 0
    if held:
        yield np.concatenate(held)


def _anchor_records(text: str, window: int) -> U64:
    """The different anchors of a text, those that occur at several places twice."""
    half = window // 2
    codes = _codes()[characters.code_points(text)]
    if len(codes) < window:
        return np.empty(0, np.uint64)
    found = [_distinct_runs(_anchors(halves, window)) for _, halves in _pieces(codes, half, window)]
    anchors = np.unique(np.concatenate(found))
    # A half-window that is an anchor and stands elsewhere as well, anchor there or not: counted, at worst in vain.
    counts = np.zeros(len(anchors), np.int64)
    for _, halves in _pieces(codes, half, half):
        places = np.searchsorted(anchors, halves)
        places[places == len(anchors)] = 0
        counts += np.bincount(places[anchors[places] == halves], minlength=len(anchors))
    return np.repeat(anchors, np.minimum(counts, 2))


def _anchors(halves: U64, window: int) -> U64:
    """The anchor of each window, from the hashes of its half-windows."""
    return sliding_minimum(halves, window - window // 2 + 1)


def _distinct_runs(values: U64) -> U64:
    keep = np.ones(len(values), bool)
    keep[1:] = values[1:] != values[:-1]
    return values[keep]


def _pieces(codes: U64, size: int, window: int) -> Iterator[tuple[int, U64]]:
    """(start, hashes of every `size` characters in a row) for PIECE windows at a time."""
    for start in range(0, len(codes) - window + 1, PIECE):
        yield start, _hashes(codes[start : start + PIECE + window - 1], size)


def _hashes(codes: U64, size: int) -> U64:
    """Hash of every `size` characters in a row: a polynomial modulo 2^64 by one running sum, then mixed."""
    power, inverse = powers(1 << (PIECE + size).bit_length())
    running = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum(codes * power[: len(codes)], out=running[1:])
    return mix((running[size:] - running[:-size]) * inverse[: len(codes) - size + 1])


def sliding_minimum(values: U64, size: int) -> U64:
    """Least of every `size` values in a row (van Herk 1992): minima from the left and the right within blocks."""
    count = len(values) - size + 1
    padded = np.full(-(-len(values) // size) * size, np.iinfo(np.uint64).max, np.uint64)
    padded[: len(values)] = values
    blocks = padded.reshape(-1, size)
    from_left = np.minimum.accumulate(blocks, axis=1).ravel()
    from_right = np.minimum.accumulate(blocks[:, ::-1], axis=1)[:, ::-1].ravel()
    return np.minimum(from_right[:count], from_left[size - 1 : size - 1 + count])


@functools.cache
def _codes() -> U64:
    """A random number for each code point: uint64 [0x110000]."""
    return mix(np.arange(characters.N_CODE_POINTS, dtype=np.uint64) + np.uint64(0x5851F42D4C957F2D))
