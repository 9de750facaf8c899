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
from types import FrameType
from typing import Any

from chatloom.progress import progress, say
from chatloom.training import checkpoints
from chatloom.training.anomalies import AnomalyLog
from chatloom.training.metrics import MetricsFile, read_metrics, truncate_after
from chatloom.training.saving import Run, Saver, check_room
from chatloom.training.sharing import join_in
from chatloom.training.sinks import fed, sinks_of
from chatloom.training.trainer import Trainer

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # the last: a batch system's warning


@dataclass(frozen=True)
class Ending:
    """How a run ended: whether before its total, and the steps of the checkpoints that stay for good."""

    stopped: bool
    kept: frozenset[int]


def fit(
    run: Run, trainer: Trainer, total: int, unit: Callable[[int], dict[str, float]], *, label: str, noun: str
) -> Ending:
    """Do units (steps, or PPO iterations) up to `total`, resuming from the newest checkpoint.

    `unit(i)` returns metrics; a truthy `stop` among them ends the run early. SIGINT, SIGTERM and SIGUSR1 finish the
    unit, save, and are then delivered as if they had come only now. Whatever the moment of a kill, the next call
    continues to byte-identical weights. A full disk delays checkpoints and metrics; ChatloomError is raised where
    something must be saved and cannot be.

    Of several processes the first one does this, and the others what it tells them, until they are released.
    """
    if not trainer.team.world.leads:
        with _signals() as caught:
            join_in(run, trainer, unit, caught)
    checkpoints.sweep(run.path)
    start, remembered = _resume(run, trainer)
    check_room(run, trainer)
    truncate_after(run.path / "metrics.jsonl", start)
    done = read_metrics(run.path / "metrics.jsonl").rows
    stopped = bool(done and done[-1].get("stop"))
    log = MetricsFile(run.path / "metrics.jsonl")
    trainer.record = AnomalyLog(run.path, trainer.updates)
    saver, reached = Saver(run, trainer, start, remembered), start
    sinks = sinks_of(run.loop.sinks, run.path, start, run.identity)
    shown_as = progress(total, unit=noun, label=label, quiet=run.quiet, start=start)
    with log, _signals() as caught, fed(sinks) as give, saver, shown_as as bar:
        for index in range(start, total):
            if stopped:
                break
            begun = time.monotonic()
            trainer.team.tell("unit", index)
            metrics = unit(index)
            seconds = time.monotonic() - begun
            if "tokens" in metrics and seconds > 0:
                metrics["tokens_per_second"] = metrics["tokens"] / seconds
            reached = index + 1
            trainer.team.share_signals(caught)
            if trainer.wants_rollback:
                saver.settle()
                metrics["rolled_back_to"] = float(_roll_back(run, trainer, reached))
            written = log.offer(reached, "train", **metrics, seconds=seconds)
            give(reached, {**metrics, "seconds": seconds})
            saver.note(metrics)
            bar.advance(1, **_shown(metrics))
            stopped = bool(metrics.get("stop"))
            # A checkpoint whose rows are not on the disk would be resumed from without them.
            if (saver.due(reached) or caught or stopped) and written:
                saver.save(reached)
            if caught:
                break
        log.catch_up()
    if caught:
        saver.finish(reached)  # the signal may have come after the last step's own check
        say(f"{label}: saved after step {reached}; run the same command again to go on from here")
        trainer.team.tell("stop", caught[0])
        signal.raise_signal(caught[0])
        raise KeyboardInterrupt  # a handler that returned must not make a stopped run look finished
    return Ending(stopped, frozenset(saver.kept()))


def _shown(metrics: Mapping[str, float]) -> dict[str, float | str]:
    """What a person sees of a step in the terminal; what a skipped step does not have stays as it was."""
    found: dict[str, float | str] = {
        key: metrics[key] for key in ("loss", "accuracy", "reward", "kl", "lr") if key in metrics
    }
    if "tokens_per_second" in metrics:
        found["tokens/s"] = round(metrics["tokens_per_second"])
    for name, key in (("MFU", "mfu"), ("data wait", "data_wait")):
        if key in metrics:
            found[name] = f"{100 * metrics[key]:.1f}%"
    if "memory" in metrics:
        found["memory"] = f"{metrics['memory'] / 1e9:.2f} GB"
    return found


def _roll_back(run: Run, trainer: Trainer, reached: int) -> int:
    """Put back weights and moments of the newest anchor from before the trouble; returns its step.

    Each is gone back to once: if the trouble was in its weights already, the next rollback takes the one before. Data
    and schedule are functions of the step, which only rises, so the data that led here are not read again.
    """
    before_trouble = reached - trainer.skipped_in_a_row
    for step in run.anchors(before_trouble):
        if step in trainer.rolled_back_to or not checkpoints.is_sound(run.path, step):
            continue
        folder = checkpoints.folder_of(run.path, step)
        trainer.team.tell("back", (step, str(folder)))
        run.go_back(trainer, step, folder)
        say(f"weights and optimizer are those after step {step} again; the data of the steps since are not read again")
        return step
    raise trainer.gives_up(f"there is no checkpoint from before step {before_trouble + 1} to go back to")


def _resume(run: Run, trainer: Trainer) -> tuple[int, Mapping[str, Any]]:
    """The step to go on after, and what saving remembers."""
    found = checkpoints.latest(run.path)
    if found is None:
        return 0, {}
    step, folder = found
    trainer.team.tell("load", str(folder))
    remembered = run.load(trainer, folder)
    if not run.quiet:
        say(f"resuming after step {step}")
    return step, remembered


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect signals to stop; a second one ends at once. Outside the main thread nothing is collected."""
    caught: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    try:
        # A signal that whoever started us had ignored (nohup) stays ignored.
        heeded = [n for n in STOPPING if signal.getsignal(n) is not signal.SIG_IGN]
        old = {number: signal.signal(number, note) for number in heeded}
    except ValueError:
        yield caught
        return
    try:
        yield caught
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
