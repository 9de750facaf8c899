"""Rows of documents as packed batches: the pieces that a row holds, read from where they are stored.

Which pieces lie in a row is the packing index's matter, which rows come when the mixture's; here their tokens become
the `Batch` that every training stage takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from chatloom.tokens.packing import Batch, Segment, build
from chatloom.tokens.packing_index import Piece


class Documents(Protocol):
    """What rows are read from; `chatloom.tokens.store.TokenStore` is one."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document: int64 [documents]."""

    def read(self, document: int, start: int = 0, end: int | None = None) -> np.ndarray:
        """Ids start..end of one document: int64 [end - start]."""

    def weights(self, document: int, start: int = 0, end: int | None = None) -> np.ndarray:
        """Weight of each of these tokens as a target: float32 [end - start]."""


class Plain:
    """Documents in memory, every token a target."""

    def __init__(self, documents: Sequence[np.ndarray]) -> None:
        self._documents = documents

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document."""
        return np.array([len(item) for item in self._documents], dtype=np.int64)

    def read(self, document: int, start: int = 0, end: int | None = None) -> np.ndarray:
        """Ids start..end of one document."""
        return self._documents[document][start:end]

    def weights(self, document: int, start: int = 0, end: int | None = None) -> np.ndarray:
        """One for every token."""
        return np.ones(len(self._documents[document][start:end]), dtype=np.float32)


def plain_segment(documents: Documents, piece: Piece) -> Segment:
    """A piece as language modelling reads it: every token a target, as far as its weight goes."""
    place = piece.document, piece.start, piece.end
    return Segment(documents.read(*place), documents.weights(*place), group=piece.document)


def rows_batch(
    documents: Documents, rows: Iterable[Sequence[Piece]], row_length: int, pad_id: int, *, trim: bool = True
) -> Batch:
    """The packed batch of some rows, given by their pieces; a segment's `group` is its document's number."""
    parts = ([plain_segment(documents, piece) for piece in pieces] for pieces in rows)
    return segments_batch(parts, row_length, pad_id, trim=trim)


def segments_batch(rows: Iterable[Sequence[Segment]], row_length: int, pad_id: int, *, trim: bool = True) -> Batch:
    """The packed batch of some rows, given by their segments."""
    segments: list[Segment] = []
    layout: list[list[int]] = []
    for row in rows:
        layout.append(list(range(len(segments), len(segments) + len(row))))
        segments += row
    return build(segments, layout, row_length, pad_id, trim=trim)
