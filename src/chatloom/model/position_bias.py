"""Positions told by what is added to attention's scores: ALiBi's slopes, T5's learned buckets.

Both look at distances alone. In a packed row places of one segment are as far apart as their positions, so the row's
own places serve, and segments need nothing of their own.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatloom.model.config import T5_BUCKETS, TransformerConfig

T5_MAX_DISTANCE = 128


def distances(queries: int, keys: int, device: torch.device) -> Tensor:
    """int64 [queries, keys]: how far key j lies behind query i, when both end at the same place; below 0 ahead."""
    return torch.arange(keys - queries, keys, device=device).unsqueeze(1) - torch.arange(keys, device=device)


def alibi_slopes(n_heads: int) -> Tensor:
    """fp32 [heads]: 2^(-8h/n) for h = 1..n (Press et al. 2022, section 3).

    Where n is no power of two: those of the power below, then every other one of twice that power, as the authors do.
    """
    power = 2 ** math.floor(math.log2(n_heads))
    slopes = [2 ** (-8 * h / power) for h in range(1, power + 1)]
    slopes += [2 ** (-8 * h / (2 * power)) for h in range(1, 2 * power + 1, 2)][: n_heads - power]
    return torch.tensor(slopes, dtype=torch.float32)


def t5_buckets(distance: Tensor, buckets: int = T5_BUCKETS, max_distance: int = T5_MAX_DISTANCE) -> Tensor:
    """int64, of `distance`'s shape: bucket of each distance behind, 0 for what lies ahead (Raffel et al. 2020, 2.1).

    Half of the buckets are single distances, the others widen logarithmically up to `max_distance`; all beyond share
    the last one.
    """
    exact = buckets // 2
    behind = distance.clamp_min(0)
    spread = torch.log(behind.clamp_min(1).float() / exact) / math.log(max_distance / exact) * (buckets - exact)
    wide = (exact + spread.long()).clamp_max(buckets - 1)
    return torch.where(behind < exact, behind, wide)


class Alibi(nn.Module):
    """-slope * |distance| added to the scores of each head; nothing is trained."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads

    def forward(self, queries: int, keys: int, device: torch.device) -> Tensor:
        """fp32 [heads, queries, keys]."""
        slopes = alibi_slopes(self.n_heads).to(device)
        return -slopes.view(-1, 1, 1) * distances(queries, keys, device).abs()


class T5Bias(nn.Module):
    """A trained number for each bucket and head, shared by all layers."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.table = nn.utils.skip_init(nn.Embedding, T5_BUCKETS, config.n_heads)

    def forward(self, queries: int, keys: int, device: torch.device) -> Tensor:
        """[heads, queries, keys] in the weights' dtype."""
        return F.embedding(t5_buckets(distances(queries, keys, device)), self.table.weight).permute(2, 0, 1)


def position_bias(config: TransformerConfig) -> Alibi | T5Bias | None:
    """The bias that a config's positions need, if any."""
    if config.positions == "alibi":
        return Alibi(config)
    return T5Bias(config) if config.positions == "t5" else None
