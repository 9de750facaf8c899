"""Positions told by vectors: rotary angles (RoPE, xPos) on queries and keys, sines and cosines on embeddings.

RoPE (Su et al. 2021, section 3.4.2) in Hugging Face's layout: number i of a head's first half and number i of its
second half form a pair, turned by position * theta^(-2i/head_dim). (The paper pairs neighbours; the half layout is
what model folders expect.) xPos (Sun et al. 2022, "A Length-Extrapolatable Transformer", section 3) shrinks a pair's
product with distance besides: queries by zeta_i^(p/512), keys by zeta_i^(-p/512), zeta_i = (2i/head_dim + 0.4) / 1.4.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from chatloom.model.combinations import XPOS_BASE, XPOS_GAMMA
from chatloom.model.handwritten import by_hand
from chatloom.model.rope_scaling import RopeScaling, attention_factor, inverse_frequencies


class RotaryTable:
    """Cosines and signed sines of every position, fp32 whatever type the model's weights are cast to.

    A plain object and not a module: `model.bfloat16()` must not round the angles.
    """

    def __init__(self, head_dim: int, max_positions: int, theta: float, scaling: RopeScaling | None = None) -> None:
        self.head_dim = head_dim
        self.max_positions = max_positions
        self.theta = theta
        self.scaling = scaling
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def _table(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._tables:
            # Never an inference tensor: the table outlives the call, and training saves it for its backward pass.
            with torch.inference_mode(False):
                frequencies = inverse_frequencies(self.head_dim, self.theta, self.scaling)
                angles = torch.outer(torch.arange(self.max_positions, dtype=torch.float32), frequencies)
                cos, sin = angles.cos(), angles.sin()
                if (warmth := attention_factor(self.scaling)) != 1.0:
                    cos, sin = cos * warmth, sin * warmth
                self._tables[device] = (
                    torch.cat((cos, cos), dim=-1).to(device),
                    torch.cat((-sin, sin), dim=-1).to(device),
                )
        return self._tables[device]

    def __call__(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines [batch, time, 1, head_dim] at positions [batch, time]."""
        cos, sin = self._table(positions.device)
        return cos[positions].unsqueeze(-2).to(dtype), sin[positions].unsqueeze(-2).to(dtype)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(a, b) -> (a cos - b sin, b cos + a sin); the sign sits in `sin`, whose first half is negative."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


class _RotateFunction(torch.autograd.Function):
    """A rotation's gradient is the rotation back, so nothing but the angles is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grads[0], cos, -sin), None, None


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn heads x [batch, time, heads, head_dim] by their positions; cos and sin come from `RotaryTable`."""
    if by_hand(x):
        return _RotateFunction.apply(x, cos, sin)
    return _turn(x, cos, sin)


def xpos_scales(positions: Tensor, head_dim: int, dtype: torch.dtype) -> Tensor:
    """What queries are multiplied by and keys divided: [batch, time, 1, head_dim] at positions [batch, time]."""
    pairs = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    zeta = (pairs + XPOS_GAMMA) / (1 + XPOS_GAMMA)
    scales = zeta ** (positions.unsqueeze(-1) / XPOS_BASE)
    return torch.cat((scales, scales), dim=-1).unsqueeze(-2).to(dtype)


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """fp32 [batch, time, width]: sin(p / 10000^(2i/width)) at 2i, the cosine at 2i + 1 (Vaswani et al. 2017, 3.5)."""
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device=positions.device) / width
    angles = positions.unsqueeze(-1) / 10000.0**exponents
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)
