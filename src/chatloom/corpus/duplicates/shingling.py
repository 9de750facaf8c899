"""Texts -> 5-grams of words (of characters, for Chinese and Japanese) as 64-bit hashes, many texts in one NumPy pass.

A word is what `\\w+` matches, lower-cased. A text is taken by characters (white space left out) where Han, kana and
hangul make more than ASIAN_SHARE of its letters. The hash of a word is a polynomial in random codes of its characters
modulo 2^64, so that one running sum over a batch gives the hashes of all words: no Python object is made for a word.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chatloom.corpus.text import characters
from chatloom.corpus.text.units import I64, U64, batches, mix, sums

SHINGLE = 5
ASIAN_SHARE = 0.3
WORD, SPACE, LETTER, ASIAN = 1, 2, 4, 8
BATCH_CHARACTERS = 1 << 15  # what is worked on at once stays in a processor's second-level cache
PIECE_CHARACTERS = 1 << 20  # a longer text is cut, between words, into pieces of about this size
_BASE = 0x9E3779B97F4A7C15 | 1  # odd, so that it has an inverse modulo 2^64
# Places of a window: random odd numbers. The order of the units counts, equal units in two places do not cancel.
_PLACES = mix(np.arange(1, 1025, dtype=np.uint64) * np.uint64(0xD1342543DE82EF95)) | np.uint64(1)
MAX_WINDOW = len(_PLACES)

Shingles = U64  # sorted, distinct


@dataclass(frozen=True, slots=True)
class Ragged:
    """Rows of different lengths in one array: row i is values[offsets[i] : offsets[i + 1]]."""

    values: U64
    offsets: I64  # [rows + 1]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[U64]:
        for start, stop in zip(self.offsets[:-1].tolist(), self.offsets[1:].tolist()):
            yield self.values[start:stop]

    def lengths(self) -> I64:
        """Number of values of each row."""
        return np.diff(self.offsets)


@dataclass(frozen=True, slots=True)
class Located:
    """Units of some texts with their places: value i of `units` is characters starts[i] to ends[i] of its text."""

    units: Ragged
    starts: I64
    ends: I64


def shingle_rows(texts: Sequence[str]) -> Ragged:
    """5-grams of each text in order, repeats included; a text of fewer units is one shingle, one of none has none."""
    return windows(word_units(texts), SHINGLE)


def shingles(text: str) -> Shingles:
    """Hashes of a text's distinct 5-grams, sorted; a shorter text is one shingle, an empty one none."""
    return np.unique(shingle_rows([text]).values)


def word_units(texts: Sequence[str]) -> Ragged:
    """Hash of every word (character, in a Chinese or Japanese text) of each text."""
    found = [_short(texts[first:last]) for first, last in _ranges(texts)]
    return _joined(found)


def located_units(texts: Sequence[str]) -> Located:
    """Words and single Han, kana and hangul characters, whatever the text's language, with their places.

    Here full-width and other compatibility forms are folded as well (NFKC), so that case, punctuation, spacing and
    width make no difference.
    """
    parts, starts, ends = [], [], []
    for first, last in _ranges(texts):
        units, begin, end, bounds = _units(texts[first:last], _fold_codes(), mixed=True)
        shift = np.repeat(bounds[:-1], units.lengths())
        parts.append(units)
        starts.append(begin - shift)
        ends.append(end - shift)
    none = np.zeros(0, np.int64)
    return Located(_joined(parts), np.concatenate([none, *starts]), np.concatenate([none, *ends]))


def windows(units: Ragged, size: int, *, short: bool = True) -> Ragged:
    """Hashes of all windows of `size` units inside each row; with `short`, a row of fewer units is one window."""
    if not 1 <= size <= MAX_WINDOW:
        raise ValueError(f"a window of {size} units; possible are 1 to {MAX_WINDOW}")
    lengths = units.lengths()
    counts = np.maximum(lengths - size + 1, 0)
    total = len(units.values)
    padded = np.concatenate([units.values, np.zeros(size - 1, np.uint64)]) if size > 1 else units.values
    keys = padded[:total] * _PLACES[0]
    for place in range(1, size):
        keys += padded[place : place + total] * _PLACES[place]
    keep = np.ones(total, bool)
    if size > 1 and total:
        last = units.offsets[1:, None] - np.arange(1, size)[None, :]
        keep[last[last >= units.offsets[:-1, None]]] = False
    if short:
        for row in np.flatnonzero((lengths > 0) & (lengths < size)).tolist():
            start, stop = units.offsets[row], units.offsets[row + 1]
            # The length is mixed in, so that a short text is no prefix of a window.
            length = np.array([stop - start], np.uint64)
            keys[start] = np.append(units.values[start:stop] * _PLACES[: stop - start], length * _PLACES[-1]).sum()
            keep[start] = True
            counts[row] = 1
    return Ragged(mix(keys[keep]), np.concatenate([[0], np.cumsum(counts)]))


def _ranges(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    return batches(texts, BATCH_CHARACTERS)


def _joined(parts: Sequence[Ragged]) -> Ragged:
    if len(parts) == 1:
        return parts[0]
    lengths = [np.zeros(1, np.int64), *(part.lengths() for part in parts)]
    values = np.concatenate([np.zeros(0, np.uint64), *(part.values for part in parts)])
    return Ragged(values, np.cumsum(np.concatenate(lengths)))


def _short(texts: Sequence[str]) -> Ragged:
    if len(texts) == 1 and len(texts[0]) > PIECE_CHARACTERS:
        return _long(texts[0])
    return _units(texts, _codes())[0]


def _long(text: str) -> Ragged:
    """Units of a text that is cut into pieces, so that working memory does not grow with it."""
    pieces = list(_pieces(text))
    seen = np.array([asian_and_letters(characters.code_points(piece)) for piece in pieces]).sum(axis=0)
    asian = bool(seen[0] > ASIAN_SHARE * seen[1])
    values = [_units([piece], _codes(), asian=asian)[0].values for piece in pieces]
    together = np.concatenate(values)
    return Ragged(together, np.array([0, len(together)]))


def _pieces(text: str) -> Iterator[str]:
    """A long text cut where no word is cut; a word that is longer than a piece is cut with it."""
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        piece = text[start : start + PIECE_CHARACTERS]
        outside = np.flatnonzero((_kinds()[characters.code_points(piece)] & WORD) == 0)
        stop = int(outside[-1]) + 1 if len(outside) else len(piece)
        yield piece[:stop]
        start += stop
    yield text[start:]


def asian_and_letters(codes: NDArray[np.uint32]) -> tuple[int, int]:
    """Numbers of Han, kana and hangul characters, and of letters, among code points."""
    kinds = _kinds()[codes]
    return int(np.count_nonzero(kinds & ASIAN)), int(np.count_nonzero(kinds & LETTER))


def _units(
    texts: Sequence[str], codes: U64, *, asian: bool | None = None, mixed: bool = False
) -> tuple[Ragged, I64, I64, I64]:
    """Units of texts with their starts and ends in the batch, and where each text begins in the batch.

    `asian` overrides what the text's own letters say; `mixed` takes Asian characters singly among words of any text.
    """
    joined = "\n".join(texts) + "\n" if texts else ""
    points = characters.code_points(joined)
    bounds = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(text) + 1 for text in texts], out=bounds[1:])
    kinds = _kinds()[points]
    word = (kinds & WORD).astype(bool)
    if mixed:
        word &= points != ord("_")  # a blank to be filled in is punctuation
    single = (kinds & ASIAN).astype(bool) if mixed else _by_character(kinds, bounds, asian)
    if single is not None:
        word &= ~single
        single &= (kinds & SPACE) == 0
    starts, ends = _edges(word)
    if single is not None and single.any():
        alone = np.flatnonzero(single)
        if len(starts):
            starts, ends = np.concatenate([starts, alone]), np.concatenate([ends, alone + 1])
            starts.sort()
            ends.sort()
        else:
            starts, ends = alone, alone + 1
    power, inverse = powers(1 << max(12, len(points).bit_length()))
    running = np.empty(len(points) + 1, np.uint64)
    running[0] = 0
    np.cumsum(codes[points] * power[: len(points)], out=running[1:])
    hashes = mix((running[ends] - running[starts]) * inverse[starts])
    return Ragged(hashes, np.searchsorted(starts, bounds)), starts, ends, bounds


def _edges(inside: NDArray[np.bool_]) -> tuple[I64, I64]:
    """Starts and ends of the runs of True."""
    change = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    if len(inside) and inside[0]:
        change = np.concatenate([[0], change])
    if len(inside) and inside[-1]:
        change = np.concatenate([change, [len(inside)]])
    return change[::2], change[1::2]


def _by_character(kinds: NDArray[np.uint8], bounds: I64, asian: bool | None) -> NDArray[np.bool_] | None:
    """Which characters belong to texts taken by characters, or None where no text is."""
    if asian is None:
        if not len(kinds) or int(kinds.max()) < ASIAN:
            return None
        n_asian = sums(((kinds & ASIAN) > 0).astype(np.int64), bounds)
        n_letters = sums(((kinds & LETTER) > 0).astype(np.int64), bounds)
        flags = n_asian > ASIAN_SHARE * n_letters
    else:
        flags = np.full(len(bounds) - 1, asian)
    return np.repeat(flags, np.diff(bounds)) if flags.any() else None


@functools.cache
def _kinds() -> NDArray[np.uint8]:
    """WORD, SPACE, LETTER and ASIAN of each code point: uint8 [0x110000]."""
    table = characters.classes()
    flags = table.flags[table.of]
    kinds = np.zeros(characters.N_CODE_POINTS, np.uint8)
    asian = characters.HAN | characters.KANA | characters.HANGUL
    for kind, flag in (
        (WORD, characters.ALPHANUMERIC), (SPACE, characters.SPACE), (LETTER, characters.LETTER), (ASIAN, asian),
    ):  # fmt: skip
        kinds[(flags & flag) > 0] |= kind
    kinds[ord("_")] |= WORD
    return kinds


@functools.cache
def _codes() -> U64:
    """A random number for each code point, the same for upper and lower case: uint64 [0x110000]."""
    folded = np.arange(characters.N_CODE_POINTS, dtype=np.uint64)
    for code in range(0x20000):  # no letter beyond has a case
        lower = chr(code).lower()
        if lower != chr(code):
            folded[code] = ord(lower[0])
    return mix(folded + np.uint64(0x632BE59BD9B4E019))


@functools.cache
def _fold_codes() -> U64:
    """As `_codes`, the same also for compatibility forms of one character (full-width letters and digits)."""
    codes = _codes().copy()
    for code in range(0x80, 0x20000):
        if 0xD800 <= code < 0xE000:
            continue
        plain = unicodedata.normalize("NFKC", chr(code))
        if len(plain) == 1 and plain != chr(code):
            codes[code] = _codes()[ord(plain)]
    return codes


@functools.cache
def powers(count: int) -> tuple[U64, U64]:
    """Powers 0 to count - 1 of the base and of its inverse, modulo 2^64."""
    result = []
    for base in (_BASE, pow(_BASE, -1, 1 << 64)):
        factors = np.full(count, base, np.uint64)
        factors[0] = 1
        result.append(np.multiply.accumulate(factors))
    return result[0], result[1]
