"""Promises of every loss: padding, packing, row order and micro-batching change neither loss nor gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from chatloom.model.attention import boundaries_of
from chatloom.model.config import TransformerConfig
from chatloom.model.heads import RewardModel, ValueModel
from chatloom.model.transformer import Transformer
from chatloom.objectives.preference import PreferenceLoss
from chatloom.stages.dpo import DpoLoss
from chatloom.stages.ppo import Experience, PpoLoss, PpoSettings
from chatloom.stages.reward import RankingLoss, RewardSettings
from chatloom.tokens.packing import Batch, Segment, micro_batches, pack
from chatloom.training.next_token_loss import NextTokenLoss
from chatloom.training.optimizers import ScheduledOptimizer
from chatloom.training.rollouts import Answers
from chatloom.training.settings import OptimizerSettings
from chatloom.training.trainer import Objective, Trainer

CONFIG = TransformerConfig(
    vocab_size=61, hidden_size=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, intermediate_size=48,
    max_positions=40, initializer_range=0.3,
)  # fmt: skip
ROW, PAD = 40, 0
RAW = OptimizerSettings(lr=1e-9, clip=0.0, weight_decay=0.0)  # leaves the gradient as it is, and hardly steps


def body(seed: int = 0) -> Transformer:
    return Transformer(CONFIG, generator=torch.Generator().manual_seed(seed))


def random_segments(groups: Sequence[int], *, prompt: int = 3, seed: int = 1) -> list[Segment]:
    """One segment for each entry, of lengths 6..20, its prompt without loss; group and rank as given."""
    draw = np.random.default_rng(seed)
    segments: list[Segment] = []
    for group in groups:
        length = int(draw.integers(6, 21))
        supervised = np.ones(length, dtype=np.float32)
        supervised[:prompt] = 0.0
        rank = sum(segment.group == group for segment in segments)
        segments.append(Segment(draw.integers(1, 61, length), supervised, group=group, role=f"rank{rank}"))
    return segments


def language_model() -> tuple[dict[str, nn.Module], Objective, list[Segment]]:
    model = body()
    segments = random_segments(range(8))
    segments[2].supervised[4] = 0.25  # a message with a weight of its own
    segments[5].supervised[:] = 0.0  # a conversation that teaches nothing, beside others that do
    return {"model": model}, NextTokenLoss(model), segments


def language_model_with_z_loss() -> tuple[dict[str, nn.Module], Objective, list[Segment]]:
    modules, _, segments = language_model()
    return modules, NextTokenLoss(modules["model"], z_loss=0.01), segments


def ranking() -> tuple[dict[str, nn.Module], Objective, list[Segment]]:
    model = RewardModel(body(), generator=torch.Generator().manual_seed(3))
    segments = random_segments([0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4, 4, 5, 5, 6, 6, 7, 7])
    segments[2].scalars["margin"] = 0.5
    settings = RewardSettings(label_smoothing=0.1, centering=0.01, lm_weight=0.3)
    return {"model": model}, RankingLoss(model, settings), segments


def preference() -> tuple[dict[str, nn.Module], Objective, list[Segment]]:
    model = body()
    segments = random_segments([number // 2 for number in range(16)])
    for number, segment in enumerate(segments):
        segment.scalars["reference"] = -20.0 - 0.7 * number
    return {"model": model}, DpoLoss(model, PreferenceLoss("sigmoid", 0.1, 0.0, 0.2)), segments


def reinforcement() -> tuple[dict[str, nn.Module], Objective, list[Segment]]:
    actor = body()
    critic = ValueModel.from_reward_model(RewardModel(body(5), generator=torch.Generator().manual_seed(3)))
    segments = random_segments(range(8))
    lengths = torch.tensor([len(segment) - 3 for segment in segments])
    shape = (8, int(lengths.max()))
    draw = torch.Generator().manual_seed(2)
    tables = [torch.randn(shape, generator=draw) for _ in range(4)]
    rolled = Answers(segments, torch.full((8,), 3), lengths, torch.ones(8, dtype=torch.bool), torch.zeros(shape))
    data = Experience(rolled, tables[0] - 5.0, tables[1], tables[2], tables[3], {})
    settings = PpoSettings(temperature=0.8, entropy_coefficient=0.01)
    return {"actor": actor, "critic": critic}, PpoLoss(actor, critic, settings, data), segments


LOSSES = {
    "language model": language_model,
    "language model with z-loss": language_model_with_z_loss,
    "ranking": ranking,
    "dpo": preference,
    "ppo": reinforcement,
}


def groups_alone(segments: list[Segment]) -> list[Batch]:
    """Every group is a micro-batch of its own: 8 x 1."""
    numbers = sorted({segment.group for segment in segments})
    return [pack([s for s in segments if s.group == number], ROW, PAD) for number in numbers]


def one_segment_a_row(segments: list[Segment]) -> list[Batch]:
    """Nothing is packed: a row holds one segment and padding."""
    from chatloom.tokens.packing import build

    return [build(segments, [[i] for i in range(len(segments))], ROW, PAD)]


def more_padding(segments: list[Segment]) -> list[Batch]:
    """Rows four tokens longer than any model has seen, filled up with padding."""
    return [pack(segments, ROW - 4, PAD, trim=False)]


def other_order(segments: list[Segment]) -> list[Batch]:
    """Segments, rows and micro-batches the other way round."""
    found = []
    for batch in reversed(micro_batches(segments[::-1], 2 * ROW, ROW, PAD)):
        flip = batch.tokens.shape[0] - 1
        names = ("tokens", "targets", "positions", "segments", "weights")
        rows = {name: getattr(batch, name).flip(0) for name in names}
        rows["supervised"] = rows["weights"].flatten().nonzero().squeeze(1)
        rows["boundaries"] = boundaries_of(rows["segments"])
        found.append(replace(batch, **rows, segment_row=flip - batch.segment_row))
    return found


def small_micro_batches(segments: list[Segment]) -> list[Batch]:
    return micro_batches(segments, 2 * ROW, ROW, PAD)


ARRANGEMENTS = [groups_alone, one_segment_a_row, more_padding, other_order, small_micro_batches]


def step(
    make: Callable[[], tuple[dict[str, nn.Module], Any, list[Segment]]],
    arrange: Callable[[list[Segment]], list[Batch]],
) -> tuple[dict[str, float], torch.Tensor]:
    """Metrics and the whole gradient of one step."""
    modules, objective, segments = make()
    trainer = Trainer(modules, ScheduledOptimizer(modules, dict.fromkeys(modules, RAW), 1))
    metrics = trainer.update(arrange(segments), objective)
    grads = [p.grad.flatten() for module in modules.values() for p in module.parameters() if p.grad is not None]
    return metrics, torch.cat(grads).double()


@pytest.mark.parametrize("arrange", ARRANGEMENTS, ids=lambda arrange: arrange.__name__)
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_do_not_depend_on_how_the_step_is_laid_out(
    name: str, arrange: Callable[[list[Segment]], list[Batch]]
) -> None:
    whole, expected = step(LOSSES[name], lambda segments: [pack(segments, ROW, PAD)])
    metrics, found = step(LOSSES[name], arrange)
    assert float(expected.norm()) > 1e-3
    assert float((found - expected).norm() / expected.norm()) < 1e-5
    assert metrics.keys() == whole.keys()
    for key, value in whole.items():
        assert metrics[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key


def test_the_comparison_would_see_a_leak_between_segments() -> None:
    """Negative control: with attention crossing segments the gradients differ by far more than is tolerated."""

    def leaking(segments: list[Segment]) -> list[Batch]:
        batch = pack(segments, ROW, PAD)
        return [replace(batch, segments=torch.where(batch.segments >= 0, batch.segment_row[batch.segments], -1))]

    def make() -> tuple[dict[str, nn.Module], Objective, list[Segment]]:
        return language_model()

    _, expected = step(make, lambda segments: [pack(segments, ROW, PAD)])
    _, found = step(make, leaking)
    assert float((found - expected).norm() / expected.norm()) > 1e-2


def test_the_language_model_loss_is_the_weighted_mean_of_token_nlls() -> None:
    modules, _, segments = language_model()
    metrics, _ = step(language_model, groups_alone)
    model = modules["model"]
    assert isinstance(model, Transformer)
    total = weight = 0.0
    with torch.no_grad():
        for segment in segments:
            tokens = torch.from_numpy(segment.tokens)[None]
            logits = model.logits(model(tokens))[0, :-1].double()
            nll = nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none")
            shares = torch.from_numpy(segment.supervised[1:]).double()
            total += float((nll * shares).sum())
            weight += float(shares.sum())
    assert metrics["loss"] == pytest.approx(total / weight, rel=1e-5)
    assert math.isfinite(metrics["grad_norm"])
