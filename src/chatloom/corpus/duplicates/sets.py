"""Shingle sets of the documents that are compared, on disk: written shard by shard, read for the pairs at hand.

<path>         sorted shingles of one document after the other, 8 bytes each
<path>.index   a run: name, shard, offset, count, xxh3-64 of the bytes
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from chatloom.corpus.duplicates.external_sort import external_sort
from chatloom.corpus.duplicates.runs import U8, WORD_BYTES, Run, RunError
from chatloom.corpus.duplicates.shingling import Shingles, shingle_rows
from chatloom.corpus.text.units import U64, batches

SETS = "sets"
COLUMNS = ("name", "shard", "offset", "count", "hash")
TEXTS_AT_ONCE = 1 << 16  # characters
T = TypeVar("T")


def index_of(path: Path) -> Path:
    """Where the index of a file of sets is."""
    return path.with_name(path.name + ".index")


def write_sets(shard: int, texts: Iterable[tuple[int, str]], path: Path) -> int:
    """Write the shingle sets of (name, text); returns their number. Texts of one name make one set together."""
    entries: list[list[int]] = []
    offset = 0
    with open(path, "wb") as file:
        for name, shingles in _sets(texts):
            data = np.ascontiguousarray(shingles, U8).tobytes()
            file.write(data)
            entries.append([name, shard, offset, len(shingles), xxhash.xxh3_64_intdigest(data)])
            offset += len(shingles)
    table = np.array(entries, np.uint64).reshape(-1, len(COLUMNS))
    return external_sort([table], index_of(path), SETS, COLUMNS)


def _sets(texts: Iterable[tuple[int, str]]) -> Iterator[tuple[int, Shingles]]:
    held: list[tuple[int, str]] = []
    size = 0

    def made() -> Iterator[tuple[int, Shingles]]:
        contents = [text for _, text in held]
        for first, last in batches(contents, TEXTS_AT_ONCE):
            for (name, _), row in zip(held[first:last], shingle_rows(contents[first:last])):
                yield name, np.unique(row)

    for item in texts:
        held.append(item)
        size += len(item[1])
        if size >= TEXTS_AT_ONCE:
            yield from made()
            held, size = [], 0
    yield from made()


class Sets:
    """Sets by name. `index` is that of all shards, `files` gives a shard's file. Raises RunError for damaged files."""

    def __init__(self, index: Path, files: Callable[[int], Path]) -> None:
        self._index, self._files = Run(index, SETS), files

    def known(self, wanted: U64) -> NDArray[np.bool_]:
        """Which of the names (sorted, distinct) have a set."""
        return np.isin(wanted, self.entries(wanted)[:, 0])

    def entries(self, wanted: U64) -> U64:
        """Index records of the names (sorted, distinct) that have a set, by name; of a book one for each shard."""
        return self._index.of(wanted)

    def read(self, entries: U64) -> dict[int, Shingles]:
        """The sets of index records; several records of one name are one set."""
        found: dict[int, Shingles] = {}
        order = np.lexsort((entries[:, 2], entries[:, 1]))  # as they lie on the disk
        for shard, group in itertools.groupby(entries[order].tolist(), key=lambda entry: entry[1]):
            path = self._files(shard)
            try:
                file = open(path, "rb")  # noqa: SIM115 - closed below
            except FileNotFoundError:
                raise RunError(f"{path}: no such file; do the step again that writes it") from None
            with file:
                for name, _, offset, count, digest in group:
                    file.seek(offset * WORD_BYTES)
                    data = file.read(count * WORD_BYTES)
                    if len(data) != count * WORD_BYTES or xxhash.xxh3_64_intdigest(data) != digest:
                        where = f"{path}: cut off or changed at byte {offset * WORD_BYTES:,}"
                        raise RunError(f"{where}; delete it and do the step again that writes it")
                    part = np.frombuffer(data, U8)
                    found[name] = np.union1d(found[name], part) if name in found else part
        return found

    def compare(
        self, pairs: U64, comparison: Callable[[Shingles, Shingles], T], *, memory_bytes: int = 64 << 20
    ) -> Iterator[T]:
        """`comparison` of the sets of each pair of names [n, 2], reading at most `memory_bytes` of sets at once.

        Raises RunError for a name without a set.
        """
        if not len(pairs):
            return
        wanted = np.unique(pairs)
        entries = self.entries(wanted)
        if len(missing := np.setdiff1d(wanted, entries[:, 0])):
            raise RunError(f"{self._index.path}: no shingles of document {int(missing[0]):016x}; do that step again")
        if int(entries[:, 3].sum()) * WORD_BYTES > memory_bytes and len(pairs) > 1:
            half = len(pairs) // 2
            yield from self.compare(pairs[:half], comparison, memory_bytes=memory_bytes)
            yield from self.compare(pairs[half:], comparison, memory_bytes=memory_bytes)
            return
        sets = self.read(entries)
        for one, other in pairs.tolist():
            yield comparison(sets[one], sets[other])
