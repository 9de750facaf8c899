"""Promises of LAMB: the algorithm of its paper in plain NumPy, a trust ratio a layer, none for norms and biases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from chatloom.model.config import TransformerConfig
from chatloom.model.transformer import Transformer
from chatloom.training.lamb import lamb_direction, trust_ratio
from chatloom.training.optimizers import ScheduledOptimizer
from chatloom.training.settings import OptimizerSettings

CONFIG = TransformerConfig(
    vocab_size=20, hidden_size=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=4, intermediate_size=24,
    max_positions=16, qkv_bias=True, output_bias=True, tie_embeddings=False,
)  # fmt: skip
HOW = {"lr": 0.02, "eps": 1e-3, "betas": (0.9, 0.99), "schedule": "constant", "warmup": 0.0, "name": "lamb"}


class Layer:
    """You et al. 2020, algorithm 2, for one layer, in float64 and without torch."""

    def __init__(self, weight: np.ndarray, *, adapts: bool, decay: float) -> None:
        self.x, self.adapts, self.decay = weight.astype(np.float64), adapts, decay
        self.m, self.v, self.t = np.zeros_like(self.x), np.zeros_like(self.x), 0

    def step(self, g: np.ndarray, lr: float, b1: float, b2: float, eps: float) -> None:
        self.t += 1
        self.m = b1 * self.m + (1 - b1) * g
        self.v = b2 * self.v + (1 - b2) * g * g
        r = (self.m / (1 - b1**self.t)) / (np.sqrt(self.v / (1 - b2**self.t)) + eps)
        u = r + self.decay * self.x
        ratio = 1.0
        if self.adapts and np.any(self.x) and np.any(u):
            ratio = float(np.sqrt((self.x**2).sum()) / np.sqrt((u**2).sum()))
        self.x = self.x - lr * ratio * u


def layers_of(model: Transformer, decay: float) -> dict[str, list[Layer]]:
    """The layers of each parameter: queries, keys, values and gate, up apart."""
    found = {}
    for name, p in model.named_parameters():
        value = p.detach().numpy().copy()
        rows = {"attention.qkv.weight": [16, 8, 8], "feedforward.gate_up.weight": [24, 24]}
        cuts = np.cumsum(next((r for end, r in rows.items() if name.endswith(end)), [len(value)]))[:-1]
        adapts, decays = value.ndim == 2, value.ndim == 2 and name != "embedding.weight"
        found[name] = [Layer(part, adapts=adapts, decay=decay if decays else 0.0) for part in np.split(value, cuts)]
    return found


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_a_model_is_stepped_as_by_the_papers_algorithm(decay: float) -> None:
    model = Transformer(CONFIG, generator=torch.Generator().manual_seed(0))
    optimizer = ScheduledOptimizer({"m": model}, {"m": OptimizerSettings(weight_decay=decay, **HOW)}, 5)
    expected = layers_of(model, decay)
    draw = torch.Generator().manual_seed(1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in range(5):
        for name, p in model.named_parameters():
            p.grad = torch.randn(p.shape, generator=draw) * 1e-3  # of the size of eps
            start = 0
            for layer in expected[name]:
                end = start + len(layer.x)
                layer.step(p.grad[start:end].double().numpy(), 0.02, 0.9, 0.99, 1e-3)
                start = end
        optimizer.step(step)
    for name, p in model.named_parameters():
        want = torch.from_numpy(np.concatenate([layer.x for layer in expected[name]]))
        torch.testing.assert_close(p.detach().double(), want, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
        assert not torch.equal(p, before[name])


def test_the_step_has_the_size_of_the_weights_whatever_that_of_the_gradient() -> None:
    for size in (1e-3, 1e3):
        layer = nn.Linear(8, 8, bias=False)
        nn.init.constant_(layer.weight, 0.5)
        settings = OptimizerSettings(**{**HOW, "eps": 1e-12, "weight_decay": 0.0})
        optimizer = ScheduledOptimizer({"m": layer}, {"m": settings}, 1)
        before = layer.weight.detach().clone()
        layer.weight.grad = size * torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
        optimizer.step(0)
        moved = (layer.weight.detach() - before).norm()
        assert float(moved / before.norm()) == pytest.approx(0.02, rel=1e-4)


def test_a_layer_of_zeros_and_a_direction_of_zeros_are_stepped_without_a_ratio() -> None:
    some, zeros = torch.ones(3, 3), torch.zeros(3, 3)
    assert trust_ratio(2 * some, some).item() == pytest.approx(2.0)
    assert trust_ratio(zeros, some) == trust_ratio(some, zeros) == trust_ratio(zeros, zeros) == 1.0


def test_the_direction_is_adams_plus_the_decay() -> None:
    g, w = torch.full((2,), 0.5), torch.full((2,), 3.0)
    m, v = torch.zeros(2), torch.zeros(2)
    u = lamb_direction(g, w, m, v, step=1, betas=(0.9, 0.999), eps=0.0, decay=0.1)
    torch.testing.assert_close(u, torch.full((2,), 1.3))  # at the first step Adam's is the sign
    torch.testing.assert_close(m, torch.full((2,), 0.05))
    torch.testing.assert_close(v, torch.full((2,), 0.00025))
