"""Promises of the packing index: every token predicted once an epoch, order a pure function, rows traceable."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatloom.tokens.language_model_rows import LanguageModelRows, Piece
from chatloom.tokens.packing import PackingError


class Memory:
    """Documents in memory whose ids name document and place."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = np.array(lengths)

    def read(self, document: int, start: int = 0, end: int | None = None) -> np.ndarray:
        return 1 + document * 1000 + np.arange(self.lengths[document])[start:end]


LENGTHS = st.lists(st.integers(0, 60), min_size=1, max_size=25).filter(lambda sizes: max(sizes) >= 2)


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, row_length=st.integers(2, 20), seed=st.integers(0, 2**63))
def test_in_every_epoch_every_token_but_a_documents_first_is_predicted_exactly_once(
    lengths: list[int], row_length: int, seed: int
) -> None:
    documents = Memory(lengths)
    index = LanguageModelRows(documents.lengths, row_length, seed)
    expected = Counter(1 + d * 1000 + t for d, n in enumerate(lengths) for t in range(1, n))
    for epoch in (0, 3):
        rows = [index.row_at(epoch, p) for p in range(index.n_rows)]
        assert sorted(rows) == list(range(index.n_rows))
        batch = index.batch(documents, rows, 0)
        assert batch.tokens.shape[1] <= row_length
        assert Counter(batch.targets[batch.weights > 0].tolist()) == expected
        same = batch.tokens[:, 1:][batch.weights[:, :-1] > 0]
        assert (same == batch.targets[:, :-1][batch.weights[:, :-1] > 0]).all()
    assert index.n_targets == sum(expected.values())
    assert index.n_skipped == sum(n < 2 for n in lengths)
    assert index.n_split == sum(n > row_length for n in lengths)
    assert 0 <= index.padding < 1


def test_rows_depend_on_seed_epoch_and_position_and_nothing_else() -> None:
    lengths = np.random.default_rng(0).integers(2, 40, 300)
    a, b = LanguageModelRows(lengths, 32, 7), LanguageModelRows(lengths, 32, 7)
    b.row_at(5, 3)  # having read elsewhere changes nothing
    assert [a.row_at(1, p) for p in range(20)] == [b.row_at(1, p) for p in range(20)]
    across = a.rows(a.n_rows - 2, 4)
    assert across == [a.row_at(0, a.n_rows - 2), a.row_at(0, a.n_rows - 1), a.row_at(1, 0), a.row_at(1, 1)]
    assert [a.row_at(0, p) for p in range(20)] != [a.row_at(1, p) for p in range(20)]
    assert [a.row_at(0, p) for p in range(20)] != [LanguageModelRows(lengths, 32, 8).row_at(0, p) for p in range(20)]


def test_a_row_says_which_tokens_of_which_documents_it_holds() -> None:
    documents = Memory([3, 10, 1, 2])
    index = LanguageModelRows(documents.lengths, 6, 0)
    everything = sorted(piece for row in range(index.n_rows) for piece in index.pieces(row))
    assert everything == [Piece(0, 0, 3), Piece(1, 0, 6), Piece(1, 5, 10), Piece(3, 0, 2)]
    batch = index.batch(documents, [0, 1, 2][: index.n_rows], 0)
    assert sorted(batch.group.tolist()) == [0, 1, 1, 3]


def test_hardly_any_place_is_left_empty_on_documents_of_mixed_lengths() -> None:
    lengths = np.random.default_rng(1).lognormal(5, 1.2, 5000).astype(int) + 2
    index = LanguageModelRows(lengths, 512, 0)
    assert index.padding < 0.002


def test_what_cannot_be_trained_on_is_refused() -> None:
    with pytest.raises(PackingError, match="none of 3 documents has two tokens"):
        LanguageModelRows([1, 0, 1], 8, 0)
    with pytest.raises(PackingError, match="at least 2"):
        LanguageModelRows([5], 1, 0)
    with pytest.raises(IndexError):
        LanguageModelRows([5], 8, 0).row_at(0, 1)
