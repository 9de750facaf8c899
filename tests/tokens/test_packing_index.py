"""Promises of the packing index: every token predicted once a pass, best fit to the letter, hardly any padding."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatloom.tokens.language_model_rows import Plain, rows_batch
from chatloom.tokens.packing_index import PackingIndex, Piece, stable_argsort
from chatloom.tokens.rows import PackingError, Rows, longest_first

LENGTHS = st.lists(st.integers(0, 60), min_size=1, max_size=40).filter(lambda sizes: max(sizes) >= 2)


def pieces_of(index: PackingIndex) -> list[list[Piece]]:
    return [index.pieces(row) for row in range(index.n_rows)]


def one_by_one(lengths: list[int], row_length: int) -> list[list[Piece]]:
    """The same packing by the slow way: every piece written out, placed by the packer that takes single items."""
    pieces = [
        Piece(document, start, min(start + row_length, length))
        for document, length in enumerate(lengths)
        for start in range(0, max(length - 1, 0), row_length - 1)
    ]
    rows = Rows(row_length)
    for number in longest_first([piece.end - piece.start for piece in pieces]):
        rows.place(number, pieces[number].end - pieces[number].start)
    return [[pieces[number] for number in members] for members in rows.members]


@settings(max_examples=300, deadline=None)
@given(lengths=LENGTHS, row_length=st.integers(2, 40))
def test_whole_corpora_are_packed_as_the_single_item_packer_would(lengths: list[int], row_length: int) -> None:
    assert pieces_of(PackingIndex(lengths, row_length)) == one_by_one(lengths, row_length)


def test_many_documents_are_packed_as_the_single_item_packer_would() -> None:
    rng = np.random.default_rng(3)
    for row_length, mean in ((64, 3.0), (300, 4.0), (17, 5.0)):
        lengths = rng.lognormal(mean, 1.0, 3000).astype(int).tolist()
        assert pieces_of(PackingIndex(lengths, row_length)) == one_by_one(lengths, row_length)


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, row_length=st.integers(2, 20))
def test_every_token_but_a_documents_first_is_predicted_exactly_once(lengths: list[int], row_length: int) -> None:
    documents = Plain([1 + d * 1000 + np.arange(n) for d, n in enumerate(lengths)])
    index = PackingIndex(documents.lengths, row_length)
    batch = rows_batch(documents, pieces_of(index), row_length, 0)
    assert batch.tokens.shape[0] == index.n_rows
    assert batch.tokens.shape[1] <= row_length
    expected = Counter(1 + d * 1000 + t for d, n in enumerate(lengths) for t in range(1, n))
    assert Counter(batch.targets[batch.weights > 0].tolist()) == expected
    following = batch.tokens[:, 1:][batch.weights[:, :-1] > 0]
    assert (following == batch.targets[:, :-1][batch.weights[:, :-1] > 0]).all()
    assert index.n_targets == sum(expected.values()) == int(index.targets(range(index.n_rows)).sum())
    assert index.n_places == batch.n_tokens
    assert index.padding == pytest.approx(1 - batch.n_tokens / (index.n_rows * row_length))
    assert index.n_skipped == sum(n < 2 for n in lengths)
    assert index.n_split == sum(n > row_length for n in lengths)


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, row_length=st.integers(2, 20), data=st.data())
def test_the_targets_of_some_rows_are_those_of_their_pieces(
    lengths: list[int], row_length: int, data: st.DataObject
) -> None:
    index = PackingIndex(lengths, row_length)
    rows = data.draw(st.lists(st.integers(0, index.n_rows - 1), max_size=9))
    assert index.targets(rows).tolist() == [sum(p.end - p.start - 1 for p in index.pieces(row)) for row in rows]


def test_a_row_says_which_tokens_of_which_documents_it_holds() -> None:
    documents = Plain([np.arange(n) for n in (3, 10, 1, 2)])
    index = PackingIndex(documents.lengths, 6)
    everything = sorted(piece for pieces in pieces_of(index) for piece in pieces)
    assert everything == [Piece(0, 0, 3), Piece(1, 0, 6), Piece(1, 5, 10), Piece(3, 0, 2)]
    assert sorted(rows_batch(documents, pieces_of(index), 6, 0).group.tolist()) == [0, 1, 1, 3]
    for row in (-1, index.n_rows):
        with pytest.raises(IndexError):
            index.pieces(row)


def test_at_real_size_hardly_a_place_is_empty_and_the_index_takes_a_few_bytes_a_document() -> None:
    lengths = np.random.default_rng(1).lognormal(6, 1.1, 100_000).astype(int) + 2
    for row_length in (512, 2048, 8192):
        index = PackingIndex(lengths, row_length)
        assert index.padding < 0.001
        assert index.nbytes < 16 * len(lengths)
        assert index.n_targets == int((lengths - 1).sum())  # nothing is cropped


def test_what_cannot_be_trained_on_is_refused() -> None:
    with pytest.raises(PackingError, match="none of 3 documents has two tokens"):
        PackingIndex([1, 0, 1], 8)
    with pytest.raises(PackingError, match="none of 0 documents"):
        PackingIndex([], 8)
    with pytest.raises(PackingError, match="at least 2"):
        PackingIndex([5], 1)


@given(st.lists(st.integers(0, 2**34), max_size=30))
def test_the_radix_sort_keeps_equal_values_in_order(values: list[int]) -> None:
    array = np.array(values, dtype=np.int64)
    assert stable_argsort(array, 2**34).tolist() == np.argsort(array, kind="stable").tolist()


def test_tokens_that_are_only_read_carry_no_weight() -> None:
    class Half(Plain):
        def weights(self, document: int, start: int = 0, end: int | None = None) -> np.ndarray:
            return (np.arange(*slice(start, end).indices(int(self.lengths[document]))) % 2).astype(np.float32)

    documents = Half([10 + np.arange(9), 30 + np.arange(4)])
    batch = rows_batch(documents, pieces_of(PackingIndex(documents.lengths, 5)), 5, 0)
    assert sorted(batch.targets[batch.weights > 0].tolist()) == [11, 13, 15, 17, 31, 33]
    assert batch.total_weight == 6
