"""Edges -> clusters of documents -> which one of each cluster is kept, and how like it the others are.

    write_clusters   (once)               (name, cluster) of every document with an edge; the cluster is its lowest name
    write_members    (a shard)            id, priority, name, cluster of the shard's documents in clusters
    resolve          (a range of clusters)  of each cluster the first by (priority, id) is kept, the others are listed

The documents without a copy appear nowhere. Joining clusters takes 16 bytes a document with an edge, in files that are
mapped into memory, not in the memory itself.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from chatloom.corpus.duplicates.external_sort import MEMORY, external_sort, merge, open_runs, partition
from chatloom.corpus.duplicates.minhash import jaccard
from chatloom.corpus.duplicates.near import EDGES
from chatloom.corpus.duplicates.runs import HEADER_BYTES, U8, RunWriter
from chatloom.corpus.duplicates.sets import Sets
from chatloom.corpus.text.units import I64, U64

CLUSTERS = "clusters"
EDGES_AT_ONCE = 1 << 16
NODES_AT_ONCE = 1 << 20
MEMBERS = pa.schema(
    [
        pa.field("cluster", pa.uint64(), nullable=False),
        pa.field("priority", pa.int64(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("name", pa.uint64(), nullable=False),
        pa.field("equal", pa.uint64(), nullable=False),  # the lowest name among documents of equal text
    ]
)
DUPLICATES = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),  # exact: of the kept one's text; near: by a chain of edges
        pa.field("cluster", pa.string(), nullable=False),
        pa.field("kept", pa.string(), nullable=False),
        pa.field("similarity", pa.float64()),  # Jaccard, to the kept one; null where it was never compared (same URL)
    ]
)
EXACT, NEAR = "exact", "near"
NO_ROWS: U64 = np.empty((0, 3), np.uint64)  # of a shard without any


def write_clusters(edge_paths: Sequence[Path], path: Path, *, memory_bytes: int = MEMORY) -> dict[str, int]:
    """Run of (name, cluster) from all edges; returns the counts: documents and clusters.

    Disjoint sets with path doubling (Tarjan 1975; Shiloach and Vishkin 1982), a block of edges at a time.
    """
    runs = open_runs(edge_paths, EDGES)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=path.name) as scratch:
        nodes_path = Path(scratch) / "nodes"
        members = (edges.reshape(-1, 1) for edges in merge(runs, memory_bytes=memory_bytes))
        count = external_sort(members, nodes_path, "nodes", ("name",), unique=True, memory_bytes=memory_bytes)
        if not count:
            with RunWriter(path, CLUSTERS, ("name", "cluster")):
                return {"documents": 0, "clusters": 0}
        nodes: U64 = np.memmap(nodes_path, U8, "r", offset=HEADER_BYTES, shape=(count,))
        parent = np.memmap(Path(scratch) / "parents", np.int64, "w+", shape=(count,))
        for start in range(0, count, NODES_AT_ONCE):
            stop = min(start + NODES_AT_ONCE, count)
            parent[start:stop] = np.arange(start, stop)
        for block in merge(runs, unique=True, memory_bytes=memory_bytes):
            for start in range(0, len(block), EDGES_AT_ONCE):
                edges = block[start : start + EDGES_AT_ONCE]
                _join(parent, np.searchsorted(nodes, edges[:, 0]), np.searchsorted(nodes, edges[:, 1]))
        clusters = 0
        with RunWriter(path, CLUSTERS, ("name", "cluster")) as writer:
            for start in range(0, count, NODES_AT_ONCE):
                places = np.arange(start, min(start + NODES_AT_ONCE, count))
                roots = _roots(parent, places)
                clusters += int(np.count_nonzero(roots == places))
                writer.append(np.stack([nodes[places], nodes[roots]], axis=1))
        del nodes, parent
    return {"documents": count, "clusters": clusters}


def _join(parent: I64, one: I64, other: I64) -> None:
    """Make one set of the two of every edge; the root of a set is its lowest member."""
    while len(one):
        one, other = _roots(parent, one), _roots(parent, other)
        apart = one != other
        one, other = one[apart], other[apart]
        # Several edges may move one root; the lowest wins, the others are seen again in the next turn.
        np.minimum.at(parent, np.maximum(one, other), np.minimum(one, other))


def _roots(parent: I64, places: I64) -> I64:
    """The roots of places; on the way every place comes to hang twice as high, again and again."""
    distinct, back = np.unique(places, return_inverse=True)
    while True:
        above = parent[distinct]
        top = parent[above]
        if np.array_equal(above, top):
            return np.asarray(above[back])
        parent[distinct] = top


def write_members(
    documents: Iterable[tuple[str, int]], clusters: U64, equals: U64, path: Path, *, group_rows: int = 1 << 16
) -> int:
    """Parquet of the documents of a shard that are in clusters; returns their number.

    `documents` are (id, priority) of all rows in order; `clusters` are records (row, name, cluster) and `equals`
    records (row, name, first name of equal text) of this shard (`places.rows_of`).
    """
    cluster_of = {int(row): (int(name), int(cluster)) for row, name, cluster in clusters.tolist()}
    equal_of = {int(row): int(equal) for row, _, equal in equals.tolist()}
    rows: list[tuple[int, int, str, int, int]] = []
    for row, (document, priority) in enumerate(documents):
        if row in cluster_of:
            name, cluster = cluster_of[row]
            rows.append((cluster, priority, document, name, equal_of.get(row, name)))
    rows.sort()
    columns = list(zip(*rows)) if rows else [() for _ in MEMBERS]
    table = pa.table([pa.array(column, field.type) for column, field in zip(columns, MEMBERS)], schema=MEMBERS)
    pq.write_table(table, path, row_group_size=group_rows, compression="zstd")
    return len(rows)


def resolve(
    member_paths: Sequence[Path], sets: Sets | None, *, kind: str = NEAR, part: int = 0, parts: int = 1,
    memory_bytes: int = MEMORY,
) -> pa.Table:  # fmt: skip
    """Table of DUPLICATES: every member that is not kept, of the clusters of one range, by cluster, priority and id.

    Memory is that of one range's members: choose the number of ranges by it. `kind` names what is not of equal text;
    `sets` gives the similarity to the kept one.
    """
    members = _members(member_paths, part, parts)
    cluster, equal = members["cluster"].to_numpy(), members["equal"].to_numpy()
    first = np.arange(len(cluster))
    first[1:][cluster[1:] == cluster[:-1]] = 0
    first = np.maximum.accumulate(first)
    others = np.flatnonzero(first != np.arange(len(cluster)))
    same = equal[others] == equal[first[others]]
    similarity = np.full(len(others), np.nan)
    similarity[same] = 1.0
    if sets is not None and len(others):
        pairs = np.stack([equal[others], equal[first[others]]], axis=1)
        names = np.unique(pairs)
        known = ~same & np.isin(pairs, names[sets.known(names)]).all(axis=1)
        similarity[known] = list(sets.compare(pairs[known], jaccard, memory_bytes=memory_bytes))
    return pa.table(
        [
            members["id"].take(pa.array(others)),
            pa.array(np.where(same, EXACT, kind).tolist(), pa.string()),
            pa.array([f"{int(value):016x}" for value in cluster[others]], pa.string()),
            members["id"].take(pa.array(first[others])),
            pa.array(similarity, from_pandas=True),
        ],
        schema=DUPLICATES,
    )


def cluster_members(member_paths: Sequence[Path], *, part: int = 0, parts: int = 1) -> Iterator[tuple[str, list[str]]]:
    """(cluster, ids of its documents) of one range, the kept one first."""
    members = _members(member_paths, part, parts)
    rows = zip(members["cluster"].to_pylist(), members["id"].to_pylist())
    for cluster, group in itertools.groupby(rows, key=lambda row: row[0]):
        yield f"{cluster:016x}", [document for _, document in group]


def _members(member_paths: Sequence[Path], part: int, parts: int) -> pa.Table:
    """Members of the clusters of one range by (cluster, priority, id)."""
    low, high = (pa.scalar(bound, pa.uint64()) for bound in (partition(part, parts)[0], partition(part, parts)[1] - 1))
    within = (pc.field("cluster") >= low) & (pc.field("cluster") <= high)
    tables = [pq.read_table(path, schema=MEMBERS, filters=within) for path in member_paths]
    order = [(name, "ascending") for name in ("cluster", "priority", "id")]
    return pa.concat_tables([MEMBERS.empty_table(), *tables]).sort_by(order).combine_chunks()
