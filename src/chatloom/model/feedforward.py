"""The feed-forward layer, gated or not.

| kind | formula | source |
|---|---|---|
| swiglu | down(silu(gate(x)) * up(x)) | Shazeer 2020, eq. 6 |
| geglu | down(gelu(gate(x)) * up(x)) | Shazeer 2020, eq. 6 |
| gelu | down(gelu(up(x))), gelu(x) = x * Phi(x) | Hendrycks & Gimpel 2016 |
| gelu_tanh | the same by their formula with tanh | GPT-2 |
| relu2 | down(max(0, up(x))^2) | So et al. 2021, Primer |
"""

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


def activate(x: Tensor, kind: str) -> Tensor:
    """What stands between the two matrices: [..., inner] -> [..., intermediate], half as wide for gated kinds."""
    if kind == "swiglu":
        return swiglu(x)
    if kind == "geglu":
        gate, up = x.chunk(2, dim=-1)
        return F.gelu(gate) * up
    if kind == "relu2":
        return F.relu(x).square()
    return F.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")


class FeedForward(nn.Module):
    """A matrix (gate and up in one where there is a gate), the activation, a matrix back."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.feedforward_bias
        self.kind = config.feedforward
        self.fused_rows = {"gate_up.weight": (inner, inner)} if config.gated else {}
        if config.gated:
            self.gate_up = nn.utils.skip_init(nn.Linear, hidden, 2 * inner, bias=bias)
        else:
            self.up = nn.utils.skip_init(nn.Linear, hidden, inner, bias=bias)
        self.down = nn.utils.skip_init(nn.Linear, inner, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, hidden] -> [batch, time, hidden]."""
        inner = self.gate_up(x) if hasattr(self, "gate_up") else self.up(x)
        return self.down(activate(inner, self.kind))
