"""Promises of checkpoints: committed by one rename, found by their hashes, not lost to a full disk or damage."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from chatloom import artifact
from chatloom.errors import ChatloomError
from chatloom.training import checkpoints
from chatloom.training.checkpoints import State

MANIFEST = {"kind": "model", "fingerprint": "f"}


def write_model(folder: Path) -> None:
    (folder / "model.bin").write_bytes(b"weights" * 100)


def state_of(step: int) -> State:
    return State({"updates": step}, {"optimizer": {"m": torch.full((3,), float(step)), "step": torch.tensor(step)}})


def save(run: Path, step: int) -> Path:
    return checkpoints.save(run, step, state_of(step), write_model, MANIFEST)


def restored(run: Path) -> tuple[int, State]:
    found = checkpoints.latest(run)
    assert found is not None
    return found[0], checkpoints.read_state(found[1])


def test_the_newest_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    assert checkpoints.latest(tmp_path) is None
    save(tmp_path, 9)
    save(tmp_path, 10)  # 10 is newer than 9, though not in the alphabet
    step, state = restored(tmp_path)
    assert step == 10
    assert state.values == {"updates": 10}
    assert torch.equal(state.tensors["optimizer"]["m"], torch.full((3,), 10.0))
    assert state.tensors["optimizer"]["step"].shape == ()


def test_only_the_newest_ones_stay(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):
        save(tmp_path, step)
    left = artifact.partial_of(tmp_path / checkpoints.FOLDER / "step-10")
    left.mkdir()
    checkpoints.prune(tmp_path, 2)
    assert sorted(item.name for item in (tmp_path / checkpoints.FOLDER).iterdir()) == ["step-6", "step-8"]


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "truncated model": ("model.bin", truncate),
    "empty model": ("model.bin", lambda file: os.truncate(file, 0)),
    "one bit of the model": ("model.bin", flip_a_bit),
    "one bit of the moments": ("state/optimizer.safetensors", flip_a_bit),
    "missing state": ("state/values.json", os.unlink),
    "truncated manifest": ("artifact.json", truncate),
    "missing manifest": ("artifact.json", os.unlink),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(damage: str, tmp_path: Path) -> None:
    save(tmp_path, 2)
    newest = save(tmp_path, 4)
    name, harm = DAMAGES[damage]
    harm(newest / name)
    assert restored(tmp_path)[0] == 2
    assert not newest.exists()
    assert (newest.parent / "damaged-step-4").is_dir()  # kept for a person to look at
    save(tmp_path, 4)  # the run gets there again
    assert restored(tmp_path)[0] == 4


@pytest.mark.parametrize("damage", DAMAGES)
def test_when_every_checkpoint_is_damaged_the_run_does_not_start_again_in_silence(damage: str, tmp_path: Path) -> None:
    name, harm = DAMAGES[damage]
    for step in (2, 4):
        harm(save(tmp_path, step) / name)
    for _ in range(2):  # the second time, too, when both have been set aside
        with pytest.raises(ChatloomError, match=r"every checkpoint is damaged.*--start-over"):
            checkpoints.latest(tmp_path)


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_space_in_rust(*_: Any, **__: Any) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("place", "fault"),
    [
        ("chatloom.model.weight_files.save_file", no_space),
        ("chatloom.model.weight_files.save_file", no_space_in_rust),
        ("chatloom.artifact.fsync_file", no_space),
        ("chatloom.artifact.write_json", no_space),
        ("os.replace", no_space),
    ],
    ids=["tensors", "tensors, in Rust", "flush", "manifest", "rename"],
)
def test_a_full_disk_ends_in_a_clear_sentence_and_leaves_the_earlier_checkpoint(
    place: str, fault: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 2)
    with monkeypatch.context() as patch:
        patch.setattr(place, fault)
        with pytest.raises(ChatloomError, match=r"step-4.*No space left on device.*earlier checkpoints are intact"):
            save(tmp_path, 4)
    assert restored(tmp_path)[0] == 2
    assert [item.name for item in (tmp_path / checkpoints.FOLDER).iterdir()] == ["step-2"]  # nothing half-written
    save(tmp_path, 4)  # once there is space again
    assert restored(tmp_path)[0] == 4


def test_a_file_that_really_cannot_grow_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    large = State({}, {"optimizer": {"m": torch.zeros(1_000_000)}})
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(ChatloomError, match="the checkpoint could not be written"):
            checkpoints.save(tmp_path, 4, large, write_model, MANIFEST)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert restored(tmp_path)[0] == 2
    assert [item.name for item in (tmp_path / checkpoints.FOLDER).iterdir()] == ["step-2"]


def test_no_file_of_a_checkpoint_is_a_pickle(tmp_path: Path) -> None:
    folder = save(tmp_path, 2)
    names = {item.relative_to(folder).as_posix() for item in folder.rglob("*") if item.is_file()}
    assert names == {"artifact.json", "model.bin", "state/values.json", "state/optimizer.safetensors"}
