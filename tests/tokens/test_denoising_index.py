"""Promises of rows of denoised texts: every token once, nothing longer than its row, shares and padding as told."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatloom.tokens.denoising_index import PART_ROWS, DenoisingIndex, cut, share_out
from chatloom.tokens.language_model_rows import segments_batch
from chatloom.tokens.objective import Denoising, ObjectiveSettings
from chatloom.tokens.packing_index import PackingIndex
from chatloom.tokens.rows import PackingError

KINDS = ("prefix-lm", "span-corruption", "ul2")


def denoising(kind: str, row_length: int, *, sentinels: int = 100, seed: int = 3, bidirectional: bool = False):
    chosen = ObjectiveSettings.parse({"kind": kind})
    return Denoising(
        chosen.noises,
        tuple(chosen.shares.tolist()),
        tuple(range(1000, 1000 + sentinels)),
        {"R": 900, "X": 901, "S": 902},
        row_length,
        seed,
        bidirectional,
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 300), min_size=1, max_size=40),
    st.integers(24, 80),
    st.sampled_from(KINDS),
    st.integers(4, 100),
    st.integers(0, 3),
)
def test_every_token_is_read_once_and_no_sequence_exceeds_its_row(
    lengths: list[int], row_length: int, kind: str, sentinels: int, epoch: int
) -> None:
    if max(lengths) < 2:
        lengths = [*lengths, 2]
    made = denoising(kind, row_length, sentinels=sentinels)
    index = DenoisingIndex(lengths, made)
    seen = [np.zeros(length, dtype=int) for length in lengths]
    used = targets = losses = 0
    for row in range(index.n_rows):
        segments = []
        for piece in index.pieces(row):
            seen[piece.document][piece.start : piece.end] += 1
            ids = np.arange(piece.start, piece.end)
            segments.append(
                made.segment(
                    ids, np.ones(len(ids), np.float32), piece.noise, epoch=epoch, document=piece.document,
                    start=piece.start,
                )
            )  # fmt: skip
            targets += len(ids)
        batch = segments_batch([segments], row_length, 0, trim=False)  # refuses what is too long
        assert batch.tokens.shape == (1, row_length)
        used += batch.n_tokens
        losses += len(batch.supervised)
    for length, counts in zip(lengths, seen):
        assert (counts == (length >= 2)).all()
    assert (index.n_targets, index.n_places) == (targets, used)
    assert index.n_targets == int(index.targets(range(index.n_rows)).sum())
    assert index.padding == pytest.approx(1 - used / (index.n_rows * row_length))
    if kind == "span-corruption":
        assert index.n_losses == losses


def test_rows_of_denoised_texts_are_about_as_full_as_those_of_language_modelling() -> None:
    lengths = np.random.default_rng(0).integers(1, 3000, 3000)
    plain = PackingIndex(lengths, 512).padding
    for kind in KINDS:
        assert DenoisingIndex(lengths, denoising(kind, 512)).padding < plain + 0.01


def test_each_denoiser_gets_its_share_of_the_text() -> None:
    lengths = [*np.random.default_rng(1).integers(2, 900, 4000).tolist(), 300_000]
    made = denoising("ul2", 256)
    index = DenoisingIndex(lengths, made)
    texts = np.zeros(7)
    for row in range(index.n_rows):
        for piece in index.pieces(row):
            texts[piece.noise] += piece.end - piece.start
    assert texts / texts.sum() == pytest.approx(np.ones(7) / 7, abs=PART_ROWS * 256 / texts.sum())
    book = {piece.noise for row in range(index.n_rows) for piece in index.pieces(row) if piece.document == 4000}
    assert len(book) == 7


def test_shares_that_differ_are_exact_to_within_an_item() -> None:
    sizes = np.random.default_rng(2).integers(1, 50, 10_000)
    shares = (0.4, 0.4, 0.2)
    found = share_out(sizes, shares, np.random.default_rng(0))
    for number, share in enumerate(shares):
        assert sizes[found == number].sum() == pytest.approx(share * sizes.sum(), abs=100)
    # and no denoiser gets the long ones
    assert sizes[found == 2].mean() == pytest.approx(sizes.mean(), rel=0.05)


def test_the_same_seed_gives_the_same_rows_and_another_source_others() -> None:
    lengths = np.random.default_rng(3).integers(2, 400, 200)

    def rows(seed: int, stream: int = 0) -> list[list[tuple[int, ...]]]:
        index = DenoisingIndex(lengths, denoising("ul2", 128, seed=seed), stream)
        return [[tuple(piece) for piece in index.pieces(row)] for row in range(index.n_rows)]

    assert rows(3) == rows(3)
    assert rows(3) != rows(4)
    assert rows(3) != rows(3, stream=1)


def test_a_pass_draws_other_noise_for_the_same_piece() -> None:
    made = denoising("span-corruption", 256)
    ids, weights = np.arange(200), np.ones(200, dtype=np.float32)
    first, again, second = (
        made.segment(ids, weights, 0, epoch=epoch, document=4, start=8).tokens.tolist() for epoch in (0, 0, 1)
    )
    assert first == again != second


def test_the_input_is_a_prefix_for_a_prefix_decoder_only() -> None:
    ids, weights = np.arange(100), np.ones(100, dtype=np.float32)
    for kind in KINDS:
        for both_ways in (False, True):
            made = denoising(kind, 256, bidirectional=both_ways)
            segment = made.segment(ids, weights, 0, epoch=0, document=0, start=0)
            first_loss = int(np.flatnonzero(segment.supervised)[0])
            assert segment.prefix == (first_loss if both_ways else 0)
            assert segment.supervised[first_loss:].all()


def test_cutting_leaves_no_piece_of_one_token() -> None:
    owner, start, end = cut(np.array([9, 8, 2, 5, 4]), np.array([4, 4, 4, 4, 4]))
    found = list(zip(owner.tolist(), start.tolist(), end.tolist()))
    assert found == [(0, 0, 4), (0, 4, 7), (0, 7, 9), (1, 0, 4), (1, 4, 8), (2, 0, 2), (3, 0, 3), (3, 3, 5), (4, 0, 4)]


def test_documents_without_two_tokens_are_refused() -> None:
    with pytest.raises(PackingError, match="none of 3 documents has two tokens"):
        DenoisingIndex([1, 0, 1], denoising("ul2", 64))
    with pytest.raises(IndexError):
        DenoisingIndex([9], denoising("ul2", 64)).pieces(1)
