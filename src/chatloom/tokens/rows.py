"""Bin packing: which items share a row of fixed length, by best fit.

An item goes into the fullest row that still has room for it; given longest first this is best-fit decreasing, which
needs at most 11/9 of the fewest possible rows, plus four (Johnson et al. 1974). This one takes items one by one and can
take them back, for the few segments of a step; `packing_index` does the same for a whole corpus at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chatloom.errors import ChatloomError


class PackingError(ChatloomError):
    """Segments or documents do not fit the rows or micro-batches they were to be packed into."""


def longest_first(lengths: Sequence[int] | np.ndarray) -> list[int]:
    """Indices by falling length; equal lengths keep their order."""
    return np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable").tolist()


class Rows:
    """Rows being filled: which items lie in which, and the set of free lengths, searched as the bits of one integer."""

    def __init__(self, row_length: int) -> None:
        self.row_length = row_length
        self.members: list[list[int]] = []
        self._rows_with: dict[int, list[int]] = {}  # free length -> rows, latest last
        self._free = 0  # bit f is set when a row with f free places exists

    def __len__(self) -> int:
        return len(self.members)

    def place(self, item: int, length: int) -> int:
        """Put an item into the fullest row with room for it, or into a new one; returns the row's number."""
        fitting = self._free >> length
        if fitting:
            free = length + (fitting & -fitting).bit_length() - 1
            row = self._take(free)
        else:
            free = self.row_length
            row = len(self.members)
            self.members.append([])
        self.members[row].append(item)
        self._give(row, free - length)
        return row

    def place_all(self, items: Sequence[int], lengths: Sequence[int], max_rows: int) -> bool:
        """Put all items (longest first) into `max_rows` rows, or change nothing and return False."""
        spare = (max_rows - len(self)) * self.row_length
        if sum(lengths) > spare + self._free_places():
            return False
        before = len(self)
        placed: list[tuple[int, int]] = []
        for item, length in zip(items, lengths, strict=True):
            if len(self) == max_rows and not self._free >> length:
                for row, size in reversed(placed):
                    self._remove_last(row, size)
                del self.members[before:]
                return False
            placed.append((self.place(item, length), length))
        return True

    def _free_places(self) -> int:
        return sum(free * len(rows) for free, rows in self._rows_with.items())

    def _take(self, free: int) -> int:
        rows = self._rows_with[free]
        row = rows.pop()
        if not rows:
            del self._rows_with[free]
            self._free &= ~(1 << free)
        return row

    def _give(self, row: int, free: int) -> None:
        if free > 0:
            self._rows_with.setdefault(free, []).append(row)
            self._free |= 1 << free

    def _remove_last(self, row: int, length: int) -> None:
        free = next((f for f, rows in self._rows_with.items() if row in rows), 0)
        if free:
            rows = self._rows_with[free]
            rows.remove(row)
            if not rows:
                del self._rows_with[free]
                self._free &= ~(1 << free)
        self.members[row].pop()
        if self.members[row]:  # an emptied row is dropped by the caller
            self._give(row, free + length)
