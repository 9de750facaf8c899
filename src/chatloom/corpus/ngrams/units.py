"""What an n-gram model counts: words and characters (`Words`), or the pieces of a byte-level BPE vocabulary (`Pieces`).

Both give a stream of 64-bit hashes. Pieces spell every text, so they need no unknown unit; a word that was not learned
is the unknown unit followed by its spelling, which an order-0 model over bytes pays for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from chatloom.corpus.text.units import I64, U64, Units, cut, folded, kinds, mix
from chatloom.tokens.vocabulary import Vocabulary

WORDS, PIECES = "words", "pieces"
N_SPELLING = 257  # 256 bytes and the end of a word
UNIFORM_SHARE = 0.1  # of the spelling model, so that a script that was never seen can be spelled


@dataclass(frozen=True, slots=True)
class Stream:
    """Units of some texts as hashes; `n_bytes` is what bits per byte are counted against."""

    hashes: U64  # [units]
    offsets: I64  # [texts + 1]
    n_bytes: I64  # [texts]
    units: Units | None = None  # where units have a spelling

    def shuffled(self, seed: int) -> Stream:
        """The same texts with their units in random order; a text's order depends on its length and the seed only."""
        order = np.arange(len(self.hashes))
        for first, last in zip(self.offsets, self.offsets[1:]):
            order[first:last] = first + np.random.default_rng(seed).permutation(last - first)
        units = self.units
        if units is not None:
            units = replace(units, hashes=units.hashes[order], starts=units.starts[order], ends=units.ends[order])
        return Stream(self.hashes[order], self.offsets, self.n_bytes, units)


class UnitCutter(Protocol):
    """Cuts texts into the units that a model counts."""

    name: str

    def __call__(self, texts: Sequence[str]) -> Stream: ...

    def closed_vocabulary(self) -> U64 | None:
        """Hashes of all units there can be, or None when new ones can turn up."""


class Words:
    """Words, and single characters where words are not spaced (see `units`); bytes are those that are not space."""

    name = WORDS

    def __call__(self, texts: Sequence[str]) -> Stream:
        units = cut(texts)
        return Stream(units.hashes, units.offsets, units.lengths(), units)

    def closed_vocabulary(self) -> U64 | None:
        return None


class Pieces:
    """Entries of a vocabulary; bytes are all bytes of the text."""

    name = PIECES

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._hashes = mix(np.arange(vocabulary.size, dtype=np.uint64) + np.uint64(0xA0761D6478BD642F))

    def __call__(self, texts: Sequence[str]) -> Stream:
        ids = self.vocabulary.encode_batch([text.encode("utf-8", "replace").decode() for text in texts])
        offsets = np.zeros(len(ids) + 1, np.int64)
        np.cumsum([len(item) for item in ids], out=offsets[1:])
        flat = np.fromiter((i for item in ids for i in item), np.int64, int(offsets[-1]))
        n_bytes = np.array([int(self.vocabulary.bytes_per_id[item].sum()) for item in ids], np.int64)
        return Stream(self._hashes[flat], offsets, n_bytes)

    def closed_vocabulary(self) -> U64 | None:
        return self._hashes


def spelling_counts(units: Units, which: I64) -> I64:
    """How often each byte, and the end, occurs in the spelling of the units `which`: [N_SPELLING]."""
    lengths = units.ends[which] - units.starts[which]
    steps = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    characters = folded()[units.characters[np.repeat(units.starts[which], lengths) + steps]]
    data = characters.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass").encode("utf-8", "surrogatepass")
    counts = np.bincount(np.frombuffer(data, np.uint8), minlength=N_SPELLING)
    counts[-1] = len(which)
    return counts.astype(np.int64)


class Spelling:
    """Order-0 model over the bytes of a word and its end: what an unknown word costs on top of being unknown."""

    def __init__(self, counts: NDArray[np.int64]) -> None:
        shares = counts / max(int(counts.sum()), 1) if counts.sum() else np.full(N_SPELLING, 1 / N_SPELLING)
        logs = np.log((1 - UNIFORM_SHARE) * shares + UNIFORM_SHARE / N_SPELLING)
        self.end = float(logs[-1])
        self._logprobs = _by_character(logs).astype(np.float32)

    def logprobs(self, units: Units, which: I64) -> NDArray[np.float64]:
        """Nats (negative) of the spelling of the units `which`."""
        lengths = units.ends[which] - units.starts[which]
        ends = np.cumsum(lengths)
        steps = np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - lengths, lengths)
        each = self._logprobs[units.characters[np.repeat(units.starts[which], lengths) + steps]].astype(np.float64)
        return (np.add.reduceat(each, ends - lengths) if len(which) else np.zeros(0)) + self.end


def _by_character(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-probability of each code point: the sum over the UTF-8 bytes of what it is folded to."""
    code = folded().astype(np.int64)
    tail = logs[0x80 | (code & 0x3F)]
    second = logs[0x80 | ((code >> 6) & 0x3F)]
    third = logs[0x80 | ((code >> 12) & 0x3F)]
    result = logs[0xF0 | (code >> 18)] + third + second + tail
    result = np.where(code < 0x10000, logs[0xE0 | ((code >> 12) & 0xF)] + second + tail, result)
    result = np.where(code < 0x800, logs[0xC0 | ((code >> 6) & 0x1F)] + tail, result)
    result = np.where(code < 0x80, logs[code & 0x7F], result)
    return np.where(kinds() == 0, 0.0, result)
