"""What the rules look at: one text as words (for Chinese and Japanese also single characters), lines, paragraphs.

A `TextView` computes each part once, on first use; n-gram shares are NumPy over 64-bit rolling hashes, so that a text
of 100,000 words takes a few sorts.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

# Languages written without spaces between words: their unit is the character, their n-grams are twice as long, since
# a Chinese word has about two characters (Gopher's numbers are for English words).
CHARACTER_LANGUAGES = frozenset({"zh", "ja"})
# A Han or kana character, a full-width mark, or a run of anything else: code and formulas in a Chinese text are words.
UNSPACED = re.compile(
    "[\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U000323af\u2014\u2018-\u201d\u2026\u00b7]"
    "|[^\\s\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U000323af\u2014\u2018-\u201d\u2026\u00b7]+"
)
PARAGRAPH_BREAK = re.compile(r"\n\s*\n")
MIX = np.uint64(0x9E3779B97F4A7C15)


class TextView:
    """A text and its parts; `language` decides whether words or characters are counted."""

    def __init__(self, text: str, language: str) -> None:
        self.text = text
        self.by_characters = language in CHARACTER_LANGUAGES
        self._no_repeats_from = 1 << 30

    def _width(self, n: int) -> int:
        return 2 * n if self.by_characters else n

    @cached_property
    def units(self) -> list[str]:
        """Words split at white space; where words are not spaced, each of that script's characters by itself."""
        return UNSPACED.findall(self.text) if self.by_characters else self.text.split()

    @cached_property
    def n_characters(self) -> int:
        """Characters other than white space."""
        return int(self._lengths.sum())

    @cached_property
    def lines(self) -> list[str]:
        """Lines with something on them, without the space around it."""
        return [line for line in map(str.strip, self.text.split("\n")) if line]

    @cached_property
    def paragraphs(self) -> list[str]:
        """Stretches between empty lines."""
        return [part for part in map(str.strip, PARAGRAPH_BREAK.split(self.text)) if part]

    @cached_property
    def _lengths(self) -> NDArray[np.int64]:
        return np.fromiter(map(len, self.units), np.int64, len(self.units))

    @cached_property
    def _codes(self) -> NDArray[np.uint64]:
        known: dict[str, int] = {}
        codes = (known.setdefault(unit, len(known) + 1) for unit in self.units)
        return np.fromiter(codes, np.uint64, len(self.units))

    @cached_property
    def character_counts(self) -> Counter[str]:
        """How often each character other than white space occurs."""
        return Counter("".join(self.text.split()))

    def _ngrams(self, n: int) -> NDArray[np.uint64]:
        """A hash of each run of `n` units, [len(units) - n + 1]; built from the hashes of shorter runs."""
        while len(self._keys) <= n:
            width = len(self._keys)
            count = len(self._codes) - width + 1
            keys = (self._keys[-1][: max(count, 0)] ^ self._codes[width - 1 : width - 1 + max(count, 0)]) * MIX
            self._keys.append(keys ^ (keys >> np.uint64(29)))
        return self._keys[n]

    @cached_property
    def _keys(self) -> list[NDArray[np.uint64]]:
        return [np.zeros(len(self._codes) + 1, np.uint64)]

    def top_ngram_share(self, n: int) -> float:
        """Share of characters that lie in the most frequent n-gram (occurrences times length); 0 if all differ."""
        width = self._width(n)
        keys = self._ngrams(width)
        if not len(keys):
            return 0.0
        _, first, counts = np.unique(keys, return_index=True, return_counts=True)
        top = int(np.lexsort((first, -counts))[0])  # the earliest of equally frequent ones
        if counts[top] < 2:
            return 0.0
        length = int(self._lengths[first[top] : first[top] + width].sum())
        return min(1.0, int(counts[top]) * length / self.n_characters)

    def repeated_ngram_share(self, n: int) -> float:
        """Share of characters inside n-grams that occurred earlier in the text, each character counted once."""
        width = self._width(n)
        if width >= self._no_repeats_from:
            return 0.0
        keys = self._ngrams(width)
        _, first = np.unique(keys, return_index=True)
        repeated = np.ones(len(keys), bool)
        repeated[first] = False
        if not repeated.any():
            self._no_repeats_from = width  # longer runs cannot repeat either
            return 0.0
        edges = np.zeros(len(self.units) + 1, np.int64)
        starts = np.flatnonzero(repeated)
        np.add.at(edges, starts, 1)
        np.add.at(edges, starts + width, -1)
        covered = np.cumsum(edges[:-1]) > 0
        return float(self._lengths[covered].sum() / self.n_characters)


def repeated_share(parts: list[str], *, by_characters: bool) -> float:
    """Share of `parts` that are copies of an earlier one: by number, or by characters."""
    if not parts:
        return 0.0
    counts = Counter(parts)
    if by_characters:
        return sum((n - 1) * len(part) for part, n in counts.items()) / sum(map(len, parts))
    return (len(parts) - len(counts)) / len(parts)
