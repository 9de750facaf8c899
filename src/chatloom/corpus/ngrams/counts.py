"""Counts of n-grams of every order in bounded memory: chunks are sorted and spilled by hash range, ranges are merged.

A range holds few enough records to be sorted in memory; since ranges follow each other, what is written range after
range is one sorted table. Counts are whole numbers, so the size of chunks and ranges leaves no trace in the result.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chatloom.corpus.text.units import I64, U64, join

U32 = NDArray[np.uint32]
RECORD_OVERHEAD = 160  # bytes that sorting a record takes beside the record


@dataclass(frozen=True)
class Level:
    """All n-grams of one order, sorted by hash; arrays are memory-mapped scratch files.

    `adjusted` is what probabilities are estimated from: occurrences at the highest order and for n-grams at a text's
    start, else the number of different units seen before the n-gram (Kneser & Ney 1995).
    """

    keys: U64  # [grams]
    tokens: U32  # [grams, order], ids
    raw: I64  # [grams], occurrences
    adjusted: I64  # [grams]

    @property
    def order(self) -> int:
        """Units in an n-gram."""
        return int(self.tokens.shape[1])

    def __len__(self) -> int:
        return len(self.keys)


class Ranges:
    """N-grams of one order on their way to a `Level`: records in as many files as ranges of the hash."""

    def __init__(self, folder: Path, order: int, expected: int, memory_bytes: int) -> None:
        self.folder = folder
        self.order = order
        self._dtype = np.dtype([("tokens", "<u4", (order,)), ("raw", "<i8"), ("adjusted", "<i8")])
        needed = expected * (self._dtype.itemsize + RECORD_OVERHEAD)
        self._bits = min(12, max(0, (-(-needed // memory_bytes) - 1).bit_length()))

    def add(self, keys: U64, tokens: U32, raw: I64, adjusted: I64) -> None:
        """Spill n-grams (in any order, repeats allowed)."""
        records = np.empty(len(keys), self._dtype)
        records["tokens"], records["raw"], records["adjusted"] = tokens, raw, adjusted
        cuts = [0, len(keys)]
        if self._bits:
            numbers = (keys >> np.uint64(64 - self._bits)).astype(np.uint16)
            records = records[np.argsort(numbers, kind="stable")]  # on 16 bits NumPy sorts by digits
            cuts = [0, *np.cumsum(np.bincount(numbers, minlength=1 << self._bits))]
        for number, (first, last) in enumerate(itertools.pairwise(cuts)):
            if last > first:
                with open(self._file(number), "ab") as file:
                    records[first:last].tofile(file)

    def merge(self, hash_of: U64, start: int) -> Level:
        """Sort each range and add up equal n-grams; `hash_of` gives the hash of an id, `start` is the start mark."""
        written = 0
        columns = {name: self.folder / f"{self.order}.{name}" for name in ("keys", "tokens", "raw", "adjusted")}
        files = {name: open(path, "wb") for name, path in columns.items()}  # noqa: SIM115
        try:
            for number in range(1 << self._bits):
                path = self._file(number)
                if not path.exists():
                    continue
                records = np.fromfile(path, self._dtype)
                path.unlink()
                keys = keys_of(records["tokens"], hash_of)
                order = np.argsort(keys)
                keys = keys[order]
                first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
                tokens = records["tokens"][order[first]]
                raw = np.add.reduceat(records["raw"][order], first)
                adjusted = np.add.reduceat(records["adjusted"][order], first)
                adjusted = np.where((tokens[:, 0] == start) & (tokens[:, -1] != start), raw, adjusted)
                for name, values in zip(columns, (keys[first], tokens, raw, adjusted)):
                    values.tofile(files[name])
                written += len(first)
        finally:
            for file in files.values():
                file.close()
        dtypes: dict[str, Any] = {"keys": np.uint64, "tokens": np.uint32, "raw": np.int64, "adjusted": np.int64}
        shapes = {name: (written, self.order) if name == "tokens" else (written,) for name in columns}
        return Level(**{name: mapped(columns[name], dtypes[name], shapes[name]) for name in columns})

    def _file(self, number: int) -> Path:
        return self.folder / f"{self.order}.range{number:04d}"


def keys_of(tokens: U32, hash_of: U64) -> U64:
    """Hashes of n-grams given as ids: [grams, order] -> [grams]."""
    keys = hash_of[tokens[:, 0]]
    for column in range(1, tokens.shape[1]):
        keys = join(keys, hash_of[tokens[:, column]])
    return keys


def count_windows(ids: U32, hash_of: U64, order: int, start: int) -> tuple[U64, U32, I64]:
    """Different n-grams of a stretch of ids that end in a unit: hashes (sorted), ids, how often each."""
    ends = np.flatnonzero(ids[order - 1 :] != start)
    windows = np.lib.stride_tricks.sliding_window_view(ids, order)[ends]
    keys = keys_of(windows, hash_of)
    ordered = np.argsort(keys)
    keys = keys[ordered]
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.zeros(0, np.int64)
    counts = np.diff(np.append(first, len(keys)))
    return keys[first], windows[ordered[first]], counts


def shorten(level: Level, folder: Path, hash_of: U64, start: int, memory_bytes: int) -> Level:
    """N-grams one unit shorter: each n-gram gives its last units one more occurrence in a new context.

    A row of start marks joins them, so that what comes first in a text has a context with a back-off weight.
    """
    order = level.order - 1
    ranges = Ranges(folder, order, len(level), memory_bytes)
    for part in chunks(len(level), memory_bytes // (4 * RECORD_OVERHEAD)):
        raw = np.asarray(level.raw[part])
        ending = level.tokens[part, -1] != start  # rows of start marks are added anew
        tokens = np.asarray(level.tokens[part, 1:])[ending]
        ranges.add(keys_of(tokens, hash_of), tokens, raw[ending], np.ones(int(ending.sum()), np.int64))
    row = np.full((1, order), start, np.uint32)
    ranges.add(keys_of(row, hash_of), row, np.zeros(1, np.int64), np.zeros(1, np.int64))
    return ranges.merge(hash_of, start)


def chunks(count: int, size: int) -> Iterator[slice]:
    """Slices of 0..count of at most `size`."""
    size = max(size, 1024)
    return (slice(first, min(first + size, count)) for first in range(0, count, size))


def mapped(path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> NDArray[Any]:
    """A raw scratch file as a memory-mapped array; one of no bytes, which cannot be mapped, as an empty array."""
    if not shape[0]:
        return np.empty(shape, dtype)
    return np.asarray(np.memmap(path, dtype, "r", shape=shape))
