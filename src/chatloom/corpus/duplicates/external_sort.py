"""Sorting and merging of records that do not fit into memory, by ranges of their first column.

A partition p of P is the range [p, p + 1) x 2^64 / P of hash values; every run is sorted, so a partition of a run is a
piece of the file. A merge reads from each run, range by range, about as many blocks as the memory given holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from chatloom.corpus.duplicates.runs import BLOCK, WORD_BYTES, Run, RunWriter, cut
from chatloom.corpus.ranged import KEYS
from chatloom.corpus.text.units import U64

MEMORY = 64 << 20  # bytes of records that are worked on at once, unless told otherwise


def sort_records(records: U64) -> U64:
    """Records [n, columns] sorted by all columns."""
    if len(records) < 2:
        return records
    first = np.ascontiguousarray(records[:, 0])
    records = records.take(np.argsort(first), axis=0)
    if records.shape[1] == 1:
        return records
    # Few records share a first column where that is a hash; only those are sorted by the others.
    ties = records[1:, 0] == records[:-1, 0]
    if ties.any():
        tied = np.zeros(len(records), bool)
        tied[1:] |= ties
        tied[:-1] |= ties
        places = np.flatnonzero(tied)
        some = records[places]
        records[places] = some.take(np.lexsort(some.T[::-1]), axis=0)
    return records


def distinct(records: U64) -> U64:
    """Sorted records without repeats."""
    if len(records) < 2:
        return records
    keep = np.ones(len(records), bool)
    keep[1:] = (records[1:] != records[:-1]).any(axis=1)
    return records[keep]


def merge(
    runs: Sequence[Run], low: int = 0, high: int = KEYS, *, unique: bool = False, memory_bytes: int = MEMORY
) -> Iterator[U64]:
    """Records of all runs with low <= first column < high, sorted, in arrays of bounded size.

    Memory: about `memory_bytes`, and at least a block (32 kB for two columns) for each run.
    """
    queues = [_Queue(run, low, high) for run in runs]
    tables = [queue.table() for queue in queues]
    queues = [queue for queue, table in zip(queues, tables) if len(table)]
    if not queues:
        return
    starts = sort_records(np.concatenate([table for table in tables if len(table)]))
    block_bytes = BLOCK * runs[0].width * WORD_BYTES
    step = max(1, memory_bytes // (2 * block_bytes) - len(queues))
    # Between two cuts lie at most `step` first records, so at most step + runs blocks are open. Cuts are whole records:
    # a single key that fills more than the memory is cut as well.
    cuts: list[U64 | None] = [*distinct(starts[step::step]), None]
    for until in cuts:
        pieces = [piece for queue in queues if len(piece := queue.take(until))]
        if not pieces:
            continue
        records = sort_records(np.concatenate(pieces))
        yield distinct(records) if unique else records


def external_sort(
    chunks: Iterable[U64],
    path: Path,
    kind: str,
    columns: Sequence[str],
    about: str = "",
    *,
    unique: bool = False,
    memory_bytes: int = MEMORY,
) -> int:
    """Write a run of all records of the chunks, in any order given; returns their number.

    What does not fit into `memory_bytes` is put beside `path` as runs of its own and deleted at the end.
    """
    spilled: list[Path] = []
    held: list[U64] = []
    size = 0

    def collect() -> U64:
        together = np.concatenate(held) if held else np.empty((0, len(columns)), np.uint64)
        together = sort_records(together)
        return distinct(together) if unique else together

    try:
        for chunk in chunks:
            held.append(chunk)
            size += chunk.nbytes
            if size * 3 >= memory_bytes:  # sorting needs the records again, and their order
                spilled.append(path.with_name(f"{path.name}.spill{len(spilled)}"))
                with RunWriter(spilled[-1], kind, columns, about) as writer:
                    writer.append(collect())
                held, size = [], 0
        if not spilled:
            with RunWriter(path, kind, columns, about) as writer:
                writer.append(collect())
            return writer.count
        rest = path.with_name(f"{path.name}.spill{len(spilled)}")
        spilled.append(rest)
        with RunWriter(rest, kind, columns, about) as writer:
            writer.append(collect())
        return merge_runs([Run(file) for file in spilled], path, unique=unique, memory_bytes=memory_bytes)
    finally:
        for file in spilled:
            file.unlink(missing_ok=True)


def merge_runs(
    runs: Sequence[Run], path: Path, *, unique: bool = False, memory_bytes: int = MEMORY, low: int = 0, high: int = KEYS
) -> int:
    """Write one run of the records of many (of a range of them); returns their number. Beyond about a thousand runs,
    merge in groups first: each run needs a block in memory."""
    same_runs(runs)
    with RunWriter(path, runs[0].kind, runs[0].columns, runs[0].about) as writer:
        for records in merge(runs, low, high, unique=unique, memory_bytes=memory_bytes):
            writer.append(records)
    return writer.count


def open_runs(
    paths: Iterable[Path], kind: str, about: str | None = None, within: tuple[int, int] = (0, KEYS)
) -> list[Run]:
    """Runs that may be merged, opened for a range of first columns: of one kind, made with the same settings.

    Raises RunError naming the one that is not.
    """
    runs: list[Run] = []
    for path in paths:
        runs.append(Run(path, kind, about, within))
        about = runs[-1].about
    if not runs:
        raise ValueError(f"no run of `{kind}` was given")
    return runs


def same_runs(runs: Sequence[Run]) -> None:
    """Raise RunError unless all runs are of one kind and made with the same settings."""
    for run in runs[1:]:
        Run(run.path, runs[0].kind, runs[0].about, (0, 0))


class _Queue:
    """What is left of one run's range."""

    def __init__(self, run: Run, low: int, high: int) -> None:
        self.run, self.low, self.high = run, low, high
        self.block, self.last = run.block_range(low, high)
        self.pending: U64 = np.empty((0, run.width), np.uint64)

    def table(self) -> U64:
        return self.run.firsts[self.block : self.last]

    def take(self, until: U64 | None) -> U64:
        """Records below `until` (None: all), which are in the range."""
        stop = self.last
        if until is not None:
            stop = self.block + _below(self.run.firsts[self.block : self.last], until)
        if stop > self.block:
            read = self.run.blocks(self.block, stop)
            read = read[cut(read, self.low) : cut(read, self.high)]
            self.pending = np.concatenate([self.pending, read]) if len(self.pending) else read
            self.block = stop
        place = len(self.pending) if until is None else _below(self.pending, until)
        taken, self.pending = self.pending[:place], self.pending[place:]
        return taken


def _below(records: U64, record: U64) -> int:
    """Number of sorted records that are below a record, by all columns."""
    low, high = 0, len(records)
    for column, value in enumerate(record):
        part = records[low:high, column]
        low, high = low + int(np.searchsorted(part, value)), low + int(np.searchsorted(part, value, side="right"))
        if low == high:
            break
    return low
