"""The order of a whole training run over several sources: which row of which source comes at any position.

Each source is an endless stream of its packed rows, pass after pass, every pass a new keyed permutation. A stage takes
the next rows of each stream, as many as the plan says, evenly interleaved. So weights may change from stage to stage
and still no row of a source is read a second time before every other has been read once, and what one stage left unread
is what the next begins with. Everything is a function of (seed, position): a run's state is one number.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from chatloom.tokens.order import Order
from chatloom.tokens.packing_index import Piece


class RowIndex(Protocol):
    """Rows of documents: `PackingIndex` or `DenoisingIndex`.

    n_targets: tokens of text that one pass reads, each once; n_losses: how many carry loss; n_places: tokens in rows.
    """

    n_rows: int
    n_targets: int
    n_places: int

    @property
    def n_losses(self) -> int:
        """How many tokens carry loss in one pass."""

    def pieces(self, row: int) -> list[Piece]:
        """What lies in a row, left to right."""

    def targets(self, rows: Sequence[int] | NDArray[np.integer]) -> NDArray[np.int64]:
        """Tokens of text that are read in each of some rows: int64 [rows]."""


class Row(NamedTuple):
    """A row of training: in which stage, of which source, in which pass over it, the how-many-eth there, and itself."""

    stage: int
    source: int
    epoch: int
    cursor: int
    row: int


@dataclass(frozen=True)
class Source:
    """Documents that are read together: their numbers (None: all), their packed rows, the rows' order."""

    name: str
    index: RowIndex
    order: Order
    documents: np.ndarray | None = None

    def pieces(self, row: int) -> list[Piece]:
        """What lies in a row, with the documents' own numbers."""
        found = self.index.pieces(row)
        if self.documents is None:
            return found
        return [piece._replace(document=int(self.documents[piece.document])) for piece in found]

    def targets(self, start: int, end: int) -> int:
        """Tokens that the rows at positions start..end of the stream predict."""
        n, found = self.index.n_rows, 0
        while start < end:
            epoch, first = divmod(start, n)
            last = min(n, first + end - start)
            if last - first == n:
                found += self.index.n_targets
            else:
                found += int(self.index.targets(self.order.permutation(epoch)[first:last]).sum())
            start += last - first
        return found


class Mixture:
    """Sources, and stages given as (name, rows of each source); `n_rows` is the length of the whole run in rows."""

    def __init__(self, sources: Sequence[Source | None], stages: Sequence[tuple[str, Sequence[int]]]) -> None:
        """A source that no stage reads may be None."""
        self.sources = tuple(sources)
        self.names = tuple(name for name, _ in stages)
        self._counts = [tuple(rows) for _, rows in stages]
        self._starts = [0]  # position of each stage's first row, and the end
        self._read = [(0,) * len(self.sources)]  # rows of each source read before each stage
        for rows in self._counts:
            self._starts.append(self._starts[-1] + sum(rows))
            self._read.append(tuple(a + b for a, b in zip(self._read[-1], rows, strict=True)))
        self.n_rows = self._starts[-1]

    def source(self, number: int) -> Source:
        """A source that is read."""
        found = self.sources[number]
        if found is None:
            raise IndexError(f"source {number} is read in no stage")
        return found

    def rows(self, start: int, count: int) -> list[Row]:
        """The rows at positions start..start+count, fewer at the run's end."""
        found: list[Row] = []
        end = min(start + count, self.n_rows)
        while start < end:
            stage = bisect_right(self._starts, start) - 1
            last = min(end, self._starts[stage + 1])
            chosen = interleave(self._counts[stage], start - self._starts[stage], last - start)
            for number, place in chosen:
                source, position = self.source(number), self._read[stage][number] + place
                epoch, cursor = divmod(position, source.index.n_rows)
                found.append(Row(stage, number, epoch, cursor, source.order.item(position)))
            start = last
        return found

    def pieces(self, row: Row) -> list[Piece]:
        """What lies in a row."""
        return self.source(row.source).pieces(row.row)

    def state(self, position: int) -> dict[str, Any]:
        """Where a run is after `position` rows: stage, cursor in it, of each source pass and cursor, the next row.

        It follows from the position; it is there to be read by people, and to notice that the order is another one.
        """
        position = min(position, self.n_rows)
        stage = min(bisect_right(self._starts, position) - 1, len(self.names) - 1)
        cursor = position - self._starts[stage]
        taken = interleaved_before(self._counts[stage], cursor)
        sources = {}
        for number, source in enumerate(self.sources):
            if source is not None:
                epoch, place = divmod(self._read[stage][number] + taken[number], source.index.n_rows)
                sources[source.name] = {"epoch": epoch, "cursor": place, "rows": source.index.n_rows}
        following = self.rows(position, 1)
        return {
            "stage": self.names[stage],
            "cursor": cursor,
            "sources": sources,
            "next_row": following[0].row if following else None,
        }

    def counts(self) -> list[dict[str, Any]]:
        """For each stage and source: rows, tokens that they predict (exact), and passes over the source."""
        found = []
        for stage, name in enumerate(self.names):
            for number, rows in enumerate(self._counts[stage]):
                if rows:
                    source, first = self.source(number), self._read[stage][number]
                    found.append(
                        {
                            "stage": name,
                            "source": source.name,
                            "rows": rows,
                            "tokens": source.targets(first, first + rows),
                            "epochs": rows / source.index.n_rows,
                        }
                    )
        return found


def interleave(counts: Sequence[int], start: int, count: int) -> list[tuple[int, int]]:
    """Places start..start+count of a fair merge of sequences of these lengths, as (sequence, place in it).

    Item j of a sequence of n comes at time (2j + 1) / 2n, of equal times the earlier sequence first: any stretch holds
    of each sequence its share, to within one item. Found without walking through what comes before.
    """
    total = sum(counts)
    if not 0 <= start <= start + count <= total:
        raise IndexError(f"places {start}..{start + count} of {total}")
    if max(counts, default=0) >= 2**31:
        raise IndexError(f"a sequence of {max(counts)} rows; expected fewer than 2**31")
    found: list[tuple[int, int] | None] = [None] * count
    for number, n in enumerate(counts):
        if not n:
            continue
        # The rank of time t lies within half an item a sequence of t * total.
        low = max(0, n * (start - len(counts)) // total - 1)
        high = min(n, n * (start + count + len(counts)) // total + 2)
        places = np.arange(low, high, dtype=np.int64)
        ranks = _ranks(counts, number, places) - start
        for place, rank in zip(places.tolist(), ranks.tolist(), strict=True):
            if 0 <= rank < count:
                found[rank] = (number, place)
    return [item for item in found if item is not None]


def interleaved_before(counts: Sequence[int], place: int) -> list[int]:
    """How many items of each sequence come before a place of their fair merge."""
    found = []
    for number, n in enumerate(counts):
        low, high = 0, n
        while low < high:
            middle = (low + high) // 2
            earlier = int(_ranks(counts, number, np.array([middle], dtype=np.int64))[0]) < place
            low, high = (middle + 1, high) if earlier else (low, middle)
        found.append(low)
    return found


def _ranks(counts: Sequence[int], number: int, places: np.ndarray) -> np.ndarray:
    """Place in the merge of items of one sequence: how many items of all sequences come before each."""
    n, ranks = counts[number], places.copy()
    for other, m in enumerate(counts):
        if other != number:
            # Items i of the other with (2i + 1) / 2m < (2j + 1) / 2n, or equal where it goes first.
            ranks += ((2 * places + 1) * m + (n if other < number else n - 1)) // (2 * n)
    return ranks
