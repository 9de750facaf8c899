"""MinHash signatures and band keys: documents that share a band's key are candidates for the exact comparison.

Two sets' signatures agree in each place with probability J, their Jaccard similarity (Broder 1997). A signature of
bands x rows places is cut into bands; documents meet that agree in a whole band: with probability
1 - (1 - J^rows)^bands.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chatloom.corpus.duplicates.shingling import Ragged, Shingles
from chatloom.corpus.text.units import U64, mix

CHUNK = 1 << 14  # shingles hashed at once, one place of the signature after the other: 2 x 64 kB, which stays in cache
FEW = 1 << 12  # shingles of a single text for which a whole table, places x shingles, is quicker
EMPTY = np.uint32(0xFFFFFFFF)
Signatures = NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Banding:
    """How signatures are made and cut."""

    bands: int
    rows: int
    seed: int = 20210531

    def __post_init__(self) -> None:
        if self.bands < 1 or self.rows < 1:
            raise ValueError(f"bands x rows is {self.bands} x {self.rows}; both must be at least 1")

    @property
    def places(self) -> int:
        """Length of a signature."""
        return self.bands * self.rows

    def probability(self, similarity: Any) -> Any:
        """Of two documents of this Jaccard similarity to be compared; also of an array of similarities."""
        return 1 - (1 - similarity**self.rows) ** self.bands

    def about(self) -> str:
        """What the keys depend on; run files carry it, so that keys of different bandings are never merged."""
        return f"{self.bands}x{self.rows} seed {self.seed}"


def signatures(shingles: Ragged, banding: Banding) -> Signatures:
    """MinHash signatures [texts, places] by multiply-shift hashing (Dietzfelbinger et al. 1997); repeats do no harm.

    h(x) = (a x + b) mod 2^32 of the shingle's upper 32 bits, a odd. Chance agreement of two minima of n shingles is
    n / 2^32; the exact comparison that follows uses all 64 bits. A text without shingles has EMPTY everywhere.
    """
    multipliers, additions = _coefficients(banding.places, banding.seed)
    keys = (shingles.values >> np.uint64(32)).astype(np.uint32)
    if len(shingles) == 1 and 0 < len(keys) <= FEW:
        return (keys[None, :] * multipliers[:, None] + additions[:, None]).min(axis=1)[None, :]
    lowest = np.full((banding.places, len(shingles)), EMPTY)
    filled = np.flatnonzero(shingles.offsets[1:] > shingles.offsets[:-1])
    ends = shingles.offsets[1:][filled]
    buffer = np.empty(min(CHUNK, len(keys)), np.uint32)
    for start in range(0, len(keys), CHUNK):
        part = keys[start : start + CHUNK]
        values = buffer[: len(part)]
        # Texts with a shingle in this chunk; the first and the last may reach beyond it.
        first, last = np.searchsorted(ends, (start + 1, start + len(part)))
        begins = np.maximum(shingles.offsets[:-1][filled[first : last + 1]], start) - start
        rows = filled[first : last + 1]
        whole = len(rows) == rows[-1] - rows[0] + 1
        for place in range(banding.places):
            np.multiply(part, multipliers[place], out=values)
            np.add(values, additions[place], out=values)
            minima = np.minimum.reduceat(values, begins)
            into = lowest[place, rows[0] : rows[-1] + 1] if whole else lowest[place, rows]
            np.minimum(into, minima, out=into)
            if not whole:
                lowest[place, rows] = into
    return np.ascontiguousarray(lowest.T)


def band_keys(signature: Signatures, banding: Banding) -> U64:
    """64-bit keys [texts, bands], different for equal rows in different bands."""
    rows = signature.reshape(len(signature), banding.bands, banding.rows).astype(np.uint64)
    factors = mix(np.arange(1, banding.rows + 1, dtype=np.uint64)) | np.uint64(1)
    numbers = mix(np.arange(banding.bands, dtype=np.uint64) + np.uint64(banding.places << 20))
    # Mixed before they are added up: a weighted sum of small numbers would collide more often than 64 bits need.
    return mix((mix(rows + np.uint64(1)) * factors).sum(axis=2, dtype=np.uint64) + numbers)


def jaccard(one: Shingles, other: Shingles) -> float:
    """Size of the intersection over size of the union of two sorted sets; 0 if both are empty."""
    common = intersection(one, other)
    union = len(one) + len(other) - common
    return common / union if union else 0.0


def intersection(one: Shingles, other: Shingles) -> int:
    """Number of common members of two sorted sets."""
    together = np.concatenate([one, other])
    together.sort()
    return int(np.count_nonzero(together[1:] == together[:-1]))


@functools.cache
def _coefficients(places: int, seed: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    generator = np.random.Generator(np.random.PCG64(seed))
    multipliers = generator.integers(0, 1 << 32, places, dtype=np.uint32) | np.uint32(1)
    return multipliers, generator.integers(0, 1 << 32, places, dtype=np.uint32)
