"""Promises of the sampling rules: each equals a short numpy reference, and draws follow the distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatloom.errors import ChatloomError
from chatloom.generation.sampling import Sampling, choose, kept, keyed_uniform, prompt_key


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def reference(logits: np.ndarray, sampling: Sampling, seen: set[int]) -> np.ndarray:
    """Probabilities of one row by sorting and plain loops, in fp64."""
    x = logits.astype(np.float64).copy()
    t = sampling.temperature or 1.0
    for j in seen:
        x[j] = x[j] / sampling.repetition_penalty if x[j] > 0 else x[j] * sampling.repetition_penalty
    if sampling.temperature == 0:
        best = np.zeros_like(x)
        best[int(np.argmax(x))] = 1.0
        return best
    x = x / t
    order = sorted(range(len(x)), key=lambda j: (-x[j], j))  # likeliest first, lowest id first at a tie
    if sampling.top_k > 0:
        order = order[: sampling.top_k]
    if sampling.top_p < 1:
        p = softmax(x[order])
        total, stop = 0.0, 0
        while stop < len(order) and (stop == 0 or total < sampling.top_p):
            total += p[stop]
            stop += 1
        order = order[:stop]
    order = [j for j in order if math.exp(x[j] - x[order[0]]) >= sampling.min_p]
    out = np.zeros_like(x)
    out[order] = softmax(x[order])
    return out


RULES = [
    Sampling(),
    Sampling(0.0),
    Sampling(0.5),
    Sampling(2.0),
    Sampling(top_k=1),
    Sampling(top_k=3),
    Sampling(top_k=-1),
    Sampling(top_k=10**6),
    Sampling(top_p=0.0),
    Sampling(top_p=0.3),
    Sampling(top_p=0.999),
    Sampling(min_p=0.2),
    Sampling(min_p=1.0),
    Sampling(repetition_penalty=1.5),
    Sampling(repetition_penalty=0.5),
    Sampling(0.0, repetition_penalty=3.0),
    Sampling(0.7, top_k=6, top_p=0.8, min_p=0.05, repetition_penalty=1.3),
]


@pytest.mark.parametrize("sampling", RULES, ids=str)
def test_every_rule_equals_its_numpy_reference(sampling: Sampling) -> None:
    """Reads the whole distribution off `choose` by sweeping its uniform number over a fine grid."""
    generator = torch.Generator().manual_seed(0)
    grid = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    for row in range(4):
        logits = torch.randn(12, generator=generator) * 2
        if row == 3:
            logits = torch.tensor([1.0, 2.0, 2.0, 2.0, 0.0, 2.0, -1.0, 1.0, 1.0, 0.0, 0.0, 0.0])  # many ties
        seen = {1, 4, 7}
        mask = torch.zeros(1, 12, dtype=torch.bool)
        mask[0, list(seen)] = True
        tokens, logprobs = choose(logits.expand(4000, 12), grid, sampling, mask.expand(4000, 12))
        got = torch.bincount(tokens, minlength=12).double().numpy() / 4000
        np.testing.assert_allclose(got, reference(logits.numpy(), sampling, seen), atol=1.5 / 4000)
        raw = torch.log_softmax(logits / (sampling.temperature or 1.0), dim=-1)
        torch.testing.assert_close(logprobs, raw[tokens], atol=1e-5, rtol=1e-5)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from([-3.0, -1.0, 0.0, 0.5, 1.0, 2.0, 6.0]), min_size=1, max_size=9),
    st.integers(0, 10),
    st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
def test_truncation_keeps_exactly_what_the_reference_keeps(
    logits: list[float], top_k: int, top_p: float, min_p: float
) -> None:
    sampling = Sampling(top_k=top_k, top_p=top_p, min_p=min_p)
    probabilities = reference(np.array(logits), sampling, set())
    # Where cumulative probability meets top_p only up to rounding, either answer is right: leave those out.
    if top_p < 1:
        order = np.sort(softmax(np.array(logits)))[::-1]
        if np.abs(np.cumsum(order) - top_p).min() < 1e-9:
            return
    keep = kept(torch.tensor([logits]), sampling)[0]
    assert keep.any()
    assert keep.tolist() == (probabilities > 0).tolist()


def test_top_k_of_one_is_greedy_and_ties_go_to_the_lowest_id() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0], [5.0, 5.0, 5.0, 5.0]])
    for u in (0.0, 0.4, 0.999999):
        uniforms = torch.full((2,), u, dtype=torch.float64)
        assert choose(logits, uniforms, Sampling(top_k=1))[0].tolist() == [1, 0]
        assert choose(logits, uniforms, Sampling(0.0))[0].tolist() == [1, 0]


def test_impossible_tokens_are_never_drawn_even_at_the_edges() -> None:
    infinite = float("-inf")
    logits = torch.tensor([[infinite, 0.0, infinite, 0.0, infinite]])
    for u in (0.0, 0.5, 1 - 2**-53):
        token, logprob = choose(logits, torch.tensor([u], dtype=torch.float64), Sampling())
        assert token.item() in (1, 3)
        assert logprob.item() == pytest.approx(math.log(0.5), abs=1e-6)


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e30, -1e30, -1e30]])
    tokens, logprobs = choose(logits, torch.tensor([0.5, 0.5], dtype=torch.float64), Sampling(0.01))
    assert logprobs.isfinite().all()
    assert tokens[0] == 0


def test_draws_follow_the_distribution_by_chi_square() -> None:
    """200,000 keyed draws against softmax: chi-square at alpha 1e-4 (a fixed seed, so it never flickers)."""
    n, vocab = 200_000, 20
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(1)) * 1.5
    uniforms = keyed_uniform(5, np.arange(n) // 100, np.arange(n) % 10, np.arange(n) // 10 % 10)
    tokens, _ = choose(logits.expand(n, vocab), uniforms, Sampling(0.8))
    expected = n * torch.softmax(logits.double() / 0.8, 0)
    counts = torch.bincount(tokens, minlength=vocab).double()
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    # Wilson & Hilferty: chi-square with k degrees of freedom, upper 1e-4 point (z = 3.719).
    k = vocab - 1
    assert statistic < k * (1 - 2 / (9 * k) + 3.719 * math.sqrt(2 / (9 * k))) ** 3
    assert statistic > 2.0, "agreement too good to be random"


def test_uniform_numbers_equal_splitmix64_in_plain_integers() -> None:
    def mix(z: int) -> int:
        z = (z + 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    assert mix(0) == 0xE220A8397B1DCDAF  # first output of splitmix64 seeded with 0, as published
    for seed, key, sample, step in [(0, 0, 0, 0), (1, 2**64 - 1, 3, 4), (-7, 2**63, 0, 9), (2**70 + 5, -1, 1, 0)]:
        state = mix(seed % 2**64)
        for word in (key, sample, step):
            state = mix(state ^ word % 2**64)
        assert keyed_uniform(seed, [key], [sample], [step]).tolist() == [(state >> 11) / 2**53]


def test_uniform_numbers_are_uniform_and_unrelated_between_neighbours() -> None:
    grid = keyed_uniform(0, np.arange(40)[:, None, None], np.arange(40)[None, :, None], np.arange(40)[None, None, :])
    assert grid.min() >= 0
    assert grid.max() < 1
    assert len(grid.unique()) == grid.numel()
    counts = torch.histc(grid.flatten(), bins=64, min=0, max=1)
    expected = grid.numel() / 64
    assert ((counts - expected) ** 2 / expected).sum() < 115  # 63 degrees of freedom, alpha 1e-4
    for dim in range(3):
        a = grid.narrow(dim, 0, 39).flatten() - 0.5
        b = grid.narrow(dim, 1, 39).flatten() - 0.5
        assert abs((a * b).mean() / 12**-1) < 4 / math.sqrt(len(a))


def test_a_uniform_number_depends_on_each_of_its_keys() -> None:
    base = keyed_uniform(1, [2], [3], [4])
    for other in [(9, 2, 3, 4), (1, 9, 3, 4), (1, 2, 9, 4), (1, 2, 3, 9), (2, 1, 3, 4), (1, 3, 2, 4), (1, 2, 4, 3)]:
        assert keyed_uniform(other[0], [other[1]], [other[2]], [other[3]]) != base
    with pytest.raises(TypeError):
        keyed_uniform(1, [0.5], [0], [0])


def test_prompt_keys_are_stable_across_machines() -> None:
    """A change here would silently change every sample ever recorded."""
    assert prompt_key([1, 2, 3]) == prompt_key((1, 2, 3)) == 0xB4FB5A8DE61ABA77
    assert prompt_key([1, 2, 3]) != prompt_key([3, 2, 1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_k": -2}, "top_k is -2"),
        ({"top_k": 2.5}, "top_k is 2.5"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_p": float("nan")}, "top_p is nan"),
        ({"min_p": -0.1}, "min_p is -0.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
    ],
)
def test_a_rule_out_of_range_is_refused_by_name(arguments: dict[str, float], words: str) -> None:
    with pytest.raises(ChatloomError, match=words):
        Sampling(**arguments)  # type: ignore[arg-type]
