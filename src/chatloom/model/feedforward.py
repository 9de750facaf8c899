"""SwiGLU feed-forward layer (Shazeer 2020, eq. 6): down(silu(gate(x)) * up(x)), gate and up in one matrix."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatloom.model.config import TransformerConfig
from chatloom.model.handwritten import by_hand


class _SwiGLUFunction(torch.autograd.Function):
    """Keeps only its input: silu(gate) is made again in the backward pass, and both gradients land in one buffer."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        gradient = torch.empty_like(gate_up)
        gate_gradient, up_gradient = gradient.chunk(2, dim=-1)
        torch.mul(grads[0], F.silu(gate), out=up_gradient)
        gate_gradient.copy_(torch.ops.aten.silu_backward(grads[0] * up, gate))
        return gradient


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up for gate_up [..., 2 * intermediate] -> [..., intermediate]."""
    if by_hand(gate_up):
        return _SwiGLUFunction.apply(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    activated = F.silu(gate)
    return activated * up if torch.is_grad_enabled() else activated.mul_(up)


class FeedForward(nn.Module):
    """Gate and up projections in one matrix, then down."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate_up = nn.utils.skip_init(nn.Linear, config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down = nn.utils.skip_init(nn.Linear, config.intermediate_size, config.hidden_size, bias=False)
        self.fused_rows = {"gate_up.weight": (config.intermediate_size, config.intermediate_size)}

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, hidden] -> [batch, time, hidden]."""
        return self.down(swiglu(self.gate_up(x)))
