"""Promises of going back: a planted learning-rate spike, broken checkpoints, and that resumed runs end the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from planned_loss import batch_of
from safetensors.torch import load_file, save_file
from torch import nn

from chatloom.tokens.packing import Batch
from chatloom.training import checkpoints
from chatloom.training.anomalies import FEWEST, FILE, Anomaly, Watch
from chatloom.training.checkpoints import State
from chatloom.training.loop import fit
from chatloom.training.metrics import read_metrics
from chatloom.training.optimizers import ScheduledOptimizer
from chatloom.training.saving import Run
from chatloom.training.settings import LoopSettings, OptimizerSettings
from chatloom.training.trainer import Terms, Trainer

EVERY, TOTAL = 20, 120


class Bowl:
    """Squared distance of a weight to 1 plus some noise: a loss that learning lowers and a spike of the rate raises."""

    def __init__(self, module: nn.Linear, seen: list[int]) -> None:
        self.module, self.seen, self.index = module, seen, 0

    def weight(self, batch: Batch) -> float:
        return batch.total_weight

    def __call__(self, batch: Batch) -> Terms:
        self.seen.append(self.index)
        noise = torch.rand((), generator=torch.Generator().manual_seed(self.index)) * 0.1
        return Terms(((self.module.weight - 1.0).square().sum() + 1.0 + noise) * batch.total_weight)


class Experiment:
    """A run of the bowl; at the steps `spikes` the learning rate is 10,000 times too high."""

    def __init__(self, path: Path, spikes: tuple[int, ...] = (), rollbacks: int = 2, **loop: Any) -> None:
        self.module = nn.Linear(2, 1, bias=False)
        nn.init.zeros_(self.module.weight)
        settings = OptimizerSettings(lr=0.02, schedule="constant", warmup=0.0, weight_decay=0.0)
        optimizer = ScheduledOptimizer({"m": self.module}, {"m": settings}, TOTAL)
        step = optimizer.step

        def planted(number: int) -> None:
            if number in spikes:
                with torch.no_grad():
                    self.module.weight += 200.0
            step(number)

        optimizer.step = planted  # type: ignore[method-assign]
        self.trainer = Trainer({"m": self.module}, optimizer, watch=Watch(20.0), rollbacks=rollbacks, rollback_after=3)
        self.seen: list[int] = []
        self.objective = Bowl(self.module, self.seen)
        self.run = Run(
            path=path,
            kind="model",
            identity={"seed": 1},
            loop=LoopSettings(**{"checkpoint_seconds": 1e6, **loop}),
            write_model=lambda folder: save_file({"w": self.module.weight.detach()}, folder / "m.safetensors"),
            load_model=lambda folder: (
                self.module.load_state_dict({"weight": load_file(folder / "m.safetensors")["w"]}) and None
            ),
            extra_state=lambda: State({}, {}),
            anchor_every=EVERY if rollbacks else 0,
            quiet=True,
        )
        path.mkdir(exist_ok=True)

    def fit(self, total: int = TOTAL) -> list[dict[str, Any]]:
        def unit(index: int) -> dict[str, float]:
            self.objective.index = index
            return self.trainer.update([batch_of(2)], self.objective)

        fit(self.run, self.trainer, total, unit, label="bowl", noun="steps")
        return read_metrics(self.run.path / "metrics.jsonl").rows


def test_a_planted_learning_rate_spike_is_gone_back_from_and_its_data_are_not_read_again(tmp_path: Path) -> None:
    spike = FEWEST + 23  # step 88 of 120 counted from 1; anchors at 60 and 80
    run = Experiment(tmp_path, (spike,))
    rows = run.fit()
    assert [row["step"] for row in rows] == list(range(1, TOTAL + 1))  # one row a step
    assert [row["step"] for row in rows if "skipped" in row] == [spike + 2, spike + 3, spike + 4]
    assert {row["step"]: row["rolled_back_to"] for row in rows if "rolled_back_to" in row} == {spike + 4: 80.0}
    assert run.seen == list(range(TOTAL))  # every step's data once, in order: inspect needs to know nothing more
    assert rows[-1]["loss"] < 1.2
    assert (run.module.weight - 1.0).abs().max() < 0.2
    told = read_metrics(tmp_path / FILE).rows
    assert [(row["step"], row["kind"]) for row in told] == [
        *((n, "skipped") for n in (spike + 2, spike + 3, spike + 4)),
        (spike + 4, "rolled back"),
    ]
    assert told[0]["z_score"] > 20
    assert told[0]["loss"] > 1000
    assert told[-1]["checkpoint"] == 80


def test_without_looking_for_spikes_the_same_run_is_lost(tmp_path: Path) -> None:
    run = Experiment(tmp_path, (FEWEST + 23,))
    run.trainer.watch.threshold = 0.0
    assert run.fit()[-1]["loss"] > 1000


def test_when_the_trouble_was_in_the_checkpoint_already_the_one_before_is_taken(tmp_path: Path) -> None:
    run = Experiment(tmp_path, (79,))  # in the very step that is saved as 80
    rows = run.fit()
    assert {row["step"]: row["rolled_back_to"] for row in rows if "rolled_back_to" in row} == {83: 80.0, 86: 60.0}
    assert rows[-1]["loss"] < 1.2


def test_after_so_many_rollbacks_the_run_stops_and_says_so(tmp_path: Path) -> None:
    run = Experiment(tmp_path, (79,), rollbacks=1)
    with pytest.raises(Anomaly, match=r"3 steps in a row.*the loss is .*It went back to a checkpoint 1 times"):
        run.fit()
    assert run.trainer.updates == 86


def test_without_a_checkpoint_from_before_the_run_stops_and_says_so(tmp_path: Path) -> None:
    run = Experiment(tmp_path, (FEWEST + 5,))
    run.run.anchor_every = 1000
    with pytest.raises(Anomaly, match="there is no checkpoint from before step 71 to go back to"):
        run.fit()


def test_a_damaged_checkpoint_is_not_gone_back_to(tmp_path: Path) -> None:
    run = Experiment(tmp_path, (87,), checkpoint_in_background=False)
    step = run.trainer.optimizer.step

    def damaging(number: int) -> None:
        if number == 85:
            file = checkpoints.folder_of(tmp_path, 80) / "m.safetensors"
            file.write_bytes(file.read_bytes()[:-1] + b"\x01")
        step(number)

    run.trainer.optimizer.step = damaging  # type: ignore[method-assign]
    rows = run.fit()
    assert [row["rolled_back_to"] for row in rows if "rolled_back_to" in row] == [60.0]
    assert (tmp_path / checkpoints.FOLDER / "damaged-step-80").is_dir()


@pytest.mark.parametrize("ends_at", [85, 89, 90, 91, 92, 100, 110])
@pytest.mark.parametrize("every", [0, 1, 7])
def test_a_run_that_ends_at_any_place_of_the_story_goes_on_to_the_same_weights(
    ends_at: int, every: int, tmp_path: Path
) -> None:
    whole = Experiment(tmp_path / "whole", (87,))
    expected = whole.fit()
    first = Experiment(tmp_path / "cut", (87,), checkpoint_every=every)
    first.fit(ends_at)
    second = Experiment(tmp_path / "cut", (87,), checkpoint_every=every)
    rows = second.fit()
    assert second.seen[0] > 0  # it did go on
    assert torch.equal(second.module.weight, whole.module.weight)
    moments = whole.trainer.optimizer.tensors()
    assert all(torch.equal(value, moments[name]) for name, value in second.trainer.optimizer.tensors().items())
    assert second.trainer.state().values == whole.trainer.state().values
    plain = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    assert plain == [{k: v for k, v in row.items() if k != "seconds"} for row in expected]
    logs = [read_metrics(tmp_path / name / FILE).rows for name in ("cut", "whole")]
    assert logs[0] == logs[1]


def test_without_the_window_in_the_checkpoint_a_resumed_run_decides_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Experiment(tmp_path, (87,), checkpoint_every=1).fit(87)
    monkeypatch.setattr(Watch, "load", lambda self, state: None)
    rows = Experiment(tmp_path, (87,)).fit()
    assert not [row for row in rows if "skipped" in row]  # the negative control of the test above
