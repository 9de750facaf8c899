"""A sample of texts that is bounded in bytes and holds every language and source in fair shares.

Which texts are in it follows from their ids, not from their order; a smaller sample is, but for the texts at its edge,
a part of a larger one. What fits whole is taken whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import xxhash

BINS = 1024
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Sampled:
    """A text with its id and the stratum that it stands for."""

    id: str
    language: str
    source: str
    text: str


Read = Callable[[], Iterable[Sampled]]
Stratum = tuple[str, str]


@dataclass(frozen=True)
class SamplePlan:
    """How much of every stratum (language, source) is there, and how much of it is taken, in bytes."""

    available: dict[Stratum, int]
    quota: dict[Stratum, int]
    edges: dict[Stratum, tuple[int, int]]  # texts below this bin whole; of that bin as many bytes
    seed: int

    @property
    def complete(self) -> bool:
        """Whether all there is is taken."""
        return self.quota == self.available

    def take(self, items: Iterable[Sampled]) -> Iterator[Sampled]:
        """Those of the texts that belong to the sample; the one that reaches a stratum's quota is cut there."""
        left = {stratum: rest for stratum, (_, rest) in self.edges.items()}
        for item in items:
            stratum = (item.language, item.source)
            edge, _ = self.edges.get(stratum, (0, 0))
            place = _bin(item.id, self.seed)
            if place < edge:
                yield item
            elif place == edge and left.get(stratum):
                text = cut_to(item.text, left[stratum])
                left[stratum] -= len(text.encode("utf-8"))
                if len(text) < len(item.text):
                    left[stratum] = 0
                if text:
                    yield Sampled(item.id, item.language, item.source, text)


def plan_sample(items: Iterable[Sampled], limit: int, *, smoothing: float = 0.7, seed: int = 0) -> SamplePlan:
    """Decide on at most `limit` bytes of text, from one pass over all of it; memory does not grow with the texts.

    Languages share the room in proportion to (their bytes) ** smoothing, and so do the sources of a language: 1 keeps
    the natural mixture, 0 gives all equal room, 0.7 is what multilingual BERT was sampled with (Devlin et al. 2019).
    """
    bins: dict[Stratum, Counter[int]] = {}
    for item in items:
        found = bins.setdefault((item.language, item.source), Counter())
        found[_bin(item.id, seed)] += len(item.text.encode("utf-8"))
    available = {stratum: sum(found.values()) for stratum, found in sorted(bins.items())}
    languages: Counter[str] = Counter()
    for (language, _), size in available.items():
        languages[language] += size
    rooms = share_out(languages, limit, smoothing)
    quota: dict[Stratum, int] = {}
    for language in sorted(languages):
        sources = {stratum: size for stratum, size in available.items() if stratum[0] == language}
        quota |= share_out(sources, rooms[language], smoothing)
    edges = {stratum: _edge(bins[stratum], quota[stratum]) for stratum in available}
    return SamplePlan(available, quota, edges, seed)


def share_out(sizes: Mapping[Key, int], limit: int, smoothing: float) -> dict[Key, int]:
    """Divide `limit` in proportion to size ** smoothing; nobody gets more than its size, others get what is over."""
    shares: dict[Key, int] = {}
    waiting = {key: size for key, size in sizes.items() if size > 0}
    room = limit
    while waiting:
        if room >= sum(waiting.values()):  # exactly, where shares computed as fractions could miss it by a byte
            shares |= waiting
            break
        total = sum(size**smoothing for size in waiting.values())
        full = [key for key, size in waiting.items() if room * size**smoothing / total >= size]
        if not full:
            shares |= {key: int(room * size**smoothing / total) for key, size in waiting.items()}
            break
        for key in full:
            shares[key] = waiting.pop(key)
            room -= shares[key]
    return {key: shares.get(key, 0) for key in sizes}


def cut_to(text: str, n_bytes: int) -> str:
    """The longest beginning of a text that takes at most `n_bytes` bytes of UTF-8."""
    return text.encode("utf-8")[:n_bytes].decode("utf-8", errors="ignore")


def _bin(name: str, seed: int) -> int:
    return xxhash.xxh3_64_intdigest(name.encode("utf-8"), seed=seed) % BINS


def _edge(bins: Mapping[int, int], quota: int) -> tuple[int, int]:
    used = 0
    for place in sorted(bins):
        if used + bins[place] > quota:
            return place, quota - used
        used += bins[place]
    return BINS, 0
