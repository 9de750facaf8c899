"""Promises of the loop around the steps: what it saves when, what it reports, how it ends."""

from __future__ import annotations

import contextlib
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from toy_run import Toy

from chatloom.errors import ChatloomError
from chatloom.progress import progress
from chatloom.training import checkpoints, loop
from chatloom.training.metrics import read_metrics
from chatloom.training.session import resolve_device, summarise
from chatloom.training.settings import LoopSettings


def test_units_are_done_once_each_in_order(tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    assert not toy.fit().stopped
    assert toy.units == list(range(6))
    rows = read_metrics(tmp_path / "metrics.jsonl").rows
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(row["tokens_per_second"] == pytest.approx(10 / row["seconds"]) for row in rows)
    assert checkpoints.steps(tmp_path) == []  # none was due


@pytest.mark.parametrize(("every", "kept"), [(1, [5, 6]), (2, [4, 6]), (4, [4])])
def test_checkpoints_come_at_their_interval(every: int, kept: list[int], tmp_path: Path) -> None:
    Toy(tmp_path, checkpoint_every=every).fit()
    assert checkpoints.steps(tmp_path) == kept


def test_checkpoints_come_by_the_clock(tmp_path: Path) -> None:
    Toy(tmp_path, checkpoint_seconds=1e-9, keep_checkpoints=3, checkpoint_in_background=False).fit()
    assert checkpoints.steps(tmp_path) == [4, 5, 6]


def test_a_second_run_goes_on_from_the_newest_checkpoint_with_everything(tmp_path: Path) -> None:
    first = Toy(tmp_path, checkpoint_every=2)
    first.fit(5)  # as if it had died after step 5, of which step 4 is saved
    second = Toy(tmp_path, checkpoint_every=2)
    second.fit(8)
    assert second.units == [4, 5, 6, 7]
    assert second.number == 8
    assert torch.equal(second.module.weight, torch.full((1, 2), 8.0))
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl").rows] == list(range(1, 9))


def test_a_run_that_ended_itself_stays_ended(tmp_path: Path) -> None:
    first = Toy(tmp_path)
    first.stop_at = 2
    assert first.fit().stopped
    assert first.units == [0, 1, 2]
    assert checkpoints.steps(tmp_path) == [3]
    second = Toy(tmp_path)
    assert second.fit().stopped
    assert second.units == []
    assert second.number == 3


@pytest.mark.skipif(
    signal.getsignal(signal.SIGINT) is not signal.default_int_handler, reason="this process handles Ctrl-C otherwise"
)
def test_ctrl_c_finishes_the_step_saves_and_is_then_delivered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(loop, "say", said.append)
    first = Toy(tmp_path)
    first.signal_at = 2
    with pytest.raises(KeyboardInterrupt):
        first.fit()
    assert first.units == [0, 1, 2]
    assert checkpoints.steps(tmp_path) == [3]
    assert said == ["toy: saved after step 3; run the same command again to go on from here"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # as it was
    second = Toy(tmp_path)
    second.fit()
    assert second.units == [3, 4, 5]


@pytest.mark.skipif(
    signal.getsignal(signal.SIGINT) is not signal.default_int_handler, reason="this process handles Ctrl-C otherwise"
)
def test_a_signal_after_the_last_step_still_saves_what_it_says_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(loop, "say", said.append)

    @contextlib.contextmanager
    def interrupted_at_its_end(*args: Any, **how: Any) -> Iterator[Any]:
        with progress(*args, **how) as bar:
            yield bar
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(loop, "progress", interrupted_at_its_end)
    toy = Toy(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        toy.fit(1)
    assert checkpoints.steps(tmp_path) == [1]
    assert said == ["toy: saved after step 1; run the same command again to go on from here"]


def test_a_metric_that_is_no_number_does_not_break_the_record(tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    plain = toy.unit
    toy.unit = lambda index: {**plain(index), "loss": math.nan}  # type: ignore[method-assign]
    toy.fit(2)
    rows = read_metrics(tmp_path / "metrics.jsonl").rows
    assert all(math.isnan(row["loss"]) for row in rows)


def test_the_summary_counts_steps_tokens_and_time() -> None:
    rows = [
        {"step": 1, "loss": 3.0, "tokens": 10, "seconds": 1.0, "tokens_per_second": 10.0},
        {"step": 2, "skipped": 1.0, "tokens": 10, "seconds": 0.5, "tokens_per_second": 20.0},
        {"step": 3, "loss": 1.0, "tokens": 30, "seconds": 1.0, "tokens_per_second": 30.0},
    ]
    assert summarise(rows) == {
        "steps": 3, "train_seconds": 2.5, "tokens": 50, "tokens_per_second": 20.0, "first_loss": 3.0, "last_loss": 1.0,
    }  # fmt: skip
    assert summarise([]) == {"steps": 0, "train_seconds": 0}


def test_devices_are_found_or_refused() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    for name in ("gpu", "meta", "cuda:x"):
        with pytest.raises(ChatloomError, match=f"`{name}`"):
            resolve_device(name)


@pytest.mark.parametrize(("written", "meant"), [("on", "on"), ("off", "off"), ("auto", "auto"), ('"on"', "on")])
def test_yamls_words_for_true_and_false_are_taken_for_on_and_off(written: str, meant: str) -> None:
    assert LoopSettings.parse(yaml.safe_load(f"compile: {written}")).compile == meant
