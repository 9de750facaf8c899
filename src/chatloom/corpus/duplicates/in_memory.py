"""The search for near copies of a corpus whose band keys fit into memory (the stage `corpus`): 14 bands of 8.

Out of core, and with a banding that misses less, the same search is in `near.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from chatloom.corpus.duplicates import minhash
from chatloom.corpus.duplicates.minhash import Banding, jaccard
from chatloom.corpus.duplicates.shingling import Ragged, Shingles
from chatloom.corpus.text.units import U64

BANDS, ROWS = 14, 8
PERMUTATIONS = BANDS * ROWS
BANDING = Banding(BANDS, ROWS)
# Buckets of one band with more members than this are compared with their first members only; equal band after equal
# band the members of a true cluster meet anyway, and a bucket of boilerplate must not cost its square.
MAX_COMPARED = 64


def signature(keys: Shingles) -> minhash.Signatures:
    """MinHash signature [112] of a set of shingles."""
    return minhash.signatures(Ragged(keys, np.array([0, len(keys)])), BANDING)[0]


def band_keys(text_signature: minhash.Signatures) -> U64:
    """One 64-bit key for each band, [14]; two documents are candidates where they share a key in the same band."""
    return minhash.band_keys(text_signature[None, :], BANDING)[0]


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Document `index` is a copy of the kept document `kept`; `similarity` is to the kept one."""

    index: int
    kept: int
    similarity: float


def near_duplicates(
    bands: U64,
    shingles_of: Callable[[Sequence[int]], Iterable[tuple[int, Shingles]]],
    order: Sequence[int],
    threshold: float,
) -> list[Duplicate]:
    """All documents that go, by index.

    `bands` [documents, 14] are the keys; `shingles_of(indices)` gives the shingle sets of the candidates only (read
    again from where the documents lie); `order` ranks the documents, and of each cluster the first one is kept.
    """
    buckets = list(_buckets(bands, order))
    wanted = sorted({index for bucket in buckets for index in bucket})
    sets = dict(shingles_of(wanted)) if wanted else {}
    groups = UnionFind(len(bands))
    for bucket in buckets:
        for place, index in enumerate(bucket):
            for earlier in bucket[: min(place, MAX_COMPARED)]:
                if groups.find(index) == groups.find(earlier):
                    continue
                if similar(sets[index], sets[earlier], threshold):
                    groups.join(index, earlier)
    members: dict[int, list[int]] = {}
    for index in wanted:
        members.setdefault(groups.find(index), []).append(index)
    found = []
    for cluster in members.values():
        if len(cluster) > 1:
            kept, *others = sorted(cluster, key=lambda index: order[index])
            found += [Duplicate(i, kept, jaccard(sets[i], sets[kept])) for i in others]
    return sorted(found, key=lambda duplicate: duplicate.index)


def similar(one: Shingles, other: Shingles, threshold: float) -> bool:
    """Whether two sets' Jaccard similarity reaches the threshold."""
    # |A n B| is at most the smaller set, so sets of too different sizes need no comparison.
    small, large = sorted((len(one), len(other)))
    return small >= threshold * large and jaccard(one, other) >= threshold


def _buckets(bands: U64, order: Sequence[int]) -> Iterator[list[int]]:
    """Groups of documents that share a band's key, each in the given order: a sort per band, no table in memory."""
    rank = np.asarray(order)
    for band in bands.T:
        arranged = np.lexsort((rank, band))
        keys = band[arranged]
        edges = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1], [True])))
        for start, stop in itertools.pairwise(edges.tolist()):
            if stop - start > 1:
                yield arranged[start:stop].tolist()


class UnionFind:
    """Disjoint sets of 0..n-1 with path halving (Tarjan 1975)."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def find(self, item: int) -> int:
        """The set's representative, its lowest member."""
        parent = self._parent
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    def join(self, one: int, other: int) -> None:
        """Make one set of two."""
        low, high = sorted((self.find(one), self.find(other)))
        self._parent[high] = low
