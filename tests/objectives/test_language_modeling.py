"""Promises of the language-model loss: it is the weighted sum it says, in value and gradient, and keeps no logits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from chatloom.objectives import language_modeling
from chatloom.objectives.language_modeling import language_model_loss, weighted_nll
from chatloom.objectives.logprobs import token_logprobs
from chatloom.tokens.packing import Batch, Segment, micro_batches, pack


def example(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    h = torch.randn(19, 6, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    w = torch.randn(29, 6, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    targets = torch.randint(29, (19,), generator=generator)
    weights = (torch.arange(19) % 4).to(dtype)
    return h, w, targets, weights


@pytest.mark.parametrize("chunk", [None, 1, 7, 100])
def test_value_and_gradient_equal_those_through_token_logprobs(chunk: int | None) -> None:
    h, w, t, weights = example()
    expected = weighted_nll(token_logprobs(h, w, t), weights)
    expected_grads = torch.autograd.grad(expected.total / 7, (h, w))
    got = language_model_loss(h, w, t, weights, chunk_size=chunk)
    torch.testing.assert_close(got.total, expected.total, atol=1e-5, rtol=1e-6)
    assert got.weight == expected.weight == weights.sum()
    assert got.nll == got.total
    assert not got.nll.requires_grad
    for mine, theirs in zip(torch.autograd.grad(got.total / 7, (h, w)), expected_grads):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("z_loss", [0.0, 0.3])
def test_gradients_pass_a_numerical_check(z_loss: float) -> None:
    h, w, t, weights = example(torch.float64)
    assert torch.autograd.gradcheck(
        lambda h, w: language_model_loss(h, w, t, weights, z_loss=z_loss, chunk_size=5).total, (h, w)
    )


def test_z_loss_is_the_weighted_square_of_the_normaliser() -> None:
    h, w, t, weights = example()
    got = language_model_loss(h, w, t, weights, z_loss=0.01)
    norm = (h @ w.t()).logsumexp(-1)
    torch.testing.assert_close(got.total - got.nll, 0.01 * (weights * norm**2).sum(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_gradients_with_z_loss_equal_those_of_plain_autograd(chunk: int) -> None:
    h, w, t, weights = example()
    z = h @ w.t()
    norm = z.logsumexp(-1)
    plain = (weights * (norm - z[torch.arange(19), t] + 0.3 * norm**2)).sum()
    expected = torch.autograd.grad(plain / 7, (h, w))
    got = language_model_loss(h, w, t, weights, z_loss=0.3, chunk_size=chunk)
    torch.testing.assert_close(got.total, plain, atol=1e-4, rtol=1e-6)
    for mine, theirs in zip(torch.autograd.grad(got.total / 7, (h, w)), expected):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    without = torch.autograd.grad(language_model_loss(h, w, t, weights).total / 7, h)[0]
    assert float((without - expected[0]).abs().max()) > 0.1  # the penalty is no rounding error


def test_parts_add_up_to_the_whole_and_weightless_tokens_change_nothing() -> None:
    h, w, t, weights = example()
    whole = language_model_loss(h, w, t, weights)
    parts = [language_model_loss(h[i : i + 5], w, t[i : i + 5], weights[i : i + 5]) for i in range(0, 19, 5)]
    torch.testing.assert_close(sum(p.total for p in parts), whole.total, rtol=1e-5, atol=1e-5)
    whole_grads = torch.autograd.grad(whole.total, (h, w))
    for mine, theirs in zip(torch.autograd.grad(sum(p.total for p in parts), (h, w)), whole_grads):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    kept = weights > 0
    fewer = language_model_loss(h[kept], w, t[kept], weights[kept])
    torch.testing.assert_close(fewer.total, whole.total, rtol=1e-6, atol=1e-5)
    grad = torch.autograd.grad(language_model_loss(h, w, t, weights).total, h)[0]
    assert (grad[~kept] == 0).all()


def test_an_untrained_uniform_model_costs_ln_vocab_a_token() -> None:
    got = language_model_loss(torch.zeros(4, 3), torch.ones(50, 3), torch.arange(4), torch.ones(4))
    assert (got.total / got.weight).item() == pytest.approx(math.log(50))


def test_nothing_of_positions_times_vocabulary_is_kept_and_nothing_at_all_without_gradient() -> None:
    n, vocab = 64, 500
    h = torch.randn(n, 4, requires_grad=True)
    w = torch.randn(vocab, 4, requires_grad=True)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (saved.append(x.numel()), x)[1], lambda x: x):
        language_model_loss(h, w, torch.zeros(n, dtype=torch.int64), torch.ones(n), chunk_size=16).total.backward()
    assert sorted(saved) == sorted([h.numel(), w.numel()])
    with torch.no_grad():
        assert not language_model_loss(h, w, torch.zeros(n, dtype=torch.int64), torch.ones(n)).total.requires_grad


def test_bf16_inputs_and_autocast_keep_fp32_sums() -> None:
    h, w, t, weights = example()
    exact = language_model_loss(h, w, t, weights)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(language_model_loss(h, w, t, weights).total, exact.total)
    low = h.detach().bfloat16().requires_grad_()
    got = language_model_loss(low, w, t, weights)
    assert got.total.dtype == torch.float32
    assert abs(got.total.item() - exact.total.item()) < 0.02 * exact.total.item()
    got.total.backward()
    assert low.grad.dtype == torch.bfloat16
    torch.testing.assert_close(low.grad.float(), torch.autograd.grad(exact.total, h)[0], atol=0.1, rtol=0.05)


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_the_form_that_is_compiled_equals_the_plain_one(z_loss: float) -> None:
    z = torch.randn(11, 29, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets, weights = torch.arange(11), torch.arange(11, dtype=torch.float64) % 3
    plain = language_modeling._chunk_terms(z.clone(), targets, weights, z_loss, torch.float64)
    fused = language_modeling._fused_terms(z.clone(), targets, weights, z_loss, torch.float64)
    for a, b in zip(plain, fused, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)
    assert language_modeling._fused_terms(z.clone(), targets, weights, z_loss, None)[0] is None


def test_shapes_that_do_not_fit_are_refused() -> None:
    h, w, t, weights = example()
    with pytest.raises(ValueError, match="one weight a position"):
        language_model_loss(h, w, t, weights[:-1])


@pytest.mark.parametrize("row_length", [12, 40])
def test_loss_and_gradient_of_a_step_do_not_depend_on_packing_micro_batches_or_order(row_length: int) -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(50, 8, generator=generator, dtype=torch.float64)  # stands for a model that sees one token
    unembedding = torch.randn(50, 8, generator=generator, dtype=torch.float64)
    draw = np.random.default_rng(0)
    segments = [
        Segment(draw.integers(1, 50, n), draw.integers(0, 3, n).astype(float), group=i // 2)
        for i, n in enumerate(draw.integers(1, 12, 24))
    ]

    def step(batches: list[Batch]) -> list[torch.Tensor]:
        inputs = [table.clone().requires_grad_(), unembedding.clone().requires_grad_()]
        weight = sum(batch.total_weight for batch in batches)
        total = 0.0
        for batch in batches:
            hidden = inputs[0][batch.tokens].flatten(0, 1)
            loss = language_model_loss(hidden, inputs[1], batch.targets.flatten(), batch.weights.double().flatten())
            (loss.total / weight).backward()
            total += loss.total.detach() / weight
        return [total, inputs[0].grad, inputs[1].grad]

    expected = step([pack(segments, 300, 0)])
    layouts = [
        micro_batches(segments, row_length * 8, row_length, 0),
        micro_batches(segments[::-1], row_length * 8, row_length, 0),
        [pack([segment], row_length, 0, trim=False) for segment in segments],
    ]
    assert len({len(layout) for layout in layouts}) > 1
    for layout in layouts:
        for mine, theirs in zip(step(layout), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_a_mean_of_means_would_be_wrong_and_is_not_what_comes_out() -> None:
    # 10 tokens at 1.0 nats and 100 tokens at 0.1 nats: 20 nats over 110 tokens, not (1.0 + 0.1) / 2
    parts = [
        weighted_nll(torch.full((10,), -1.0), torch.ones(10)),
        weighted_nll(torch.full((100,), -0.1), torch.ones(100)),
    ]
    mean = sum(part.total for part in parts) / sum(part.weight for part in parts)
    assert float(mean) == pytest.approx(20 / 110)
