"""Checkpoints: complete artifacts below `checkpoints/step-N/`, committed by one rename, found again after a kill."""

from __future__ import annotations

import json
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
        plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        weight_files.write(target / f"{name}.safetensors", plain)
    artifact.write_json(target / "values.json", state.values)


def read_state(folder: Path) -> State:
    """What `write_state` wrote."""
    source = folder / STATE
    values = json.loads((source / "values.json").read_text(encoding="utf-8"))
    return State(values, {file.stem: load_file(file) for file in sorted(source.glob("*.safetensors"))})


def save(run: Path, step: int, state: State, write_model: Callable[[Path], None], manifest: Mapping[str, Any]) -> Path:
    """Commit the checkpoint of a step: model folder, state, manifest; returns its folder.

    A full disk raises ChatloomError and leaves the earlier checkpoints as they were.
    """
    target = folder_of(run, step)
    if artifact.exists(target):
        return target
    partial = artifact.partial_of(target)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        write_model(partial)
        write_state(partial, state)
        artifact.commit_folder(partial, target, {**manifest, "format": artifact.FORMAT, "metrics": {"step": step}})
    except (OSError, SafetensorError, ChatloomError) as error:
        # safetensors and the model's writer have errors of their own for a full disk.
        shutil.rmtree(partial, ignore_errors=True)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ChatloomError(
            f"{target}: the checkpoint could not be written ({reason}); earlier checkpoints are intact. "
            f"Free some space and run the same command again to go on from the last one."
        ) from None
    return target


def steps(run: Path) -> list[int]:
    """Steps of all committed checkpoints of a run, ascending, damaged ones included."""
    numbers = (folder.name.removeprefix("step-") for folder in (run / FOLDER).glob("step-*"))
    return sorted(int(number) for number in numbers if number.isdigit())


def latest(run: Path) -> tuple[int, Path] | None:
    """The newest checkpoint whose every file still has its recorded hash.

    A damaged one is set aside as `damaged-step-N` and the one before is taken. When checkpoints exist (or were set
    aside before) and none is sound, ChatloomError: starting again in silence would hide the loss.
    """
    for step in reversed(steps(run)):
        if is_sound(run, step):
            return step, folder_of(run, step)
    if any((run / FOLDER).glob("damaged-step-*")):
        raise ChatloomError(
            f"{run / FOLDER}: every checkpoint is damaged (set aside as damaged-step-*); "
            f"look at the disk, then start over with --start-over"
        )
    return None


def folder_of(run: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return run / FOLDER / f"step-{step}"


def is_sound(run: Path, step: int) -> bool:
    """Whether every file of a checkpoint has its recorded hash; one that is damaged is set aside, with the reason."""
    folder = folder_of(run, step)
    try:
        artifact.load(folder, verify=True)
    except artifact.ArtifactError as error:
        aside = folder.with_name(f"damaged-{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        artifact.write_json(aside.with_name(f"{aside.name}.json"), {"step": step, "reason": str(error)})
        return False
    return True


def prune(run: Path, keep: int, besides: Collection[int] = ()) -> None:
    """Remove all but the newest `keep` checkpoints and those of `besides`, and what killed runs left half-done."""
    for step in steps(run)[:-keep]:
        if step not in besides:
            shutil.rmtree(folder_of(run, step), ignore_errors=True)
    for partial in (run / FOLDER).glob("*.partial"):
        shutil.rmtree(partial, ignore_errors=True)
