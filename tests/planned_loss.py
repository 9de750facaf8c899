"""A trainer of one weight whose losses and gradients a test plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from chatloom.tokens.packing import Batch, Segment, pack
from chatloom.training.optimizers import ScheduledOptimizer
from chatloom.training.settings import OptimizerSettings
from chatloom.training.trainer import Terms, Trainer


def batch_of(n_supervised: int) -> Batch:
    """A batch whose total weight is `n_supervised`."""
    supervised = np.zeros(12, dtype=np.float32)
    supervised[1 : 1 + n_supervised] = 1.0
    return pack([Segment(np.arange(12), supervised)], 12, 0)


@dataclass
class Planned:
    """An objective with one weight w: loss a token = value * w, so the gradient is `value`; values are given."""

    module: nn.Linear
    values: Sequence[float]
    calls: list[float] = field(default_factory=list)
    gradient: float | None = None

    def weight(self, batch: Batch) -> float:
        return batch.total_weight

    def __call__(self, batch: Batch) -> Terms:
        value = self.values[len(self.calls) % len(self.values)]
        self.calls.append(value)
        loss = self.module.weight.sum() * value * batch.total_weight
        if self.gradient is not None:
            loss = Poisoned.apply(loss, self.gradient)
        return Terms(loss, {"seen": (value * batch.total_weight, batch.total_weight)})


class Poisoned(torch.autograd.Function):
    """A finite loss with a gradient of one's choice."""

    @staticmethod
    def forward(ctx, value, gradient):  # type: ignore[no-untyped-def]
        ctx.gradient = gradient
        return value.clone()

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return grad * ctx.gradient, None


def trainer_of(max_skips: int = 5, **changes: float) -> tuple[Trainer, nn.Linear]:
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 1.0)
    settings = OptimizerSettings(**{"lr": 0.1, "clip": 0.0, "weight_decay": 0.0, "schedule": "constant", **changes})
    return Trainer(
        {"model": module}, ScheduledOptimizer({"model": module}, {"model": settings}, 100), max_skips
    ), module
