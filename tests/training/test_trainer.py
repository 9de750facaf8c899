"""Promises of one optimizer step: sum over sum, and no weight is changed by a step that means nothing."""

from __future__ import annotations

import pytest
import torch
from planned_loss import Planned, batch_of, trainer_of
from torch import nn

from chatloom.settings import Settings
from chatloom.tokens.packing import Batch
from chatloom.training.anomalies import Anomaly
from chatloom.training.optimizers import ScheduledOptimizer
from chatloom.training.settings import OptimizerSettings
from chatloom.training.trainer import Terms, Trainer


def test_a_steps_loss_is_sum_over_sum_and_not_a_mean_of_means() -> None:
    trainer, module = trainer_of()
    # 1 token at loss 1.0 and 10 tokens at 0.1: the mean of means would be 0.55.
    metrics = trainer.update([batch_of(1), batch_of(10)], Planned(module, [1.0, 0.1]))
    assert metrics["loss"] == pytest.approx(2.0 / 11.0)
    assert metrics["seen"] == pytest.approx(2.0 / 11.0)
    assert metrics["grad_norm"] == pytest.approx(2.0 / 11.0)
    assert trainer.updates == 1


@pytest.mark.parametrize("batches", [[], [0], [0, 0]], ids=["no batch", "one", "two"])
def test_a_step_without_supervised_token_is_counted_and_changes_nothing(batches: list[int]) -> None:
    trainer, module = trainer_of()
    loss = Planned(module, [1.0])
    metrics = trainer.update([batch_of(n) for n in batches], loss)
    assert metrics == {"skipped": 1.0}
    assert module.weight.item() == 1.0
    assert (trainer.skipped, trainer.updates, loss.calls) == (1, 1, [])
    assert trainer.optimizer.tensors() == {}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_loss_that_is_not_finite_in_one_micro_batch_is_not_stepped_on(bad: float, place: int) -> None:
    trainer, module = trainer_of()
    trainer.update([batch_of(2)], Planned(module, [1.0]))
    weight, moments = module.weight.item(), trainer.optimizer.tensors()
    values = [1.0, 1.0, 1.0]
    values[place] = bad
    assert trainer.update([batch_of(2)] * 3, Planned(module, values)) == {"skipped": 1.0}
    assert module.weight.item() == weight
    after = trainer.optimizer.tensors()
    assert all(torch.equal(after[name], value) for name, value in moments.items())
    assert all(p.grad is None for p in module.parameters())  # and nothing is left over for the next step
    assert trainer.update([batch_of(2)], Planned(module, [1.0]))["loss"] == pytest.approx(weight)
    assert (trainer.skipped, trainer.skipped_in_a_row, trainer.updates) == (1, 0, 3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_is_not_stepped_on(bad: float, clip: float) -> None:
    trainer, module = trainer_of(clip=clip)
    assert trainer.update([batch_of(2)], Planned(module, [1.0], gradient=bad)) == {"skipped": 1.0}
    assert module.weight.item() == 1.0
    assert trainer.skipped == 1


def test_too_many_skips_in_a_row_end_the_run_with_the_likely_causes() -> None:
    trainer, module = trainer_of(max_skips=2)
    for _ in range(2):
        trainer.update([batch_of(2)], Planned(module, [float("nan")]))
    trainer.update([batch_of(2)], Planned(module, [1.0]))  # a good step in between: the count starts again
    weight = module.weight.item()
    for _ in range(2):
        trainer.update([batch_of(2)], Planned(module, [float("nan")]))
    with pytest.raises(Anomaly, match=r"3 steps in a row.*loss is nan.*learning rate is too high") as caught:
        trainer.update([batch_of(2)], Planned(module, [float("nan")]))
    assert "without supervised tokens" in str(caught.value)
    assert module.weight.item() == weight
    assert trainer.skipped == 5


def test_no_skip_is_tolerated_when_none_may_be() -> None:
    trainer, module = trainer_of(max_skips=0)
    with pytest.raises(Anomaly, match="no supervised token"):
        trainer.update([batch_of(0)], Planned(module, [1.0]))


def test_gradients_are_clipped_by_module_and_reported_as_they_were() -> None:
    modules = {"actor": nn.Linear(1, 1, bias=False), "critic": nn.Linear(1, 1, bias=False)}
    settings = OptimizerSettings(lr=1e-9, clip=1.0, weight_decay=0.0)
    trainer = Trainer(modules, ScheduledOptimizer(modules, dict.fromkeys(modules, settings), 1))

    class Both:
        def weight(self, batch: Batch) -> float:
            return 1.0

        def __call__(self, batch: Batch) -> Terms:
            return Terms(0.5 * modules["actor"].weight.sum() + 100.0 * modules["critic"].weight.sum())

    metrics = trainer.update([batch_of(1)], Both())
    assert metrics["grad_norm"] == pytest.approx(0.5)
    assert metrics["grad_norm_critic"] == pytest.approx(100.0)
    assert modules["actor"].weight.grad is not None
    assert modules["critic"].weight.grad is not None
    assert modules["actor"].weight.grad.item() == pytest.approx(0.5)  # a critic's gradient does not shrink the actor's
    assert modules["critic"].weight.grad.item() == pytest.approx(1.0, rel=1e-5)


def test_counters_survive_saving() -> None:
    trainer, module = trainer_of()
    trainer.update([batch_of(2)], Planned(module, [1.0]))
    trainer.update([batch_of(0)], Planned(module, [1.0]))
    again, _ = trainer_of()
    again.load(trainer.state())
    assert (again.updates, again.skipped, again.skipped_in_a_row) == (2, 1, 1)
    assert again.optimizer.tensors().keys() == trainer.optimizer.tensors().keys()


def test_nothing_of_the_loop_settings_decides_the_result() -> None:
    from chatloom.settings import is_runtime
    from chatloom.training.settings import LoopSettings

    assert issubclass(LoopSettings, Settings)
    assert all(is_runtime(LoopSettings, name) for name in LoopSettings.model_fields)
    assert LoopSettings().result() == {}
