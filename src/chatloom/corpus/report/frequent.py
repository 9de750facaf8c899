"""Which texts are frequent among many: a sketch of fixed size before the counting, exact counts of the frequent after.

The sketch (Count-Min, Cormode and Muthukrishnan 2005) never says too little: what it calls rare is rare. So the second
pass counts exactly whatever may be frequent, a few hundred values at most, and the others together. Sketches add up;
the result is the same for any shards.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

ROWS, WIDTH = 3, 2048
SHARE = 256  # a value is frequent from one in so many


class Sketch:
    """Counts of hashed values, [ROWS, WIDTH]."""

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros((ROWS, WIDTH), np.int64)

    def add(self, value: str, n: int = 1) -> None:
        """Count a value."""
        self.counts[range(ROWS), hashes(value)] += n

    def merge(self, other: Sketch) -> None:
        """Add the counts of others."""
        self.counts += other.counts

    def values(self) -> list[list[list[int]]]:
        """As JSON: places and counts of each row."""
        return [[np.flatnonzero(row).tolist(), row[row > 0].tolist()] for row in self.counts]

    @classmethod
    def of(cls, values: Sequence[Any]) -> Sketch:
        """From JSON."""
        sketch = cls()
        for row, (places, counts) in zip(sketch.counts, values, strict=True):
            row[places] = counts
        return sketch

    def frequent(self, share: int = SHARE, least: int = 1) -> Frequent:
        """Test for what may make up one in `share` of all that was counted, and occur `least` times."""
        least = max(least, -(-int(self.counts[0].sum()) // share))
        return Frequent([np.flatnonzero(row >= least).tolist() for row in self.counts], least)


class Frequent:
    """Says of a value whether it may be frequent, `least` times or more; wrong only about a few that are rarer."""

    def __init__(self, places: Sequence[Iterable[int]], least: int) -> None:
        self.least = least
        self._places = [frozenset(row) for row in places]

    def __contains__(self, value: str) -> bool:
        return all(place in row for place, row in zip(hashes(value), self._places, strict=True))

    def values(self) -> dict[str, Any]:
        """As JSON."""
        return {"least": self.least, "places": [sorted(row) for row in self._places]}


def hashes(value: str) -> list[int]:
    """The value's place in each row."""
    number = xxhash.xxh3_128_intdigest(value.encode("utf-8", "surrogatepass"))
    return [(number >> (32 * row)) % WIDTH for row in range(ROWS)]
