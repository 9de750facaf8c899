"""Promises of checkpoints: committed by one rename, found by their hashes, not lost to a full disk or damage."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from chatloom import artifact
from chatloom.errors import ChatloomError
from chatloom.model import weight_files
from chatloom.training import checkpoints
from chatloom.training.checkpoints import State

MANIFEST = {"kind": "model", "fingerprint": "f"}


def write_model(folder: Path) -> None:
    (folder / "model.bin").write_bytes(b"weights" * 100)


def state_of(step: int) -> State:
    return State({"updates": step}, {"optimizer": {"m": torch.full((3,), float(step)), "step": torch.tensor(step)}})


def save(run: Path, step: int) -> Path:
    return checkpoints.commit(checkpoints.hold(run, step, state_of(step), write_model, MANIFEST))


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
    checkpoints.prune(tmp_path, 2, besides={4})
    checkpoints.sweep(tmp_path)
    assert sorted(item.name for item in (tmp_path / checkpoints.FOLDER).iterdir()) == ["step-4", "step-6", "step-8"]
    checkpoints.prune(tmp_path, 0, besides={6})
    assert checkpoints.steps(tmp_path) == [6]


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
    told = json.loads((newest.parent / "damaged-step-4.json").read_text())
    assert told["step"] == 4
    assert name.split("/")[-1].split(".")[0] in told["reason"]
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


def test_what_is_held_is_what_it_was_when_it_was_held(tmp_path: Path) -> None:
    weight = torch.zeros(1000)
    moments = State({"updates": 1}, {"optimizer": {"m": weight}})
    held = checkpoints.hold(
        tmp_path, 1, moments, lambda folder: weight_files.write(folder / "w.safetensors", {"w": weight}), MANIFEST
    )
    assert held.tensors.n_bytes == 2 * 4000
    weight += 1.0  # training goes on before anything is written
    assert checkpoints.latest(tmp_path) is None
    folder = checkpoints.commit(held)
    assert load_file(folder / "w.safetensors")["w"].sum() == 0.0
    assert checkpoints.read_state(folder).tensors["optimizer"]["m"].sum() == 0.0
    weight_files.write(tmp_path / "now.safetensors", {"w": weight})  # and elsewhere writing is writing again
    assert load_file(tmp_path / "now.safetensors")["w"].sum() == 1000.0


@pytest.mark.parametrize(("format", "age"), [(1, "an older"), (99, "a newer")])
def test_a_state_of_another_format_is_refused_by_name(
    format: int, age: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "STATE_FORMAT", format)
    save(tmp_path, 2)
    monkeypatch.undo()
    with pytest.raises(ChatloomError, match=rf"written by {age} chatloom \(format {format}; this one reads 2\)"):
        restored(tmp_path)


def test_a_checkpoint_of_a_newer_format_is_refused_and_stays_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 2)
    monkeypatch.setattr(artifact, "FORMAT", artifact.FORMAT + 1)
    newest = save(tmp_path, 4)
    monkeypatch.undo()
    with pytest.raises(ChatloomError, match=r"written by a newer chatloom.*upgrade"):
        checkpoints.latest(tmp_path)
    assert newest.is_dir()


def test_no_file_of_a_checkpoint_is_a_pickle(tmp_path: Path) -> None:
    folder = save(tmp_path, 2)
    names = {item.relative_to(folder).as_posix() for item in folder.rglob("*") if item.is_file()}
    assert names == {"artifact.json", "model.bin", "state/values.json", "state/optimizer.safetensors"}
