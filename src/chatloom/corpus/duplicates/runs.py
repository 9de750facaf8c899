"""Runs: files of sorted fixed-size records (a few unsigned 64-bit columns) that say themselves whether they are whole.

    512 bytes   a JSON object padded with spaces: format, kind, about, columns, count, hash of the block table
    records     little-endian, in blocks of BLOCK records (the last one shorter), sorted by all columns
    table       for each block its first record and the xxh3-64 of its bytes

The header is written last, so a file whose writer died has none. Every byte that is read is checked against the table,
and every record against its neighbour: a file that is cut off, changed or out of order is named, never merged.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import xxhash

from chatloom.corpus.ranged import KEYS
from chatloom.corpus.text.units import U64
from chatloom.errors import ChatloomError

FORMAT = "chatloom run 1"
HEADER_BYTES = 512
BLOCK = 2048  # records; 32 kB for records of two columns: what reading one range of one run costs at least
TABLE_ROWS = 1 << 15  # of a block table, read at once
WORD_BYTES = 8
U8 = np.dtype("<u8")


class RunError(ChatloomError):
    """A file of records that is not whole, not sorted, or of another kind than expected."""


class RunWriter:
    """Writes sorted records to a file; use in a `with`. What `append` gets must not be below what it got before.

    `kind` says what the columns mean, `about` what they depend on (settings); a reader checks both.
    """

    def __init__(self, path: Path, kind: str, columns: Sequence[str], about: str = "") -> None:
        self.path, self.kind, self.columns, self.about = path, kind, tuple(columns), about
        self.count = 0
        self._rest = np.empty((0, len(self.columns)), np.uint64)
        self._last: U64 | None = None
        self._table = bytearray()
        self._file: BinaryIO = open(path, "wb")  # noqa: SIM115 - closed by __exit__
        self._file.write(bytes(HEADER_BYTES))

    def append(self, records: U64) -> None:
        """Add sorted records [n, columns]; raises ValueError when they are out of order."""
        if not len(records):
            return
        if records.ndim != 2 or records.shape[1] != len(self.columns):
            raise ValueError(f"records of shape {records.shape}; expected [n, {len(self.columns)}]")
        if self._last is not None and tuple(records[0]) < tuple(self._last):
            raise ValueError(f"{self.path}: records are appended out of order")
        if (wrong := first_unsorted(records)) is not None:
            raise ValueError(f"{self.path}: record {self.count + wrong} is below the one before it")
        self._last = records[-1].copy()
        self.count += len(records)
        together = np.concatenate([self._rest, records]) if len(self._rest) else records
        whole = len(together) // BLOCK * BLOCK
        self._write(together[:whole])
        self._rest = together[whole:].copy()

    def _write(self, records: U64) -> None:
        for start in range(0, len(records), BLOCK):
            block = np.ascontiguousarray(records[start : start + BLOCK], U8)
            data = block.tobytes()
            self._table += np.array([*block[0], xxhash.xxh3_64_intdigest(data)], U8).tobytes()
            self._file.write(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is not None:
                return
            self._write(self._rest)
            self._file.write(self._table)
            header = {
                "format": FORMAT, "kind": self.kind, "about": self.about, "columns": self.columns, "count": self.count,
                "table": xxhash.xxh3_128_hexdigest(self._table),
            }  # fmt: skip
            text = json.dumps(header, ensure_ascii=False).encode("utf-8")
            if len(text) > HEADER_BYTES - 1:
                raise ValueError(f"{self.path}: kind, about and columns are too long for the header")
            self._file.seek(0)
            self._file.write(text.ljust(HEADER_BYTES - 1) + b"\n")


class Run:
    """A run on disk. Raises RunError when it is cut off, damaged, or of another kind or settings than expected.

    Of the block table only the part is kept that first columns of the range `within` need; numbers of blocks count
    from there. So what is in memory of a file depends on the range that is worked on, not on the file.
    """

    def __init__(
        self, path: Path, kind: str | None = None, about: str | None = None, within: tuple[int, int] = (0, KEYS)
    ) -> None:
        self.path, self.within = path, within
        try:
            with open(path, "rb") as file:
                header = file.read(HEADER_BYTES)
                size = file.seek(0, 2)
                values = json.loads(header) if header.startswith(b"{") and len(header) == HEADER_BYTES else {}
                if values.get("format") != FORMAT:
                    raise self._error("it was not written to its end, or is no such file")
                self.kind, self.about = str(values["kind"]), str(values["about"])
                self.columns, self.count = tuple(values["columns"]), int(values["count"])
                width = len(self.columns)
                blocks = -(-self.count // BLOCK)
                start = HEADER_BYTES + self.count * width * WORD_BYTES
                expected = start + blocks * (width + 1) * WORD_BYTES
                if size != expected:
                    raise self._error(f"{size:,} bytes, its header says {expected:,}")
                file.seek(start)
                table = self._table(file, blocks, str(values["table"]))
        except FileNotFoundError:
            raise RunError(f"{path}: no such file; do the step again that writes it") from None
        except (ValueError, KeyError, TypeError) as error:
            raise self._error(f"its header cannot be read ({error})") from None
        if kind is not None and self.kind != kind:
            raise RunError(f"{path}: holds `{self.kind}`; expected `{kind}`")
        if about is not None and self.about != about:
            raise RunError(
                f"{path}: was made with `{self.about}`; expected `{about}`; do the step that writes it again"
            )
        self.firsts: U64 = np.ascontiguousarray(table[:, :width])  # first record of each block
        self._hashes: U64 = table[:, width].copy()

    def _table(self, file: BinaryIO, blocks: int, expected: str) -> U64:
        """Rows of the block table that the range needs; all of it is read and checked, TABLE_ROWS at a time."""
        start, row_bytes = file.tell(), (self.width + 1) * WORD_BYTES
        digest, below, until = xxhash.xxh3_128(), 0, 0
        for _ in range(0, blocks, TABLE_ROWS):
            data = file.read(TABLE_ROWS * row_bytes)
            digest.update(data)
            rows = np.frombuffer(data, U8).reshape(-1, self.width + 1)
            below, until = below + cut(rows, self.within[0]), until + cut(rows, self.within[1])
        if digest.hexdigest() != expected:
            raise self._error("its block table was changed")
        self._skipped = max(below - 1, 0)  # the block before the first that begins in the range may reach into it
        file.seek(start + self._skipped * row_bytes)
        return np.frombuffer(file.read((until - self._skipped) * row_bytes), U8).reshape(-1, self.width + 1)

    def __len__(self) -> int:
        return self.count

    @property
    def width(self) -> int:
        """Number of columns."""
        return len(self.columns)

    def blocks(self, first: int, last: int) -> U64:
        """Records of blocks first to last - 1, checked; raises RunError when a block is damaged or not sorted."""
        begin = first + self._skipped
        stop = min((last + self._skipped) * BLOCK, self.count)
        size = BLOCK * self.width * WORD_BYTES
        with open(self.path, "rb") as file:
            file.seek(HEADER_BYTES + begin * size)
            data = file.read((stop - begin * BLOCK) * self.width * WORD_BYTES)
        for number in range(last - first):
            part = memoryview(data)[number * size : (number + 1) * size]
            if xxhash.xxh3_64_intdigest(part) != int(self._hashes[first + number]):
                raise self._error(f"the hash of block {begin + number} is wrong")
        records = np.frombuffer(data, U8).reshape(-1, self.width)
        if (wrong := first_unsorted(records)) is not None:
            raise self._error(f"record {begin * BLOCK + wrong} is below the one before it (hash order)")
        if last < len(self.firsts) and len(records) and tuple(self.firsts[last]) < tuple(records[-1]):
            until = last + self._skipped
            raise self._error(f"block {until} begins below the end of block {until - 1} (hash order)")
        return records

    def read(self, low: int = 0, high: int = KEYS) -> U64:
        """All records whose first column is at least low and below high."""
        first, last = self.block_range(low, high)
        if first >= last:
            return np.empty((0, self.width), np.uint64)
        records = self.blocks(first, last)
        return records[cut(records, low) : cut(records, high)]

    def block_range(self, low: int, high: int) -> tuple[int, int]:
        """Blocks that can hold a first column from low to high - 1. Raises ValueError beyond the range opened."""
        if low < self.within[0] or high > self.within[1]:
            raise ValueError(f"{self.path}: opened for {self.within}, asked for {(low, high)}")
        first = max(cut(self.firsts, low) - 1, 0)
        return first, cut(self.firsts, high)

    def of(self, keys: U64) -> U64:
        """Records whose first column is one of the keys (sorted, distinct), in order; reads their blocks only."""
        # A key's records may begin in the block before the one that its first record would be in, and go on behind.
        first = np.maximum(np.searchsorted(self.firsts[:, 0], keys, side="left") - 1, 0)
        last = np.searchsorted(self.firsts[:, 0], keys, side="right")
        wanted = np.unique(np.concatenate([np.arange(a, b) for a, b in zip(first.tolist(), last.tolist())] or [first]))
        found = [np.empty((0, self.width), np.uint64)]
        for number in wanted.tolist():
            records = self.blocks(number, number + 1)
            found.append(records[np.isin(records[:, 0], keys)])
        return np.concatenate(found)

    def verify(self) -> None:
        """Read all of it; raises RunError when anything is wrong."""
        for first in range(0, len(self.firsts), 64):
            self.blocks(first, min(first + 64, len(self.firsts)))

    def _error(self, what: str) -> RunError:
        return RunError(f"{self.path}: {what}; delete it and do the step again that writes it")


def cut(records: U64, key: int) -> int:
    """Number of records whose first column is below the key."""
    return len(records) if key >= KEYS else int(np.searchsorted(records[:, 0], np.uint64(key)))


def first_unsorted(records: U64) -> int | None:
    """Place of the first record that is below the one before it, by all columns; None when sorted."""
    if len(records) < 2:
        return None
    wrong = np.zeros(len(records) - 1, bool)
    undecided = np.ones(len(records) - 1, bool)
    for column in records.T:
        wrong |= undecided & (column[1:] < column[:-1])
        undecided &= column[1:] == column[:-1]
        if not undecided.any():
            break
    return int(np.argmax(wrong)) + 1 if wrong.any() else None
