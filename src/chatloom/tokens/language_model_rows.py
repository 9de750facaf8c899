"""Documents of a token store as full training rows: an index made once, then any row of any epoch at no cost.

A document longer than a row is cut into pieces that share one token (every token but the first is predicted exactly
once); pieces are packed by best-fit decreasing, nothing is thrown away. Which rows come when is a pure function of
(seed, epoch, position), so a checkpoint holds one number and resuming is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from chatloom.tokens.order import Order
from chatloom.tokens.packing import Batch, PackingError, Segment, build, fragment
from chatloom.tokens.rows import Rows


class Documents(Protocol):
    """What rows are read from; `chatloom.tokens.store.TokenStore` is one."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document: int64 [documents]."""

    def read(self, document: int, start: int = 0, end: int | None = None) -> np.ndarray:
        """Ids start..end of one document."""


class Piece(NamedTuple):
    """Tokens start..end of a document."""

    document: int
    start: int
    end: int


class LanguageModelRows:
    """The packing index of some documents: rows of at most `row_length` tokens, and their order in every epoch.

    n_rows, n_targets (tokens that are predicted in one epoch), padding (share of places left empty), n_split
    (documents cut because they exceed a row). Documents of one token predict nothing and are left out (n_skipped).
    """

    def __init__(self, lengths: Sequence[int] | np.ndarray, row_length: int, seed: int) -> None:
        """lengths: tokens of each document. Raises PackingError when no document has two tokens or row_length < 2."""
        if row_length < 2:
            raise PackingError(f"rows of {row_length} token predict nothing; row_length is at least 2")
        sizes = np.asarray(lengths, dtype=np.int64)
        self.row_length = row_length
        self.n_skipped = int((sizes < 2).sum())
        self.n_split = int((sizes > row_length).sum())
        pieces = [
            Piece(int(document), start, end)
            for document in np.flatnonzero(sizes >= 2)
            for start, end in fragment(int(sizes[document]), row_length)
        ]
        if not pieces:
            raise PackingError(
                f"none of {len(sizes)} documents has two tokens, so there is nothing to predict; check the corpus"
            )
        self._pieces = np.array(pieces, dtype=np.int64)  # [pieces, 3]
        used = self._pieces[:, 2] - self._pieces[:, 1]
        rows = Rows(row_length)
        order = np.argsort(-used, kind="stable")
        for piece, length in zip(order.tolist(), used[order].tolist(), strict=True):
            rows.place(piece, length)
        self.n_rows = len(rows)
        self._order = np.concatenate([np.array(row, dtype=np.int64) for row in rows.members])
        self._starts = np.concatenate([[0], np.cumsum([len(row) for row in rows.members])])
        self.n_targets = int((used - 1).sum())
        self.padding = 1.0 - float(used.sum()) / (self.n_rows * row_length)
        self._stream = Order(self.n_rows, seed)

    def row_at(self, epoch: int, position: int) -> int:
        """The row read at a position of an epoch; raises IndexError outside 0..n_rows-1."""
        if epoch < 0 or not 0 <= position < self.n_rows:
            raise IndexError(f"position {position} of epoch {epoch}; an epoch has {self.n_rows} rows")
        return self._stream.item(epoch * self.n_rows + position)

    def rows(self, start: int, count: int) -> list[int]:
        """The `count` rows read from a position on, counted from 0 over all epochs."""
        return self._stream.items(start, count)

    def pieces(self, row: int) -> list[Piece]:
        """What lies in a row, left to right: which tokens of which documents."""
        places = self._order[self._starts[row] : self._starts[row + 1]]
        return [Piece(*piece) for piece in self._pieces[places].tolist()]

    def batch(self, documents: Documents, rows: Sequence[int], pad_id: int) -> Batch:
        """The packed batch of some rows, every target with weight 1; a segment's `group` is its document's number."""
        segments: list[Segment] = []
        layout: list[list[int]] = []
        for row in rows:
            layout.append([])
            for document, start, end in self.pieces(row):
                ids = documents.read(document, start, end)
                layout[-1].append(len(segments))
                segments.append(Segment(ids, np.ones(len(ids), dtype=np.float32), group=document))
        return build(segments, layout, self.row_length, pad_id)
