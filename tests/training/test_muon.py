"""Promises of Muon: near U V^T of the SVD, each matrix of a shared tensor for itself, AdamW for all else."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from chatloom.model.config import TransformerConfig
from chatloom.model.heads import RewardModel
from chatloom.model.transformer import Transformer
from chatloom.training.muon import COEFFICIENTS, Muon, nesterov, orthogonalise, scale_of
from chatloom.training.optimizers import ScheduledOptimizer
from chatloom.training.parameter_groups import hidden_matrices, matrices_in
from chatloom.training.settings import OptimizerSettings

CONFIG = TransformerConfig(
    vocab_size=20, hidden_size=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=4, intermediate_size=24,
    max_positions=16, qkv_bias=True, output_bias=True, tie_embeddings=False,
)  # fmt: skip
HIDDEN = ("attention.qkv.weight", "attention.output.weight", "feedforward.gate_up.weight", "feedforward.down.weight")


def model_of() -> Transformer:
    return Transformer(CONFIG, generator=torch.Generator().manual_seed(0))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 40), (2, 40, 8), (1, 1, 5), (4, 64, 64)])
def test_orthogonalised_is_near_u_times_v_of_the_singular_value_decomposition(shape: tuple[int, ...]) -> None:
    matrices = random(*shape)
    found = orthogonalise(matrices)
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    # The same singular vectors: in their basis only the diagonal is there, and it is near 1.
    inner = u.mT @ found @ vh.mT
    diagonal = inner.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(inner, torch.diag_embed(diagonal), atol=1e-4, rtol=0)
    kept = s > 0.02 * s.norm(dim=-1, keepdim=True)  # what five iterations bring up from below takes more of them
    assert kept.float().mean() > 0.85
    assert 0.65 < float(diagonal[kept].min()) <= float(diagonal.max()) < 1.2
    cosine = torch.nn.functional.cosine_similarity(found.flatten(1), (u @ vh).flatten(1))
    assert float(cosine.min()) > 0.97


def test_singular_values_go_through_the_polynomial_five_times() -> None:
    s = torch.tensor([0.9, 0.4, 0.15, 0.01], dtype=torch.float64)
    s = s / s.norm()
    u, _ = torch.linalg.qr(random(4, 4).double())
    v, _ = torch.linalg.qr(random(6, 4, seed=1).double())
    found = torch.linalg.svdvals(orthogonalise(((u * s) @ v.mT)[None]))[0]
    a, b, c = COEFFICIENTS
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    torch.testing.assert_close(found, s.sort(descending=True).values, rtol=1e-5, atol=1e-6)


def test_size_does_not_matter_and_a_matrix_of_zeros_stays_one() -> None:
    x = random(1, 6, 9)
    torch.testing.assert_close(orthogonalise(x), orthogonalise(1000 * x), rtol=1e-5, atol=1e-5)
    assert torch.equal(orthogonalise(torch.zeros(1, 6, 9)), torch.zeros(1, 6, 9))


@pytest.mark.parametrize("shape", [(2, 64, 64), (2, 96, 32)])
def test_in_bf16_as_on_cuda_it_comes_out_nearly_the_same(shape: tuple[int, ...]) -> None:
    x = random(*shape)
    exact, rounded = orthogonalise(x), orthogonalise(x.bfloat16())
    assert rounded.dtype == torch.bfloat16
    cosine = torch.nn.functional.cosine_similarity(exact.flatten(1), rounded.float().flatten(1))
    assert float(cosine.min()) > 0.99
    assert float(torch.linalg.svdvals(rounded.float()).max()) < 1.25


def test_the_momentum_looks_ahead() -> None:
    buffer = torch.full((2,), 1.0)
    direction = nesterov(torch.full((2,), 3.0), buffer, 0.9)
    torch.testing.assert_close(buffer, torch.full((2,), 0.9 + 0.3))
    torch.testing.assert_close(direction, torch.full((2,), 0.9 * 1.2 + 0.1 * 3.0))


@pytest.mark.parametrize("shape", [(12, 30), (30, 12)])
def test_a_lone_matrix_is_stepped_as_by_torchs_muon(shape: tuple[int, int]) -> None:
    ours, theirs = (nn.Parameter(random(*shape, seed=5)) for _ in range(2))
    how = {"lr": 0.05, "weight_decay": 0.2, "momentum": 0.95}
    one = Muon([{"params": [ours], **how}], {})
    other = torch.optim.Muon([theirs], nesterov=True, adjust_lr_fn="match_rms_adamw", **how)
    for step in range(4):
        ours.grad, theirs.grad = random(*shape, seed=step), random(*shape, seed=step)
        before = ours.detach().clone()
        one.step()
        other.step()
        # theirs multiplies in bf16
        torch.testing.assert_close(ours, theirs, atol=0.02 * (ours - before).abs().max().item() * (step + 1), rtol=0)


def test_steps_have_the_size_of_adamws() -> None:
    for rows, columns in ((32, 96), (96, 32), (64, 64)):  # the iteration leaves singular values from 0.7 to 1.1
        made = scale_of(rows, columns) * orthogonalise(random(1, rows, columns))
        assert float(made.square().mean().sqrt()) == pytest.approx(0.2, rel=0.25)


def test_only_matrices_inside_blocks_are_muons() -> None:
    for module in (model_of(), RewardModel(model_of())):
        names = {p: name for name, p in module.named_parameters()}
        found = [names[p].partition("layers.")[2].partition(".")[2] for p in hidden_matrices(module)]
        assert sorted(found) == sorted(HIDDEN * 2)
    rows = {name: matrices_in(module)[p] for p, name in names.items() if p in matrices_in(module)}
    assert rows == {
        f"body.layers.{layer}.{name}": size
        for layer in range(2)
        for name, size in (("attention.qkv.weight", (16, 8, 8)), ("feedforward.gate_up.weight", (24, 24)))
    }


def test_of_a_mixture_of_experts_each_expert_is_a_matrix_and_the_router_is_not() -> None:
    model = Transformer(replace(CONFIG, n_experts=3, experts_per_token=2), generator=torch.Generator().manual_seed(0))
    names = {p: name for name, p in model.named_parameters()}
    found = {names[p].partition("layers.0.")[2] for p in hidden_matrices(model)} - {""}
    assert found == {"attention.qkv.weight", "attention.output.weight", "feedforward.up", "feedforward.down"}
    assert any(name.endswith("router.weight") for name in names.values())
    rows = {names[p]: rows for p, rows in matrices_in(model).items()}
    assert rows["layers.1.feedforward.up"] == (24, 24)
    optimizer = ScheduledOptimizer({"m": model}, {"m": OptimizerSettings(name="muon", lr=0.1, weight_decay=0.0)}, 3)
    up = model.get_parameter("layers.0.feedforward.up")
    before = up.detach().clone()
    for p in model.parameters():
        p.grad = random(*p.shape, seed=2)
    optimizer.step(0)
    gate = up.grad[1, :24]
    expected = before[1, :24] - 0.1 * scale_of(24, 16) * orthogonalise(gate[None])[0]
    torch.testing.assert_close(up.detach()[1, :24], expected, rtol=1e-4, atol=1e-5)


def one_step(**settings: float) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Weights before and after one step, and the gradients."""
    model = model_of()
    choice = OptimizerSettings(schedule="constant", warmup=0.0, **settings)
    optimizer = ScheduledOptimizer({"m": model}, {"m": choice}, 3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for number, p in enumerate(model.parameters()):
        p.grad = random(*p.shape, seed=number)
    optimizer.step(0)
    return (
        before,
        {n: p.detach() for n, p in model.named_parameters()},
        {n: p.grad for n, p in model.named_parameters()},
    )


def test_queries_keys_and_values_are_made_orthogonal_each_for_itself() -> None:
    before, after, gradients = one_step(name="muon", lr=0.1, weight_decay=0.25)
    for name, gradient in gradients.items():
        if not name.endswith(HIDDEN):
            continue
        rows = {"qkv": (16, 8, 8), "gate_up": (24, 24)}.get(name.split(".")[-2], (len(gradient),))
        updates = []
        for part in gradient.split(rows):
            # at the first step the direction is a multiple of the gradient
            updates.append(0.2 * math.sqrt(max(part.shape)) * orthogonalise(part[None])[0])
        expected = before[name] * (1 - 0.1 * 0.25) - 0.1 * torch.cat(updates)
        torch.testing.assert_close(after[name], expected, rtol=1e-4, atol=1e-5)
    whole = orthogonalise(gradients["layers.0.attention.qkv.weight"][None])[0]
    parts = [orthogonalise(p[None])[0] for p in gradients["layers.0.attention.qkv.weight"].split((16, 8, 8))]
    assert float((whole - torch.cat(parts)).abs().max()) > 0.1  # which is not the same


def test_everything_else_is_stepped_by_adamw() -> None:
    _, muon, _ = one_step(name="muon", lr=0.1, weight_decay=0.25)
    _, adamw, _ = one_step(name="adamw", lr=0.1, weight_decay=0.25)
    same = {name for name in muon if torch.equal(muon[name], adamw[name])}
    assert same == {name for name in muon if not name.endswith(HIDDEN)}
    assert {"embedding.weight", "output_embedding.weight", "norm.weight"} <= same


def test_many_matrices_at_once_and_few_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    _, together, _ = one_step(name="muon", lr=0.1)
    monkeypatch.setattr("chatloom.training.muon.AT_ONCE", 1)
    _, alone, _ = one_step(name="muon", lr=0.1)
    for name, weight in together.items():
        torch.testing.assert_close(weight, alone[name], rtol=1e-5, atol=1e-6)


def test_a_stack_of_matrices_is_stepped_as_each_alone() -> None:
    stack = nn.Parameter(random(3, 6, 4))
    alone = [nn.Parameter(part.clone()) for part in stack.detach()]
    one = Muon([{"params": [stack], "lr": 0.1, "weight_decay": 0.0, "momentum": 0.9}], {stack: (2, 4)})
    other = Muon([{"params": alone, "lr": 0.1, "weight_decay": 0.0, "momentum": 0.9}], dict.fromkeys(alone, (2, 4)))
    stack.grad = random(3, 6, 4, seed=1)
    for p, grad in zip(alone, stack.grad, strict=True):
        p.grad = grad.clone()
    one.step()
    other.step()
    torch.testing.assert_close(stack.detach(), torch.stack([p.detach() for p in alone]))
