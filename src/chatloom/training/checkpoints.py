"""Checkpoints: complete artifacts below `checkpoints/step-N/`, committed by one rename, found again after a kill.

Made in two halves: `hold` copies all tensors to memory, after which training may go on; `commit` writes them, in
whatever thread.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from chatloom import artifact
from chatloom.errors import ChatloomError
from chatloom.model import weight_files

FOLDER = "checkpoints"
STATE = "state"
STATE_FORMAT = 2  # 2: with the window of anomalies and what saving itself remembers
# What writing may raise: safetensors and the model's writer have errors of their own for a full disk.
UNWRITABLE = (OSError, SafetensorError, ChatloomError)


@dataclass(frozen=True)
class State:
    """What a resumed run needs beside the model: JSON values and named tensors."""

    values: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]


def write_state(folder: Path, state: State) -> None:
    """Write `state/values.json` and one safetensors file per named group; no pickle."""
    target = folder / STATE
    target.mkdir(parents=True, exist_ok=True)
    for name, tensors in state.tensors.items():
        plain = {key: value.detach().contiguous() for key, value in tensors.items()}
        weight_files.write(target / f"{name}.safetensors", plain)
    artifact.write_json(target / "values.json", {"format": STATE_FORMAT, **state.values})


def read_state(folder: Path) -> State:
    """What `write_state` wrote; raises ChatloomError for a state of another format."""
    source = folder / STATE
    values = json.loads((source / "values.json").read_text(encoding="utf-8"))
    found = values.pop("format", 1)
    if found != STATE_FORMAT:
        age = "a newer" if found > STATE_FORMAT else "an older"
        raise ChatloomError(
            f"{source}: was written by {age} chatloom (format {found}; this one reads {STATE_FORMAT}); go on with that "
            "version, or start over with --start-over"
        )
    return State(values, {file.stem: load_file(file) for file in sorted(source.glob("*.safetensors"))})


@dataclass(frozen=True)
class Held:
    """A checkpoint whose tensors are in memory; its small files lie below `partial` already."""

    partial: Path
    target: Path
    tensors: weight_files.Held
    manifest: Mapping[str, Any]


def hold(run: Path, step: int, state: State, write_model: Callable[[Path], None], manifest: Mapping[str, Any]) -> Held:
    """The first half of saving: what is saved may change as soon as this returns."""
    target = folder_of(run, step)
    partial = artifact.partial_of(target)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with weight_files.held() as tensors:
        write_model(partial)
        write_state(partial, state)
    return Held(partial, target, tensors, {**manifest, "format": artifact.FORMAT, "metrics": {"step": step}})


def commit(held: Held) -> Path:
    """The second half: write the tensors, the manifest, rename; returns the folder. May be called again if it fails."""
    if artifact.exists(held.target):
        shutil.rmtree(held.partial)
    else:
        free, need = shutil.disk_usage(held.partial).free, held.tensors.n_bytes
        if free < need:
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {free:,} bytes are free, it takes {need:,}")
        held.tensors.write()
        artifact.commit_folder(held.partial, held.target, held.manifest)
    return held.target


def folder_of(run: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return run / FOLDER / f"step-{step}"


def steps(run: Path) -> list[int]:
    """Steps of all committed checkpoints of a run, ascending, damaged ones included."""
    numbers = (folder.name.removeprefix("step-") for folder in (run / FOLDER).glob("step-*"))
    return sorted(int(number) for number in numbers if number.isdigit())


def latest(run: Path) -> tuple[int, Path] | None:
    """The newest checkpoint whose every file still has its recorded hash.

    A damaged one is set aside as `damaged-step-N`, the reason beside it in `damaged-step-N.json`, and the one before is
    taken. When checkpoints exist (or were set aside before) and none is sound, ChatloomError: starting again in silence
    would hide the loss. One that a newer chatloom wrote is refused, not set aside.
    """
    for step in reversed(steps(run)):
        if is_sound(run, step):
            return step, folder_of(run, step)
    if any((run / FOLDER).glob("damaged-step-*")):
        raise ChatloomError(
            f"{run / FOLDER}: every checkpoint is damaged (set aside as damaged-step-*, with reasons); "
            f"look at the disk, then start over with --start-over"
        )
    return None


def is_sound(run: Path, step: int) -> bool:
    """Whether every file of a checkpoint has its recorded hash; one that is damaged is set aside, with the reason."""
    folder = folder_of(run, step)
    try:
        artifact.load(folder, verify=True)
    except artifact.NewerFormat:
        raise
    except artifact.ArtifactError as error:
        aside = folder.with_name(f"damaged-{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        artifact.write_json(aside.with_name(f"{aside.name}.json"), {"step": step, "reason": str(error)})
        return False
    return True


def prune(run: Path, keep: int, besides: Collection[int] = ()) -> None:
    """Remove all but the newest `keep` checkpoints and those of `besides`."""
    found = steps(run)
    for step in found[: max(0, len(found) - keep)]:
        if step not in besides:
            shutil.rmtree(folder_of(run, step), ignore_errors=True)


def sweep(run: Path) -> None:
    """Remove what a killed run has left half-written."""
    for partial in (run / FOLDER).glob("*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


def clear(run: Path, besides: Collection[int]) -> None:
    """Remove everything of a run's checkpoints but those of `besides`."""
    folder = run / FOLDER
    for item in folder.iterdir() if folder.is_dir() else ():
        if item.name not in {f"step-{step}" for step in besides}:
            shutil.rmtree(item) if item.is_dir() else item.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
