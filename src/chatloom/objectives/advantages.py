"""From scores of whole answers to an advantage for every token: shaped rewards, returns, GAE, explained variance.

All tensors are [batch, time], one answer a row; mask is 1 at the answer's tokens (the end token is one of them). The
row may have padding on either side and gaps: a step goes from one real token to the next real token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chatloom.objectives.masked import last_real, masked_mean, masked_variance


def kl_shaped_rewards(
    scores: Tensor, kl: Tensor, mask: Tensor, *, kl_coef: float, score_clip: tuple[float, float] | None = None
) -> Tensor:
    """Reward of each token: -kl_coef * kl_t, and the answer's score added at its last real token.

    scores [batch], kl [batch, time] estimates of a token's KL (nats, k1), mask [batch, time] -> [batch, time], 0 where
    the mask is 0. Finished and cut-off answers are treated alike, and nothing lies after the end token. (Ziegler et
    al. 2019 eq. 2. Some libraries put the score one place later, where the critic has never been trained.)
    """
    if score_clip is not None:
        scores = scores.clamp(*score_clip)
    rewards = torch.where(mask != 0, -kl_coef * kl, 0)
    last = last_real(mask)
    at_last = torch.where(last >= 0, scores, 0).unsqueeze(-1)
    return rewards.scatter_add(-1, last.clamp(min=0).unsqueeze(-1), at_last.to(rewards.dtype))


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Advantages and returns of each token, both [batch, time] and 0 where the mask is 0.

        delta_t = r_t + gamma V_{t+1} - V_t,   A_t = delta_t + gamma lam A_{t+1},   return_t = A_t + V_t

    with V = A = 0 after the last real token. Returns are the critic's targets: take them before whitening the
    advantages. Schulman et al. 2016 (GAE) eq. 16. No gradient flows through.
    """
    rewards, values, real = rewards.detach(), values.detach(), mask != 0
    advantages = torch.zeros_like(values)
    next_value = torch.zeros_like(values[:, 0])
    next_advantage = torch.zeros_like(values[:, 0])
    for t in range(values.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * next_advantage
        next_advantage = torch.where(real[:, t], advantage, next_advantage)
        next_value = torch.where(real[:, t], values[:, t], next_value)
        advantages[:, t] = torch.where(real[:, t], advantage, 0)
    return advantages, torch.where(real, advantages + values, 0)


def discounted_returns(rewards: Tensor, mask: Tensor, *, gamma: float = 1.0) -> Tensor:
    """Sum of a token's and all later rewards, discounted by gamma a token: [batch, time] -> [batch, time]."""
    return generalized_advantages(rewards, torch.zeros_like(rewards), mask, gamma=gamma, lam=1.0)[0]


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - mean squared error / variance of the returns: 1 is a perfect critic, 0 one that knows the mean only.

    Scalar; NaN where the returns do not vary.
    """
    variance = masked_variance(returns, mask, unbiased=False)
    error = masked_mean((values - returns) ** 2, mask)
    return torch.where(variance > 0, 1 - error / variance, torch.nan)
