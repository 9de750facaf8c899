"""Normalisation: RMSNorm (Zhang & Sennrich 2019, eq. 4), y = x / sqrt(mean(x^2) + eps) * weight, and LayerNorm.

On CPU the backward pass is written out by hand: it reads the activations half as often as the composed operations
do, and one block has two of these.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatloom.model.config import TransformerConfig
from chatloom.model.handwritten import by_hand


def _normalise(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x / rms(x) in fp32 (fp64 stays fp64) and the factor 1 / rms(x) of shape [..., 1]."""
    if x.dtype in (torch.bfloat16, torch.float16):
        x = x.float()
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    scale = torch.rsqrt(norm.square_().div_(x.shape[-1]).add_(eps))
    return x * scale, scale


class _RMSNormFunction(torch.autograd.Function):
    """With n = x * s, s = 1 / rms(x), y = n * w, g = dL/dy: dL/dw = sum(g * n), dL/dx = s * (g*w - n * mean(g*w*n))."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        normalised, scale = _normalise(x, eps)
        ctx.save_for_backward(normalised, scale, weight)
        ctx.input_dtype = x.dtype
        return (normalised.to(x.dtype) * weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        normalised, scale, weight = ctx.saved_tensors
        grad = grads[0].to(normalised.dtype)
        weight_wide = weight.to(normalised.dtype)
        product = grad * normalised
        weight_grad = product.flatten(0, -2).sum(0).to(weight.dtype)
        mean = torch.matmul(product, weight_wide).div_(normalised.shape[-1]).unsqueeze(-1)
        input_grad = torch.addcmul(grad * weight_wide, normalised, mean, value=-1.0).mul_(scale)
        return input_grad.to(ctx.input_dtype), weight_grad, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS-normalise the last dimension of x [..., hidden]; computed in fp32, returned in x's type."""
    if by_hand(x):
        return _RMSNormFunction.apply(x, weight, eps)
    if torch.is_grad_enabled() or x.device.type != "cpu":
        with torch.autocast(x.device.type, enabled=False):  # which would widen the result; sums are in fp32 anyway
            return F.rms_norm(x, (x.shape[-1],), weight.to(x.dtype), eps)
    return _normalise(x, eps)[0].to(x.dtype).mul_(weight)


class RMSNorm(nn.Module):
    """Layer of `rms_norm` with a trained weight [hidden], one at the start."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] -> [..., hidden]."""
        return rms_norm(x, self.weight, self.eps)


class LayerNorm(nn.Module):
    """(x - mean(x)) / sqrt(var(x) + eps) * weight + bias (Ba et al. 2016); fp32 inside, x's type outside."""

    def __init__(self, size: int, eps: float, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if bias else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] -> [..., hidden]."""
        with torch.autocast(x.device.type, enabled=False):  # which would widen the result; sums are in fp32 anyway
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return F.layer_norm(x, self.weight.shape, self.weight.to(x.dtype), bias, self.eps)


def make_norm(config: TransformerConfig, size: int) -> RMSNorm | LayerNorm:
    """The config's kind of norm over a last dimension of `size`."""
    if config.norm == "layer":
        return LayerNorm(size, config.norm_eps, bias=config.norm_bias)
    return RMSNorm(size, config.norm_eps)
