"""Edges -> clusters of documents: (name, cluster) of every document with an edge; the cluster is its lowest name.

The documents without a copy appear nowhere. Joining takes 16 bytes a document with an edge, in files that are mapped
into memory, not in the memory itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from chatloom.corpus.duplicates.external_sort import MEMORY, external_sort, merge, open_runs
from chatloom.corpus.duplicates.near import EDGES
from chatloom.corpus.duplicates.runs import HEADER_BYTES, U8, RunWriter
from chatloom.corpus.text.units import I64, U64

CLUSTERS = "clusters"
EDGES_AT_ONCE = 1 << 16
NODES_AT_ONCE = 1 << 20


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
