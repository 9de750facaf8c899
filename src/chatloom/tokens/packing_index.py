"""The packing index: which pieces of which documents share a training row, found in one pass when a run starts.

A document longer than a row is cut into pieces that share one token, so that every token but a document's first is
predicted exactly once and none is thrown away. Full pieces are rows of their own; what is left over of each document
is packed by best-fit decreasing: longest first, each into the fullest row with room for it. All leftovers of one
length, and all rows with one free length, are moved together, so a billion tokens take seconds and no row is written
out: the index holds 4 bytes a document and 4 bytes a row, and finds the pieces of any row when they are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chatloom.tokens.rows import PackingError

Ints = NDArray[np.integer]


class Piece(NamedTuple):
    """Tokens start..end of a document; `noise` is the number of the denoiser that it is for, where there are any."""

    document: int
    start: int
    end: int
    noise: int = 0


class PackingIndex:
    """Rows of at most `row_length` tokens over documents of given lengths; the same lengths give the same rows.

    n_rows; n_targets (tokens that are predicted in one pass); n_places (tokens that lie in rows: a shared one twice);
    padding (share of places left empty); n_split (documents cut because they exceed a row); n_skipped (documents of
    one token or none, which predict nothing and are left out).
    """

    def __init__(self, lengths: Sequence[int] | Ints, row_length: int) -> None:
        """lengths: tokens of each document. Raises PackingError when no document has two tokens or row_length < 2."""
        if row_length < 2:
            raise PackingError(f"rows of {row_length} token predict nothing; row_length is at least 2")
        sizes = _small(np.asarray(lengths))
        used = sizes[sizes >= 2]
        if not len(used):
            raise PackingError(
                f"none of {len(sizes)} documents has two tokens, so there is nothing to predict; check the corpus"
            )
        self.row_length = row_length
        self.lengths = sizes
        self.n_skipped = len(sizes) - len(used)
        self.n_split = int((used > row_length).sum())
        # A document of n tokens has ceil((n - 1) / (row_length - 1)) pieces; all but its last are full.
        step = row_length - 1
        before = np.maximum(sizes, 2).astype(np.int64) - 2
        rest = before % step + 2  # tokens of the last piece: 2 .. row_length
        full = before // step + (rest == row_length)
        full[sizes < 2] = 0
        self._long = _small(np.flatnonzero(full))
        self._rows_up_to = np.cumsum(full[self._long])  # full rows of these documents and all before
        self._n_full = int(self._rows_up_to[-1]) if len(self._long) else 0
        leftover = np.flatnonzero((sizes >= 2) & (rest < row_length))
        self._members, self._starts = best_fit(leftover, rest[leftover], row_length)
        self.n_rows = self._n_full + len(self._starts) - 1
        self.n_targets = int(used.sum(dtype=np.int64)) - len(used)
        self.n_places = self.n_targets + self._n_full + len(leftover)  # each piece has one token that it only reads
        self.padding = 1.0 - self.n_places / (self.n_rows * row_length)

    @property
    def n_losses(self) -> int:
        """How many tokens carry loss in one pass."""
        return self.n_targets

    @property
    def nbytes(self) -> int:
        """Memory that the index keeps, without the documents' lengths."""
        return sum(part.nbytes for part in (self._long, self._rows_up_to, self._members, self._starts))

    def pieces(self, row: int) -> list[Piece]:
        """What lies in a row, left to right; raises IndexError outside 0..n_rows-1."""
        if not 0 <= row < self.n_rows:
            raise IndexError(f"row {row} of {self.n_rows}")
        step = self.row_length - 1
        if row < self._n_full:
            place = int(np.searchsorted(self._rows_up_to, row, side="right"))
            number = row - (int(self._rows_up_to[place - 1]) if place else 0)
            return [Piece(int(self._long[place]), number * step, number * step + self.row_length)]
        first, end = self._starts[row - self._n_full : row - self._n_full + 2]
        found = []
        for document in self._members[first:end].tolist():
            length = int(self.lengths[document])
            found.append(Piece(document, (length - 2) // step * step, length))
        return found

    def targets(self, rows: Sequence[int] | Ints) -> NDArray[np.int64]:
        """Tokens that are predicted in each of some rows: int64 [rows]."""
        chosen = np.asarray(rows, dtype=np.int64)
        found = np.full(len(chosen), self.row_length - 1, dtype=np.int64)
        mixed = np.flatnonzero(chosen >= self._n_full)
        if len(mixed):
            rest = (self.lengths[self._members].astype(np.int64) - 2) % (self.row_length - 1) + 1
            up_to = np.concatenate([[0], np.cumsum(rest)])
            place = chosen[mixed] - self._n_full
            found[mixed] = up_to[self._starts[place + 1]] - up_to[self._starts[place]]
        return found


def best_fit(items: NDArray[np.int64], lengths: NDArray[np.int64], row_length: int) -> tuple[Ints, Ints]:
    """Best-fit decreasing of items of at most `row_length`: the items of all rows in one array, and where rows start.

    An item of length n goes into the fullest row with room for it, of equally full ones the latest filled. A row with
    f free places, the least that suffice, takes floor(f / n) items of this length before any other row does; so it is
    enough to keep the rows of each free length on a stack, and to move as many of them at once as there are items.
    """
    by_length = stable_argsort(row_length - lengths, row_length)
    counts = np.bincount(lengths, minlength=row_length)
    row_of = np.empty(len(items), dtype=np.int64)
    stacks = _Stacks()
    n_rows = placed = 0
    for length in np.flatnonzero(counts)[::-1].tolist():
        waiting = int(counts[length])
        while waiting:
            free = stacks.least(length)
            each = (free or row_length) // length
            wanted = -(-waiting // each)
            if free:
                rows = stacks.pop(free, wanted)
            else:
                free = row_length
                rows = np.arange(n_rows, n_rows + wanted)
                n_rows += wanted
            taken = min(waiting, len(rows) * each)
            row_of[placed : placed + taken] = np.repeat(rows, each)[:taken]
            last = taken - (len(rows) - 1) * each  # items in the last of these rows
            stacks.push(free - each * length, rows if last == each else rows[:-1])
            if last != each:
                stacks.push(free - last * length, rows[-1:])
            placed += taken
            waiting -= taken
    sizes = np.bincount(row_of, minlength=n_rows)
    members = items[by_length[stable_argsort(row_of, n_rows)]]
    return _small(members), _small(np.concatenate([[0], np.cumsum(sizes)]))


class _Stacks:
    """Rows by how many places they have free, of each the latest on top; full rows are forgotten."""

    def __init__(self) -> None:
        self._rows: dict[int, list[NDArray[np.int64]]] = {}
        self._free = 0  # bit f is set when there is a row with f free places

    def least(self, length: int) -> int:
        """The smallest free length that holds `length`, or 0 when there is none."""
        fitting = self._free >> length
        return length + (fitting & -fitting).bit_length() - 1 if fitting else 0

    def push(self, free: int, rows: NDArray[np.int64]) -> None:
        """Put rows on top, the last one uppermost."""
        if free and len(rows):
            self._rows.setdefault(free, []).append(rows)
            self._free |= 1 << free

    def pop(self, free: int, count: int) -> NDArray[np.int64]:
        """Take up to `count` rows from the top, uppermost first."""
        stack, taken = self._rows[free], []
        while stack and count:
            top = stack.pop()
            if len(top) > count:
                stack.append(top[:-count])
                top = top[-count:]
            count -= len(top)
            taken.append(top[::-1])
        if not stack:
            del self._rows[free]
            self._free &= ~(1 << free)
        return taken[0] if len(taken) == 1 else np.concatenate(taken)


def stable_argsort(values: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Indices that sort non-negative values up to `limit`, equal ones in order: a radix sort of 16 bits at a time."""
    order = np.argsort((values & 0xFFFF).astype(np.uint16), kind="stable")
    shift = 16
    while limit >> shift:
        digits = (values[order] >> shift & 0xFFFF).astype(np.uint16)
        order = order[np.argsort(digits, kind="stable")]
        shift += 16
    return order


def _small(values: Ints) -> Ints:
    """The same numbers in 4 bytes each where they fit."""
    return values.astype(np.uint32) if not len(values) or int(values.max()) < 2**32 else values.astype(np.int64)
