"""Finding many terms in a text: whole words where words are spaced, anywhere inside where they are not.

All terms are looked for at once: tables say at which places the first three characters of one could stand, a dictionary
how long it could be, a set whether it is one. Time hardly depends on the number of terms.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chatloom.corpus.labellers.lists import entries
from chatloom.corpus.text import characters

Marks = NDArray[np.bool_]
PREFIX = 3
BUCKET_BITS = 16
BUCKETS = 1 << BUCKET_BITS
MULTIPLIER = 0x9E3779B1  # odd, near 2^32 divided by the golden ratio: neighbours fall far apart


class Terms:
    """A set of terms; upper and lower case are the same.

    A term that has a letter or mark of an unspaced script (Chinese, Japanese) in it is found anywhere; any other only
    where no letter, digit or `_` stands directly before or behind it.
    """

    def __init__(self, terms: Iterable[str]) -> None:
        table = characters.classes()
        unspaced = table.with_flag(characters.UNSPACED)
        self._anywhere: dict[str, bool] = {}
        self._lengths: dict[str, list[int]] = {}
        self._may_begin = np.zeros((PREFIX, BUCKETS), bool)  # [length of the prefix - 1, its hash]
        for term in filter(None, (" ".join(term.lower().split()) for term in terms)):
            points = characters.code_points(term)
            self._anywhere[term] = bool(unspaced[table.of[points]].any())
            prefix = term[:PREFIX]
            self._lengths[prefix] = sorted({len(term), *self._lengths.get(prefix, ())}, reverse=True)
            self._may_begin[len(prefix) - 1, _prefix_hashes(points[:PREFIX])[-1][0]] = True

    @classmethod
    def read(cls, files: Sequence[Path]) -> Terms:
        """The terms of list files; raises ChatloomError as `lists.entries` does."""
        return cls(entry for file in files for entry in entries(file))

    def __len__(self) -> int:
        return len(self._anywhere)

    def __contains__(self, term: str) -> bool:
        return term in self._anywhere

    def find(self, text: str) -> list[tuple[int, int, str]]:
        """(start, end, term) of each occurrence in order, the longest at each place, none overlapping."""
        lowered = _lower(text)
        points = characters.code_points(lowered)
        candidates = np.zeros(len(points), bool)
        for may_begin, hashes in zip(self._may_begin, _prefix_hashes(points)):
            candidates[: len(hashes)] |= may_begin[hashes]
        if not candidates.any():
            return []
        table = characters.classes()
        wordlike = table.with_flag(characters.ALPHANUMERIC)[table.of[points]] | (points == ord("_"))
        unspaced = table.with_flag(characters.UNSPACED)[table.of[points]]
        # Inside a spaced word nothing begins.
        candidates[1:] &= ~(wordlike[:-1] & wordlike[1:] & ~unspaced[1:] & ~unspaced[:-1])
        found: list[tuple[int, int, str]] = []
        free = 0
        for start in np.flatnonzero(candidates).tolist():
            if start < free:
                continue
            end = self._end(lowered, start, wordlike, unspaced)
            if end is not None:
                found.append((start, end, lowered[start:end]))
                free = end
        return found

    def _end(self, text: str, start: int, wordlike: Marks, unspaced: Marks) -> int | None:
        """Where the longest term that begins at a place ends."""
        for size in range(PREFIX, 0, -1):
            for length in self._lengths.get(text[start : start + size], ()):
                end = start + length
                anywhere = self._anywhere.get(text[start:end])
                if anywhere or (anywhere is False and _ends(text, wordlike, unspaced, end)):
                    return end
        return None


def _prefix_hashes(points: NDArray[np.uint32]) -> list[NDArray[np.uint32]]:
    """Hashes of the one, two, three characters from each place on where there are so many."""
    hashes = [points]
    for size in range(2, min(PREFIX, len(points)) + 1):
        hashes.append(hashes[-1][:-1] * np.uint32(MULTIPLIER) + points[size - 1 :])
    return [(found * np.uint32(MULTIPLIER)) >> np.uint32(32 - BUCKET_BITS) for found in hashes]


def _ends(text: str, wordlike: Marks, unspaced: Marks, end: int) -> bool:
    return end >= len(text) or not wordlike[end] or bool(unspaced[end])


def _lower(text: str) -> str:
    lowered = text.lower()
    if len(lowered) == len(text):
        return lowered
    return "".join([char.lower() if len(char.lower()) == 1 else char for char in text])  # places must stay
