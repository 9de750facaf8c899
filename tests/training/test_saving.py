"""Promises of saving beside training: nothing waits, a full disk costs a checkpoint and not the run."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from toy_run import Toy

from chatloom import artifact
from chatloom.errors import ChatloomError
from chatloom.training import checkpoints, loop, metrics, saving
from chatloom.training.metrics import read_metrics

DISK_FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All that was said."""
    found: list[str] = []
    for module in (loop, saving, metrics):
        monkeypatch.setattr(module, "say", found.append)
    return found


def failing(monkeypatch: pytest.MonkeyPatch, times: Callable[[int], bool], error: BaseException = DISK_FULL) -> None:
    """The commit of a checkpoint fails where `times` says so of its number (from 1), having written its tensors."""
    plain, calls = artifact.commit_folder, 0

    def commit(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if times(calls):
            raise error
        return plain(*args)

    monkeypatch.setattr(artifact, "commit_folder", commit)


def names(run: Path) -> list[str]:
    return sorted(item.name for item in (run / checkpoints.FOLDER).iterdir())


def test_training_goes_on_while_a_checkpoint_is_written_and_one_is_written_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy, plain = Toy(tmp_path, checkpoint_every=2), checkpoints.commit
    go_on, at_once, most = threading.Event(), 0, 0
    seen: dict[str, int] = {}

    def slow(held: checkpoints.Held) -> Path:
        nonlocal at_once, most
        at_once, most = at_once + 1, max(most, at_once + 1)
        assert go_on.wait(30)
        seen[held.target.name] = len(toy.units)
        done = plain(held)
        at_once -= 1
        return done

    unit = toy.unit

    def released_at_step_4(index: int) -> dict[str, float]:
        if index == 3:
            go_on.set()
        return unit(index)

    monkeypatch.setattr(checkpoints, "commit", slow)
    toy.unit = released_at_step_4  # type: ignore[method-assign]
    toy.fit(6)
    assert seen["step-2"] >= 3  # steps 3 and 4 were begun before the checkpoint of step 2 was written
    assert most == 1
    assert checkpoints.steps(tmp_path) == [4, 6]
    for step in (4, 6):  # and each holds the weights of its step, not of when it was written
        again = Toy(tmp_path, checkpoint_every=2)
        again.run.load(again.trainer, checkpoints.folder_of(tmp_path, step))
        assert torch.equal(again.module.weight, torch.full((1, 2), float(step)))


def test_what_is_being_written_when_a_run_breaks_is_finished_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = checkpoints.commit

    def slow(held: checkpoints.Held) -> Path:
        time.sleep(0.2)
        return plain(held)

    monkeypatch.setattr(checkpoints, "commit", slow)
    toy = Toy(tmp_path, checkpoint_every=2)
    unit = toy.unit

    def broken(index: int) -> dict[str, float]:
        if index == 2:
            raise RuntimeError("broken")
        return unit(index)

    toy.unit = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="broken"):
        toy.fit()
    assert not [thread for thread in threading.enumerate() if thread.name == saving.THREAD]
    assert names(tmp_path) == ["step-2"]


@pytest.mark.parametrize("background", [True, False])
def test_a_disk_that_is_full_once_costs_an_older_checkpoint_only(
    background: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    failing(monkeypatch, lambda number: number == 3)
    Toy(tmp_path, checkpoint_every=1, checkpoint_in_background=background).fit(3)
    assert said == []
    assert names(tmp_path) == ["step-2", "step-3"]


@pytest.mark.parametrize(
    "error", [DISK_FULL, SafetensorError(f"I/O error: {os.strerror(errno.ENOSPC)} (os error 28)"), OSError(5, "EIO")]
)
def test_a_disk_that_stays_full_does_not_stop_training_and_is_tried_again(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    retried = artifact.is_disk_full(error)
    failing(monkeypatch, lambda number: 3 <= number <= (4 if retried else 3), error)  # both tries of step 3
    toy = Toy(tmp_path, checkpoint_every=1)
    toy.fit(4)
    assert toy.units == [0, 1, 2, 3]
    (warning,) = said
    assert warning.startswith("WARNING: the checkpoint after step 3 could not be written")
    assert "a stop costs all steps after 2" in warning
    assert names(tmp_path) == ["step-2", "step-4"]  # nothing half-written
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl").rows] == [1, 2, 3, 4]


def test_a_run_that_is_told_to_stop_and_cannot_save_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    failing(monkeypatch, lambda number: number >= 2)
    toy = Toy(tmp_path, checkpoint_every=1)
    toy.signal_at = 2
    with pytest.raises(ChatloomError, match=r"up to step 3 could not be saved; the newest checkpoint is of step 1"):
        toy.fit()
    monkeypatch.undo()
    again = Toy(tmp_path, checkpoint_every=1)
    again.fit()
    assert again.units == [1, 2, 3, 4, 5]


def test_a_file_that_really_cannot_grow_costs_a_checkpoint_and_nothing_else(tmp_path: Path, said: list[str]) -> None:
    toy = Toy(tmp_path, checkpoint_every=2, checkpoint_in_background=False)
    large = torch.zeros(1_000_000)
    state = toy.run.extra_state
    toy.run.extra_state = lambda: checkpoints.State(state().values, {"large": {"zeros": large}})
    unit = toy.unit
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(index: int) -> dict[str, float]:
        if index in (2, 5):  # from before the second checkpoint until after it
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000 if index == 2 else soft, hard))
        return unit(index)

    toy.unit = limited  # type: ignore[method-assign]
    try:
        toy.fit(6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [text.split(" could")[0] for text in said] == ["WARNING: the checkpoint after step 4"]
    assert names(tmp_path)[-1] == "step-6"
    assert toy.units == list(range(6))


def test_metrics_wait_for_room_and_no_checkpoint_overtakes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    toy, write, full = Toy(tmp_path, checkpoint_every=1), os.write, False

    def limited(descriptor: int, data: bytes) -> int:
        if full and data.startswith(b'{"step"'):
            raise DISK_FULL
        return write(descriptor, data)

    unit = toy.unit

    def step(index: int) -> dict[str, float]:
        nonlocal full
        full = index in (2, 3)
        return unit(index)

    monkeypatch.setattr(os, "write", limited)
    toy.unit = step  # type: ignore[method-assign]
    with pytest.raises(OSError, match="No space left"):
        toy.fit(4)  # rows 3 and 4 wait, and at the end there is no room for them
    assert len(said) == 1
    assert "metrics wait in memory" in said[0]
    assert checkpoints.steps(tmp_path) == [1, 2]
    full = False
    again = Toy(tmp_path, checkpoint_every=1)
    toy, unit = again, again.unit
    again.unit = step  # type: ignore[method-assign]
    again.fit(6)
    assert again.units == [2, 3, 4, 5]
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl").rows] == [1, 2, 3, 4, 5, 6]
    assert checkpoints.steps(tmp_path) == [5, 6]


def test_a_run_whose_checkpoints_cannot_fit_is_refused_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    toy = Toy(tmp_path)
    toy.trainer.modules["m"].weight = torch.nn.Parameter(torch.zeros(1, 2_000_000))  # a checkpoint takes 24 MB
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=47_000_000))
    with pytest.raises(ChatloomError, match="takes about 24 MB, and 47 MB are free, where at least 48 are needed"):
        toy.fit()
    assert toy.units == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=71_000_000))
    saving.check_room(toy.run, toy.trainer)
    assert len(said) == 1
    assert "2 checkpoints and one being written take about 72 MB more" in said[0]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=73_000_000))
    saving.check_room(toy.run, toy.trainer)
    assert len(said) == 1
    toy.run.anchor_every = 100  # two more stay to be gone back to
    saving.check_room(toy.run, toy.trainer)
    assert "4 checkpoints and one being written take about 120 MB more" in said[1]


def test_a_checkpoint_that_will_not_fit_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    toy = Toy(tmp_path, checkpoint_every=2)
    usage, unit = shutil.disk_usage(tmp_path), toy.unit

    def step(index: int) -> dict[str, float]:
        free = 7 if index == 3 else usage.free
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))
        return unit(index)

    toy.unit = step  # type: ignore[method-assign]
    toy.run.loop = toy.run.loop.model_copy(update={"checkpoint_in_background": False})
    toy.fit(6)
    assert "7 bytes are free, it takes 8" in said[0]
    assert names(tmp_path) == ["step-2", "step-6"]


def test_every_nth_and_the_best_checkpoint_stay_also_after_a_restart(tmp_path: Path) -> None:
    losses = [9.0, 5.0, 1.0, 2.0, 7.0, 6.0, 8.0, 8.0, 8.0, 8.0]

    def toy(metric: str, where: Path) -> Toy:
        made = Toy(where, checkpoint_every=2, keep_every=6, keep_best=metric)
        unit = made.unit
        made.unit = lambda index: {**unit(index), "loss": losses[index]}  # type: ignore[method-assign]
        return made

    toy("loss", tmp_path / "whole").fit(10)
    assert checkpoints.steps(tmp_path / "whole") == [4, 6, 8, 10]  # the mean of steps 3 and 4 is the lowest: 1.5
    toy("loss", tmp_path / "cut").fit(7)
    ending = toy("loss", tmp_path / "cut").fit(10)
    assert checkpoints.steps(tmp_path / "cut") == [4, 6, 8, 10]
    assert ending.kept == {4, 6}
    assert toy("max loss", tmp_path / "most").fit(10).kept == {6, 8}
    with pytest.raises(ChatloomError, match=r"no metric `reward`; there are loss, stop, tokens"):
        toy("reward", tmp_path / "none").fit(10)


def test_when_all_is_done_only_what_was_to_stay_is_left(tmp_path: Path) -> None:
    Toy(tmp_path, checkpoint_every=1, keep_every=4).fit(6)
    (tmp_path / checkpoints.FOLDER / "damaged-step-3.json").write_text("{}")
    checkpoints.clear(tmp_path, besides=[4])
    assert names(tmp_path) == ["step-4"]
    checkpoints.clear(tmp_path, besides=[])
    assert not (tmp_path / checkpoints.FOLDER).exists()
