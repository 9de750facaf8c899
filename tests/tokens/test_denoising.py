"""Promises of denoising: T5's counts, every token once in input or target, all masks alike, the same draw again."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatloom.tokens.denoising import (
    Denoised,
    DenoisingError,
    Noise,
    denoise,
    piece_generator,
    random_spans,
)

FIRST = 10_000  # ids of sentinels in these tests, above every text's
SENTINELS = FIRST + np.arange(400)
MODE = 9_999
T5 = Noise("R", 0.15, 3.0)
NOISES = [
    T5,
    Noise("R", 0.15, 8.0, mode_token=True),
    Noise("X", 0.5, 3.0),
    Noise("X", 0.5, 64.0, mode_token=True),
    Noise("X", 0.9, 1.0),
    Noise("S", 0.25),
    Noise("S", None, mode_token=True),
]


def made_of(ids: np.ndarray, noise: Noise, seed: int = 0, weights: np.ndarray | None = None) -> Denoised:
    weights = np.ones(len(ids), dtype=np.float32) if weights is None else weights
    return denoise(ids, weights, noise, SENTINELS, MODE if noise.mode_token else None, piece_generator(seed, 0, 0, 0))


def restored(made: Denoised, noise: Noise) -> list[int]:
    """The text again, from input and target alone: each sentinel of the input gives way to what follows it there."""
    read, written = made.tokens[: made.n_input].tolist(), made.tokens[made.n_input :].tolist()
    read = read[1:] if noise.mode_token else read
    if noise.mode == "S":
        return read + written
    spans: dict[int, list[int]] = {}
    for token in written:
        if token >= FIRST:
            spans[token] = []
        else:
            spans[max(spans)].append(token)
    assert spans.pop(max(spans)) == []  # the last one ends the target
    assert [token for token in read if token >= FIRST] == sorted(spans)
    return [t for token in read for t in (spans[token] if token >= FIRST else [token])]


@pytest.mark.parametrize(
    ("length", "rate", "mean_span", "noise", "spans"),
    [
        # round(length * rate) and round(noise / mean_span), as text-to-text-transfer-transformer computes them
        (512, 0.15, 3.0, 77, 26),
        (568, 0.15, 3.0, 85, 28),  # T5's raw length for inputs of 512
        (100, 0.5, 3.0, 50, 17),
        (1024, 0.5, 64.0, 512, 8),
        (10, 0.15, 3.0, 2, 1),  # 1.5: halves go to the even number
        (30, 0.15, 3.0, 4, 1),  # 4.5
        (3, 0.15, 3.0, 1, 1),  # at least one
        (2, 0.99, 3.0, 1, 1),  # at most all but one
        (10, 0.9, 1.0, 9, 1),  # no more spans than kept tokens before them
    ],
)
def test_noise_and_spans_are_counted_by_t5s_rule(
    length: int, rate: float, mean_span: float, noise: int, spans: int
) -> None:
    assert tuple(int(count) for count in Noise("X", rate, mean_span).counts(length)) == (noise, spans)


def test_t5s_example_of_lengths_comes_out() -> None:
    # compute_input_and_target_lengths(512, 0.15, 3.0) is (568, 114), with one end token in each part: here the input
    # has none, and the last sentinel stands for the target's.
    noise, spans = (int(count) for count in T5.counts(568))
    assert 568 - noise + spans + 1 == 512
    assert noise + spans + 1 == 114
    made = made_of(np.arange(568), T5)
    assert (made.n_input, len(made.tokens) - made.n_input) == (511, 114)


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 400), st.sampled_from(NOISES), st.integers(0, 2**63))
def test_the_text_comes_back_from_input_and_target_and_lengths_are_as_told(
    length: int, noise: Noise, seed: int
) -> None:
    ids = np.arange(length) * 7 % 1009
    made = made_of(ids, noise, seed)
    assert restored(made, noise) == ids.tolist()
    assert len(made.tokens) == int(noise.places(length))
    assert not made.weights[: made.n_input].any()
    assert (made.weights[made.n_input :] == 1).all()
    if noise.rate is not None:
        assert len(made.tokens) - made.n_input == int(noise.losses(length))
    if noise.mode_token:
        assert made.tokens[0] == MODE
    n_noise, n_spans = (int(count) for count in noise.counts(length))
    if noise.mode != "S":
        assert int((made.tokens[: made.n_input] >= FIRST).sum()) == n_spans
        assert int((made.tokens[made.n_input :] < FIRST - 1).sum()) == n_noise


def test_sentinels_stand_in_order_and_the_last_one_ends_the_target() -> None:
    ids = np.arange(8)
    mask = np.array([0, 0, 1, 1, 0, 0, 1, 1], dtype=bool)
    noise = Noise("X", 0.5, 2.0)
    seed = next(seed for seed in range(1000) if (random_spans(8, 4, 2, piece_generator(seed, 0, 0, 0)) == mask).all())
    made = made_of(ids, noise, seed)
    assert made.tokens.tolist() == [0, 1, FIRST, 4, 5, FIRST + 1, FIRST, 2, 3, FIRST + 1, 6, 7, FIRST + 2]
    assert made.n_input == 6


def test_tokens_that_are_only_read_carry_no_loss_as_noise_either() -> None:
    ids = np.arange(200)
    weights = (ids % 3 == 0).astype(np.float32)
    for noise in NOISES:
        made = made_of(ids, noise, 5, weights)
        for token, weight in zip(made.tokens[made.n_input :].tolist(), made.weights[made.n_input :].tolist()):
            assert weight == (1.0 if token >= FIRST else weights[token])


def test_every_mask_is_equally_likely() -> None:
    # 9 tokens, 4 of noise in 2 spans: 4 ways to part the kept ones and 3 to part the noise.
    ways = {
        tuple([False] * a + [True] * b + [False] * (5 - a) + [True] * (4 - b))
        for a, b in itertools.product(range(1, 5), range(1, 4))
    }
    generator = np.random.default_rng(1)
    n = 12_000
    found = Counter(tuple(random_spans(9, 4, 2, generator).tolist()) for _ in range(n))
    assert set(found) == ways
    chi_squared = sum((count - n / 12) ** 2 / (n / 12) for count in found.values())
    assert chi_squared < 31.3  # 11 degrees of freedom, p = 0.001


@pytest.mark.parametrize("noise", [noise for noise in NOISES if noise.mode != "S"])
def test_lengths_of_spans_have_the_mean_that_was_asked_for(noise: Noise) -> None:
    n_noise, n_spans = (int(count) for count in noise.counts(2000))
    lengths: list[int] = []
    for seed in range(30):
        mask = random_spans(2000, n_noise, n_spans, piece_generator(seed, 0, 0, 0))
        assert mask.sum() == n_noise
        assert not mask[0]
        assert mask[-1]
        edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]])))
        lengths += (edges[1::2] - edges[::2]).tolist()
    assert len(lengths) == 30 * n_spans
    if noise.rate != 0.9:  # there kept tokens are too few for spans that short
        assert np.mean(lengths) == pytest.approx(noise.mean_span, rel=0.03)
    # The first of k parts of n is j long in C(n - j - 1, k - 2) of C(n - 1, k - 1) ways, so P(1) = (k - 1) / (n - 1).
    share = np.mean(np.array(lengths) == 1)
    expected = (n_spans - 1) / (n_noise - 1)
    assert share == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / len(lengths)) + 1e-9)


def test_a_prefix_of_a_drawn_share_is_cut_anywhere_alike() -> None:
    noise = Noise("S", None)
    cuts = Counter(made_of(np.arange(6), noise, seed).n_input for seed in range(5000))
    assert set(cuts) == {1, 2, 3, 4, 5}
    assert all(abs(count - 1000) < 4 * np.sqrt(800) for count in cuts.values())
    assert {made_of(np.arange(8), Noise("S", 0.25), seed).n_input for seed in range(20)} == {6}


def test_a_draw_is_a_function_of_seed_pass_document_and_place() -> None:
    def draw(seed: int, epoch: int, document: int, start: int) -> tuple[int, ...]:
        return tuple(random_spans(300, 45, 15, piece_generator(seed, epoch, document, start)).tolist())

    places = list(itertools.product((3, 4), (0, 1), (0, 1, 2**40), (0, 1, 512)))
    found = [draw(*place) for place in places]
    assert found == [draw(*place) for place in places]
    assert len(set(found)) == len(places)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(NOISES), st.integers(40, 600), st.integers(4, 200))
def test_the_longest_text_fits_exactly(noise: Noise, row_length: int, n_sentinels: int) -> None:
    longest = noise.longest(row_length, n_sentinels)

    def fits(n: int) -> bool:
        needed = 0 if noise.mode == "S" else int(noise.counts(n)[1]) + 1
        return int(noise.places(n)) <= row_length and needed <= n_sentinels

    assert fits(longest)
    assert not any(fits(n) for n in range(longest + 1, row_length + 2))
    assert all(fits(n) for n in range(2, longest))  # so every shorter piece fits too


def test_what_cannot_be_denoised_is_refused() -> None:
    with pytest.raises(DenoisingError, match="a text of 1 token has no room"):
        made_of(np.arange(1), T5)
    with pytest.raises(DenoisingError, match="26 spans need 27 sentinels, the vocabulary has 20"):
        denoise(np.arange(512), np.ones(512, dtype=np.float32), T5, SENTINELS[:20], None, np.random.default_rng(0))
    with pytest.raises(DenoisingError, match="make rows longer or reserve more sentinels"):
        T5.longest(6, 100)


def test_noises_are_named_as_in_the_table() -> None:
    assert [noise.name for noise in NOISES[:3]] == ["R 3 15%", "R 8 15%", "X 3 50%"]
    assert [noise.name for noise in NOISES[-2:]] == ["S 25%", "S uniform"]
