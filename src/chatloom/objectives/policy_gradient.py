"""Proximal policy optimisation: the clipped losses of policy and critic, token by token.

Both return values per token (any shape), so that the caller weights and sums them over a whole optimizer step.
Schulman et al. 2017 (PPO); the details are those of Huang et al. 2024, "The N implementation details of RLHF with PPO".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# exp(20) = 4.9e8: far outside any clip range, yet finite in fp32 together with its square.
MAX_LOG_RATIO = 20.0


@dataclass(frozen=True)
class PolicyTerms:
    """Per token, all of one shape: the loss (with gradient), the ratio, 1 where clipping changed it, log ratio."""

    losses: Tensor
    ratio: Tensor
    clipped: Tensor
    log_ratio: Tensor


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> PolicyTerms:
    """Clipped surrogate loss of each token.

        ratio = exp(logprob - old),   loss = max(-A ratio, -A clip(ratio, 1 - clip_low, 1 + clip_high))

    logprobs, old_logprobs (nats, same temperature), advantages: one shape. Schulman et al. 2017 eq. 7. `dual_clip`
    c > 1 bounds the loss of a token with A < 0 by -c A (Ye et al. 2020). Old log-probabilities and advantages get no
    gradient. Raises ValueError on unequal shapes or clip values without meaning.
    """
    if not logprobs.shape == old_logprobs.shape == advantages.shape:
        raise ValueError(
            f"logprobs {list(logprobs.shape)}, old_logprobs {list(old_logprobs.shape)}, "
            f"advantages {list(advantages.shape)}: expected one shape"
        )
    if not (0 <= clip_low < 1 and clip_high >= 0):
        raise ValueError(f"clip_low {clip_low}, clip_high {clip_high}: expected 0 <= clip_low < 1 and clip_high >= 0")
    if dual_clip is not None and dual_clip <= 1:
        raise ValueError(f"dual_clip is {dual_clip}; expected above 1, or none")
    advantages = advantages.detach()
    log_ratio = logprobs - old_logprobs.detach()
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    plain = -advantages * ratio
    bounded = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    losses = torch.maximum(plain, bounded)
    if dual_clip is not None:
        losses = torch.where(advantages < 0, torch.minimum(losses, -dual_clip * advantages), losses)
    clipped = (bounded > plain).to(losses.dtype)
    return PolicyTerms(losses, ratio.detach(), clipped, log_ratio.detach())


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float | None = 0.2
) -> tuple[Tensor, Tensor]:
    """Critic's loss of each token, and 1 where clipping changed it; all of one shape.

        loss = 0.5 max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2)

    `clip` None is the plain squared error. Multiply by a coefficient (0.1 in Ziegler et al. 2019 and TRL).
    """
    if not values.shape == old_values.shape == returns.shape:
        raise ValueError(
            f"values {list(values.shape)}, old_values {list(old_values.shape)}, returns {list(returns.shape)}: "
            "expected one shape"
        )
    returns, old_values = returns.detach(), old_values.detach()
    plain = (values - returns) ** 2
    if clip is None:
        return 0.5 * plain, torch.zeros_like(plain)
    bounded = (values.clamp(old_values - clip, old_values + clip) - returns) ** 2
    return 0.5 * torch.maximum(plain, bounded), (bounded > plain).to(plain.dtype)
