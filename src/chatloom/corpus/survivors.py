"""Documents that passed every rule, waiting for the search for copies: in memory their ids and fingerprints only."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chatloom.corpus.cleaning import Cleaned
from chatloom.corpus.duplicates import BANDS, Shingles, near_duplicates, shingles
from chatloom.corpus.record import Document, read_documents
from chatloom.corpus.settings import DuplicateSettings

EXACT, NEAR = "exact_duplicates", "near_duplicates"


@dataclass(frozen=True, slots=True)
class Copy:
    """Why a document goes: by which search, the index of the document that stays for it, and their similarity."""

    stage: str
    kept: int
    similarity: float


class Survivors:
    """Ids, text hashes and band keys in the order of reading; about 300 bytes a document."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self._hashes: list[str] = []
        self._bands = bytearray()
        self._taken: set[str] = set()

    def add(self, cleaned: Cleaned) -> Document:
        """Remember a document; one whose id was seen before gets `#2`, `#3` ... behind it."""
        document, copies = cleaned.document, 1
        name = document.id
        while name in self._taken:
            copies += 1
            name = f"{document.id}#{copies}"
        self._taken.add(name)
        self.ids.append(name)
        self._hashes.append(cleaned.text_hash)
        self._bands += np.array(cleaned.bands, np.uint64).tobytes()
        return document if name == document.id else dataclasses.replace(document, id=name)

    def copies(self, settings: DuplicateSettings, passed: Path) -> dict[int, Copy]:
        """The documents that go, by index; of each cluster the first by id stays. `passed` holds the texts."""
        by_id = sorted(range(len(self.ids)), key=self.ids.__getitem__)
        found: dict[int, Copy] = {}
        if settings.exact:
            first: dict[str, int] = {}
            for index in by_id:
                kept = first.setdefault(self._hashes[index], index)
                if kept != index:
                    found[index] = Copy(EXACT, kept, 1.0)
        if settings.near and self.ids:
            near = self._near(settings.threshold, [i for i in range(len(self.ids)) if i not in found], by_id, passed)
            # An exact copy of what turned out to be a near copy stands for the same kept document.
            found = {i: dataclasses.replace(c, kept=near[c.kept].kept if c.kept in near else c.kept)
                     for i, c in found.items()} | near  # fmt: skip
        return found

    def _near(self, threshold: float, rest: Sequence[int], by_id: Sequence[int], passed: Path) -> dict[int, Copy]:
        rank = np.empty(len(self.ids), np.int64)
        rank[list(by_id)] = np.arange(len(self.ids))
        bands: NDArray[np.uint64] = np.frombuffer(bytes(self._bands), np.uint64).reshape(len(self.ids), BANDS)

        def shingles_of(wanted: Sequence[int]) -> Iterator[tuple[int, Shingles]]:
            places = {rest[place]: place for place in wanted}
            for index, document in enumerate(read_documents(passed)):
                if index in places:
                    yield places[index], shingles(document.text)

        found = near_duplicates(bands[list(rest)], shingles_of, rank[list(rest)].tolist(), threshold)
        return {rest[copy.index]: Copy(NEAR, rest[copy.kept], copy.similarity) for copy in found}


def cluster_sizes(copies: dict[int, Copy]) -> Counter[int]:
    """How many documents each kept one stands for besides itself, by its index."""
    return Counter(copy.kept for copy in copies.values())
