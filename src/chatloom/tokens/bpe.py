"""Byte-pair encoding learnt from piece counts: which pairs of symbols to merge, in which order.

The same merges as counting all pairs anew after each. Pieces lie one after another in one
array, as chains of positions; a merge touches only the positions where its pair stands. The number of a pair can only
fall after its younger symbol was made, so the queue holds upper bounds: what comes out on top is counted, and goes
back if it was overrated. Only pairs seen at least `floor` times are queued; when none is left, the floor sinks and the
chains are read once more. All counts are 64-bit. (Sennrich et al. 2016, "Neural Machine Translation of Rare Words with
Subword Units", section 3.2.)
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from chatloom.errors import ChatloomError

Ties = Literal["lower_ids", "greater_bytes"]
Admit = Callable[[int, int, bytes], bool]

FLOOR_STEP = 8  # the floor sinks to this part of what it was
_MOST_BUCKETS = 1 << 22
_LOW = (1 << 32) - 1
_BARRIER, _DEAD = -1, -2


@dataclass(frozen=True)
class Merge:
    """`left` and `right` become `made` wherever they stand together; `count` times in the text, when it was chosen."""

    left: int
    right: int
    made: int
    count: int


@dataclass(frozen=True)
class Pieces:
    """Distinct pieces of a text: `symbols` int32 of all of them, each with -1 after it (what no merge may cross).

    `owner` int32 is the piece of each position and `counts` int64 says how often each piece occurs.
    """

    symbols: np.ndarray
    owner: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, symbols: np.ndarray, lengths: np.ndarray, counts: Sequence[int] | np.ndarray) -> Pieces:
        """From the symbols of all pieces in one array, the number of symbols of each, and how often each occurs.

        A symbol of -1 is one that takes part in no merge. Raises ChatloomError where counts are too large to add up.
        """
        lengths = np.asarray(lengths, dtype=np.int64)
        if len(lengths) and sum(map(int, counts)) * max(int(lengths.max()), 1) >= 1 << 62:
            raise ChatloomError("the counts of the pieces add up to more than 2**62; give a smaller sample of the text")
        owner = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        ends = np.cumsum(lengths)
        return cls(
            np.insert(np.asarray(symbols, dtype=np.int32), ends, _BARRIER),
            np.insert(owner, ends, np.arange(len(lengths), dtype=np.int32)),
            np.asarray(counts, dtype=np.int64),
        )


def learn_merges(
    pieces: Pieces,
    symbols: Sequence[bytes],
    n_merges: int,
    *,
    ties: Ties = "lower_ids",
    min_count: int = 2,
    max_bytes: int | None = None,
    admit: Admit | None = None,
) -> list[Merge]:
    """The `n_merges` merges of highest count, one after another; fewer when no pair is left that is seen `min_count`
    times.

    `symbols[i]` are the bytes of symbol i; a merge makes symbol len(symbols), len(symbols) + 1 and so on, unless its
    bytes are those of a symbol already there: then it makes that one. Among pairs of equal count the one of lower
    symbol numbers comes first ("lower_ids", the rule of the `tokenizers` library), or the one whose two byte strings
    compare greater ("greater_bytes", the rule of the reference trainers in Python). No merge makes more than
    `max_bytes` bytes. `admit(left, right, bytes)` is asked once of each pair that is next, with the bytes that it
    would make; a pair it refuses stays apart.
    """
    queue = _Queue(pieces, list(symbols), ties, max(1, min_count), max_bytes)
    merges: list[Merge] = []
    while len(merges) < n_merges:
        best = queue.best()
        if best is None:
            break
        left, right, count = best
        if admit is not None and not admit(left, right, queue.symbols[left] + queue.symbols[right]):
            queue.refuse(left, right)
            continue
        merges.append(Merge(left, right, queue.merge(left, right), count))
    return merges


class _Queue:
    """The chains and, of every pair seen at least `floor` times, its positions and a place in the queue."""

    def __init__(self, pieces: Pieces, symbols: list[bytes], ties: Ties, min_count: int, max_bytes: int | None) -> None:
        self.chains = _Chains(pieces)
        self.symbols = symbols
        self.known = {content: i for i, content in reversed(list(enumerate(symbols)))}
        self.lengths = np.zeros(max(64, 2 * len(symbols)), dtype=np.int64)
        self.lengths[: len(symbols)] = [len(content) for content in symbols]
        self.ties, self.min_count, self.max_bytes = ties, min_count, max_bytes
        self.inverse = [_descending(content) for content in symbols] if ties == "greater_bytes" else []
        self.refused: set[int] = set()
        self.places: dict[int, np.ndarray] = {}
        self.heap: list[tuple] = []
        self.floor = 0
        self._fill()

    def best(self) -> tuple[int, int, int] | None:
        """Left, right and count of the next pair; None when no pair reaches `min_count`."""
        while True:
            while self.heap:
                top = self.heap[0]
                key = top[-1]
                found = self.places.get(key)
                if found is None:  # merged or refused meanwhile
                    heapq.heappop(self.heap)
                    continue
                found, count = self.chains.still(found, key >> 32, key & _LOW)
                self.places[key] = found
                if count == -top[0]:
                    return key >> 32, key & _LOW, count
                if count >= self.floor:
                    heapq.heapreplace(self.heap, (-count, *top[1:]))
                else:
                    heapq.heappop(self.heap)
                    del self.places[key]
            if self.floor <= self.min_count:
                return None
            self._fill()

    def refuse(self, left: int, right: int) -> None:
        """Never offer a pair again."""
        key = left << 32 | right
        self.refused.add(key)
        del self.places[key]

    def merge(self, left: int, right: int) -> int:
        """Merge the pair that `best` gave everywhere; the number of the symbol that it makes."""
        content = self.symbols[left] + self.symbols[right]
        made = self.known.get(content)
        places = self.places.pop(left << 32 | right)
        if made is None:
            made = self._add(content)
            self._queue(*self.chains.merge(places, left == right, made))
        else:  # two ways lead to the same bytes, so pairs of an old symbol became more: count them anew
            self.chains.merge(places, left == right, made)
            self._queue(*self.chains.beside(made))
        return made

    def _add(self, content: bytes) -> int:
        made = len(self.symbols)
        self.symbols.append(content)
        self.known[content] = made
        if made == len(self.lengths):
            self.lengths = np.concatenate([self.lengths, np.zeros_like(self.lengths)])
        self.lengths[made] = len(content)
        if self.ties == "greater_bytes":
            self.inverse.append(_descending(content))
        return made

    def _fill(self) -> None:
        """Lower the floor and queue every pair that reaches it."""
        self.places, self.heap = {}, []
        places, keys = self.chains.all_pairs()
        weights = self.chains.weights(places)
        n_buckets = min(_MOST_BUCKETS, 1 << (len(keys).bit_length() + 1))
        buckets = (keys * np.int64(0x9E3779B1) ^ (keys >> 29)) & (n_buckets - 1)
        totals = np.bincount(buckets, weights=weights, minlength=1)  # at least the count of any pair in the bucket
        highest = float(totals.max()) if len(keys) else 0.0
        self.floor = max(self.min_count, int(min(self.floor or highest, highest)) // FLOOR_STEP)
        hot = totals[buckets] >= self.floor * (1 - 1e-9)
        self._queue(places[hot], keys[hot])

    def _queue(self, places: np.ndarray, keys: np.ndarray) -> None:
        """Take in pairs by their positions (ascending) and keys, left << 32 | right."""
        if self.max_bytes is not None and len(keys):
            fits = self.lengths[keys >> 32] + self.lengths[keys & _LOW] <= self.max_bytes
            places, keys = places[fits], keys[fits]
        if not len(keys):
            return
        order = np.argsort(keys, kind="stable")
        places, keys = places[order], keys[order]
        starts = np.concatenate([[0], np.flatnonzero(keys[1:] != keys[:-1]) + 1])
        counts = np.add.reduceat(self.chains.weights(places), starts)
        hot = counts >= self.floor
        ends = np.append(starts[1:], len(keys))[hot].tolist()
        starts, counts = starts[hot], counts[hot]
        for key, start, end, count in zip(keys[starts].tolist(), starts.tolist(), ends, counts.tolist()):
            if key in self.refused:
                continue
            self.places[key] = places[start:end]
            if self.ties == "lower_ids":
                heapq.heappush(self.heap, (-count, key))
            else:
                heapq.heappush(self.heap, (-count, self.inverse[key >> 32], self.inverse[key & _LOW], key))


class _Chains:
    """Every piece as a chain of positions: its symbol, the position before and the position after, in arrays."""

    def __init__(self, pieces: Pieces) -> None:
        size = len(pieces.symbols) + 1
        if size >= 1 << 31:
            raise ChatloomError(
                f"{size:,} positions of distinct text; at most {(1 << 31) - 1:,}: give a smaller sample"
            )
        self.counts = pieces.counts
        self.symbol = np.concatenate([[_BARRIER], pieces.symbols]).astype(np.int32)
        self.owner = np.concatenate([[0], pieces.owner]).astype(np.int32)
        self._link()

    def _link(self) -> None:
        size = len(self.symbol)
        self.before = np.arange(-1, size - 1, dtype=np.int32)
        self.after = np.arange(1, size + 1, dtype=np.int32)
        self.after[-1] = self.before[0] = 0  # barriers; never followed

    def weights(self, places: np.ndarray) -> np.ndarray:
        """How often the text has each position: int64."""
        return self.counts[self.owner[places]]

    def all_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions (of the left symbol, ascending) and keys of all pairs; drops the positions that merges emptied."""
        alive = self.symbol != _DEAD
        if not alive.all():
            self.symbol, self.owner = self.symbol[alive], self.owner[alive]
            self._link()
        places = np.flatnonzero((self.symbol[:-1] >= 0) & (self.symbol[1:] >= 0)).astype(np.int32)
        return places, self._keys(places, places + 1)

    def _keys(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return self.symbol[left].astype(np.int64) << 32 | self.symbol[right]

    def still(self, places: np.ndarray, left: int, right: int) -> tuple[np.ndarray, int]:
        """Those of the positions where the pair still stands, and how often the text has it."""
        places = places[self.symbol[places] == left]
        places = places[self.symbol[self.after[places]] == right]
        return places, int(self.weights(places).sum())

    def merge(self, places: np.ndarray, same: bool, made: int) -> tuple[np.ndarray, np.ndarray]:
        """Put `made` where a pair stands; positions and keys of the pairs that this makes."""
        if same:
            places = self._without_overlaps(places)
        second = self.after[places]
        third = self.after[second]
        self.symbol[places] = made
        self.symbol[second] = _DEAD
        self.after[places] = third
        self.before[third] = places
        first = self.before[places]
        # Between two merges side by side there is one pair: it counts as what follows the first.
        first = first[(self.symbol[first] >= 0) & (self.symbol[first] != made)]
        ahead = places[self.symbol[third] >= 0]
        new = np.concatenate([first, ahead])
        return new, self._keys(new, self.after[new])

    def _without_overlaps(self, places: np.ndarray) -> np.ndarray:
        """Of a run such as aaaaa the pairs that merge, from the left: the first, the third."""
        places = np.sort(places)
        follows = np.concatenate([[False], self.after[places[:-1]] == places[1:]])
        index = np.arange(len(places))
        start = np.maximum.accumulate(np.where(follows, 0, index))
        return places[(index - start) % 2 == 0]

    def beside(self, symbol: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions and keys of all pairs that a symbol is part of."""
        own = np.flatnonzero(self.symbol == symbol)
        first = self.before[own]
        first = first[(self.symbol[first] >= 0) & (self.symbol[first] != symbol)]
        ahead = own[self.symbol[self.after[own]] >= 0]
        places = np.concatenate([first, ahead]).astype(np.int32)
        return places, self._keys(places, self.after[places])


def _descending(content: bytes) -> str:
    """A string whose order is the opposite of the bytes' order, longer strings before their beginnings."""
    return "".join(chr(255 - byte) for byte in content) + "\u0100"


def expand(merges: Sequence[Merge], n_symbols: int) -> Iterator[list[int]]:
    """Of every symbol that the merges made, in order, the symbols below `n_symbols` that it consists of."""
    parts: dict[int, list[int]] = {}
    for merge in merges:
        if merge.made < n_symbols or merge.made in parts:
            continue
        whole = [part for side in (merge.left, merge.right) for part in parts.get(side, [side])]
        parts[merge.made] = whole
        yield whole
