"""Texts -> sparse TF-IDF vectors of words, and of characters and their pairs where words are not spaced; in NumPy.

A feature is a unit (text/units.py) with a letter, or two neighbouring Han, kana, Thai ... characters: one rule for all
languages, so that a Chinese page that quotes code has both. The vocabulary is made on a sample; what is in memory
afterwards is its hashes and weights, whatever the corpus holds. Weight: (1 + ln count) * ln(texts / texts with it),
rows of length 1 (Salton & Buckley 1988, "Term-weighting approaches in automatic text retrieval").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chatloom.corpus.text import characters
from chatloom.corpus.text.units import I64, U64, Units, batches, cut, join, kinds, sums

F32 = NDArray[np.float32]
WORD = 1  # as in text/units.py


@dataclass(frozen=True)
class Sparse:
    """Rows of a matrix [rows, columns] that is mostly zero: row i has `values` at `columns`, offsets[i] to [i + 1]."""

    values: F32
    columns: NDArray[np.int32]
    offsets: I64

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def rows(self) -> I64:
        """The row of each value."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def take(self, first: int, last: int) -> Sparse:
        """Some neighbouring rows."""
        start, stop = self.offsets[first], self.offsets[last]
        return Sparse(self.values[start:stop], self.columns[start:stop], self.offsets[first : last + 1] - start)


@dataclass(frozen=True)
class Features:
    """Features by their hashes (sorted), and the weight of each."""

    hashes: U64
    idf: F32

    def __len__(self) -> int:
        return len(self.hashes)


def features(units: Units) -> tuple[U64, I64]:
    """Hash of every feature of texts that are cut into units, and the text it is in."""
    word, single = word_units(units)
    pair = single[:-1] & single[1:] & (units.ends[:-1] == units.starts[1:])
    first = np.flatnonzero(pair)
    alone = np.flatnonzero(word | single)
    hashes = np.concatenate([units.hashes[alone], join(units.hashes[first], units.hashes[first + 1])])
    places = np.concatenate([alone, first])
    return hashes, np.searchsorted(units.offsets, places, side="right") - 1


def word_units(units: Units) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which units are words that begin with a letter, and which are single letters of an unspaced script."""
    firsts = units.characters[units.starts]
    table = characters.classes()
    letter = table.with_flag(characters.LETTER)[table.of[firsts]]
    word = kinds()[firsts] == WORD
    return word & letter, ~word & letter


def learn(texts: Sequence[str], *, min_texts: int = 3, max_share: float = 0.5, size: int = 20_000) -> Features:
    """The features in at least `min_texts` and at most a share of the texts; of too many those in the most texts."""
    parts = [np.zeros(0, np.uint64)]
    for first, last in batches(texts):
        hashes, owners = features(cut(texts[first:last]))
        order = np.lexsort((hashes, owners))
        hashes, owners = hashes[order], owners[order]
        new = np.ones(len(hashes), bool)
        new[1:] = (hashes[1:] != hashes[:-1]) | (owners[1:] != owners[:-1])
        parts.append(hashes[new])
    found, n_texts = np.unique(np.concatenate(parts), return_counts=True)
    good = (n_texts >= min_texts) & (n_texts <= max(min_texts, max_share * len(texts)))
    found, n_texts = found[good], n_texts[good]
    if len(found) > size:
        kept = np.sort(np.lexsort((found, -n_texts))[:size])
        found, n_texts = found[kept], n_texts[kept]
    return Features(found, np.log(len(texts) / n_texts).astype(np.float32))


def vectors(texts: Sequence[str], known: Features) -> Sparse:
    """One row a text; a text without a known feature is a row of zeros."""
    parts = [_vectors(texts[first:last], known) for first, last in batches(texts)]
    lengths = np.concatenate([np.zeros(1, np.int64), *(np.diff(part.offsets) for part in parts)])
    values = np.concatenate([np.zeros(0, np.float32), *(part.values for part in parts)])
    columns = np.concatenate([np.zeros(0, np.int32), *(part.columns for part in parts)])
    return Sparse(values, columns, np.cumsum(lengths))


def _vectors(texts: Sequence[str], known: Features) -> Sparse:
    hashes, owners = features(cut(texts))
    size = len(known)
    if not size:
        return Sparse(np.zeros(0, np.float32), np.zeros(0, np.int32), np.zeros(len(texts) + 1, np.int64))
    place = np.minimum(np.searchsorted(known.hashes, hashes), size - 1)
    there = known.hashes[place] == hashes
    keys, counts = np.unique(owners[there] * size + place[there], return_counts=True)
    rows, columns = keys // size, keys % size
    weights = (1 + np.log(counts)) * known.idf[columns]
    offsets = np.searchsorted(rows, np.arange(len(texts) + 1))
    norms = np.sqrt(sums(weights**2, offsets))
    values = weights / np.repeat(np.maximum(norms, 1e-12), np.diff(offsets))
    return Sparse(values.astype(np.float32), columns.astype(np.int32), offsets)
