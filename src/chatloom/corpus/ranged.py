"""Tables cut by ranges of a hash: a Parquet file for each shard, in it a row group for each range.

A task that works on one range reads of all shards' files its own row group, in the order of the shards; so nothing is
read twice, and what is in memory at once is a shard's part of a range.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chatloom.corpus.text.units import I64, U64
from chatloom.errors import ChatloomError

KEYS = 1 << 64  # one more than the greatest hash


def partition(part: int, parts: int) -> tuple[int, int]:
    """Range [low, high) of hash values that belongs to partition `part` of `parts`."""
    if not 0 <= part < parts:
        raise ValueError(f"partition {part} of {parts}; expected 0 to {parts - 1}")
    return part * KEYS // parts, (part + 1) * KEYS // parts


def ranges_of(keys: U64, parts: int) -> I64:
    """Which of `parts` partitions each key belongs to."""
    bounds = np.array([partition(part, parts)[0] for part in range(1, parts)], np.uint64)
    return np.searchsorted(bounds, keys, side="right")


def write_ranged(path: Path, table: pa.Table, keys: U64, parts: int) -> None:
    """Write a table, each row in the range of its key; within a range rows stay in order."""
    owners = ranges_of(keys, parts)
    with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
        for part in range(parts):
            writer.write_table(table.take(pa.array(np.flatnonzero(owners == part))))


def read_ranged(paths: Iterable[Path], part: int, parts: int) -> Iterator[pa.Table]:
    """The rows of one range, file by file. Raises ChatloomError for a file that was cut into another number."""
    for path in paths:
        with pq.ParquetFile(path) as file:
            if file.num_row_groups != parts:
                raise ChatloomError(
                    f"{path}: is cut into {file.num_row_groups} ranges, expected {parts}; do the step that writes it "
                    "again"
                )
            yield file.read_row_group(part)
