"""What each character is (letter, digit, mark, space, script ...), looked up for whole texts at once with NumPy.

Every code point has a class of one byte, every class a set of flags; a text's characters are counted by class first
and by flag afterwards, so that ten counts cost one pass. The flags are exactly what Python's `str` methods, `re` and
`unicodedata` say of a character.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SPACE, LETTER, ALPHANUMERIC, MARK, DIGIT, UNSPACED, HAN, KANA, HANGUL, OTHER_LETTER, SUSPECT = (
    1 << bit for bit in range(11)
)
N_CODE_POINTS = 0x110000
# Beyond these planes Unicode has only private, tag and variation characters, which have none of the flags.
LAST_WITH_FLAGS = 0x40000
PATTERNS = {
    SPACE: r"\s+",
    LETTER: r"[^\W\d_]+",
    ALPHANUMERIC: r"[^\W_]+",
    # Of scripts without spaces between words, and full-width marks: a unit of counting by itself.
    UNSPACED: "[\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U000323af"
    "\u2014\u2018-\u201d\u2026\u00b7]+",
    HAN: "[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]+",
    KANA: "[\u3041-\u3096\u30a1-\u30fa\uff66-\uff9d]+",
    HANGUL: "[\uac00-\ud7a3\u1100-\u11ff\u3131-\u318e]+",
    OTHER_LETTER: "[^\\W\\d_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uac00-\ud7a3\U00020000-\U000323af]+",
    # With which a trace of wrong decoding begins (rules.BROKEN).
    SUSPECT: "[\ufffd\ue000-\uf8ffÃâ锟烫]+",
}


@dataclass(frozen=True)
class Classes:
    """`of` a code point: its class, uint8 [0x110000]; `flags` of a class, uint16; `has`: 0 or 1 [class, flag's bit]."""

    of: NDArray[np.uint8]
    flags: NDArray[np.uint16]
    has: NDArray[np.int64]

    def with_flag(self, flag: int) -> NDArray[np.bool_]:
        """Which classes have the flag, [class]; indexed by a text's classes it says it of each character."""
        return (self.flags & flag) > 0


@functools.cache
def classes() -> Classes:
    """The table, made once a process (about 0.1 s, 1.1 MB)."""
    everything = "".join(map(chr, range(LAST_WITH_FLAGS)))
    flags = np.zeros(N_CODE_POINTS, np.uint16)
    for flag, pattern in PATTERNS.items():
        for match in re.finditer(pattern, everything):
            flags[match.start() : match.end()] |= flag
    categories = "".join([unicodedata.category(char)[0] for char in everything])
    for match in re.finditer("[PS]+", categories):
        flags[match.start() : match.end()] |= MARK
    flags[[ord(char) for char in everything if char.isdigit()]] |= DIGIT
    distinct, of = np.unique(flags, return_inverse=True)
    has = (distinct[:, None] >> np.arange(16, dtype=np.uint16)[None, :]) & 1
    return Classes(of.astype(np.uint8), distinct, has.astype(np.int64))


def code_points(text: str) -> NDArray[np.uint32]:
    """Code points of a text, [characters]; lone surrogates are themselves."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def bit(flag: int) -> int:
    """The column of `Classes.has` that belongs to a flag."""
    return flag.bit_length() - 1


def starts_of_runs(inside: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Where runs of True begin, ascending."""
    edges = inside.copy()
    edges[1:] &= ~inside[:-1]
    return np.flatnonzero(edges)
