"""Runs one training stage of the toy world in a process of its own, and ends it at a given moment.

    kill_child.py WORLD STAGE OUT            to the end; prints the events, one letter each
    kill_child.py WORLD STAGE OUT KILL N     SIGKILL at event N (counted from 0); INT and TERM likewise

Events are what a run does in order: u (an optimizer step), f (fsync), r (rename or replace), each before it is done.
Every run has the same number of them, so a moment can be drawn beforehand; what a step and the thread that writes a
checkpoint do at the same time comes in any order. The product has no hooks for this: the functions are wrapped here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from toys import World, merged

from chatloom import artifact, recipe
from chatloom.artifact import Artifact
from chatloom.training.metrics import read_metrics
from chatloom.training.saving import THREAD
from chatloom.training.trainer import Trainer

# Few and short steps, a checkpoint every other one.
SETTINGS: dict[str, dict[str, Any]] = {
    "pretrain": {"epochs": 1, "batch_rows": 8},
    "sft": {"epochs": 2},
    "reward": {"epochs": 2},
    "dpo": {"epochs": 3},
    "ppo": {"iterations": 5},
}
LOOP = {"checkpoint_every": 2, "checkpoint_seconds": 1e6}


class Clock:
    """Counts the events of the main thread and acts at one of them."""

    def __init__(self, action: signal.Signals | None = None, moment: int = -1) -> None:
        self.events, self.action, self.moment = "", action, moment
        self._lock = threading.Lock()

    def tick(self, letter: str) -> None:
        """One event is about to happen."""
        thread = threading.current_thread()
        if thread is not threading.main_thread() and thread.name != THREAD:
            return  # the meter's notes come by the clock on the wall, not by the run's progress
        with self._lock:
            if len(self.events) == self.moment and self.action is not None:
                os.kill(os.getpid(), self.action)
            self.events += letter

    def wrap(self, function: Callable[..., Any], letter: str) -> Callable[..., Any]:
        """The same function, counted."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.tick(letter)
            return function(*args, **kwargs)

        return counted


@contextlib.contextmanager
def watching(clock: Clock) -> Iterator[None]:
    """Count meanwhile."""
    before = {name: getattr(os, name) for name in ("fsync", "rename", "replace")}
    update = Trainer.update
    Trainer.update = clock.wrap(update, "u")  # type: ignore[method-assign]
    for name, function in before.items():
        setattr(os, name, clock.wrap(function, name[0]))
    try:
        yield
    finally:
        Trainer.update = update  # type: ignore[method-assign]
        for name, function in before.items():
            setattr(os, name, function)


def in_this_process(world: World, stage: str, out: Path, **changes: Any) -> tuple[Artifact, str]:
    """Run (or go on with) a stage to its end; returns it and its events."""
    world.prepare(stage)
    clock = Clock()
    with watching(clock):
        made = world.run(stage, out, **merged({"loop": LOOP, **SETTINGS[stage]}, changes))
    return made, clock.events


def in_child(world: World, stage: str, out: Path, *action: str | int) -> subprocess.CompletedProcess[str]:
    """The same in a process of its own, ended at a moment where `action` says so."""
    world.prepare(stage)
    command = [sys.executable, __file__, str(world.folder), stage, str(out), *map(str, action)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", check=False)


def content(made: Artifact) -> dict[str, str]:
    """sha256 of every file of an artifact that must not depend on how often it was killed."""
    whole = artifact.load(made.path, verify=True)
    timed = {"page.html", "metrics.jsonl"}  # they tell how long it took
    return {name: entry["sha256"] for name, entry in whole.manifest["files"].items() if name not in timed}


def metrics_of(made: Artifact) -> list[dict[str, Any]]:
    """Its metrics, each step once, without what the machine and its clock decide."""
    found = read_metrics(made.path / "metrics.jsonl")
    assert (found.torn_lines, found.replaced_rows) == (0, 0)
    of_the_machine = ("seconds", "tokens_per_second", "mfu", "data_wait", "memory")
    return [{k: v for k, v in row.items() if k not in of_the_machine} for row in found.rows]


def main() -> int:
    """Exit code 0 at the end, 128 + signal where the run stopped by itself; negative where it was killed."""
    folder, stage, out = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    action = signal.Signals[f"SIG{sys.argv[4]}"] if len(sys.argv) > 4 else None
    clock = Clock(action, int(sys.argv[5]) if action else -1)
    try:
        with watching(clock):
            World(folder).run(stage, out, loop=LOOP, **SETTINGS[stage])
    except recipe.Stopped as stopped:
        print(stopped, clock.events)
        return stopped.exit_code
    print(clock.events)
    if action is signal.SIGKILL:  # the moment lies after the end
        os.kill(os.getpid(), action)
    return 0


if __name__ == "__main__":
    sys.exit(main())
