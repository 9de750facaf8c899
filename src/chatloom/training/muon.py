"""Muon (Jordan et al. 2024): momentum whose matrices are made orthogonal before they are stepped along.

    m = 0.95 m + 0.05 g                    d = 0.95 m + 0.05 g            (Nesterov)
    U S V^T = d   ->   o = U V^T           by Newton-Schulz iterations, near enough
    w = w - lr decay w - lr 0.2 sqrt(max(rows, columns)) o

All directions of a matrix are then learnt equally fast, also those in which the gradient is small. The factor is that
of Moonlight (Liu et al. 2025, arXiv 2502.16982, section 2.2): an orthogonal [rows, columns] has a root mean square of
1 / sqrt(max(rows, columns)), and AdamW's steps have one of about 0.2 to 0.4, so learning rate and weight decay that
were found for AdamW serve here too. Jordan's own factor, sqrt(max(1, rows / columns)), would want rates of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# Jordan's quintic: steep at 0, so that small singular values grow fast; values end between 0.68 and 1.13, not at 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
AT_ONCE = 2**24  # numbers in one batch of matrices, which bounds the memory beside the weights


def orthogonalise(matrices: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """About U V^T of each U S V^T in [n, rows, columns], in the dtype given; a matrix of zeros stays one.

    Newton-Schulz: X = a X + b (X X^T) X + c (X X^T)^2 X, from X / ||X||, which brings every singular value s to
    a s + b s^3 + c s^5, again and again. Products are of the smaller side.
    """
    a, b, c = COEFFICIENTS
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT


def nesterov(gradient: Tensor, momentum_buffer: Tensor, momentum: float) -> Tensor:
    """The direction d above, all tensors of one shape; the buffer is updated in place."""
    momentum_buffer.lerp_(gradient, 1 - momentum)
    return gradient.lerp(momentum_buffer, momentum)


def scale_of(rows: int, columns: int) -> float:
    """What brings an orthogonal matrix to the size of AdamW's steps."""
    return 0.2 * math.sqrt(max(rows, columns))


class Muon(torch.optim.Optimizer):
    """The above over parameter groups with `lr`, `momentum`, `weight_decay`, of parameters [..., rows, columns].

    `matrices` names the parameters that hold several matrices, one below the other, with the rows of each. Matrices of
    one shape are orthogonalised together, in bf16 on CUDA and in fp32 elsewhere.
    """

    kept = ("momentum_buffer",)  # the state of a parameter

    def __init__(self, groups: Sequence[dict[str, Any]], matrices: Mapping[nn.Parameter, tuple[int, ...]]) -> None:
        super().__init__(groups, {})
        self._matrices = matrices

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[tuple[torch.device, int, int], list[tuple[Tensor, Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                direction = nesterov(parameter.grad, state["momentum_buffer"], group["momentum"])
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                rows = self._matrices.get(parameter, (parameter.shape[-2],))
                for weight, part in zip(parameter.split(rows, -2), direction.split(rows, -2), strict=True):
                    key = (parameter.device, *part.shape[-2:])
                    by_shape.setdefault(key, []).append((weight, part))
            for (device, height, width), found in by_shape.items():
                dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
                step_size = -group["lr"] * scale_of(height, width)
                for chunk in _chunks(found, max(1, AT_ONCE // (height * width))):
                    stacked = torch.cat([part.reshape(-1, height, width).to(dtype) for _, part in chunk])
                    made = orthogonalise(stacked).split([weight.numel() // (height * width) for weight, _ in chunk])
                    for (weight, _), update in zip(chunk, made, strict=True):
                        weight.add_(update.view_as(weight), alpha=step_size)


def _chunks(found: Sequence[tuple[Tensor, Tensor]], size: int) -> Iterator[Sequence[tuple[Tensor, Tensor]]]:
    return (found[start : start + size] for start in range(0, len(found), size))
