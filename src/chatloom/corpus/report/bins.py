"""How numbers are spread, in fixed bins that add up: every octave of either sign is cut into 64 equal parts.

A bin is at most 1/64 of its values wide, whole numbers below 128 have bins of their own, and any bins of a width that
is a power of two (not narrower than those at the range's ends) are unions of them. Counts are exact; only where within
its bin a value lies is forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

PARTS = 64  # of an octave
LOWEST, HIGHEST = -24, 48  # magnitudes from 2**-24 are told from zero; what is beyond 2**48 shares the last bin
LAST = (HIGHEST - LOWEST) * PARTS
I64 = NDArray[np.int64]


def places(values: Any) -> I64:
    """The bin of each finite value [n]: 0 for zero, 1, 2, ... upwards, -1, -2, ... downwards."""
    numbers = np.asarray(values, np.float64)
    mantissa, exponent = np.frexp(np.abs(numbers))  # |value| = mantissa * 2**exponent, mantissa in [0.5, 1)
    place = (exponent.astype(np.int64) - 1 - LOWEST) * PARTS + ((2 * mantissa - 1) * PARTS).astype(np.int64) + 1
    place = np.where(mantissa > 0, np.clip(place, 0, LAST), 0)
    return np.where(numbers < 0, -place, place)


def edge(place: int) -> float:
    """Where the bin `place` begins, seen from zero: its values v have |edge| <= |v| < the next one's."""
    if place == 0:
        return 0.0
    octave, part = divmod(abs(place) - 1, PARTS)
    return math.copysign(math.ldexp(1 + part / PARTS, octave + LOWEST), place)


def centre(place: int) -> float:
    """The middle of a bin."""
    return 0.0 if place == 0 else (edge(place) + edge(place + (1 if place > 0 else -1))) / 2


@dataclass
class Spread:
    """Counts by bin; `absent` had no value, `odd` no finite one. Two of different documents add up."""

    counts: dict[int, int] = field(default_factory=dict)
    absent: int = 0
    odd: int = 0
    low: float = math.inf
    high: float = -math.inf
    whole: bool = True  # no value has a fraction

    @property
    def n(self) -> int:
        """Finite values."""
        return sum(self.counts.values())

    def add(self, values: Sequence[float | None]) -> None:
        """Count values."""
        there = np.array([value for value in values if value is not None], np.float64)
        finite = there[np.isfinite(there)]
        self.absent += len(values) - len(there)
        self.odd += len(there) - len(finite)
        if len(finite):
            self.low, self.high = min(self.low, float(finite.min())), max(self.high, float(finite.max()))
            self.whole = self.whole and bool((finite == np.round(finite)).all())
            found, times = np.unique(places(finite), return_counts=True)
            for place, n in zip(found.tolist(), times.tolist()):
                self.counts[place] = self.counts.get(place, 0) + n

    def merge(self, other: Spread) -> None:
        """Add the counts of other documents."""
        for place, n in other.counts.items():
            self.counts[place] = self.counts.get(place, 0) + n
        self.absent, self.odd = self.absent + other.absent, self.odd + other.odd
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.whole = self.whole and other.whole

    def quantile(self, share: float) -> float:
        """The value below which a share of the finite ones lies, to the width of a bin; NaN without any."""
        wanted, seen = share * self.n, 0
        for place in sorted(self.counts):
            seen += self.counts[place]
            if seen >= wanted:
                middle = math.floor(centre(place)) if self.whole else centre(place)
                return min(max(middle, self.low), self.high)
        return math.nan

    def values(self) -> dict[str, Any]:
        """As JSON."""
        counts = [[place, self.counts[place]] for place in sorted(self.counts)]
        ends = [self.low, self.high] if counts else None
        return {"counts": counts, "absent": self.absent, "odd": self.odd, "ends": ends, "whole": self.whole}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Spread:
        """From JSON."""
        low, high = values["ends"] or (math.inf, -math.inf)
        return cls(dict(values["counts"]), values["absent"], values["odd"], low, high, values["whole"])


def united(spreads: Sequence[Spread]) -> Spread:
    """All values together."""
    whole = Spread()
    for spread in spreads:
        whole.merge(spread)
    return whole


def display_edges(spread: Spread, marks: Sequence[float] = (), most: int = 40) -> tuple[str, list[float]]:
    """("linear" or "log", edges): bins for a figure of some values, made of whole bins of ours.

    Linear bins have a power of two as width. What spreads over more than two powers of ten gets four bins an octave,
    and zero a bin of its own, from 0 to the first edge above it. `marks` are values to be inside unless they are far
    away; far outliers share the last bin of linear ones.
    """
    if not spread.n:
        return "linear", []
    low, high = spread.low, spread.high
    if spread.whole and high - low < most and max(-low, high) < 2 * PARTS:
        return "linear", [float(value) for value in range(int(low), int(high) + 2)]
    first = min((edge(place) for place in spread.counts if place > 0), default=0.0)
    if low >= 0 and high > max(1.0, 100 * first) and spread.quantile(0.999) > 20 * max(spread.quantile(0.05), first):
        ends = [first, high, *(mark for mark in marks if first / 3 < mark < 3 * high)]
        return "log", _log_edges(min(ends), max(ends), zero=0 in spread.counts)
    if high > 4 * spread.quantile(0.99) > 0:
        high = max(2 * spread.quantile(0.99), min(high, max(marks, default=0.0) * 1.25))
    inside = [mark * 1.02 for mark in marks if high < mark < 3 * high] if high > 0 else []
    return "linear", _linear_edges(min(low, 0.0) if low < 0.3 * high else low, max([high, *inside]), most)


def _linear_edges(low: float, high: float, most: int) -> list[float]:
    greatest = max(abs(low), abs(high), 2.0**LOWEST)
    finest = 2.0 ** (math.frexp(greatest)[1] - 1) / PARTS
    width = max(finest, 2.0 ** math.ceil(math.log2(max(high - low, finest) / most)))
    first, last = math.floor(low / width), max(math.ceil(high / width), math.floor(low / width) + 1)
    return [width * step for step in range(first, last + 1)]


def _log_edges(first: float, last: float, *, zero: bool) -> list[float]:
    start, stop = (math.floor(4 * _octaves(value)) for value in (first, last))
    quarters = [math.ldexp(1 + (step % 4) / 4, step // 4) for step in range(start, stop + 2)]
    return ([0.0] if zero else []) + quarters


def _octaves(value: float) -> float:
    """Like log2, but in equal parts within an octave."""
    mantissa, exponent = math.frexp(value)
    return exponent - 1 + (2 * mantissa - 1)


def binned(spread: Spread, edges: Sequence[float]) -> list[int]:
    """Counts between neighbouring edges of `display_edges`; what lies outside of them is in the first or last bin."""
    counts = [0] * (len(edges) - 1)
    for place, n in spread.counts.items():
        bin_ = int(np.searchsorted(edges, centre(place), side="right")) - 1
        counts[min(max(bin_, 0), len(counts) - 1)] += n
    return counts
