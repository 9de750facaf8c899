"""Exact and near duplicates: equal texts by hash, nearly equal ones by MinHash with banding, checked exactly.

A document is the set of its 5-grams of words (of characters, for Chinese and Japanese). Two sets' MinHash signatures
agree in each place with probability J, their Jaccard similarity (Broder 1997); signatures of 112 places are cut into
14 bands of 8, and documents that agree in a whole band are candidates: with probability 1 - (1 - J^8)^14, which is
0.57 at J = 0.7, 0.92 at 0.8 and 0.9997 at 0.9. Candidates are compared exactly, so no document goes that is less
similar than the threshold to some document of its cluster. Clusters are the connected components.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from chatloom.corpus.language import HAN, HANGUL, KANA

BANDS, ROWS = 14, 8
PERMUTATIONS = BANDS * ROWS
SHINGLE = 5
WORD = re.compile(r"\w+")
SPACE = re.compile(r"\s+")
EMPTY = np.uint64(0xFFFFFFFFFFFFFFFF)
CHUNK = 4096  # shingles hashed at once: 4096 x 112 x 8 bytes = 3.7 MB, which stays in the cache
# Buckets of one band with more members than this are compared with their first members only; equal band after equal
# band the members of a true cluster meet anyway, and a bucket of boilerplate must not cost its square.
MAX_COMPARED = 64

Shingles = NDArray[np.uint64]


def normalised(text: str) -> str:
    """What exact equality looks at: lower case, white space as single spaces."""
    return SPACE.sub(" ", text.lower()).strip()


def text_hash(text: str) -> str:
    """128-bit hash of the normalised text, as hex."""
    return xxhash.xxh3_128_hexdigest(normalised(text).encode("utf-8"))


def shingles(text: str) -> Shingles:
    """Hashes of a text's distinct 5-grams, sorted; a shorter text is one shingle, an empty one none."""
    text = text.lower()
    asian = len(HAN.findall(text)) + len(KANA.findall(text)) + len(HANGUL.findall(text))
    if asian > 0.3 * sum(map(str.isalpha, text)):
        codes = np.frombuffer("".join(text.split()).encode("utf-32-le"), np.uint32).astype(np.uint64)
    else:
        # xxh3 takes bytes only; a word is hashed once a text.
        hashes: dict[str, int] = {}
        words = WORD.findall(text)
        for word in words:
            if word not in hashes:
                hashes[word] = xxhash.xxh3_64_intdigest(word.encode("utf-8"))
        codes = np.fromiter((hashes[word] for word in words), np.uint64, len(words))
    if not len(codes):
        return np.empty(0, np.uint64)
    count = max(1, len(codes) - SHINGLE + 1)
    keys = np.zeros(count, np.uint64)
    for offset in range(min(SHINGLE, len(codes))):
        keys = _mix(keys ^ codes[offset : offset + count])
    return np.unique(keys)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection of 64-bit integers that spreads every bit (SplitMix64's finaliser, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (values ^ (values >> np.uint64(31))) + np.uint64(0x9E3779B97F4A7C15)


@functools.cache
def _coefficients() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    generator = np.random.Generator(np.random.PCG64(20210531))
    multipliers = generator.integers(0, 1 << 64, PERMUTATIONS, dtype=np.uint64) | np.uint64(1)
    return multipliers, generator.integers(0, 1 << 64, PERMUTATIONS, dtype=np.uint64)


def signature(keys: Shingles) -> NDArray[np.uint64]:
    """MinHash signature [112] of a set of shingles by multiply-shift hashing (Dietzfelbinger et al. 1997).

    h(x) = (a x + b mod 2^64), a odd; the high bits are the random ones and decide the minimum.
    """
    multipliers, additions = _coefficients()
    lowest = np.full(PERMUTATIONS, EMPTY)
    for start in range(0, len(keys), CHUNK):
        values = keys[start : start + CHUNK, None] * multipliers + additions
        np.minimum(lowest, values.min(axis=0), out=lowest)
    return lowest >> np.uint64(32)


def band_keys(text_signature: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One 64-bit key for each band, [14]; two documents are candidates where they share a key in the same band."""
    rows = np.ascontiguousarray(text_signature.reshape(BANDS, ROWS))
    return np.fromiter((xxhash.xxh3_64_intdigest(row.tobytes()) for row in rows), np.uint64, BANDS)


def jaccard(one: Shingles, other: Shingles) -> float:
    """Size of the intersection over size of the union of two sorted sets; 0 if both are empty."""
    common = len(np.intersect1d(one, other, assume_unique=True))
    union = len(one) + len(other) - common
    return common / union if union else 0.0


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Document `index` is a copy of the kept document `kept`; `similarity` is to the kept one."""

    index: int
    kept: int
    similarity: float


def near_duplicates(
    bands: NDArray[np.uint64],
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
                if _similar(sets[index], sets[earlier], threshold):
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


def _similar(one: Shingles, other: Shingles, threshold: float) -> bool:
    # |A n B| is at most the smaller set, so sets of too different sizes need no comparison.
    small, large = sorted((len(one), len(other)))
    return small >= threshold * large and jaccard(one, other) >= threshold


def _buckets(bands: NDArray[np.uint64], order: Sequence[int]) -> Iterator[list[int]]:
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
