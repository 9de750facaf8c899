"""Promises of the optimizer: the rate of the step, textbook updates, decay where it belongs, state that survives."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from chatloom.errors import ChatloomError
from chatloom.model.config import TransformerConfig
from chatloom.model.heads import RewardModel, ValueModel
from chatloom.model.transformer import Transformer
from chatloom.objectives.language_modeling import language_model_loss
from chatloom.training.optimizers import ScheduledOptimizer
from chatloom.training.parameter_groups import split_parameters
from chatloom.training.settings import OptimizerSettings

CONFIG = TransformerConfig(
    vocab_size=20, hidden_size=16, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=8, intermediate_size=24,
    max_positions=16, qkv_bias=True, output_bias=True, tie_embeddings=False,
)  # fmt: skip


def test_the_optimizer_uses_the_rate_of_the_step() -> None:
    module = nn.Linear(2, 2)
    settings = OptimizerSettings(lr=0.5, warmup=0.5, schedule="linear", final_share=0.0)
    optimizer = ScheduledOptimizer({"model": module}, {"model": settings}, 8)
    assert [optimizer.rate("model", step) for step in range(8)] == pytest.approx(
        [0.125, 0.25, 0.375, 0.5, 0.5, 1 / 3, 1 / 6, 0.0]
    )
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step(1)
    assert {group["lr"] for group in optimizer.groups} == {0.25}
    with pytest.raises(ChatloomError, match="9 steps of warm-up do not fit into 8 steps"):
        ScheduledOptimizer({"model": module}, {"model": OptimizerSettings(warmup_steps=9)}, 8)


def reference_adam(
    w: Tensor, grads: list[Tensor], *, lr: float, eps: float, style: str, betas: tuple[float, float], decay: float
) -> Tensor:
    """Kingma & Ba 2015, algorithm 1 (`torch`) or the end of its section 2 (`tf`), with decoupled decay."""
    w, m, v = w.double().clone(), torch.zeros_like(w).double(), torch.zeros_like(w).double()
    for t, g in enumerate(grads, start=1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        w = w * (1 - lr * decay)
        c1, c2 = 1 - betas[0] ** t, 1 - betas[1] ** t
        if style == "torch":
            w = w - lr * (m / c1) / ((v / c2).sqrt() + eps)
        else:
            w = w - lr * math.sqrt(c2) / c1 * m / (v.sqrt() + eps)
    return w


@pytest.mark.parametrize("style", ["torch", "tf"])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_updates_equal_the_textbook(style: str, decay: float) -> None:
    draw = torch.Generator().manual_seed(0)
    module = nn.Linear(4, 3, bias=False)
    start = module.weight.detach().clone()
    # Gradients of the size of epsilon, where the two styles differ most.
    grads = [torch.randn(3, 4, generator=draw, dtype=torch.float64) * 1e-3 for _ in range(6)]
    settings = OptimizerSettings(
        lr=0.01, eps=1e-3, eps_style=style, betas=(0.9, 0.95), weight_decay=decay, schedule="constant", warmup=0.0
    )
    optimizer = ScheduledOptimizer({"model": module}, {"model": settings}, 6)
    for step, grad in enumerate(grads):
        module.weight.grad = grad.float()
        optimizer.step(step)
    other = {"torch": "tf", "tf": "torch"}[style]
    how = {"lr": 0.01, "eps": 1e-3, "betas": (0.9, 0.95), "decay": decay}
    expected = reference_adam(start, grads, style=style, **how)
    different = reference_adam(start, grads, style=other, **how)
    torch.testing.assert_close(module.weight.detach().double(), expected, atol=1e-7, rtol=1e-6)
    assert float((expected - different).abs().max()) > 1e-3  # the two styles are told apart


def test_norms_biases_and_embeddings_do_not_decay() -> None:
    for module in (
        Transformer(CONFIG),
        RewardModel(Transformer(CONFIG)),
        ValueModel.from_reward_model(RewardModel(Transformer(CONFIG))),
    ):
        names = {id(p): name for name, p in module.named_parameters()}
        decayed, plain = ([names[id(p)] for p in side] for side in split_parameters(module))
        assert decayed
        assert all(name.endswith("weight") and "norm" not in name for name in decayed)
        assert not [name for name in decayed if name.endswith(".embedding.weight") or name == "embedding.weight"]
        assert {name for name in plain if "norm" in name}
        assert {name for name in plain if name.endswith("bias")}
        assert len(decayed) + len(plain) == len(names)


def test_decay_alone_shrinks_matrices_and_leaves_the_rest() -> None:
    model = Transformer(CONFIG)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    settings = OptimizerSettings(lr=0.1, weight_decay=0.5, schedule="constant", warmup=0.0)
    optimizer = ScheduledOptimizer({"model": model}, {"model": settings}, 1)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step(0)
    decayed = {id(p) for p in split_parameters(model)[0]}
    for name, p in model.named_parameters():
        expected = before[name] * (0.95 if id(p) in decayed else 1.0)
        torch.testing.assert_close(p.detach(), expected)


NAMES = ["adamw", "lamb", "muon"]


def random_gradients(model: nn.Module, step: int) -> None:
    draw = torch.Generator().manual_seed(step)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=draw) if p.requires_grad else None


def fresh(name: str = "adamw", **settings: object) -> tuple[Transformer, ScheduledOptimizer]:
    model = Transformer(CONFIG, generator=torch.Generator().manual_seed(0))
    choice = OptimizerSettings(name=name, **settings)  # type: ignore[arg-type]
    return model, ScheduledOptimizer({"model": model}, {"model": choice}, 6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("style", ["torch", "tf"])
def test_state_makes_the_round_trip_through_safetensors(style: str, name: str, tmp_path: Path) -> None:
    how = {"name": name, "eps_style": style, "eps": 1e-3}
    model, optimizer = fresh(**how)
    for step in range(3):
        random_gradients(model, step)
        optimizer.step(step)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    save_file(optimizer.tensors(), tmp_path / "optimizer.safetensors")
    resumed, again = fresh(**how)
    resumed.load_state_dict(weights)
    again.load_tensors(load_file(tmp_path / "optimizer.safetensors"))
    saved, loaded = optimizer.tensors(), again.tensors()
    assert list(saved) == list(loaded)
    assert all(torch.equal(value, loaded[key]) for key, value in saved.items())
    forgetful, empty = fresh(**how)
    forgetful.load_state_dict(weights)
    for who, which in ((model, optimizer), (resumed, again), (forgetful, empty)):
        for step in range(3, 6):
            random_gradients(who, step)
            which.step(step)
    for key, p in model.named_parameters():
        assert torch.equal(p, resumed.get_parameter(key)), key
    assert any(not torch.equal(p, forgetful.get_parameter(key)) for key, p in model.named_parameters())
    again.load_tensors({})  # going back to before the first step
    assert again.tensors() == {}


@pytest.mark.parametrize("name", NAMES)
def test_two_runs_end_in_the_same_bytes(name: str) -> None:
    ends = []
    for _ in range(2):
        model, optimizer = fresh(name)
        for step in range(4):
            random_gradients(model, step)
            optimizer.step(step)
        ends.append({key: p.detach() for key, p in model.named_parameters()})
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())


@pytest.mark.parametrize("name", NAMES)
def test_frozen_parameters_stay_and_have_no_state(name: str) -> None:
    model = Transformer(CONFIG, generator=torch.Generator().manual_seed(0))
    model.layers[0].requires_grad_(False)
    model.embedding.requires_grad_(False)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    optimizer = ScheduledOptimizer({"model": model}, {"model": OptimizerSettings(name=name)}, 6)
    random_gradients(model, 0)
    optimizer.step(3)
    frozen = {key for key, p in model.named_parameters() if not p.requires_grad}
    assert len(frozen) > 5
    for key, p in model.named_parameters():
        assert torch.equal(p, before[key]) == (key in frozen), key
    kept = {key.split(".model.", 1)[1] for key in optimizer.tensors()}
    assert kept == {key for key, _ in model.named_parameters()} - frozen
    with pytest.raises(ChatloomError, match="every parameter is frozen"):
        ScheduledOptimizer({"model": model.requires_grad_(False)}, {"model": OptimizerSettings(name=name)}, 6)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_in_one_group_and_decays_as_it_should(name: str) -> None:
    model, optimizer = fresh(name, weight_decay=0.3)
    listed = [p for group in optimizer.groups for p in group["params"]]
    assert len(listed) == len(set(listed)) == len(list(model.parameters()))
    decayed = {p for group in optimizer.groups if group["weight_decay"] for p in group["params"]}
    assert decayed == set(split_parameters(model)[0])


@pytest.mark.parametrize(("name", "lr"), [("adamw", 1e-2), ("lamb", 0.2), ("muon", 2e-2)])
def test_a_small_model_learns_a_text_by_heart(name: str, lr: float) -> None:
    model, _ = fresh()
    settings = OptimizerSettings(name=name, lr=lr, weight_decay=0.0, warmup=0.1)
    optimizer = ScheduledOptimizer({"model": model}, {"model": settings}, 60)
    tokens = torch.randint(20, (4, 16), generator=torch.Generator().manual_seed(0))
    losses = []
    for step in range(60):
        optimizer.zero_grad()
        hidden = model(tokens)[:, :-1].flatten(0, 1)
        loss = language_model_loss(hidden, model.unembedding, tokens[:, 1:].flatten(), torch.ones(60)).total / 60
        loss.backward()
        optimizer.clip()
        optimizer.step(step)
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(20), rel=0.05)
    assert losses[-1] < 1.0, losses


def test_modules_may_have_optimizers_of_different_kinds() -> None:
    modules = {name: Transformer(CONFIG, generator=torch.Generator().manual_seed(0)) for name in NAMES}
    settings = {name: OptimizerSettings(name=name, lr=0.01 * (1 + i)) for i, name in enumerate(NAMES)}  # type: ignore[arg-type]
    optimizer = ScheduledOptimizer(modules, settings, 6)
    for model in modules.values():
        random_gradients(model, 0)
    optimizer.step(2)
    for name, model in modules.items():
        alone = Transformer(CONFIG, generator=torch.Generator().manual_seed(0))
        own = ScheduledOptimizer({"m": alone}, {"m": settings[name]}, 6)
        random_gradients(alone, 0)
        own.step(2)
        for key, p in alone.named_parameters():
            assert torch.equal(p, model.get_parameter(key)), (name, key)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", NAMES)
def test_state_is_put_back_on_the_gpu(name: str) -> None:
    module = Transformer(CONFIG, generator=torch.Generator().manual_seed(0)).cuda()
    optimizer = ScheduledOptimizer({"model": module}, {"model": OptimizerSettings(name=name)}, 4)  # type: ignore[arg-type]

    def step(number: int) -> None:
        for p in module.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step(number)

    step(0)
    weights, state = {n: p.detach().clone() for n, p in module.named_parameters()}, optimizer.tensors()
    step(1)
    expected = {n: p.detach().clone() for n, p in module.named_parameters()}
    module.load_state_dict(weights)
    optimizer.load_tensors(state)
    step(1)
    assert all(torch.equal(p, expected[n]) for n, p in module.named_parameters())
