"""The fault matrix of training, quick rows: stops at bad moments, memory, random numbers, edges of a run.

Elsewhere: kills (test_kill.py), settings, damage, disks and second writers (test_resume.py, training/test_saving.py),
losses and gradients that break (training/test_rollback.py, test_pretrain_anomalies.py), networks
(training/test_sinks.py), formats (training/test_checkpoints.py).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from kill_child import content, in_child, in_this_process, metrics_of
from toy_run import Toy
from toys import World

from chatloom import artifact
from chatloom.errors import ChatloomError
from chatloom.training import checkpoints
from chatloom.training.metrics import read_metrics
from chatloom.training.trainer import Trainer


class Crash(Exception):
    """Stands for the death of the process."""


@contextmanager
def failing_at(monkeypatch: pytest.MonkeyPatch, update: int, error: BaseException) -> Iterator[None]:
    """The optimizer step of this number (from 0) ends in an error."""
    plain, calls = Trainer.update, 0

    def broken(self: Trainer, *args: Any) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == update + 1:
            raise error
        return plain(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", broken)
        yield


def resumed(world: World, stage: str, out: Path, monkeypatch: pytest.MonkeyPatch, at: int, **how: Any) -> Any:
    """A stage that died before a step, and was then run to its end; its content and the number of its later steps."""
    with failing_at(monkeypatch, at, Crash()), pytest.raises(Crash):
        in_this_process(world, stage, out, **how)
    made, events = in_this_process(world, stage, out, **how)
    return made, events.count("u")


# --- signals ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(world: World, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return in_this_process(world, "sft", tmp_path_factory.mktemp("whole") / "sft")


def test_told_to_stop_in_the_middle_of_saving_it_saves_and_goes_on_later(
    world: World, whole: Any, tmp_path: Path
) -> None:
    made, events = whole
    first_save = events.index("f", events.index("u"))  # of the thread that writes the checkpoint of step 2
    child = in_child(world, "sft", tmp_path / "sft", "TERM", first_save)
    assert child.returncode == 128 + signal.SIGTERM, child.stderr
    assert checkpoints.steps(artifact.partial_of(tmp_path / "sft"))
    again, _ = in_this_process(world, "sft", tmp_path / "sft")
    assert content(again) == content(made)
    assert metrics_of(again) == metrics_of(made)


def test_told_twice_it_stops_at_once_without_harm(tmp_path: Path) -> None:
    toy = Toy(tmp_path, checkpoint_every=2)
    unit = toy.unit

    def told_twice(index: int) -> dict[str, float]:
        if index == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return unit(index)

    toy.unit = told_twice  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        toy.fit()
    assert toy.units == [0, 1, 2]  # the step was not finished
    assert checkpoints.steps(tmp_path) == [2]
    again = Toy(tmp_path, checkpoint_every=2)
    again.fit()
    assert again.units == [2, 3, 4, 5]


# --- memory -----------------------------------------------------------------------------------------------------------

NO_MEMORY = {
    "python": MemoryError(),
    "device": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "processor": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 9 bytes"
    ),
}


@pytest.mark.parametrize("kind", NO_MEMORY)
def test_used_up_memory_ends_in_advice_and_the_run_goes_on_with_smaller_micro_batches(
    kind: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with failing_at(monkeypatch, 5, NO_MEMORY[kind]):
        with pytest.raises(ChatloomError, match=r"stage `sft`.*memory.*loop.micro_batch_tokens.*loop.recompute"):
            in_this_process(world, "sft", tmp_path / "sft")
    made, events = in_this_process(world, "sft", tmp_path / "sft", loop={"micro_batch_tokens": 80})
    assert events.count("u") == 6
    assert [row["step"] for row in read_metrics(made.path / "metrics.jsonl").rows] == list(range(1, 11))


# --- edges of a run ---------------------------------------------------------------------------------------------------


def test_a_run_goes_on_exactly_from_a_border_of_passes_and_from_its_last_step(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how: dict[str, Any] = {"epochs": 2, "loop": {"checkpoint_every": 1}}
    made, events = in_this_process(world, "pretrain", tmp_path / "whole", **how)
    total = events.count("u")
    for at in (total // 2, total // 2 + 1, total - 1):  # the first step of the second pass, the one after, the last
        again, later = resumed(world, "pretrain", tmp_path / str(at), monkeypatch, at, **how)
        assert later <= total - at + 1
        assert content(again) == content(made), at
        assert metrics_of(again) == metrics_of(made), at


# --- random numbers ---------------------------------------------------------------------------------------------------

DROPOUT: dict[str, Any] = {"model": {"dropout": 0.2}, "epochs": 1}


def test_dropout_goes_on_as_if_it_had_never_stopped(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = in_this_process(world, "pretrain", tmp_path / "whole", **DROPOUT)
    plain, _ = in_this_process(world, "pretrain", tmp_path / "plain", epochs=1)
    assert content(made)["model.safetensors"] != content(plain)["model.safetensors"]  # it does drop
    torch.rand(7)  # whatever was drawn before does not matter
    again, _ = resumed(world, "pretrain", tmp_path / "cut", monkeypatch, 3, **DROPOUT)
    assert content(again) == content(made)


def test_without_its_random_numbers_a_resumed_run_ends_elsewhere(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = in_this_process(world, "pretrain", tmp_path / "whole", **DROPOUT)
    with failing_at(monkeypatch, 3, Crash()), pytest.raises(Crash):
        in_this_process(world, "pretrain", tmp_path / "cut", **DROPOUT)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "manual_seed", lambda seed: None)
        again, _ = in_this_process(world, "pretrain", tmp_path / "cut", **DROPOUT)
    assert content(again)["model.safetensors"] != content(made)["model.safetensors"]  # the negative control
