"""Log-probabilities of tokens from hidden states: the one place where logits become probabilities in training.

    logprob_i = z_i[target_i] - logsumexp(z_i),   z_i = (unembedding @ hidden_i) / temperature

or, where a model caps its logits u softly (Gemma 2), z_i = c tanh(u_i / c) / temperature.

Logits exist for one chunk of positions at a time, in at least fp32, and are computed again in the backward pass, so no
[positions, vocab] tensor is ever kept. The temperature is part of the policy: sampling, old, new and reference
log-probabilities must all be taken at the same one (Huang et al. 2024, "The N implementation details of RLHF").
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Logits in flight: on a CPU 2**21 of them (8 MiB in fp32) stay near the caches; on an accelerator 2**27 (512 MiB)
# make matrix products large enough.
CHUNK_LOGITS, ACCELERATOR_CHUNK_LOGITS = 2**21, 2**27


def token_logprobs(
    hidden: Tensor,
    unembedding: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    chunk_size: int | None = None,
    with_entropy: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Log-probability (nats) of each target; with `with_entropy` also the entropy (nats) of each distribution.

    hidden [n, hidden], unembedding [vocab, hidden], targets int64 [n] -> [n], or ([n], [n]), in fp32 (fp64 for fp64
    inputs). Differentiable once in hidden and unembedding. Logits are sums in fp32 (fp64) of
    products of factors in the hidden states' dtype where that is half precision, else in the wider of the two; autocast
    changes nothing. `chunk_size` in positions changes memory, not the result. Raises ValueError on shapes that do not
    match or a temperature that is not above 0.
    """
    check_shapes(hidden, unembedding, temperature, chunk_size)
    if targets.shape != hidden.shape[:1]:
        raise ValueError(f"targets {list(targets.shape)}, hidden {list(hidden.shape)}: expected one target a position")
    chunk = chunk_size or automatic_chunk(unembedding.shape[0], hidden.device)
    logprobs, entropies = _TokenLogprobs.apply(hidden, unembedding, targets, temperature, softcap, chunk, with_entropy)
    return (logprobs, entropies) if with_entropy else logprobs


def logits_logprobs(logits: Tensor, targets: Tensor, *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies (nats) of targets [...] under logits [..., vocab] that exist already.

    Plain differentiable operations in fp32 (fp64 for fp64 logits): gather, then subtract the logsumexp.
    """
    z = logits.to(accurate(logits.dtype)) / temperature
    norm = z.logsumexp(-1)
    logprobs = z.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - norm
    log_p = z - norm.unsqueeze(-1)
    return logprobs, -(log_p.exp() * log_p).sum(-1)


@torch.no_grad()
def full_kl(
    hidden_p: Tensor,
    unembedding_p: Tensor,
    hidden_q: Tensor,
    unembedding_q: Tensor,
    *,
    temperature: float = 1.0,
    softcaps: tuple[float | None, float | None] = (None, None),
    chunk_size: int | None = None,
) -> Tensor:
    """Exact KL(p || q) in nats at each position, over the whole vocabulary; no gradient.

    hidden_p [n, hidden_p] and unembedding_p [vocab, hidden_p] give p, likewise q (the widths may differ, the vocabulary
    may not), and softcaps of p and of q theirs -> [n] in fp32 or wider. Never below 0 by more than rounding. Raises
    ValueError as `token_logprobs` does.
    """
    check_shapes(hidden_p, unembedding_p, temperature, chunk_size)
    check_shapes(hidden_q, unembedding_q, temperature, chunk_size)
    if hidden_p.shape[0] != hidden_q.shape[0] or unembedding_p.shape[0] != unembedding_q.shape[0]:
        raise ValueError(
            f"p has {hidden_p.shape[0]} positions and {unembedding_p.shape[0]} tokens, q {hidden_q.shape[0]} and "
            f"{unembedding_q.shape[0]}; expected the same"
        )
    chunk = chunk_size or automatic_chunk(unembedding_p.shape[0], hidden_p.device)
    parts = [hidden_p.new_zeros(0, dtype=accurate(hidden_p.dtype))]
    for start in range(0, hidden_p.shape[0], chunk):
        part = slice(start, start + chunk)
        log_p = chunk_logits(hidden_p[part], unembedding_p, temperature, softcaps[0]).log_softmax(-1)
        log_q = chunk_logits(hidden_q[part], unembedding_q, temperature, softcaps[1]).log_softmax(-1)
        parts.append((log_p.exp() * (log_p - log_q)).sum(-1))
    return torch.cat(parts)


def automatic_chunk(vocab_size: int, device: torch.device) -> int:
    """Positions a chunk, so that about `CHUNK_LOGITS` logits exist at once."""
    return max(16, (CHUNK_LOGITS if device.type == "cpu" else ACCELERATOR_CHUNK_LOGITS) // vocab_size)


class _TokenLogprobs(torch.autograd.Function):
    """Keeps the inputs and normalisers [n]; d logprob / d z = onehot - p, d entropy / d z = -p (log p + entropy)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        unembedding: Tensor,
        targets: Tensor,
        temperature: float,
        softcap: float | None,
        chunk: int,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor | None]:
        n = hidden.shape[0]
        narrow = product_dtype(hidden, unembedding)
        rounded, dtype = unembedding.to(narrow), accurate(narrow)
        norms = hidden.new_empty(n, dtype=dtype)
        logprobs = hidden.new_empty(n, dtype=dtype)
        entropies = hidden.new_empty(n, dtype=dtype) if with_entropy else None
        for start in range(0, n, chunk):
            part = slice(start, start + chunk)
            z = chunk_logits(hidden[part].to(narrow), rounded, temperature, softcap)
            norm = z.logsumexp(-1)
            norms[part] = norm
            logprobs[part] = z.gather(-1, targets[part].unsqueeze(-1)).squeeze(-1) - norm
            if entropies is not None:
                z.sub_(norm.unsqueeze(-1))  # -sum p log p: no difference of large numbers, and never below 0
                entropies[part] = -(z.exp() * z).sum(-1)
        ctx.save_for_backward(hidden, unembedding, targets, norms, entropies)
        ctx.temperature, ctx.softcap, ctx.chunk, ctx.narrow = temperature, softcap, chunk, narrow
        ctx.set_materialize_grads(False)
        return logprobs, entropies

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor | None, grad_entropies: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, unembedding, targets, norms, entropies = ctx.saved_tensors
        wants_hidden, wants_unembedding = ctx.needs_input_grad[:2]
        rounded = unembedding.to(ctx.narrow)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_unembedding = torch.zeros_like(unembedding, dtype=norms.dtype) if wants_unembedding else None
        if grad_logprobs is None:
            grad_logprobs = torch.zeros_like(norms)
        for start in range(0, hidden.shape[0], ctx.chunk):
            part = slice(start, start + ctx.chunk)
            h = hidden[part].to(ctx.narrow)
            z = chunk_logits(h, rounded, ctx.temperature, ctx.softcap)
            slope = softcap_slope(z, ctx.temperature, ctx.softcap)
            z.sub_(norms[part].unsqueeze(-1))  # log p
            grad = grad_logprobs[part].unsqueeze(-1)
            if grad_entropies is None:
                z.exp_().mul_(-grad)
            else:
                p = z.exp()
                z.add_(entropies[part].unsqueeze(-1)).mul_(grad_entropies[part].unsqueeze(-1)).add_(grad)
                z.mul_(p).neg_()
            z.scatter_add_(-1, targets[part].unsqueeze(-1), grad)
            if ctx.temperature != 1.0:
                z.div_(ctx.temperature)
            if slope is not None:
                z.mul_(slope)
            z = z.to(ctx.narrow)
            if grad_hidden is not None:
                grad_hidden[part] = product(z, rounded)
            if grad_unembedding is not None:
                grad_unembedding += product(z.t(), h)
        if grad_unembedding is not None:
            grad_unembedding = grad_unembedding.to(unembedding.dtype)
        return grad_hidden, grad_unembedding, None, None, None, None, None


def accurate(dtype: torch.dtype) -> torch.dtype:
    """The dtype that log-probabilities are computed in: fp32, or fp64 for fp64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def product_dtype(hidden: Tensor, unembedding: Tensor) -> torch.dtype:
    """What the factors of logits are rounded to: half precision where the hidden states have it, else the wider."""
    half = hidden.dtype in (torch.bfloat16, torch.float16)
    return hidden.dtype if half else torch.promote_types(hidden.dtype, unembedding.dtype)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a [n, k] @ b [k, m] of one dtype, in fp32 for half precision: its sums are made in fp32 and not rounded."""
    with torch.autocast(a.device.type, enabled=False):
        if a.dtype not in (torch.bfloat16, torch.float16):
            return a @ b
        return torch.mm(a, b, out_dtype=torch.float32) if a.device.type == "cuda" else a.float() @ b.float()


def chunk_logits(hidden: Tensor, unembedding: Tensor, temperature: float, softcap: float | None = None) -> Tensor:
    """Logits, capped if so asked, / temperature of some positions, [n, vocab], in fp32 or fp64."""
    narrow = product_dtype(hidden, unembedding)
    z = product(hidden.to(narrow), unembedding.to(narrow).t())
    if softcap is not None:
        z.div_(softcap).tanh_().mul_(softcap)
    return z if temperature == 1.0 else z.div_(temperature)


def softcap_slope(z: Tensor, temperature: float, softcap: float | None) -> Tensor | None:
    """d (c tanh(u / c)) / du = 1 - tanh(u / c)^2 where `chunk_logits` gave z [n, vocab]; None without a cap."""
    return None if softcap is None else 1.0 - (z * (temperature / softcap)).square_()


def check_shapes(hidden: Tensor, unembedding: Tensor, temperature: float, chunk_size: int | None) -> None:
    """Raise ValueError unless hidden is [n, hidden], unembedding [vocab, hidden], and the numbers make sense."""
    if hidden.ndim != 2 or unembedding.ndim != 2 or hidden.shape[1] != unembedding.shape[1]:
        raise ValueError(
            f"hidden {list(hidden.shape)}, unembedding {list(unembedding.shape)}: expected [n, hidden], [vocab, hidden]"
        )
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; expected above 0")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; expected at least 1")
