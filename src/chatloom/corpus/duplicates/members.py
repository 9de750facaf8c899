"""Clusters -> which one of each cluster is kept, and how like it the others are; how big it is, and its side.

    write_members   (a shard)              place, id, priority, cluster of the shard's documents in clusters
    write_copies    (a range of clusters)  of each cluster the first by (priority, id) is kept; the others, by place
    write_groups    (a range of clusters)  of every member, by place: its cluster, the cluster's size and side

By place (shard and row), so that whoever writes a shard's columns reads its own rows only. Memory: one row for each
cluster of a range, and ROWS_AT_ONCE members, however big a cluster is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from chatloom.corpus.duplicates.external_sort import MEMORY
from chatloom.corpus.duplicates.minhash import jaccard
from chatloom.corpus.duplicates.places import place, rows_within
from chatloom.corpus.duplicates.sets import Sets
from chatloom.corpus.ranged import read_ranged, write_ranged
from chatloom.corpus.split import leader_value, side_of
from chatloom.corpus.text.units import U64

ROWS_AT_ONCE = 1 << 16
GROUP_ROWS = 1 << 12  # what is read at least where one shard's rows are looked up
EXACT, NEAR = "exact", "near"
NO_ROWS: U64 = np.empty((0, 3), np.uint64)  # of a shard without any
MEMBERS = pa.schema(
    [
        pa.field("cluster", pa.uint64(), nullable=False),
        pa.field("place", pa.uint64(), nullable=False),
        pa.field("priority", pa.int64(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("equal", pa.uint64(), nullable=False),  # the lowest name among documents of equal text
    ]
)
COPIES = pa.schema(
    [
        pa.field("place", pa.uint64(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),  # exact: of the kept one's text; near: by a chain of edges
        pa.field("cluster", pa.string(), nullable=False),
        pa.field("kept", pa.string(), nullable=False),
        pa.field("similarity", pa.float64()),  # Jaccard, to the kept one; null where it was never compared (same URL)
    ]
)
GROUPS = pa.schema(
    [
        pa.field("place", pa.uint64(), nullable=False),
        pa.field("cluster", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("leads", pa.bool_(), nullable=False),  # the one document of the cluster that decides its side
        pa.field("side", pa.string(), nullable=False),
    ]
)


def write_members(
    shard: int, documents: Iterable[tuple[str, int]], clusters: U64, equals: U64, path: Path, *, parts: int = 1
) -> int:
    """Parquet of the documents of a shard that are in clusters, by ranges of these; returns their number.

    `documents` are (id, priority) of all rows in order; `clusters` are records (row, name, cluster) and `equals`
    records (row, name, first name of equal text) of this shard (`places.rows_of`).
    """
    cluster_of = {row: (name, cluster) for row, name, cluster in clusters.tolist()}
    equal_of = {row: equal for row, _, equal in equals.tolist()}
    rows: list[tuple[int, int, int, str, int]] = []
    for row, (document, priority) in enumerate(documents):
        if row in cluster_of:
            name, cluster = cluster_of[row]
            rows.append((cluster, place(shard, row), priority, document, equal_of.get(row, name)))
    columns = list(zip(*rows)) if rows else [() for _ in MEMBERS]
    table = pa.table([pa.array(column, field.type) for column, field in zip(columns, MEMBERS)], schema=MEMBERS)
    write_ranged(path, table, np.array(columns[0], np.uint64), parts)
    return len(rows)


def write_copies(
    member_paths: Sequence[Path], sets: Sets | None, path: Path, *, kind: str = NEAR, part: int = 0, parts: int = 1,
    memory_bytes: int = MEMORY,
) -> int:  # fmt: skip
    """Parquet of COPIES: every member of the clusters of one range that is not kept, by place; returns their number.

    `kind` names what is not of equal text; `sets` gives the similarity to the kept one.
    """
    kept = _first_of_each(_batches(member_paths, part, parts), ("cluster", "priority", "id"))
    count = 0
    with pq.ParquetWriter(path, COPIES, compression="zstd") as writer:
        for members in _batches(member_paths, part, parts):
            copies = _copies(members, kept, sets, kind, memory_bytes)
            writer.write_table(copies, row_group_size=GROUP_ROWS)
            count += len(copies)
    return count


def _copies(members: pa.Table, kept: pa.Table, sets: Sets | None, kind: str, memory_bytes: int) -> pa.Table:
    at = np.searchsorted(_numbers(kept, "cluster"), _numbers(members, "cluster"))
    others = np.flatnonzero(_numbers(members, "place") != _numbers(kept, "place")[at])
    at = at[others]
    equal, first = _numbers(members, "equal")[others], _numbers(kept, "equal")[at]
    same = equal == first
    similarity = np.where(same, 1.0, np.nan)
    if sets is not None and len(others):
        pairs = np.stack([equal, first], axis=1)
        names = np.unique(pairs)
        known = ~same & np.isin(pairs, names[sets.known(names)]).all(axis=1)
        similarity[known] = list(sets.compare(pairs[known], jaccard, memory_bytes=memory_bytes))
    some = members.take(pa.array(others))
    columns: list[Any] = [
        some["place"],
        some["id"],
        pa.array(np.where(same, EXACT, kind).tolist(), pa.string()),
        _cluster_names(some),
        kept["id"].take(pa.array(at)),
        pa.array(similarity, from_pandas=True),
    ]
    return pa.table(columns, schema=COPIES)


def write_groups(
    member_paths: Sequence[Path], path: Path, *, held_out_share: float, seed: int, part: int = 0, parts: int = 1
) -> int:
    """Parquet of GROUPS: every member of the clusters of one range, by place; returns the number of clusters.

    A cluster's side is that of its leader, as `split.sides_of_clusters` has it.
    """

    def led() -> Iterator[pa.Table]:
        for members in _batches(member_paths, part, parts):
            leaders = [leader_value(name, seed) for name in members["id"].to_pylist()]
            yield members.append_column("leader", pa.array(leaders, pa.float64()))

    groups = _first_of_each(led(), ("cluster", "leader", "id"))
    sides = pa.array([side_of(name, held_out_share, seed) for name in groups["id"].to_pylist()], pa.string())
    with pq.ParquetWriter(path, GROUPS, compression="zstd") as writer:
        for members in _batches(member_paths, part, parts):
            at = np.searchsorted(_numbers(groups, "cluster"), _numbers(members, "cluster"))
            columns: list[Any] = [
                members["place"],
                _cluster_names(members),
                groups["size"].take(pa.array(at)),
                pa.array(_numbers(groups, "place")[at] == _numbers(members, "place")),
                sides.take(pa.array(at)),
            ]
            writer.write_table(pa.table(columns, schema=GROUPS), row_group_size=GROUP_ROWS)
    return len(groups)


def rows_of_shard(paths: Iterable[Path], shard: int) -> Iterator[dict[str, Any]]:
    """Rows of COPIES or GROUPS of one shard, `row` in place of `place`, from the files of all ranges."""
    low, high = (pa.scalar(bound, pa.uint64()) for bound in rows_within(shard))
    for path in paths:
        table = pq.read_table(path, filters=[("place", ">=", low), ("place", "<", high)])
        for row in table.to_pylist():
            yield {"row": row.pop("place") - place(shard, 0), **row}


def cluster_members(member_paths: Sequence[Path], *, part: int = 0, parts: int = 1) -> list[tuple[str, list[str]]]:
    """(cluster, ids of its documents, the kept one first) of one range; in memory."""
    order = [(name, "ascending") for name in ("cluster", "priority", "id")]
    members = pa.concat_tables([MEMBERS.empty_table(), *read_ranged(member_paths, part, parts)]).sort_by(order)
    found: dict[int, list[str]] = {}
    for cluster, document in zip(members["cluster"].to_pylist(), members["id"].to_pylist()):
        found.setdefault(cluster, []).append(document)
    return [(f"{cluster:016x}", ids) for cluster, ids in found.items()]


def _batches(paths: Iterable[Path], part: int, parts: int) -> Iterator[pa.Table]:
    """Members of one range, about ROWS_AT_ONCE at a time."""
    held: list[pa.Table] = []
    for table in read_ranged(paths, part, parts):
        held.append(table)
        if sum(map(len, held)) >= ROWS_AT_ONCE:
            yield pa.concat_tables(held).combine_chunks()
            held = []
    yield pa.concat_tables([MEMBERS.empty_table(), *held]).combine_chunks()


def _first_of_each(batches: Iterable[pa.Table], order: Sequence[str]) -> pa.Table:
    """The first row of each cluster by `order`, by cluster, and how many rows the cluster has as `size`."""
    best: pa.Table | None = None
    held: list[pa.Table] = []
    for batch in batches:
        held.append(batch.append_column("size", pa.array(np.ones(len(batch), np.int64))))
        if sum(map(len, held)) >= (0 if best is None else len(best)):  # each row is sorted a few times, not each time
            best, held = _reduced([*([] if best is None else [best]), *held], order), []
    return _reduced([*([] if best is None else [best]), *held], order)


def _reduced(tables: Sequence[pa.Table], order: Sequence[str]) -> pa.Table:
    table = pa.concat_tables(tables).sort_by([(name, "ascending") for name in order]).combine_chunks()
    clusters, sizes = _numbers(table, "cluster"), _numbers(table, "size")
    first = np.flatnonzero(np.concatenate([np.ones(min(len(table), 1), bool), clusters[1:] != clusters[:-1]]))
    summed = np.add.reduceat(sizes, first) if len(first) else sizes
    found = table.take(pa.array(first))
    return found.set_column(found.schema.get_field_index("size"), "size", pa.array(summed))


def _numbers(table: pa.Table, name: str) -> NDArray[Any]:
    return np.asarray(table[name].to_numpy())


def _cluster_names(table: pa.Table) -> pa.Array:
    return pa.array([f"{cluster:016x}" for cluster in table["cluster"].to_pylist()], pa.string())
