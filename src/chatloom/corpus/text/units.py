"""Texts -> units (words; single characters where words are not spaced) as 64-bit hashes, many texts in one NumPy pass.

A word is a run of letters, marks and digits of at most LONGEST characters (longer runs are cut). Every Han or kana
character, every letter of Thai, Lao, Khmer and Burmese, and every punctuation mark or symbol is a unit by itself; white
space, control and format characters part units and belong to none. Letters are lower-cased, every decimal digit is
`0`, and quotation marks, dashes and full-width forms are those of ASCII, much as CCNet does before its language models
(Wenzek et al. 2019, arXiv 1911.00359, section 3.4): which apostrophe a site uses says nothing about its texts.

The hash of a unit is a polynomial in random codes of its characters, modulo 2^64, so that one running sum over the
whole batch gives the hashes of all units at once: no Python object is made for a word.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

LONGEST = 24
# Unspaced scripts: Thai and Lao, Burmese, Khmer, CJK (radicals to half-width kana; Hangul has spaces and is not here).
UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0x312F), (0x3190, 0x9FFF), (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F), (0x1B000, 0x1B16F), (0x20000, 0x323AF),
)  # fmt: skip
SAME = {
    "'": "\u2018\u2019\u201a\u201b\u2032",
    '"': "\u201c\u201d\u201e\u201f\u2033",
    "-": "\u2010\u2011\u2012\u2013\u2014\u2015",
}
BATCH_CHARACTERS = 1 << 17  # what is worked on at once stays in a processor's second-level cache
PIECE_CHARACTERS = 1 << 20  # a longer text is cut into pieces of this size, so that memory does not grow with it

_SPACE, _WORD, _SINGLE = 0, 1, 2
_BASE = 0x9E3779B97F4A7C15 | 1  # odd, so that it has an inverse modulo 2^64
_INVERSE = pow(_BASE, -1, 1 << 64)


@dataclass(frozen=True, slots=True)
class Units:
    """Units of some texts. Unit i is `characters[starts[i]:ends[i]]`; text d has units offsets[d] to offsets[d + 1]."""

    hashes: U64  # [units]
    starts: I64  # [units], into `characters`
    ends: I64  # [units]
    offsets: I64  # [texts + 1], into the units
    characters: NDArray[np.uint32]  # code points of all texts, each followed by a line end
    text_offsets: I64  # [texts + 1], into `characters`

    def spelling(self, unit: int) -> str:
        """How a unit stands in the text, before letters are lower-cased."""
        return "".join(map(chr, self.characters[self.starts[unit] : self.ends[unit]]))

    def lengths(self) -> I64:
        """UTF-8 bytes of each text without its white space: [texts]."""
        seen = self.characters
        size = (kinds()[seen] != _SPACE).astype(np.int64)
        if len(seen) and int(seen.max()) > 0x7F:
            size *= 1 + (seen > 0x7F) + (seen > 0x7FF) + (seen > 0xFFFF)
        return sums(size, self.text_offsets)


def cut(texts: Sequence[str]) -> Units:
    """Units of texts, all at once; lone surrogates count as symbols, no text is refused."""
    joined = "\n".join(texts) + "\n" if texts else ""
    characters = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
    kind = kinds()[characters]
    word, single = kind == _WORD, kind == _SINGLE
    before = np.empty_like(word)
    before[:1], before[1:] = False, word[:-1]
    after = np.empty_like(word)
    after[-1:], after[:-1] = False, word[1:]
    starts = np.flatnonzero(single | (word & ~before))
    ends = np.flatnonzero(single | (word & ~after)) + 1
    if len(starts) and int((ends - starts).max()) > LONGEST:
        starts, ends = _shortened(starts, ends)
    text_offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(text) + 1 for text in texts], out=text_offsets[1:])
    offsets = np.searchsorted(starts, text_offsets)
    return Units(_hashes(characters, starts, ends), starts, ends, offsets, characters, text_offsets)


def batches(texts: Sequence[str], characters: int = BATCH_CHARACTERS) -> Iterator[tuple[int, int]]:
    """Ranges of texts with about `characters` together, at least one text each."""
    first, size = 0, 0
    for index, text in enumerate(texts):
        if index > first and size + len(text) > characters:
            yield first, index
            first, size = index, 0
        size += len(text)
    if first < len(texts):
        yield first, len(texts)


def pieces(texts: Sequence[str]) -> tuple[list[str], I64]:
    """Texts with long ones cut at every PIECE_CHARACTERS, and the number of the text each piece is from."""
    cut_texts: list[str] = []
    owners: list[int] = []
    for index, text in enumerate(texts):
        for start in range(0, max(len(text), 1), PIECE_CHARACTERS):
            cut_texts.append(text[start : start + PIECE_CHARACTERS])
            owners.append(index)
    return cut_texts, np.asarray(owners, np.int64)


def mix(keys: U64) -> U64:
    """A bijection on 64-bit numbers in which every bit of the result depends on every bit of the key (splitmix64)."""
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))


def join(contexts: U64, hashes: U64) -> U64:
    """Hash of "context, then unit" for each pair: n-grams grow from left to right."""
    return mix(contexts * np.uint64(0xD1342543DE82EF95) + hashes)


def sums(values: NDArray[Any], offsets: I64) -> NDArray[Any]:
    """Sums of values[offsets[i]:offsets[i + 1]]; each depends on its own values only, not on where they stand."""
    result = np.zeros(len(offsets) - 1, values.dtype)
    filled = np.flatnonzero(offsets[1:] > offsets[:-1])
    if len(filled):
        result[filled] = np.add.reduceat(values, offsets[filled])
    return result


@functools.cache
def kinds() -> NDArray[np.uint8]:
    """What each code point is: 0 parts units, 1 belongs to a word, 2 is a unit by itself: uint8 [0x110000]."""
    return _tables()[0]


@functools.cache
def folded() -> NDArray[np.uint32]:
    """Each code point as the hash sees it (lower-cased, digits 0, plain quotation marks): uint32 [0x110000]."""
    return _tables()[1]


@functools.cache
def _tables() -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    kind = np.full(0x110000, _SINGLE, np.uint8)
    fold = np.arange(0x110000, dtype=np.uint32)
    # Planes 4 to 16 hold nothing but tags, private characters and unassigned ones, which are symbols here.
    for code in range(0x40000):
        character = chr(code)
        category = unicodedata.category(character)
        if category[0] in "LNM":
            kind[code] = _WORD
            if category == "Nd":
                fold[code] = ord("0")
            elif category in ("Lu", "Lt"):
                fold[code] = ord(character.lower()[0])
        elif category[0] == "Z" or category in ("Cc", "Cf"):
            kind[code] = _SPACE
    for low, high in UNSPACED:
        part = kind[low : high + 1]
        part[part == _WORD] = _SINGLE
    fold[0xFF01:0xFF5F] = fold[0x21:0x7F]
    for plain, others in SAME.items():
        fold[[ord(other) for other in others]] = ord(plain)
    return kind, fold


@functools.cache
def _codes() -> U64:
    """A random number for each code point; equal for characters that are folded together."""
    return mix(folded().astype(np.uint64) + np.uint64(0x632BE59BD9B4E019))


@functools.cache
def _powers(count: int) -> tuple[U64, U64]:
    """Powers 0 to count - 1 of the base and of its inverse, modulo 2^64."""
    return tuple(np.multiply.accumulate(np.concatenate([one, np.full(count - 1, base, np.uint64)]))
                 for base in (_BASE, _INVERSE) for one in [np.ones(1, np.uint64)])  # type: ignore[return-value]  # fmt: skip


def _hashes(characters: NDArray[np.uint32], starts: I64, ends: I64) -> U64:
    if not len(starts):
        return np.zeros(0, np.uint64)
    power, inverse = _powers(1 << max(12, (len(characters) - 1).bit_length()))
    running = np.empty(len(characters) + 1, np.uint64)
    running[0] = 0
    np.cumsum(_codes()[characters] * power[: len(characters)], out=running[1:])
    return mix((running[ends] - running[starts]) * inverse[starts])


def _shortened(starts: I64, ends: I64) -> tuple[I64, I64]:
    """Units of at most LONGEST characters."""
    parts = -(-(ends - starts) // LONGEST)
    within = np.arange(int(parts.sum())) - np.repeat(np.cumsum(parts) - parts, parts)
    shorter = np.repeat(starts, parts) + LONGEST * within
    return shorter, np.minimum(shorter + LONGEST, np.repeat(ends, parts))
