"""The one training loop: pretraining, SFT, reward model, DPO and PPO all step through here.

`Trainer.update` is one optimizer step over micro-batches; `fit` drives steps (or PPO iterations) with metrics,
progress, checkpoints, resume and signals.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from chatloom.errors import ChatloomError
from chatloom.progress import progress, say
from chatloom.settings import digest
from chatloom.tokens.packing import Batch
from chatloom.training import checkpoints
from chatloom.training.checkpoints import State
from chatloom.training.metrics import MetricsFile, read_metrics, truncate_after
from chatloom.training.optimizers import ScheduledOptimizer
from chatloom.training.settings import LoopSettings


@dataclass
class Terms:
    """What an objective gives for one micro-batch: the weighted sum of losses, and sums to report.

    `total` is sum(weight * loss), a scalar with gradient; `sums` maps a metric to (sum, weight), averaged over the
    step.
    """

    total: Tensor
    sums: dict[str, tuple[Tensor | float, Tensor | float]] = field(default_factory=dict)

    def detached(self) -> Terms:
        """The same numbers without what led to them."""
        plain = {name: (_detached(value), _detached(share)) for name, (value, share) in self.sums.items()}
        return Terms(self.total.detach(), plain)


def _detached(value: Tensor | float) -> Tensor | float:
    return value.detach() if isinstance(value, Tensor) else value


class Objective(Protocol):
    """A loss over micro-batches; `weight` is known before any forward pass, so that the whole step is normalised."""

    def weight(self, batch: Batch) -> float:
        """Sum of weights this micro-batch contributes."""

    def __call__(self, batch: Batch) -> Terms:
        """Forward pass of one micro-batch."""


class Anomaly(ChatloomError):
    """Training cannot go on: too many steps in a row gave no finite loss or gradient."""


CAUSES = (
    "the learning rate is too high (try a tenth)",
    "the data holds rows without supervised tokens or with broken text",
    "the precision is too low for these activations (try fp32)",
)


@dataclass
class Trainer:
    """Modules, their optimizer, and how often steps were skipped."""

    modules: Mapping[str, nn.Module]
    optimizer: ScheduledOptimizer
    max_skips: int = 5
    precision: str = "fp32"
    updates: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0

    def update(self, batches: Sequence[Batch], objective: Objective) -> dict[str, float]:
        """One optimizer step: loss = sum(weight * loss) / sum(weight), both sums over all micro-batches.

        A step without supervised tokens, or with a loss or gradient that is not finite, changes no weight; after
        `max_skips` of them in a row Anomaly is raised. Returns metrics (loss in nats, grad_norm, lr, ...).
        """
        weight = sum(objective.weight(batch) for batch in batches)
        if not weight > 0:
            return self._skip("no supervised token in the whole step")
        self.optimizer.zero_grad()
        parts: list[Terms] = []
        for batch in batches:
            device = batch.tokens.device.type
            with torch.autocast(device, torch.bfloat16) if self.precision == "bf16" else contextlib.nullcontext():
                terms = objective(batch)
            (terms.total / weight).backward()
            parts.append(terms.detached())
        # Only here is the device waited for: all its work of this step is queued by now.
        clipped = self.optimizer.clip()
        loss, sums = 0.0, dict[str, list[float]]()
        for terms in parts:
            loss += float(terms.total) / weight
            for name, (value, share) in terms.sums.items():
                entry = sums.setdefault(name, [0.0, 0.0])
                entry[0] += float(value)
                entry[1] += float(share)
        if not math.isfinite(loss):
            return self._skip(f"the loss is {loss}")
        norms = {label: float(norm) for label, norm in clipped.items()}
        if not all(math.isfinite(norm) for norm in norms.values()):
            return self._skip(f"the gradient norm is {norms}")
        self.optimizer.step(self.updates)
        first = next(iter(norms))
        metrics = {"loss": loss, "grad_norm": norms[first], "lr": self.optimizer.rate(first, self.updates)}
        metrics.update({f"grad_norm_{label}": norm for label, norm in norms.items() if label != first})
        metrics.update({name: value / share for name, (value, share) in sums.items() if share})
        self.updates += 1
        self.skipped_in_a_row = 0
        return metrics

    def _skip(self, reason: str) -> dict[str, float]:
        self.optimizer.zero_grad()
        self.updates += 1
        self.skipped += 1
        self.skipped_in_a_row += 1
        say(f"step skipped, no weight was changed: {reason}")
        if self.skipped_in_a_row > self.max_skips:
            raise Anomaly(
                f"{self.skipped_in_a_row} steps in a row were skipped, the last because {reason}. "
                f"The weights of the last good step are kept. Likely causes: {'; '.join(CAUSES)}."
            )
        return {"skipped": 1.0}

    def state(self) -> State:
        """Optimizer moments and counters."""
        values = {"updates": self.updates, "skipped": self.skipped, "skipped_in_a_row": self.skipped_in_a_row}
        return State(values, {"optimizer": self.optimizer.tensors()})

    def load(self, state: State) -> None:
        """Put back what `state` gave."""
        self.optimizer.load_tensors(state.tensors.get("optimizer", {}))
        self.updates = state.values["updates"]
        self.skipped = state.values["skipped"]
        self.skipped_in_a_row = state.values["skipped_in_a_row"]


@dataclass
class Run:
    """Where a run lives and how it saves itself.

    `write_model` writes the model folder, `extra_state` / `load_extra` carry what else decides the future (controllers,
    critic), and `load_model` puts the weights of a checkpoint back.
    """

    path: Path
    kind: str
    identity: Mapping[str, Any]
    loop: LoopSettings
    write_model: Callable[[Path], None]
    load_model: Callable[[Path], None]
    extra_state: Callable[[], State] = lambda: State({}, {})
    load_extra: Callable[[State], None] = lambda _: None
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
            log.append(reached, "train", **metrics, seconds=seconds)
            bar.advance(1, **{key: metrics[key] for key in _SHOWN if key in metrics})
            stopped = bool(metrics.get("stop"))
            due = run.loop.checkpoint_every and reached % run.loop.checkpoint_every == 0
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


_SHOWN = ("loss", "accuracy", "reward", "kl", "lr", "tokens_per_second")


def save(run: Run, trainer: Trainer, step: int) -> None:
    """Checkpoint a run at a step and drop old ones."""
    own, extra = trainer.state(), run.extra_state()
    state = State({"trainer": own.values, "extra": extra.values}, {**own.tensors, **extra.tensors})
    manifest = {**run.identity, "kind": run.kind, "fingerprint": f"{digest(dict(run.identity))[:16]}@{step}"}
    checkpoints.save(run.path, step, state, run.write_model, manifest)
    checkpoints.prune(run.path, run.loop.keep_checkpoints)


def _resume(run: Run, trainer: Trainer) -> int:
    found = checkpoints.latest(run.path)
    if found is None:
        return 0
    step, folder = found
    state = checkpoints.read_state(folder)
    run.load_model(folder)
    trainer.load(State(state.values["trainer"], state.tensors))
    run.load_extra(State(state.values["extra"], state.tensors))
    if not run.quiet:
        say(f"resuming after step {step}")
    return step


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
