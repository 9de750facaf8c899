"""What the rules look at: many texts at once as characters, words (for Chinese and Japanese single characters), lines.

A `Texts` holds texts that are counted in the same way and computes each part once, on first use, in NumPy passes over
all of them. Every measure is a ratio of two integers, so that a text's values do not depend on what other texts it was
measured with.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from chatloom.corpus.text.characters import (
    ALPHANUMERIC,
    DIGIT,
    LETTER,
    MARK,
    SPACE,
    SUSPECT,
    UNSPACED,
    bit,
    classes,
    code_points,
    starts_of_runs,
)
from chatloom.corpus.text.repetition import Ints, Repeats, covered, most_frequent, repeats

# Languages written without spaces between words: their unit is the character, their n-grams are twice as long, since
# a Chinese word has about two characters (Gopher's numbers are for English words).
CHARACTER_LANGUAGES = frozenset({"zh", "ja"})
PARAGRAPH_BREAK = re.compile(r"\n\s*\n")
BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
Floats = NDArray[np.float64]


class Texts:
    """Texts that are all counted by characters or all by words; every measure is an array [texts]."""

    def __init__(self, texts: Sequence[str], *, by_characters: bool) -> None:
        self.texts = texts
        self.by_characters = by_characters
        self._repeats: dict[int, Repeats] = {}

    @cached_property
    def _points(self) -> NDArray[np.uint32]:
        return code_points("\n".join(self.texts) + "\n")  # a space between texts: no word reaches into the next

    @cached_property
    def _classes(self) -> NDArray[np.uint8]:
        return classes().of[self._points]

    @cached_property
    def _begins(self) -> Ints:
        """Each text's first character among all, and the end, [texts + 1]."""
        lengths = np.fromiter(map(len, self.texts), np.int64, len(self.texts)) + 1
        return np.concatenate([[0], np.cumsum(lengths)])

    @cached_property
    def _counts(self) -> Ints:
        """Characters with each flag (the one after the text, a space, included), [texts, flags]."""
        has, begins = classes().has, self._begins
        parts = (self._classes[begin:end] for begin, end in itertools.pairwise(begins))
        return np.stack([np.bincount(part, minlength=len(has)) for part in parts]) @ has

    def count(self, flag: int) -> Ints:
        """Characters with a flag of `characters`, [texts]."""
        return self._counts[:, bit(flag)]

    @property
    def n_marks(self) -> Ints:
        """Characters that are punctuation or symbols."""
        return self.count(MARK)

    @property
    def n_digits(self) -> Ints:
        """Characters that are digits."""
        return self.count(DIGIT)

    @property
    def n_suspects(self) -> Ints:
        """Characters that a trace of wrong decoding may begin with."""
        return self.count(SUSPECT)

    @cached_property
    def _units(self) -> tuple[Ints, Ints]:
        """Begin and end of each unit among all characters, [units].

        Words are split at white space; where words are not spaced, each of that script's characters is a unit and
        what stands between them (code, formulas, numbers) is split at white space.
        """
        table, found = classes(), self._classes
        run = ~table.with_flag(SPACE)[found]
        if not self.by_characters:
            edges = np.flatnonzero(run[1:] != run[:-1]) + 1
            edges = np.concatenate([[0], edges]) if run[0] else edges
            return edges[::2], edges[1::2]  # the last character is a space, so that every word has an end
        single = table.with_flag(UNSPACED)[found]
        run &= ~single
        begin, end = run | single, run | single
        begin[1:] &= single[1:] | ~run[:-1]
        end[:-1] &= single[:-1] | ~run[1:]
        return np.flatnonzero(begin), np.flatnonzero(end) + 1

    @cached_property
    def _first_units(self) -> Ints:
        """Each text's first unit, and the number of all, [texts + 1]."""
        return np.searchsorted(self._units[0], self._begins)

    @cached_property
    def _edges(self) -> Ints:
        """Characters in the units before each unit, and in all, [units + 1]."""
        begin, end = self._units
        return np.concatenate([[0], np.cumsum(end - begin)])

    @cached_property
    def n_units(self) -> Ints:
        """Words, or characters where words are not spaced."""
        return np.diff(self._first_units)

    @cached_property
    def n_characters(self) -> Ints:
        """Characters in units."""
        return np.diff(self._edges[self._first_units])

    @cached_property
    def n_units_with_letter(self) -> Ints:
        """Units with a letter in them."""
        letters = np.zeros(len(self._classes) + 1, np.int32)
        np.cumsum(classes().with_flag(LETTER)[self._classes], out=letters[1:])
        begin, end = self._units
        found = np.concatenate([[0], np.cumsum(letters[end] > letters[begin])])
        return np.diff(found[self._first_units])

    @cached_property
    def clauses(self) -> tuple[Ints, Ints]:
        """Runs of letters and digits, and the characters in them."""
        starts = starts_of_runs(classes().with_flag(ALPHANUMERIC)[self._classes])
        return np.diff(np.searchsorted(starts, self._begins)), self.count(ALPHANUMERIC)

    @cached_property
    def lines(self) -> list[list[str]]:
        """Lines with something on them, without the space around it, of each text."""
        return [[line for line in map(str.strip, text.split("\n")) if line] for text in self.texts]

    @cached_property
    def paragraphs(self) -> list[list[str]]:
        """Stretches between empty lines; only of texts in which a line repeats, the others have no repeated ones."""
        parts = (PARAGRAPH_BREAK.split(text) if any_twice(own) else [] for text, own in zip(self.texts, self.lines))
        return [[part for part in map(str.strip, own) if part] for own in parts]

    @cached_property
    def _codes(self) -> NDArray[np.uint64]:
        """A hash of each unit and of the text that it is in, [units].

        Of the characters c_0 c_1 ... of a unit, the sum of random(c_i) * BASE^i modulo 2^64: differences of one
        running sum over all the texts.
        """
        powers, inverse = _powers((len(self._points) - 1).bit_length())
        sums = np.zeros(len(self._points) + 1, np.uint64)
        values = _random()[self._points]
        values *= powers[: len(values)]
        np.cumsum(values, out=sums[1:])
        begin, end = self._units
        codes = (sums[end] - sums[begin]) * inverse[begin]
        salts = _random()[np.arange(len(self.texts)) % len(_random())]
        return codes ^ np.repeat(salts, self.n_units)

    def _repeated(self, n: int) -> Repeats:
        if n not in self._repeats:
            width = 2 * n if self.by_characters else n
            if n <= 2:
                self._repeats[n] = repeats(self._codes, self._first_units[1:], width)
            else:
                self._repeats[n] = self._repeated(n - 1).longer(width)
        return self._repeats[n]

    def top_ngram_share(self, n: int) -> Floats:
        """Share of characters that lie in the most frequent n-gram (occurrences times length); 0 if all differ."""
        top = most_frequent(self._repeated(n), self._edges, self._first_units[:-1])
        return np.minimum(1.0, share(top, self.n_characters))

    def repeated_ngram_share(self, n: int) -> Floats:
        """Share of characters inside n-grams that occurred earlier in the text, each character counted once."""
        return share(covered(self._repeated(n), self._edges, self._first_units[:-1]), self.n_characters)


def share(part: Ints, whole: Ints) -> Floats:
    """part / whole, 0 where there is no whole."""
    return np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)


def any_twice(parts: Sequence[str]) -> bool:
    """Whether two of the parts are equal."""
    return len(set(parts)) < len(parts)


def repeated_share(parts: list[str], *, by_characters: bool) -> float:
    """Share of `parts` that are copies of an earlier one: by number, or by characters."""
    if not any_twice(parts):
        return 0.0
    counts = Counter(parts)
    if by_characters:
        return sum((n - 1) * len(part) for part, n in counts.items()) / sum(map(len, parts))
    return (len(parts) - len(counts)) / len(parts)


@functools.lru_cache(maxsize=2)
def _powers(bits: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """BASE^i and its inverse modulo 2^64, i below 2^bits."""
    both = []
    for base in (BASE, pow(BASE, -1, 1 << 64)):
        factors = np.full(1 << bits, base, np.uint64)
        factors[0] = 1
        both.append(np.multiply.accumulate(factors))
    return both[0], both[1]


@functools.cache
def _random() -> NDArray[np.uint64]:
    """A fixed random number for every code point."""
    return np.random.default_rng(20240229).integers(0, 1 << 64, 0x110000, np.uint64)
