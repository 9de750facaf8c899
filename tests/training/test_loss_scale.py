"""Promises of fp16: small gradients survive, an overflow lowers the scale and is no anomaly; resume knows the scale."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planned_loss import Planned, batch_of, trainer_of
from torch import nn
from toys import World

from chatloom.model.config import TransformerConfig
from chatloom.model.transformer import Transformer
from chatloom.tokens.packing import Batch, Segment, pack
from chatloom.training.anomalies import Anomaly
from chatloom.training.loss_scale import GROW_AFTER, LARGEST, LossScale
from chatloom.training.metrics import read_metrics
from chatloom.training.next_token_loss import NextTokenLoss
from chatloom.training.optimizers import ScheduledOptimizer
from chatloom.training.settings import OptimizerSettings
from chatloom.training.trainer import Terms, Trainer


def half_trainer(**changes: Any) -> tuple[Trainer, nn.Linear]:
    trainer, module = trainer_of(**changes)
    trainer.loss_scale = LossScale()
    return trainer, module


class Half:
    """loss = factor * w, whose gradient passes through fp16."""

    def __init__(self, module: nn.Linear, factor: float) -> None:
        self.module, self.factor = module, factor

    def weight(self, batch: Batch) -> float:
        return 1.0

    def __call__(self, batch: Batch) -> Terms:
        return Terms((self.module.weight.half().float() * self.factor).sum())


def test_the_scale_halves_at_an_overflow_and_doubles_after_enough_calm_steps() -> None:
    scale = LossScale()
    assert scale.scale == 65536
    assert scale.overflowed()
    assert scale.scale == 32768
    for _ in range(GROW_AFTER - 1):
        scale.went_well()
    assert scale.scale == 32768
    again = LossScale()
    again.load(json.loads(json.dumps(scale.state())))
    for item in (scale, again):
        item.went_well()
        assert (item.scale, item.calm) == (65536, 0)
    for _ in range(16):
        assert scale.overflowed()
    assert scale.scale == 1.0
    assert not scale.overflowed()  # nothing is left to halve
    largest = LossScale(LARGEST, GROW_AFTER - 1)
    largest.went_well()
    assert largest.scale == LARGEST


def test_a_gradient_that_fp16_cannot_hold_survives_through_the_scale() -> None:
    plain, module = trainer_of()
    assert plain.update([batch_of(1)], Half(module, 1e-8))["grad_norm"] == 0.0  # below 6e-8
    scaled, module = half_trainer()
    metrics = scaled.update([batch_of(1)], Half(module, 1e-8))
    assert metrics["grad_norm"] == pytest.approx(1e-8, rel=1e-3)
    assert metrics["loss_scale"] == 65536


def test_an_overflow_changes_no_weight_lowers_the_scale_and_is_no_anomaly() -> None:
    trainer, module = half_trainer(max_skips=0)
    told: list[Any] = []
    trainer.record = lambda *given, **named: told.append(given)
    rows = [trainer.update([batch_of(1)], Half(module, 10.0)) for _ in range(4)]
    assert [row.get("overflow") for row in rows] == [1.0, 1.0, 1.0, 1.0]  # fp16 ends at 65,504
    assert [row["loss_scale"] for row in rows] == [32768, 16384, 8192, 4096]
    assert module.weight.item() == 1.0
    assert (trainer.skipped, trainer.updates, told) == (0, 4, [])
    row = trainer.update([batch_of(1)], Half(module, 10.0))
    assert row["grad_norm"] == pytest.approx(10.0)
    assert module.weight.item() < 1.0


def test_a_gradient_that_is_broken_at_any_scale_is_an_anomaly() -> None:
    trainer, module = half_trainer(max_skips=0)
    loss = Planned(module, [1.0], gradient=float("nan"))
    for _ in range(16):
        assert trainer.update([batch_of(1)], loss)["overflow"] == 1.0
    with pytest.raises(Anomaly, match="gradient norm is nan"):
        trainer.update([batch_of(1)], loss)
    trainer, module = half_trainer(max_skips=0)
    with pytest.raises(Anomaly, match="loss is inf"):  # the scale has no part in the loss itself
        trainer.update([batch_of(1)], Planned(module, [float("inf")]))


def test_gradients_and_steps_of_a_scaled_loss_are_those_of_the_plain_one() -> None:
    (plain, first), (scaled, second) = trainer_of(), half_trainer()
    for factor in (0.37, 2.1, 0.011):
        rows = [
            trainer.update([batch_of(3)], Planned(module, [factor]))
            for trainer, module in ((plain, first), (scaled, second))
        ]
        assert rows[0]["grad_norm"] == rows[1]["grad_norm"]  # a power of two rounds nothing
    assert first.weight.item() == second.weight.item()


def small_run(precision: str, steps: int = 12) -> tuple[Trainer, list[dict[str, float]]]:
    config = TransformerConfig(
        vocab_size=64, hidden_size=32, n_layers=2, n_heads=2, n_kv_heads=2, head_dim=16, intermediate_size=64,
        max_positions=32,
    )  # fmt: skip
    model = Transformer(config, generator=torch.Generator().manual_seed(0))
    optimizer = ScheduledOptimizer({"model": model}, {"model": OptimizerSettings(lr=1e-2, warmup=0)}, steps)
    trainer = Trainer({"model": model}, optimizer, precision=precision)
    draw = np.random.default_rng(0)
    batch = pack([Segment(draw.integers(0, 64, 16), np.ones(16, dtype=np.float32)) for _ in range(8)], 32, 0)
    loss = NextTokenLoss(model)
    return trainer, [trainer.update([batch], loss) for _ in range(steps)]


def test_a_decoder_learns_in_fp16_as_in_fp32() -> None:
    _, exact = small_run("fp32")
    _, half = small_run("fp16")
    assert not [row for row in half if "overflow" in row]
    assert exact[-1]["loss"] < exact[0]["loss"] - 1.0
    for wide, narrow in zip(exact, half, strict=True):
        assert narrow["loss"] == pytest.approx(wide["loss"], rel=5e-3)
        assert narrow["grad_norm"] == pytest.approx(wide["grad_norm"], rel=3e-2)


def test_the_scale_is_part_of_the_state() -> None:
    trainer, _ = small_run("fp16", 3)
    assert trainer.loss_scale is not None
    trainer.loss_scale.overflowed()
    again, _ = small_run("fp16", 1)
    again.load(trainer.state())
    assert again.loss_scale == trainer.loss_scale
    assert again.loss_scale.scale == 32768


def test_a_stage_trains_in_fp16(world: World, tmp_path: Path) -> None:
    made = world.run("pretrain", tmp_path / "half", precision="fp16", epochs=1)
    wide = world.run("pretrain", tmp_path / "wide", epochs=1)
    rows, exact = (read_metrics(item.path / "metrics.jsonl").rows for item in (made, wide))
    assert rows[-1]["loss"] == pytest.approx(exact[-1]["loss"], rel=0.02)
    assert made.metrics["skipped_steps"] == 0
