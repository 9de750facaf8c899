"""Statistics over the real tokens of padded tensors; what lies under a 0 of the mask, NaN included, never counts."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_sum(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum of values weighted by mask (bool, or weights >= 0): any shape -> scalar, or summed over `dim` only."""
    weighted = torch.where(mask != 0, values, 0) * mask
    return weighted.sum() if dim is None else weighted.sum(dim)


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Weighted mean under the mask; 0 where the mask is all 0."""
    count = mask.sum() if dim is None else mask.sum(dim)
    total = masked_sum(values, mask, dim)
    return torch.where(count > 0, total / torch.where(count > 0, count, 1), 0)


def masked_variance(values: Tensor, mask: Tensor, *, unbiased: bool = True) -> Tensor:
    """Variance under the mask, from squared distances to the mean (not E[x^2] - E[x]^2, which cancels).

    unbiased: divided by n - 1 instead of n. One value alone has variance 0.
    """
    variance = masked_mean((values - masked_mean(values, mask)) ** 2, mask)
    if not unbiased:
        return variance
    count = mask.sum()
    return variance * count / (count - 1).clamp(min=1)


def whiten(
    values: Tensor, mask: Tensor, *, shift_mean: bool = True, unbiased: bool = True, epsilon: float = 1e-8
) -> Tensor:
    """(values - mean) / sqrt(variance + epsilon), the mean put back unless `shift_mean`; 0 where mask is 0.

    Advantages are whitened with shift, rewards without. lm-human-preferences uses the biased variance, TRL the
    unbiased one. Statistics are of the tensor given, so give the whole batch of rollouts, not a micro-batch.
    """
    mean = masked_mean(values, mask)
    result = (values - mean) * torch.rsqrt(masked_variance(values, mask, unbiased=unbiased) + epsilon)
    return torch.where(mask != 0, result if shift_mean else result + mean, 0)


def last_real(mask: Tensor) -> Tensor:
    """Index of the last position that is not 0 in each row of mask [batch, time] -> int64 [batch]; -1 if none is."""
    places = torch.arange(mask.shape[-1], device=mask.device)
    return torch.where(mask != 0, places, -1).amax(-1)


def sequence_mean_weights(mask: Tensor) -> Tensor:
    """Weights [batch, time] under which a weighted mean over tokens is the mean over sequences of their token means."""
    return mask / mask.sum(-1, keepdim=True).clamp(min=1)
