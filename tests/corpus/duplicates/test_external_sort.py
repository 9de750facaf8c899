"""Sorting and merging give what sorting in memory gives, whatever the memory, and stay within it."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from chatloom.corpus.duplicates.external_sort import external_sort, merge, open_runs, sort_records
from chatloom.corpus.duplicates.runs import Run
from chatloom.corpus.ranged import KEYS, partition
from chatloom.corpus.text.units import U64


def sorted_in_memory(records: U64) -> U64:
    return records[np.lexsort(records.T[::-1])]


@pytest.mark.parametrize("values", [3, 2000, 1 << 63])
@pytest.mark.parametrize("width", [1, 2, 3])
def test_merging_equals_sorting_in_memory(tmp_path: Path, values: int, width: int) -> None:
    rng = np.random.default_rng(values % 97 + width)
    parts = [rng.integers(0, values, (int(n), width), dtype=np.uint64) for n in (0, 9000, 1, 20000)]
    for number, (part, memory) in enumerate(zip(parts, (100, 50_000, 100, 1 << 26))):
        chunks = np.array_split(part, 5)
        external_sort(chunks, tmp_path / str(number), "x", tuple("abc"[:width]), memory_bytes=memory)
    runs = open_runs([tmp_path / str(number) for number in range(4)], "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2", "3"]  # nothing spilled is left
    expected = sorted_in_memory(np.concatenate(parts))
    for memory in (1, 300_000, 1 << 26):
        assert np.array_equal(np.concatenate([*merge(runs, memory_bytes=memory)]), expected)
        unique = np.concatenate([*merge(runs, unique=True, memory_bytes=memory)])
        assert np.array_equal(unique, np.unique(expected, axis=0))
    ranges = [partition(part, 3) for part in range(3)] if values > 3000 else [(0, 1), (1, 3), (3, KEYS)]
    together = [block for low, high in ranges for block in merge(runs, low, high)]
    assert np.array_equal(np.concatenate(together), expected)


def test_partitions_cover_all_hashes_once() -> None:
    for parts in (1, 3, 64, 1000):
        bounds = [partition(part, parts) for part in range(parts)]
        assert bounds[0][0] == 0
        assert bounds[-1][1] == KEYS
        assert all(one[1] == other[0] for one, other in itertools.pairwise(bounds))
    with pytest.raises(ValueError):
        partition(3, 3)


def test_records_are_sorted_by_all_columns() -> None:
    records = np.random.default_rng(0).integers(0, 4, (5000, 3), dtype=np.uint64)
    assert np.array_equal(sort_records(records), sorted_in_memory(records))


def test_memory_does_not_grow_with_the_records(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def peak(times: int, values: int) -> int:
        def chunks() -> Iterator[U64]:
            for _ in range(times):
                keys = rng.integers(0, values, 20_000, dtype=np.uint64)
                yield np.stack([keys, rng.integers(0, 1 << 63, 20_000, dtype=np.uint64)], axis=1)

        tracemalloc.start()
        external_sort(chunks(), tmp_path / "run", "x", ("a", "b"), memory_bytes=2 << 20)
        total = sum(len(block) for block in merge([Run(tmp_path / "run")], memory_bytes=2 << 20))
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert total == times * 20_000
        return used

    small, large = peak(5, 1 << 63), peak(40, 1 << 63)  # 13 MB of records at the end
    assert large < 1.3 * small + (1 << 20)
    assert peak(40, 2) < 1.3 * small + (1 << 20)  # two keys only: a range of keys cannot be cut
