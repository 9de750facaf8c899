"""The language-model loss: minus the log-probability of every token that carries weight, summed.

    total = sum_i w_i (-logprob_i + z_loss * logsumexp_i^2),   weight = sum_i w_i

Sums and not means come out: the mean is taken over the whole optimizer step, all micro-batches and ranks together.
On CUDA what happens between the matrix products is compiled into one pass over the logits, where Triton is there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chatloom.objectives import logprobs as lp


class LossSums(NamedTuple):
    """Scalars of one micro-batch: `total` to differentiate (nats), its part `nll` without gradient, and the weight."""

    total: Tensor
    nll: Tensor
    weight: Tensor


def weighted_nll(logprobs: Tensor, weights: Tensor) -> LossSums:
    """Sums over tokens whose log-probabilities (nats) are at hand: logprobs [n], weights [n] -> scalars."""
    total = -(weights * logprobs).sum()
    return LossSums(total, total.detach(), weights.sum())


def language_model_loss(
    hidden: Tensor,
    unembedding: Tensor,
    targets: Tensor,
    weights: Tensor,
    *,
    z_loss: float = 0.0,
    softcap: float | None = None,
    chunk_size: int | None = None,
) -> LossSums:
    """The loss sums straight from hidden states, a quarter cheaper than through `token_logprobs`.

    hidden [n, hidden], unembedding [vocab, hidden], targets int64 [n], weights [n] -> scalars in fp32. As the loss is a
    weighted sum, its gradient is known in the forward pass, chunk by chunk, and no logits are computed twice or kept.
    `z_loss` holds logsumexp near 0 (Chowdhery et al. 2022, PaLM, section 5: 1e-4); `softcap` caps logits softly. Equal
    to `weighted_nll(token_logprobs(...))` within rounding; raises ValueError as it does.
    """
    lp.check_shapes(hidden, unembedding, 1.0, chunk_size)
    if not targets.shape == weights.shape == hidden.shape[:1]:
        raise ValueError(
            f"targets {list(targets.shape)}, weights {list(weights.shape)}, hidden {list(hidden.shape)}: "
            "expected one target and one weight a position"
        )
    chunk = chunk_size or lp.automatic_chunk(unembedding.shape[0], hidden.device)
    total, nll = _LanguageModelLoss.apply(
        hidden, unembedding, targets, weights.detach(), z_loss, softcap, chunk, torch.is_grad_enabled()
    )
    return LossSums(total, nll, weights.detach().sum())


def _chunk_terms(
    z: Tensor, targets: Tensor, weights: Tensor, z_loss: float, dtype: torch.dtype | None
) -> tuple[Tensor | None, Tensor, Tensor]:
    """d total / d z in `dtype` (None: not wanted), total and nll, of logits z [n, vocab], which are used up.

    targets int64 [n], weights [n].
    """
    target = targets.unsqueeze(-1)
    at_target, largest = z.gather(-1, target).squeeze(-1), z.amax(-1, keepdim=True)
    sums = z.sub_(largest).exp_().sum(-1)  # z is now the unnormalised probabilities: one exp serves both passes
    norm = sums.log() + largest.squeeze(-1)
    losses = norm - at_target
    nll = (weights * losses).sum()
    total = (weights * (losses + z_loss * norm**2)).sum() if z_loss else nll
    if dtype is None:
        return None, total, nll
    scale = weights * (1 + 2 * z_loss * norm) if z_loss else weights
    z.mul_((scale / sums).unsqueeze(-1))
    z.scatter_add_(-1, target, -weights.unsqueeze(-1))
    return z.to(dtype), total, nll


def _fused_terms(
    z: Tensor, targets: Tensor, weights: Tensor, z_loss: float, dtype: torch.dtype | None
) -> tuple[Tensor | None, Tensor, Tensor]:
    """The same as `_chunk_terms` in operations that a compiler fuses."""
    target = targets.unsqueeze(-1)
    largest = z.amax(-1, keepdim=True)
    exps = (z - largest).exp()
    sums = exps.sum(-1, keepdim=True)
    norm = sums.log() + largest
    losses = (norm - z.gather(-1, target)).squeeze(-1)
    nll = (weights * losses).sum()
    weight = weights.unsqueeze(-1)
    total = nll + (weight * z_loss * norm**2).sum()
    if dtype is None:
        return None, total, nll
    at_target = torch.arange(z.shape[-1], device=z.device) == target
    gradient = exps * (weight * (1 + 2 * z_loss * norm) / sums) - torch.where(at_target, weight, 0.0)
    return gradient.to(dtype), total, nll


@cache
def _compiled_terms() -> Callable[..., tuple[Tensor | None, Tensor, Tensor]]:
    return torch.compile(_fused_terms) if find_spec("triton") is not None else _chunk_terms


class _LanguageModelLoss(torch.autograd.Function):
    """Keeps d total / d hidden and / d unembedding; d total / d z_i = w_i (p (1 + 2 z_loss norm_i) - onehot)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        unembedding: Tensor,
        targets: Tensor,
        weights: Tensor,
        z_loss: float,
        softcap: float | None,
        chunk: int,
        differentiate: bool,
    ) -> tuple[Tensor, Tensor]:
        wants_hidden, wants_unembedding = (differentiate and need for need in ctx.needs_input_grad[:2])
        narrow = lp.product_dtype(hidden, unembedding)
        rounded = unembedding.to(narrow)
        weights = weights.to(lp.accurate(narrow))
        terms = _compiled_terms() if hidden.device.type == "cuda" else _chunk_terms
        dtype = narrow if wants_hidden or wants_unembedding else None
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_unembedding = torch.zeros_like(unembedding, dtype=weights.dtype) if wants_unembedding else None
        total = weights.new_zeros(())
        nll = weights.new_zeros(())
        for start in range(0, hidden.shape[0], chunk):
            part = slice(start, start + chunk)
            h = hidden[part].to(narrow)
            z = lp.chunk_logits(h, rounded, 1.0, softcap)
            slope = lp.softcap_slope(z, 1.0, softcap)
            gradient, part_total, part_nll = terms(z, targets[part], weights[part], z_loss, dtype)
            total += part_total
            nll += part_nll
            if gradient is None:
                continue
            if slope is not None:
                gradient = gradient.mul_(slope)
            if grad_hidden is not None:
                grad_hidden[part] = lp.product(gradient, rounded)
            if grad_unembedding is not None:
                grad_unembedding += lp.product(gradient.t(), h)
        ctx.save_for_backward(grad_hidden, grad_unembedding)
        ctx.unembedding_dtype = unembedding.dtype
        ctx.mark_non_differentiable(nll)
        return total, nll

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_unembedding = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = grad_hidden * grad.to(grad_hidden.dtype)
        if grad_unembedding is not None:
            grad_unembedding = (grad_unembedding * grad).to(ctx.unembedding_dtype)
        return grad_hidden, grad_unembedding, None, None, None, None, None, None
