"""When a run saves itself, what of it stays, and what happens when the disk is full.

A checkpoint is copied to memory between two steps and written by a thread while training goes on, at most one at a
time. A disk that cannot take it costs that checkpoint, never the run.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from chatloom import artifact
from chatloom.errors import ChatloomError
from chatloom.progress import say
from chatloom.settings import digest
from chatloom.training import checkpoints
from chatloom.training.checkpoints import State
from chatloom.training.settings import LoopSettings
from chatloom.training.trainer import Trainer

ANCHORS = 2  # kept on disk: the trouble may have begun before the newer one
THREAD = "checkpoint"
T = TypeVar("T")


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

    def state(self, own: State, saving: Mapping[str, Any]) -> State:
        """All that a resumed run needs beside the model; `own`: the trainer's state."""
        extra = self.extra_state()
        values = {"trainer": own.values, "extra": extra.values, "saving": dict(saving)}
        return State(values, {**own.tensors, **extra.tensors})

    def load(self, trainer: Trainer, folder: Path) -> Mapping[str, Any]:
        """Put back a checkpoint, or the finished stage's last state; returns what saving remembers."""
        state = checkpoints.read_state(folder)
        with trainer.team.filling():
            self.load_model(folder)
        trainer.load(State(state.values["trainer"], state.tensors))
        self.load_extra(State(state.values["extra"], state.tensors))
        saving: Mapping[str, Any] = state.values["saving"]
        return saving

    def go_back(self, trainer: Trainer, step: int, folder: Path) -> None:
        """Put back the checkpoint of a step; the count of steps goes on from where it is."""
        updates, skipped, earlier = trainer.updates, trainer.skipped, trainer.rolled_back_to
        self.load(trainer, folder)
        trainer.gone_back(step, updates=updates, skipped=skipped, earlier=earlier)

    def anchors(self, until: int) -> list[int]:
        """Steps of the checkpoints up to a step that a rollback may go back to, newest first."""
        if not self.anchor_every:
            return []
        found = reversed(checkpoints.steps(self.path))
        return [step for step in found if step <= until and step % self.anchor_every == 0]


@dataclass(frozen=True)
class Best:
    """The checkpoint with the best mean of a metric over the steps since the checkpoint before it.

    `metric` is a name, or `max` and a name where more is better; empty: nothing is kept.
    """

    metric: str = ""
    step: int | None = None
    value: float | None = None

    def of(self, metrics: Mapping[str, float]) -> float | None:
        """The metric of a step, None of one that was skipped; raises ChatloomError when there is no such metric."""
        name = self.metric.removeprefix("max ")
        if not name or "skipped" in metrics:
            return None
        if name not in metrics:
            raise ChatloomError(f"loop.keep_best: there is no metric `{name}`; there are {', '.join(sorted(metrics))}")
        return metrics[name]

    def after(self, step: int, values: Sequence[float]) -> Best:
        """What is best once the checkpoint of a step is there, too, before which the metric had these values."""
        if not values:
            return self
        mean, sign = sum(values) / len(values), -1.0 if self.metric.startswith("max ") else 1.0
        better = self.value is None or sign * mean < sign * self.value
        return Best(self.metric, step, mean) if better else self


class Saver:
    """Saves a run; in a `with`, whose end waits for what is being written.

    A disk that is full: what was half-written goes, older checkpoints go down to one fewer than are kept, and it is
    tried once more. Then training goes on with a warning, and the next due step tries again.
    """

    def __init__(self, run: Run, trainer: Trainer, reached: int, remembered: Mapping[str, Any]) -> None:
        """`reached`, `remembered`: of the checkpoint that the run goes on from (0, empty)."""
        self.run, self.trainer = run, trainer
        self.saved = reached
        self.best = Best(run.loop.keep_best)
        if remembered.get("metric") == self.best.metric:
            self.best = Best(**remembered)
        self._values: list[float] = []
        self._at = time.monotonic()
        self._writing: _Writing | None = None

    def note(self, metrics: Mapping[str, float]) -> None:
        """Look at the metrics of a step, for the best checkpoint."""
        value = self.best.of(metrics)
        if value is not None:
            self._values.append(value)

    def due(self, step: int) -> bool:
        """Whether to save after a step: by its number, or by the clock unless one is still being written."""
        loop = self.run.loop
        if any(n and step % n == 0 for n in (loop.checkpoint_every, loop.keep_every, self.run.anchor_every)):
            return True
        late = time.monotonic() - self._at > loop.checkpoint_seconds
        return late and (self._writing is None or not self._writing.is_alive())

    def save(self, step: int) -> None:
        """Copy what is to be saved and have it written. Collective."""
        self.settle()
        self._at = time.monotonic()
        run, best = self.run, self.best.after(step, self._values)
        self._values = []
        manifest = {**run.identity, "kind": run.kind, "fingerprint": f"{digest(dict(run.identity))[:16]}@{step}"}
        self.trainer.team.tell("save")
        state = run.state(self.trainer.state(), asdict(best) if best.metric else {})
        try:
            with self.trainer.team.whole():
                held = self._with_room(lambda: checkpoints.hold(run.path, step, state, run.write_model, manifest), step)
        except checkpoints.UNWRITABLE as error:
            self._failed(step, error)
            return
        self._writing = _Writing(step, lambda: self._write(held, step, best))
        self._writing.start()
        if not run.loop.checkpoint_in_background:
            self.settle()

    def settle(self) -> None:
        """Wait for what is being written, and say so if it could not be."""
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        writing.join()
        if isinstance(writing.error, checkpoints.UNWRITABLE):
            self._failed(writing.step, writing.error)
        elif writing.error is not None:
            raise writing.error

    def finish(self, step: int) -> None:
        """Save after a step unless that is done; raises ChatloomError when it cannot be."""
        self.settle()
        if self.saved < step:
            self.save(step)
            self.settle()
        if self.saved < step:
            raise ChatloomError(
                f"{self.run.path}: what was done up to step {step} could not be saved; the newest checkpoint is of "
                f"step {self.saved}. Free some space and run the same command again to go on from there"
            )

    def kept(self) -> set[int]:
        """Steps of the checkpoints that stay for good."""
        every = self.run.loop.keep_every
        found = {step for step in checkpoints.steps(self.run.path) if every and step % every == 0}
        return found if self.best.step is None else found | {self.best.step}

    def _write(self, held: checkpoints.Held, step: int, best: Best) -> None:
        try:
            self._with_room(lambda: checkpoints.commit(held), step)
        except checkpoints.UNWRITABLE:
            shutil.rmtree(held.partial, ignore_errors=True)
            raise
        self.saved, self.best = step, best
        self._prune(self.run.loop.keep_checkpoints, step)

    def _with_room(self, write: Callable[[], T], step: int) -> T:
        try:
            return write()
        except checkpoints.UNWRITABLE as error:
            if not artifact.is_disk_full(error):
                raise
            self._prune(self.run.loop.keep_checkpoints - 1, step)
            return write()

    def _prune(self, keep: int, step: int) -> None:
        anchors = self.run.anchors(step)[:ANCHORS]
        checkpoints.prune(self.run.path, keep, self.kept() | set(anchors))

    def _failed(self, step: int, error: BaseException) -> None:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        say(
            f"WARNING: the checkpoint after step {step} could not be written ({reason}). Training goes on and tries "
            f"again when the next one is due; until then a stop costs all steps after {self.saved}. Free some space "
            f"at {self.run.path}"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.settle()
        elif self._writing is not None:
            self._writing.join()  # whoever may write here next must not meet this thread


class _Writing(threading.Thread):
    """A checkpoint being written."""

    def __init__(self, step: int, write: Callable[[], None]) -> None:
        super().__init__(name=THREAD)
        self.step = step
        self.error: BaseException | None = None
        self._write = write

    def run(self) -> None:
        try:
            self._write()
        except BaseException as error:
            self.error = error


def check_room(run: Run, trainer: Trainer) -> None:
    """Refuse a run whose checkpoints cannot fit the disk; warn of one where they will not all fit.

    A checkpoint has the weights and at most two moments of each trained number. One more than are kept lies there while
    it is written, and as much when the finished model is.
    """
    whole = trainer.team.structures or trainer.modules
    parameters = {id(p): p for module in whole.values() for p in module.parameters()}.values()
    size = sum(p.numel() * (p.element_size() + (8 if p.requires_grad else 0)) for p in parameters)
    there = len(checkpoints.steps(run.path))
    free = shutil.disk_usage(run.path).free
    kept = run.loop.keep_checkpoints + (ANCHORS if run.anchor_every else 0)
    least, all_of_them = max(1, 2 - there) * size, max(1, kept + 1 - there) * size
    if free < least:
        raise ChatloomError(
            f"{run.path}: a checkpoint takes about {size / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free, where at "
            f"least {least / 1e6:,.0f} are needed; make room or choose another folder with --out"
        )
    if free < all_of_them:
        say(
            f"WARNING: {free / 1e6:,.0f} MB are free at {run.path}; {kept} checkpoints and one "
            f"being written take about {all_of_them / 1e6:,.0f} MB more"
        )
