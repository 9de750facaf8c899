"""Disks that are really full under training: filled in the middle of a run, made room on again, or left full."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kill_child import content, in_this_process, metrics_of
from toys import World

from chatloom import artifact
from chatloom.errors import ChatloomError
from chatloom.training import checkpoints
from chatloom.training.trainer import Trainer

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]
STAGES = ["pretrain", "sft", "ppo"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> None:
    """Leave no byte."""
    with open(disk / "filler", "ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(65536)):
            pass
    assert shutil.disk_usage(disk).free < 65536


@contextlib.contextmanager
def filled_between(monkeypatch: pytest.MonkeyPatch, disk: Path, first: int, last: int) -> Iterator[None]:
    """Somebody fills the disk before optimizer step `first` (from 0) and makes room before step `last`."""
    plain, calls = Trainer.update, 0

    def update(self: Trainer, *args: Any) -> dict[str, float]:
        nonlocal calls
        if calls == first:
            fill(disk)
        if calls == last:
            (disk / "filler").unlink()
        calls += 1
        return plain(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", update)
        yield


@pytest.mark.parametrize("stage", STAGES)
def test_a_disk_that_is_full_for_some_steps_costs_checkpoints_and_not_the_run(
    stage: str, world: World, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    whole, events = in_this_process(world, stage, tmp_path / "whole" / stage)
    total = events.count("u")
    with filled_between(monkeypatch, small_disk, total // 4, 3 * total // 4):
        made, _ = in_this_process(world, stage, small_disk / stage)
    assert "WARNING" in capfd.readouterr().err
    assert content(made) == content(whole)
    assert metrics_of(made) == metrics_of(whole)


@pytest.mark.parametrize("stage", STAGES)
def test_a_disk_that_stays_full_ends_in_a_sentence_and_the_run_goes_on_once_there_is_room(
    stage: str, world: World, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, events = in_this_process(world, stage, tmp_path / "whole" / stage)
    total = events.count("u")
    prune = checkpoints.prune

    def prune_in_vain(*given: Any) -> None:
        prune(*given)
        if (small_disk / "filler").exists():
            fill(small_disk)  # whoever fills the disk takes what has become free, too

    with filled_between(monkeypatch, small_disk, total // 2, -1), monkeypatch.context() as patch:
        patch.setattr(checkpoints, "prune", prune_in_vain)
        with pytest.raises(ChatloomError, match=rf"stage `{stage}`.*No space left on device"):
            in_this_process(world, stage, small_disk / stage)
    saved = checkpoints.steps(artifact.partial_of(small_disk / stage))
    (small_disk / "filler").unlink()
    made, again = in_this_process(world, stage, small_disk / stage)
    assert saved
    assert again.count("u") < total
    assert content(made) == content(whole)
    assert metrics_of(made) == metrics_of(whole)
