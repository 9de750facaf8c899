"""The one training loop: pretraining, SFT, reward model, DPO and PPO all step through here.

`Trainer.update` (trainer.py) is one optimizer step over micro-batches; `fit` drives steps (or PPO iterations) with
metrics, progress, checkpoints, rollbacks, resume and signals.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from chatloom.progress import progress, say
from chatloom.settings import digest
from chatloom.training import checkpoints
from chatloom.training.anomalies import AnomalyLog
from chatloom.training.checkpoints import State
from chatloom.training.metrics import MetricsFile, read_metrics, truncate_after
from chatloom.training.settings import LoopSettings
from chatloom.training.trainer import Trainer


@dataclass
class Run:
    """Where a run lives and how it saves itself.

    `write_model` writes the model folder, `extra_state` / `load_extra` carry what else decides the future (controllers,
    critic), and `load_model` puts the weights of a checkpoint back. Every `anchor_every` steps (0: never) a checkpoint
    is written that a rollback may go back to; which one it is must not depend on the clock.
    """

    path: Path
    kind: str
    identity: Mapping[str, Any]
    loop: LoopSettings
    write_model: Callable[[Path], None]
    load_model: Callable[[Path], None]
    extra_state: Callable[[], State] = lambda: State({}, {})
    load_extra: Callable[[State], None] = lambda _: None
    anchor_every: int = 0
    quiet: bool = False


def fit(
    run: Run, trainer: Trainer, total: int, unit: Callable[[int], dict[str, float]], *, label: str, noun: str
) -> bool:
    """Do units (steps, or PPO iterations) up to `total`, resuming from the newest checkpoint.

    `unit(i)` returns metrics; a truthy `stop` among them ends the run early. SIGINT and SIGTERM finish the unit, save,
    and are then delivered as if they had come only now. Whatever the moment of a kill, the next call continues to
    byte-identical weights. Returns whether the run ended before `total`.
    """
    start = _resume(run, trainer)
    truncate_after(run.path / "metrics.jsonl", start)
    done = read_metrics(run.path / "metrics.jsonl").rows
    stopped = bool(done and done[-1].get("stop"))
    log = MetricsFile(run.path / "metrics.jsonl")
    trainer.record = AnomalyLog(run.path, trainer.updates)
    saved_at, saved, reached = time.monotonic(), start, start
    with log, _signals() as caught, progress(total, unit=noun, label=label, quiet=run.quiet, start=start) as bar:
        for index in range(start, total):
            if stopped:
                break
            begun = time.monotonic()
            metrics = unit(index)
            seconds = time.monotonic() - begun
            if "tokens" in metrics and seconds > 0:
                metrics["tokens_per_second"] = metrics["tokens"] / seconds
            reached = index + 1
            if trainer.wants_rollback:
                metrics["rolled_back_to"] = float(_roll_back(run, trainer, reached))
            log.append(reached, "train", **metrics, seconds=seconds)
            bar.advance(1, **{key: metrics[key] for key in _SHOWN if key in metrics})
            stopped = bool(metrics.get("stop"))
            due = any(n and reached % n == 0 for n in (run.loop.checkpoint_every, run.anchor_every))
            if due or caught or time.monotonic() - saved_at > run.loop.checkpoint_seconds or stopped:
                save(run, trainer, reached)
                saved_at, saved = time.monotonic(), reached
            if caught:
                break
    if caught:
        if saved < reached:  # the signal came after the last step's own check
            save(run, trainer, reached)
        say(f"{label}: saved after step {reached}; run the same command again to go on from here")
        signal.raise_signal(caught[0])
        raise KeyboardInterrupt  # a handler that returned must not make a stopped run look finished
    return stopped


ANCHORS = 2  # kept on disk: the trouble may have begun before the newer one
_SHOWN = ("loss", "accuracy", "reward", "kl", "lr", "tokens_per_second")


def save(run: Run, trainer: Trainer, step: int) -> None:
    """Checkpoint a run at a step and drop old ones."""
    own, extra = trainer.state(), run.extra_state()
    state = State({"trainer": own.values, "extra": extra.values}, {**own.tensors, **extra.tensors})
    manifest = {**run.identity, "kind": run.kind, "fingerprint": f"{digest(dict(run.identity))[:16]}@{step}"}
    checkpoints.save(run.path, step, state, run.write_model, manifest)
    checkpoints.prune(run.path, run.loop.keep_checkpoints, _anchors(run, step)[:ANCHORS])


def _anchors(run: Run, step: int) -> list[int]:
    """Steps of the checkpoints up to `step` that a rollback may go back to, newest first."""
    if not run.anchor_every:
        return []
    return [n for n in reversed(checkpoints.steps(run.path)) if n <= step and n % run.anchor_every == 0]


def _roll_back(run: Run, trainer: Trainer, reached: int) -> int:
    """Put back weights and moments of the newest anchor from before the trouble; returns its step.

    Each is gone back to once: if the trouble was in its weights already, the next rollback takes the one before. Data
    and schedule are functions of the step, which only rises, so the data that led here are not read again.
    """
    before_trouble = reached - trainer.skipped_in_a_row
    for step in _anchors(run, before_trouble):
        if step in trainer.rolled_back_to or not checkpoints.is_sound(run.path, step):
            continue
        updates, skipped, earlier = trainer.updates, trainer.skipped, trainer.rolled_back_to
        _load(run, trainer, checkpoints.folder_of(run.path, step))
        trainer.gone_back(step, updates=updates, skipped=skipped, earlier=earlier)
        say(f"weights and optimizer are those after step {step} again; the data of the steps since are not read again")
        return step
    raise trainer.gives_up(f"there is no checkpoint from before step {before_trouble + 1} to go back to")


def _resume(run: Run, trainer: Trainer) -> int:
    found = checkpoints.latest(run.path)
    if found is None:
        return 0
    step, folder = found
    _load(run, trainer, folder)
    if not run.quiet:
        say(f"resuming after step {step}")
    return step


def _load(run: Run, trainer: Trainer, folder: Path) -> None:
    state = checkpoints.read_state(folder)
    run.load_model(folder)
    trainer.load(State(state.values["trainer"], state.tensors))
    run.load_extra(State(state.values["extra"], state.tensors))


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM; a second one ends at once. Outside the main thread nothing is collected."""
    caught: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    try:
        # A signal that whoever started us had ignored (nohup) stays ignored.
        heeded = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
        old = {number: signal.signal(number, note) for number in heeded}
    except ValueError:
        yield caught
        return
    try:
        yield caught
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
