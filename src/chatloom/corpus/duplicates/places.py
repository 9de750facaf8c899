"""Documents by name (a hash of the id) and by place (shard and row), and the way from names back to places.

Records about documents carry names, which do not depend on how the corpus is cut into shards; what needs the text
again gets the places by a sorted join.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import xxhash

from chatloom.corpus.duplicates.external_sort import MEMORY, external_sort, merge, open_runs
from chatloom.corpus.duplicates.grouping import followers
from chatloom.corpus.ranged import KEYS, partition
from chatloom.corpus.text.units import U64
from chatloom.errors import ChatloomError

NAMES, LOCATED = "names", "located"
ROW_BITS = 32


def names(ids: Sequence[str]) -> U64:
    """64-bit names of document ids (xxh3)."""
    digests = (xxhash.xxh3_64_intdigest(name.encode("utf-8", "surrogatepass")) for name in ids)
    return np.fromiter(digests, np.uint64, len(ids))


def place(shard: int, row: int) -> int:
    """One number for a document's shard and row; its order is that of the corpus."""
    return shard << ROW_BITS | row


def rows_within(shard: int, first: int = 0, last: int = 1 << ROW_BITS) -> tuple[int, int]:
    """Range [low, high) of the places of a shard's rows first to last - 1."""
    return place(shard, first), place(shard, 0) + last


def write_names(shard: int, ids: Iterable[str], path: Path) -> int:
    """Run of (name, place) of all documents of a shard, in the order of their rows; returns their number."""
    listed = list(ids)
    found = np.stack([names(listed), np.arange(len(listed), dtype=np.uint64) + np.uint64(place(shard, 0))], axis=1)
    return external_sort([found], path, NAMES, ("name", "place"))


def check_names(paths: Sequence[Path], part: int = 0, parts: int = 1, *, memory_bytes: int = MEMORY) -> None:
    """Raise ChatloomError where two documents have one name, saying where they are."""
    within = partition(part, parts)
    for found in followers(merge(open_runs(paths, NAMES, within=within), *within, memory_bytes=memory_bytes), 1):
        if len(found):
            first, second = (f"shard {int(p) >> ROW_BITS}, row {int(p) & (1 << ROW_BITS) - 1}" for p in found[0])
            raise ChatloomError(
                f"duplicates: the documents at {first} and at {second} have the same id (or ids of the same 64-bit "
                "hash); ids must be distinct: number them again where the documents are made"
            )


def locate(
    names_paths: Sequence[Path], wanted_paths: Sequence[Path], kind: str, path: Path, *, part: int = 0,
    parts: int = 1, memory_bytes: int = MEMORY,
) -> int:  # fmt: skip
    """Run of (place, name, other columns of the wanted) for the names wanted, by place: one range of names of many.

    `wanted_paths` are runs of one kind whose first column is the name; equal records of several runs count once.
    """
    within = partition(part, parts)
    wanted = open_runs(wanted_paths, kind, within=within)
    runs = open_runs(names_paths, NAMES, within=within)
    columns = ("place", *wanted[0].columns)

    def joined() -> Iterable[U64]:
        for block in merge(wanted, *within, unique=True, memory_bytes=memory_bytes // 2):
            low, high = int(block[0, 0]), int(block[-1, 0]) + 1
            for known in merge(runs, low, min(high, KEYS), memory_bytes=memory_bytes // 2):
                first = np.searchsorted(known[:, 0], block[:, 0])
                first[first == len(known)] = 0
                hit = known[first, 0] == block[:, 0]
                yield np.concatenate([known[first[hit], 1:2], block[hit]], axis=1)

    return external_sort(joined(), path, LOCATED, columns, wanted[0].about, memory_bytes=memory_bytes)


def rows_of(located: Sequence[Path], shard: int) -> U64:
    """Records (row, name, ...) of one shard, by row, from the located runs of all ranges of names."""
    within = rows_within(shard)
    found = [run.read(*within) for run in open_runs(located, LOCATED, within=within)]
    together = np.concatenate(found)
    together = together.take(np.argsort(together[:, 0], kind="stable"), axis=0)
    together[:, 0] -= np.uint64(within[0])
    return together
