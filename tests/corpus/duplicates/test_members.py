"""Who is kept of a cluster and which side it is on do not depend on how much is looked at at once, nor does memory."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from chatloom.corpus.duplicates import members
from chatloom.corpus.duplicates.members import cluster_members, rows_of_shard, write_copies, write_groups, write_members
from chatloom.corpus.duplicates.places import ROW_BITS
from chatloom.corpus.ranged import read_ranged
from chatloom.corpus.split import sides_of_clusters
from chatloom.errors import ChatloomError

PARTS = 3


def write(folder: Path, sizes: list[int], n_shards: int = 4) -> list[Path]:
    """Members of clusters of these sizes, dealt out to shards at random."""
    draw = random.Random(0)
    shards: list[list[tuple[str, int, int]]] = [[] for _ in range(n_shards)]
    for number, size in enumerate(sizes):
        cluster = draw.getrandbits(64)
        for member in range(size):
            shards[draw.randrange(n_shards)].append((f"{draw.random()}-{number}-{member}", draw.randrange(3), cluster))
    paths = [folder / f"members-{number}" for number in range(n_shards)]
    for number, (shard, path) in enumerate(zip(shards, paths)):
        draw.shuffle(shard)
        clusters = np.array([[row, row, cluster] for row, (*_, cluster) in enumerate(shard)], np.uint64)
        documents = ((name, priority) for name, priority, _ in shard)
        write_members(number, documents, clusters.reshape(-1, 3), members.NO_ROWS, path, parts=PARTS)
    return paths


def read(paths: list[Path], folder: Path) -> tuple[list[Any], list[Any]]:
    """Copies and groups of all ranges."""
    found: tuple[list[Any], list[Any]] = [], []
    for part in range(PARTS):
        write_copies(paths, None, folder / "copies", kind="url", part=part, parts=PARTS)
        write_groups(paths, folder / "groups", held_out_share=0.5, seed=1, part=part, parts=PARTS)
        for rows, name in zip(found, ("copies", "groups")):
            table = pq.read_table(folder / name).to_pylist()
            assert [row["place"] for row in table] == sorted(row["place"] for row in table)
            rows += table
    return found


def test_the_kept_one_and_the_side_are_those_of_the_whole_cluster(tmp_path: Path) -> None:
    paths = write(tmp_path, [2, 3, 50, 7, 1] * 6)
    copies, groups = read(paths, tmp_path)
    listed = [group for part in range(PARTS) for group in cluster_members(paths, part=part, parts=PARTS)]
    kept = {name: ids[0] for name, ids in listed}
    assert len(copies) == sum(len(ids) - 1 for _, ids in listed)
    assert all(row["kept"] == kept[row["cluster"]] != row["id"] for row in copies)
    sizes = {name: len(ids) for name, ids in listed}
    assert all(row["size"] == sizes[row["cluster"]] for row in groups)
    sides = dict(sides_of_clusters(listed, 0.5, 1))
    side_of_cluster = {name: sides[ids[0]] for name, ids in listed}
    assert {row["cluster"]: row["side"] for row in groups} == side_of_cluster
    assert set(side_of_cluster.values()) == {"train", "held_out"}
    assert sorted(row["cluster"] for row in groups if row["leads"]) == sorted(sizes)


def test_how_much_is_looked_at_at_once_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write(tmp_path, [2, 3, 50, 7, 1] * 6)
    expected = read(paths, tmp_path)
    for rows in (1, 5, 40):
        monkeypatch.setattr(members, "ROWS_AT_ONCE", rows)
        assert read(paths, tmp_path) == expected


def test_memory_does_not_grow_with_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "ROWS_AT_ONCE", 1000)

    def peak(size: int) -> int:
        folder = tmp_path / f"{size}"
        folder.mkdir()
        paths = write(folder, [size], n_shards=size // 500)
        tracemalloc.start()
        for part in range(PARTS):
            write_copies(paths, None, folder / "copies", part=part, parts=PARTS)
            write_groups(paths, folder / "groups", held_out_share=0.5, seed=1, part=part, parts=PARTS)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    assert peak(20_000) < 1.5 * peak(2_000)


def test_a_shard_reads_its_own_rows(tmp_path: Path) -> None:
    paths = write(tmp_path, [2, 3, 50] * 6)
    expected = read(paths, tmp_path)[1]
    files = [tmp_path / f"groups-{part}" for part in range(PARTS)]
    for part, file in enumerate(files):
        write_groups(paths, file, held_out_share=0.5, seed=1, part=part, parts=PARTS)
    for shard in range(4):
        found = {row["row"]: row["cluster"] for row in rows_of_shard(files, shard)}
        assert found == {
            row["place"] % (1 << ROW_BITS): row["cluster"] for row in expected if row["place"] >> ROW_BITS == shard
        }


def test_a_file_cut_into_other_ranges_is_named(tmp_path: Path) -> None:
    (path,) = write(tmp_path, [3], n_shards=1)
    with pytest.raises(ChatloomError, match="members-0: is cut into 3 ranges, expected 2"):
        list(read_ranged([path], 0, 2))
