"""Promises of the one log-probability function: exact, differentiable, free of chunk effects, no [n, vocab] kept."""

from __future__ import annotations

import math

import pytest
import torch

from chatloom.objectives.logprobs import full_kl, logits_logprobs, token_logprobs


def example(n: int = 23, hidden: int = 8, vocab: int = 37, dtype: torch.dtype = torch.float32, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(n, hidden, generator=generator, dtype=torch.float64).to(dtype)
    w = torch.randn(vocab, hidden, generator=generator, dtype=torch.float64).to(dtype)
    t = torch.randint(vocab, (n,), generator=generator)
    return h, w, t


def plain(h: torch.Tensor, w: torch.Tensor, t: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    logp = (h @ w.t() / temperature).log_softmax(-1)
    return logp.gather(-1, t[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
@pytest.mark.parametrize("chunk", [None, 1, 5, 23, 100])
def test_values_and_gradients_equal_plain_log_softmax_whatever_the_chunk(temperature: float, chunk: int | None) -> None:
    h, w, t = example()
    weights = torch.linspace(-1, 2, len(t))
    expected_inputs = h.clone().requires_grad_(), w.clone().requires_grad_()
    lp, entropy = plain(*expected_inputs, t, temperature)
    (lp * weights).sum().backward()
    inputs = h.clone().requires_grad_(), w.clone().requires_grad_()
    got = token_logprobs(*inputs, t, temperature=temperature, chunk_size=chunk)
    (got * weights).sum().backward()
    torch.testing.assert_close(got, lp, atol=1e-6, rtol=1e-6)
    for mine, theirs in zip(inputs, expected_inputs):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-6, rtol=1e-5)
    _, mine = token_logprobs(h, w, t, temperature=temperature, chunk_size=chunk, with_entropy=True)
    torch.testing.assert_close(mine, entropy, atol=2e-6, rtol=1e-6)
    lp_logits, entropy_logits = logits_logprobs(h @ w.t(), t, temperature=temperature)
    torch.testing.assert_close(lp_logits, lp, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(entropy_logits, entropy, atol=2e-6, rtol=1e-6)


def test_gradients_of_logprobs_and_entropies_pass_a_numerical_check() -> None:
    h, w, t = example(n=5, hidden=3, vocab=7, dtype=torch.float64)
    h.requires_grad_()
    w.requires_grad_()

    def function(h: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return token_logprobs(h, w, t, temperature=0.8, chunk_size=2, with_entropy=True)

    assert torch.autograd.gradcheck(function, (h, w))
    assert torch.autograd.gradcheck(lambda h, w: function(h, w)[1], (h, w))
    assert torch.autograd.gradcheck(lambda h, w: token_logprobs(h, w, t, chunk_size=3), (h, w))


def test_only_what_needs_a_gradient_gets_one() -> None:
    h, w, t = example()
    w.requires_grad_()
    token_logprobs(h, w, t).sum().backward()
    assert w.grad is not None
    assert h.grad is None
    h.requires_grad_()
    token_logprobs(h, w.detach(), t).sum().backward()
    assert h.grad is not None


def test_no_tensor_of_positions_times_vocabulary_is_kept_for_the_backward_pass() -> None:
    n, vocab = 64, 500
    h, w, t = example(n=n, hidden=4, vocab=vocab)
    h.requires_grad_()
    w.requires_grad_()
    saved: list[torch.Tensor] = []

    def note(x: torch.Tensor) -> torch.Tensor:
        saved.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        lp, entropy = token_logprobs(h, w, t, chunk_size=16, with_entropy=True)
        (lp.sum() + entropy.sum()).backward()
    sizes = [x.numel() for x in saved if x.data_ptr() != w.data_ptr()]
    assert saved
    assert max(sizes) <= h.numel() < vocab
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        plain(h, w, t, 1.0)[0].sum().backward()
    assert max(x.numel() for x in saved) >= n * vocab  # the probe does see what the plain way keeps


def test_bf16_hidden_states_give_fp32_results_close_to_exact_ones() -> None:
    h, w, t = example(hidden=16)
    exact, _ = plain(h.bfloat16().double(), w.bfloat16().double(), t, 1.0)
    h16, w16 = h.bfloat16().requires_grad_(), w.bfloat16().requires_grad_()
    got = token_logprobs(h16, w16, t)
    assert got.dtype == torch.float32
    assert (got.double() - exact).abs().max() < 0.1  # logits of size 10 carry 8 bits
    got.sum().backward()
    assert h16.grad.dtype == w16.grad.dtype == torch.bfloat16
    mixed = token_logprobs(h.bfloat16(), w.bfloat16().float(), t)
    torch.testing.assert_close(mixed.double(), exact, atol=1e-5, rtol=1e-5)


def test_autocast_does_not_lower_the_precision() -> None:
    h, w, t = example()
    h.requires_grad_()
    expected = token_logprobs(h, w, t)
    with torch.autocast("cpu", torch.bfloat16):
        got = token_logprobs(h, w, t)
        assert torch.equal(got, expected)
        got.sum().backward()
    grad = h.grad.clone()
    h.grad = None
    token_logprobs(h, w, t).sum().backward()
    assert torch.equal(grad, h.grad)


def test_huge_logits_and_no_positions_are_fine() -> None:
    h, w, t = example()
    big = token_logprobs(h * 1e4, w, t)
    assert torch.isfinite(big).all()
    h.requires_grad_()
    none = token_logprobs(h[:0], w, t[:0])
    assert none.shape == (0,)
    none.sum().backward()
    assert torch.equal(h.grad, torch.zeros_like(h))


def test_arguments_that_do_not_fit_are_refused() -> None:
    h, w, t = example()
    with pytest.raises(ValueError, match="one target a position"):
        token_logprobs(h, w, t[:-1])
    with pytest.raises(ValueError, match="temperature"):
        token_logprobs(h, w, t, temperature=0.0)
    with pytest.raises(ValueError, match="chunk_size"):
        token_logprobs(h, w, t, chunk_size=0)
    with pytest.raises(ValueError, match=r"expected \[n, hidden\]"):
        token_logprobs(h[None], w, t)
    with pytest.raises(ValueError, match="expected the same"):
        full_kl(h, w, h, w[:-1])


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("chunk", [None, 4])
def test_full_kl_is_exact_and_zero_for_equal_models(temperature: float, chunk: int | None) -> None:
    h, w, _ = example()
    g, v, _ = example(hidden=5, seed=1)
    p, q = ((x @ y.t() / temperature).double().softmax(-1) for x, y in ((h, w), (g, v)))
    got = full_kl(h, w, g, v, temperature=temperature, chunk_size=chunk)
    torch.testing.assert_close(got.double(), (p * (p / q).log()).sum(-1), atol=1e-4, rtol=1e-5)
    assert full_kl(h, w, h, w).abs().max() == 0
    assert (got > 0).all()


def test_two_token_vocabulary_by_hand() -> None:
    # logits (ln 3, 0) at T=1: p = (3/4, 1/4); at T=1/2 they double: (9/10, 1/10)
    h, w = torch.ones(1, 1, dtype=torch.float64), torch.tensor([[math.log(3)], [0.0]], dtype=torch.float64)
    lp, entropy = token_logprobs(h, w, torch.tensor([0]), with_entropy=True)
    assert lp.item() == pytest.approx(math.log(0.75))
    assert entropy.item() == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert token_logprobs(h, w, torch.tensor([1]), temperature=0.5).item() == pytest.approx(math.log(0.1))
    # KL((3/4, 1/4) || (1/2, 1/2)) = ln 2 - entropy
    assert full_kl(h, w, h, torch.zeros_like(w)).item() == pytest.approx(math.log(2) - entropy.item())
