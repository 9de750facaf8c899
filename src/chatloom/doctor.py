"""Is this machine fit? Looks at it, then trains a toy, kills it (-9), goes on, and compares weights byte by byte.

for finding in examine(Path("runs")):
    print(finding.verdict, finding.name, finding.text)
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from chatloom import artifact, recipe
from chatloom.artifact import Artifact, Draft, Identity
from chatloom.errors import ChatloomError

_GOOD_FREE_DISK = 5e9
_GOOD_MEMORY = 4e9
_PROBE_BYTES = 64 << 20
_SECONDS_TO_FIRST_CHECKPOINT = 120.0

# About 5 s on two cores, a checkpoint every few steps, so that a kill falls between two of them.
TOY: dict[str, Any] = {
    "model": {"hidden_size": 32, "n_layers": 2, "n_heads": 2, "context": 64},
    "epochs": 6,
    "batch_rows": 16,
    "loop": {"device": "cpu", "checkpoint_every": 10},
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    verdict: Literal["good", "note", "bad"]
    text: str


def examine(folder: Path, *, toy: bool = True) -> Iterator[Finding]:
    """Findings as they are made; `folder` is where runs would be written. `toy` adds the proof of kill and resume."""
    yield _python()
    yield _torch()
    yield _device()
    yield _memory()
    yield from _disk(folder)
    if toy:
        yield _kill_and_resume()


def _python() -> Finding:
    version = sys.version_info[:2]
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"
    if not (3, 11) <= version <= (3, 12):
        return Finding("Python", "bad", f"{text}; chatloom needs 3.11 or 3.12")
    return Finding("Python", "good", text)


def _torch() -> Finding:
    from chatloom.recipe.planning import machine_speed

    threads, speed = machine_speed()
    count = f"{threads} thread{'s' * (threads != 1)}"
    text = f"{artifact.versions().get('torch', 'unknown')}, {count}, {speed / 1e9:.0f} GFLOP/s (fp32)"
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    if threads > max(cores, os.cpu_count() or 1):
        return Finding("torch", "note", f"{text}; more threads than CPUs: set OMP_NUM_THREADS={cores}")
    return Finding("torch", "good", text)


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        return Finding("device", "good", f"{name}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free")
    if torch.backends.mps.is_available():
        return Finding("device", "good", "Apple GPU (mps)")
    return Finding("device", "good", "CPU only, which is enough for the demo")


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    text = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"
    if memory.available < _GOOD_MEMORY:
        return Finding("memory", "note", f"{text}; the demo takes up to 4 GB: close other programs first")
    return Finding("memory", "good", text)


def _disk(folder: Path) -> Iterator[Finding]:
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if not os.access(folder, os.W_OK):
        yield Finding("disk", "bad", f"{folder} cannot be written; give another folder with --folder")
        return
    text = f"{free / 1e9:.1f} GB free at {folder}"
    if free < 4 * _PROBE_BYTES:
        yield Finding("disk", "bad", f"{text}; make room")
        return
    speed = _write_speed(folder)
    text += f", writes {speed / 1e6:.0f} MB/s"
    verdict: Literal["good", "note"] = "good" if free >= _GOOD_FREE_DISK else "note"
    yield Finding("disk", verdict, text if verdict == "good" else f"{text}; longer runs need more")


def _write_speed(folder: Path) -> float:
    """Bytes a second of writing 64 MiB and flushing them to disk."""
    block = os.urandom(1 << 20)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".chatloom-doctor-") as file:
        start = time.perf_counter()
        for _ in range(_PROBE_BYTES >> 20):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return _PROBE_BYTES / (time.perf_counter() - start)


def _kill_and_resume() -> Finding:
    name = "kill and resume"
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chatloom-doctor-") as text:
        folder = Path(text)
        try:
            prepare_toy(folder)
            whole = train_toy(folder, "whole")
            step = kill_toy(folder, "killed")
            resumed = train_toy(folder, "killed")
        except ChatloomError as error:
            return Finding(name, "bad", str(error))
        same = weights(whole) == weights(resumed)
        seconds = time.monotonic() - start
        if not same:
            return Finding(name, "bad", f"killed after step {step}: the resumed run ended with other weights")
        text = f"trained a toy, killed it (-9) with step {step} saved, went on: weights identical byte by byte"
        return Finding(name, "good", f"{text} ({seconds:.0f} s)")


def prepare_toy(folder: Path) -> None:
    """Write the toy's documents, vocabulary and tokens as artifacts below `folder`."""
    from chatloom.corpus.record import SHARDS, Document, write_documents

    target = folder / "documents"
    with artifact.locked(target):
        draft = artifact.begin(target, Identity("documents", "doctor", 1, {}, 0))
        assert isinstance(draft, Draft)
        documents = [Document(f"toy-{n}", _toy_text(n), source="doctor") for n in range(64)]
        write_documents(draft.path / SHARDS / "toy.parquet", documents, {})
        draft.commit({})
    settings = {"vocab_size": 300, "allow_smaller": True}
    recipe.run_stage("tokenizer", settings, {"documents": [target]}, folder / "vocabulary", quiet=True)
    inputs = {"documents": [target], "vocabulary": folder / "vocabulary"}
    recipe.run_stage("tokens", {}, inputs, folder / "tokens", quiet=True)


def _toy_text(number: int) -> str:
    words = ["the", "loom", "weaves", "a", "long", "thread", "of", "words", *"织机织出长长的句子"]
    return " ".join(words[(number * 7 + i * i) % len(words)] for i in range(120))


def train_toy(folder: Path, name: str) -> Artifact:
    """Train `name` to its end in a child process (or go on with it); raises ChatloomError with its last words."""
    child = _start_child(folder, name)
    _, errors = child.communicate()
    if child.returncode:
        last = "\n".join(errors.strip().splitlines()[-3:])
        raise ChatloomError(f"training a toy failed with exit code {child.returncode}: {last}")
    return artifact.load(folder / name, "model", verify=True)


def kill_toy(folder: Path, name: str) -> int:
    """Start training `name` and kill it with SIGKILL once a checkpoint is there; returns that checkpoint's step."""
    child = _start_child(folder, name)
    checkpoints = artifact.partial_of(folder / name) / "checkpoints"
    try:
        deadline = time.monotonic() + _SECONDS_TO_FIRST_CHECKPOINT
        while time.monotonic() < deadline and child.poll() is None:
            steps = [int(item.name[5:]) for item in checkpoints.glob("step-*") if item.name[5:].isdigit()]
            if steps:
                time.sleep(0.05)  # into the steps after the checkpoint, which are lost and must be made again
                break
            time.sleep(0.005)
        else:
            raise ChatloomError("training a toy wrote no checkpoint before its end; the machine's clock or disk is odd")
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    if artifact.exists(folder / name):
        raise ChatloomError("the toy was trained to its end before it could be killed; run doctor again")
    return max(steps)


def weights(model: Artifact) -> dict[str, str]:
    """sha256 of each weight file of a model, by name."""
    files = model.manifest["files"]
    found = {name: entry["sha256"] for name, entry in files.items() if name.endswith(".safetensors")}
    if not found:
        raise ChatloomError(f"{model.path}: holds no weights; it holds {', '.join(files)}")
    return found


def _start_child(folder: Path, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "chatloom.doctor", str(folder), name]
    # One thread: a model this small gains nothing from more, and loses much when the machine is busy.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )


def _train_here(folder: Path, name: str) -> None:
    made = recipe.run_stage("pretrain", TOY, {"tokens": folder / "tokens"}, folder / name, seed=1, quiet=True)
    print(json.dumps(dict(made.metrics)))


if __name__ == "__main__":
    try:
        _train_here(Path(sys.argv[1]), sys.argv[2])
    except ChatloomError as problem:
        sys.exit(str(problem))
