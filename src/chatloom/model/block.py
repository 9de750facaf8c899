"""One block of the decoder: attention, then feed-forward, each added to the residual stream x.

| norm_place | what is done, f the attention or the feed-forward layer | source |
|---|---|---|
| pre | x + f(norm(x)) | Xiong et al. 2020 |
| post | norm(x + f(x)) | Vaswani et al. 2017 |
| sandwich | x + norm(f(norm(x))) | Ding et al. 2021, CogView |
| deep | norm(a x + f(x)), a = (2 layers)^(1/4) | Wang et al. 2022, DeepNet, table 1, decoder only |
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from chatloom.model.attention import Attention, Frame, KeyValueCache
from chatloom.model.config import TransformerConfig
from chatloom.model.experts import Experts, Routing
from chatloom.model.feedforward import FeedForward
from chatloom.model.norms import make_norm


def deep_scale(n_layers: int) -> float:
    """DeepNorm's weight of the residual stream in a decoder (DeepNet, table 1): alpha = (2 M)^(1/4)."""
    return float((2 * n_layers) ** 0.25)


def deep_gain(n_layers: int) -> float:
    """DeepNorm's gain of the matrices that write to the stream, values included: beta = (8 M)^(-1/4)."""
    return float((8 * n_layers) ** -0.25)


class Block(nn.Module):
    """Attention and feed-forward (or experts) with norms where the config puts them."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        sandwich = config.norm_place == "sandwich"
        self.place = config.norm_place
        self.dropout = config.dropout
        self.scale = deep_scale(config.n_layers) if self.place == "deep" else 1.0
        self.attention_norm = make_norm(config, config.hidden_size)
        self.attention = Attention(config, layer)
        self.attention_after = make_norm(config, config.hidden_size) if sandwich else None
        self.feedforward_norm = make_norm(config, config.hidden_size)
        self.feedforward = Experts(config) if config.n_experts else FeedForward(config)
        self.feedforward_after = make_norm(config, config.hidden_size) if sandwich else None

    def forward(self, x: Tensor, frame: Frame, cache: KeyValueCache | None) -> tuple[Tensor, Routing | None]:
        """[batch, time, hidden] -> [batch, time, hidden], and what the router did where there is one."""
        before = self.place in ("pre", "sandwich")
        added = self.attention(self.attention_norm(x) if before else x, frame, cache)
        x = self._join(x, added, self.attention_norm, self.attention_after)
        normed = self.feedforward_norm(x) if before else x
        routing: Routing | None = None
        if isinstance(self.feedforward, Experts):
            added, routing = self.feedforward(normed, frame.present)
        else:
            added = self.feedforward(normed)
        return self._join(x, added, self.feedforward_norm, self.feedforward_after), routing

    def _join(self, x: Tensor, added: Tensor, norm: nn.Module, after: nn.Module | None) -> Tensor:
        if after is not None:
            added = after(added)
        if self.dropout and self.training:
            added = F.dropout(added, self.dropout)
        if self.place in ("pre", "sandwich"):
            return x + added
        result: Tensor = norm(x * self.scale + added if self.scale != 1.0 else x + added)
        return result
