"""Promises of the mixture of experts: each token's own experts, the papers' losses, nothing lost in silence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from chatloom.model.config import TransformerConfig
from chatloom.model.experts import Experts, Routing, balance_loss
from chatloom.model.feedforward import activate
from chatloom.model.transformer import Transformer
from chatloom.tokens.packing import Segment, pack
from chatloom.training.next_token_loss import NextTokenLoss
from chatloom.training.optimizers import ScheduledOptimizer
from chatloom.training.parameter_groups import hidden_matrices, matrices_in
from chatloom.training.settings import OptimizerSettings
from chatloom.training.trainer import Trainer

CONFIG = TransformerConfig(
    vocab_size=40,
    hidden_size=16,
    n_layers=2,
    n_heads=2,
    n_kv_heads=2,
    head_dim=8,
    intermediate_size=24,
    max_positions=64,
    initializer_range=0.3,
    n_experts=4,
)


def layer(**change: object) -> Experts:
    experts = Experts(replace(CONFIG, **change))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in experts.parameters():
            p.normal_(0, 0.5, generator=generator)
    return experts


def tokens_of(n: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(1, n, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["swiglu", "gelu"])
@pytest.mark.parametrize(("per_token", "normalise"), [(2, True), (1, False), (3, False)])
def test_a_token_gets_the_weighted_sum_of_its_own_experts(kind: str, per_token: int, *, normalise: bool) -> None:
    experts = layer(feedforward=kind, experts_per_token=per_token, normalise_gates=normalise)
    x = tokens_of(9)
    y, routing = experts(x)
    for t in range(9):
        p = (experts.router.weight @ x[0, t]).softmax(0)
        best = sorted(range(4), key=lambda i: -p[i].item())[:per_token]
        share = sum(p[i] for i in best) if normalise else 1.0
        expected = sum(p[i] / share * experts.down[i] @ activate(experts.up[i] @ x[0, t], kind) for i in best)
        torch.testing.assert_close(y[0, t], expected, atol=1e-5, rtol=1e-5)
    assert routing.choices.sum() == 9 * per_token
    assert routing.dropped == 0


def test_balance_and_z_losses_are_those_of_the_papers() -> None:
    experts = layer(experts_per_token=1, normalise_gates=False)
    x = tokens_of(50)
    _, routing = experts(x)
    scores = x[0] @ experts.router.weight.T
    p = scores.softmax(-1)
    fractions = torch.bincount(p.argmax(-1), minlength=4) / 50
    switch = 4 * (fractions * p.mean(0)).sum()
    torch.testing.assert_close(balance_loss(routing, routing.choices, torch.tensor(50.0)), switch)
    torch.testing.assert_close(routing.z / 50, scores.logsumexp(-1).square().mean())


def test_an_even_router_has_the_least_balance_loss() -> None:
    even = Routing(torch.full((4,), 2.5), torch.zeros(()), torch.full((4,), 5.0), torch.zeros(()), 10)
    assert balance_loss(even, even.choices, torch.tensor(10.0)) == pytest.approx(1.0)  # Switch: 1 for uniform routing


def test_a_capacity_drops_who_comes_late_and_says_how_many() -> None:
    experts = layer(experts_per_token=1, normalise_gates=False, expert_capacity=0.5).train()
    x = tokens_of(16)
    y, routing = experts(x)
    chosen = (x[0] @ experts.router.weight.T).argmax(-1)
    places = 2  # 0.5 * 16 * 1 / 4
    lost = 0
    for t in range(16):
        late = int((chosen[:t] == chosen[t]).sum()) >= places
        lost += late
        assert bool((y[0, t] == 0).all()) == late
    assert routing.dropped == lost > 0
    whole, all_of_them = experts.eval()(x)
    assert all_of_them.dropped == 0
    assert not (whole == 0).all(-1).any()


def test_padding_is_routed_nowhere() -> None:
    experts = layer()
    x = tokens_of(8)
    present = torch.tensor([[True] * 5 + [False] * 3])
    y, routing = experts(x, present)
    alone, only = experts(x[:, :5])
    torch.testing.assert_close(y[:, :5], alone)
    assert (y[:, 5:] == 0).all()
    assert torch.equal(routing.choices, only.choices)
    assert routing.n_tokens == 5


def segments() -> list[Segment]:
    generator = np.random.default_rng(0)
    return [Segment(generator.integers(0, 40, n), np.ones(n)) for n in (9, 4, 12, 7, 3, 10)]


def gradient(batches: list[list[Segment]], row_length: int, **change: object) -> tuple[float, torch.Tensor]:
    model = Transformer(replace(CONFIG, **change), generator=torch.Generator().manual_seed(0)).train()  # type: ignore[arg-type]
    optimizer = ScheduledOptimizer({"model": model}, {"model": OptimizerSettings(lr=1e-9, clip=0.0)}, 1)
    trainer = Trainer({"model": model}, optimizer)
    kept: list[torch.Tensor] = []
    optimizer.step = lambda _: kept.append(
        torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    )  # type: ignore[method-assign]
    metrics = trainer.update([pack(part, row_length, 0) for part in batches], NextTokenLoss(model))
    return metrics["loss"], kept[0]


def test_balance_is_that_of_the_whole_step_however_it_is_cut_and_packed() -> None:
    every = segments()
    whole, expected = gradient([every], 48, router_balance=0.5, router_z=0.1)
    for cut, row_length in (([[s] for s in every], 12), ([every[:2], every[2:]], 30)):
        loss, found = gradient(cut, row_length, router_balance=0.5, router_z=0.1)
        assert loss == pytest.approx(whole, rel=1e-5)
        assert float((found - expected).norm()) < 1e-5 * float(expected.norm())
    without, _ = gradient([every], 48, router_balance=0.0, router_z=0.0)
    assert whole > without + 0.5  # the balance loss is at least 1 a layer


def test_a_router_that_favours_one_expert_is_driven_apart() -> None:
    torch.manual_seed(0)
    model = Transformer(replace(CONFIG, router_balance=0.1), generator=torch.Generator().manual_seed(0)).train()
    with torch.no_grad():
        for block in model.layers:
            block.feedforward.router.weight.mul_(0.01)
            block.feedforward.router.weight[0].add_(0.5)
    optimizer = ScheduledOptimizer({"model": model}, {"model": OptimizerSettings(lr=1e-2, schedule="constant")}, 60)
    trainer, loss = Trainer({"model": model}, optimizer), NextTokenLoss(model)
    rows = [trainer.update([pack(segments(), 48, 0)], loss) for _ in range(60)]
    assert rows[-1]["nll"] < 0.5 * rows[0]["nll"]
    assert rows[-1]["expert_balance"] < rows[0]["expert_balance"]
    assert rows[-1]["expert_balance"] < 1.1
    assert rows[-1]["dropped_tokens"] == 0


def test_muon_takes_each_expert_as_matrices_of_its_own() -> None:
    model = Transformer(CONFIG)
    block = model.layers[0].feedforward
    names = {id(p): n for n, p in model.named_parameters()}
    found = {names[id(p)] for p in hidden_matrices(model)}
    assert {"layers.0.feedforward.up", "layers.0.feedforward.down", "layers.1.attention.qkv.weight"} <= found
    assert matrices_in(model)[block.up] == (24, 24)
