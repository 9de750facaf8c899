"""LAMB (You et al. 2020, arXiv 1904.00962, algorithm 2): Adam whose step has, layer by layer, the size of the weights.

    m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g^2
    u = (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) + decay w
    w = w - lr ||w|| / ||u|| u

Made for very large batches. The trust ratio ||w|| / ||u|| is 1 where either norm is 0, and for norms and biases, as in
the authors' code. Queries, keys and values are layers of their own, though they share a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def lamb_direction(
    gradient: Tensor,
    weight: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: int,
    betas: tuple[float, float],
    eps: float,
    decay: float,
) -> Tensor:
    """u above, all tensors of one shape [...]; exp_avg and exp_avg_sq are updated in place. `step` counts from 1."""
    exp_avg.lerp_(gradient, 1 - betas[0])
    exp_avg_sq.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    root = exp_avg_sq.sqrt().div_(math.sqrt(1 - betas[1] ** step)).add_(eps)
    direction = exp_avg.div(1 - betas[0] ** step).div_(root)
    return direction.add_(weight, alpha=decay) if decay else direction


def trust_ratio(weight: Tensor, direction: Tensor) -> Tensor:
    """||weight|| / ||direction||, a scalar; 1 where one of them is 0."""
    of_weight, of_direction = weight.norm(), direction.norm()
    return torch.where((of_weight > 0) & (of_direction > 0), of_weight / of_direction, 1.0)


class Lamb(torch.optim.Optimizer):
    """The above over parameter groups with `lr`, `betas`, `eps`, `weight_decay`.

    `matrices` names the parameters that hold several layers, with the rows of each.
    """

    kept = ("step", "exp_avg", "exp_avg_sq")  # the state of a parameter

    def __init__(self, groups: Sequence[dict[str, Any]], matrices: Mapping[nn.Parameter, tuple[int, ...]]) -> None:
        super().__init__(groups, {})
        self._matrices = matrices

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.float32)  # on the CPU: it is read every step
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                state["step"] += 1
                direction = lamb_direction(
                    parameter.grad,
                    parameter,
                    state["exp_avg"],
                    state["exp_avg_sq"],
                    step=int(state["step"]),
                    betas=group["betas"],
                    eps=group["eps"],
                    decay=group["weight_decay"],
                )
                if parameter.ndim < 2:
                    parameter.add_(direction, alpha=-group["lr"])
                    continue
                rows = self._matrices.get(parameter, (parameter.shape[-2],))
                for weight, part in zip(parameter.split(rows, -2), direction.split(rows, -2), strict=True):
                    weight.sub_(part * (group["lr"] * trust_ratio(weight, part)))
