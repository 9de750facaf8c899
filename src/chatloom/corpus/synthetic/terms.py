"""What a cluster is about: the words and phrases that its texts have and others have not, readable in any script.

Candidates are words, pairs of words, and runs of 2 to 4 characters where words are not spaced. Weight: mean of
(1 + ln count) * ln(texts / texts with it) over the cluster's texts, less the same over all texts. A run of characters
is taken for a word only where it holds together (its parts meet more often than by chance) and its neighbours on both
sides vary (the marks of a word in text without spaces: Feng et al. 2004, "Accessor variety criteria for Chinese word
extraction"). A fragment of a longer term is left out, and so is a longer form of a better one.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chatloom.corpus.synthetic.vectors import WORD, word_units
from chatloom.corpus.text.units import I64, U64, Units, cut, join, kinds, mix
from chatloom.settings import read_yaml

STOP_WORDS = Path(__file__).with_name("stop_words.yaml")
LONGEST_RUN = 4
SHORTEST_WORD = 3  # letters of a word in ASCII
MOST_CHARACTERS = 6_000_000  # of all texts together; of longer ones the beginnings are looked at
CANDIDATES = 400  # of a kind and cluster, by weight, before they are looked at closely
MIN_TEXTS = 3
MIN_COHESION = 3.0  # nats by which a run's parts meet more often than by chance (pointwise mutual information)
MIN_VARIETY = 1.5  # nats of entropy of the neighbours, on the poorer side
SAME_SHARE = 0.6  # of two terms of which one is part of the other, the longer stays if it has this share of the texts
SPELLINGS = 100  # occurrences that are looked at for the usual spelling
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Term:
    """A word or phrase, its weight in its cluster, and in how many of the cluster's texts it is."""

    text: str
    weight: float
    n_texts: int


def topic_terms(texts: Sequence[str], labels: NDArray[np.integer], n_clusters: int, top: int) -> list[list[Term]]:
    """The `top` terms of each cluster, best first; `labels` says which cluster each text is in."""
    room = max(200, MOST_CHARACTERS // max(len(texts), 1))
    units = cut([text[:room] for text in texts])
    word, single = word_units(units)
    runs = _Runs(units, single)
    kinds = [_weighed(units, *found, labels, n_clusters) for found in _word_candidates(units, word)]
    kinds += [_weighed(units, width, *runs.without_stops(width), labels, n_clusters) for width in runs.widths]
    return [_best(cluster, kinds, units, runs, top) for cluster in range(n_clusters)]


@functools.cache
def stop_words() -> dict[str, str]:
    """Words by language that no topic is named by: one text of all of them."""
    return {language: str(words) for language, words in read_yaml(STOP_WORDS).items()}


def _word_candidates(units: Units, word: Bools) -> list[tuple[int, U64, I64]]:
    """(units, hashes, first units) of words, and of pairs of words with a space between, without stop words."""
    stop = np.isin(units.hashes, cut([stop_words()["en"]]).hashes)
    short = (units.ends - units.starts < SHORTEST_WORD) & (units.characters[units.starts] < 0x80)
    good = word & ~stop & ~short
    spaced = (units.starts[1:] - units.ends[:-1] == 1) & (units.characters[units.ends[:-1]] == ord(" "))
    one, two = np.flatnonzero(good), np.flatnonzero(good[:-1] & good[1:] & spaced)
    return [(1, units.hashes[one], one), (2, join(units.hashes[two], units.hashes[two + 1]), two)]


class _Runs:
    """Every run of 1 to LONGEST_RUN neighbouring characters of an unspaced script: what it is, how it stands."""

    widths = range(2, LONGEST_RUN + 1)

    def __init__(self, units: Units, single: Bools) -> None:
        self.units = units
        self.next_to = np.append(single[:-1] & single[1:] & (units.ends[:-1] == units.starts[1:]), False)
        self.first = {1: np.flatnonzero(single)}
        self.keys = {1: units.hashes[single]}
        for width in self.widths:
            # A run of n is a run of n - 1 whose last character has a neighbour.
            onward = self.next_to[self.first[width - 1] + width - 2]
            self.first[width] = self.first[width - 1][onward]
            self.keys[width] = join(self.keys[width - 1][onward], units.hashes[self.first[width] + width - 1])
        self.order = {width: np.argsort(keys, kind="stable") for width, keys in self.keys.items()}
        self.sorted = {width: keys[self.order[width]] for width, keys in self.keys.items()}

    def without_stops(self, width: int) -> tuple[U64, I64]:
        """Hashes and first units of the runs that do not begin or end with a character that no term begins with."""
        stop = np.isin(
            self.units.characters[self.units.starts], np.array(sorted(map(ord, stop_words()["zh"])), np.uint32)
        )
        good = ~stop[self.first[width]] & ~stop[self.first[width] + width - 1]
        return self.keys[width][good], self.first[width][good]

    def places(self, width: int, key: np.uint64) -> I64:
        """First units of a run's occurrences."""
        keys = self.sorted[width]
        found = self.order[width][np.searchsorted(keys, key, "left") : np.searchsorted(keys, key, "right")]
        return self.first[width][found]

    def is_word(self, width: int, key: np.uint64) -> bool:
        """Whether a run holds together and its neighbours vary."""
        places = self.places(width, key)
        hashes = self.units.hashes[places[0] : places[0] + width]
        for at in range(1, width):
            parts = len(self.places(at, _key(hashes[:at]))) * len(self.places(width - at, _key(hashes[at:])))
            if np.log(len(places) * len(self.keys[1]) / parts) < MIN_COHESION:
                return False
        before = self._neighbours(places - 1, places - 1, places)
        after = self._neighbours(places + width, places + width - 1, places)
        return min(_entropy(before), _entropy(after)) >= MIN_VARIETY

    def _neighbours(self, places: I64, link: I64, runs: I64) -> U64:
        """What stands at `places`, if it is linked to the run; the edge of a clause is a neighbour of its own."""
        inside = (link >= 0) & self.next_to[np.maximum(link, 0)]
        safe = np.clip(places, 0, len(self.next_to) - 1)
        return np.where(inside, self.units.hashes[safe], mix(runs.astype(np.uint64)))


def _key(hashes: U64) -> np.uint64:
    key = hashes[:1]
    for place in range(1, len(hashes)):
        key = join(key, hashes[place : place + 1])
    return np.uint64(key[0])


def _entropy(values: U64) -> float:
    _, counts = np.unique(values, return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())


@dataclass(frozen=True)
class _Weighed:
    """Candidates of one kind: hashes, some occurrences, texts that have each, and figures [clusters, candidates]."""

    width: int
    keys: U64
    places: list[I64]
    in_texts: I64
    weights: NDArray[np.float64]
    n_texts: I64


def _weighed(units: Units, width: int, keys: U64, first: I64, labels: NDArray[np.integer], n_clusters: int) -> _Weighed:
    """Weights of all candidates of one kind; those of a cluster that are in few of its texts have none there."""
    n_texts = len(labels)
    distinct, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    frequent = counts >= MIN_TEXTS
    number = np.cumsum(frequent) - 1
    here = frequent[inverse]
    texts = np.searchsorted(units.offsets, first[here], side="right") - 1
    pairs, times = np.unique(number[inverse[here]] * np.int64(n_texts) + texts, return_counts=True)
    candidate, text = pairs // n_texts, pairs % n_texts
    n_candidates = int(frequent.sum())
    in_texts = np.bincount(candidate, minlength=n_candidates)
    value = (1 + np.log(times)) * np.log(n_texts / np.maximum(in_texts, 1))[candidate]
    cell = np.asarray(labels)[text].astype(np.int64) * n_candidates + candidate
    shape, n_cells = (n_clusters, n_candidates), n_clusters * n_candidates
    sums = np.bincount(cell, value, minlength=n_cells).reshape(shape)
    having = np.bincount(cell, minlength=n_cells).reshape(shape)
    sizes = np.maximum(np.bincount(labels, minlength=n_clusters), 1)[:, None]
    weights = sums / sizes - sums.sum(axis=0) / n_texts
    weights[having < MIN_TEXTS] = 0.0
    order = np.argsort(inverse, kind="stable")
    ends = np.cumsum(counts)
    places = [first[order[end - n : end][:SPELLINGS]] for n, end in zip(counts[frequent], ends[frequent])]
    return _Weighed(width, distinct[frequent], places, in_texts, weights, having)


def _best(cluster: int, kinds: Sequence[_Weighed], units: Units, runs: _Runs, top: int) -> list[Term]:
    candidates: list[tuple[Term, int]] = []  # with the number of all texts that have it
    for number, kind in enumerate(kinds):
        weights = kind.weights[cluster]
        for place in np.lexsort((kind.keys, -weights))[:CANDIDATES].tolist():
            if weights[place] <= 0:
                break
            if number >= 2 and not runs.is_word(kind.width, kind.keys[place]):
                continue
            text = _spelling(units, kind.places[place], kind.width)
            term = Term(text, round(float(weights[place]), 6), int(kind.n_texts[cluster, place]))
            candidates.append((term, int(kind.in_texts[place])))
    candidates.sort(key=lambda item: (-item[0].weight, item[0].text))
    return _without_fragments(candidates, top)


def _spelling(units: Units, places: I64, width: int) -> str:
    """How a term is written most often; of equally frequent spellings the first in order."""
    found = Counter(
        "".join(map(chr, units.characters[units.starts[place] : units.ends[place + width - 1]])) for place in places
    )
    return min(found, key=lambda text: (-found[text], text))


def _without_fragments(candidates: Sequence[tuple[Term, int]], top: int) -> list[Term]:
    """The first `top` of which none is part of another."""
    chosen: list[tuple[Term, int]] = []
    for term, in_texts in candidates:
        if any(_is_part(term.text, other.text) for other, _ in chosen):
            continue
        shorter = [item for item in chosen if _is_part(item[0].text, term.text)]
        if shorter:
            if all(in_texts >= SAME_SHARE * others for _, others in shorter):
                place = chosen.index(shorter[0])
                chosen = [item for item in chosen if item not in shorter]
                chosen.insert(place, (term, in_texts))
        elif len(chosen) < top:
            chosen.append((term, in_texts))
    return [term for term, _ in chosen]


def _is_part(short: str, long: str) -> bool:
    """Whether a term stands in another one: as whole words, or anywhere in a run of characters."""
    short, long = short.casefold(), long.casefold()
    if kinds()[ord(short[0])] == WORD:
        return f" {short} " in f" {long} "
    return short in long
