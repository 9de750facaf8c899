"""One optimizer step: the loss over all micro-batches, a look at it before it is taken, what skipped steps lead to."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from chatloom.progress import say
from chatloom.tokens.packing import Batch
from chatloom.training.anomalies import Anomaly, Finding, Watch
from chatloom.training.checkpoints import State
from chatloom.training.loss_scale import LossScale
from chatloom.training.optimizers import ScheduledOptimizer
from chatloom.training.parallel.team import Team
from chatloom.training.parallel.world import PeerLost


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


@runtime_checkable
class StepObjective(Objective, Protocol):
    """An objective whose loss needs statistics of the whole step."""

    def begin(self, batches: Sequence[Batch], weight: float) -> None:
        """Called before the first micro-batch of each step, with the step's total weight."""


CAUSES = (
    "the learning rate is too high (try a tenth)",
    "the data holds rows without supervised tokens or with broken text",
    "the precision is too low for these activations (try fp32)",
)
NARROW = {"bf16": torch.bfloat16, "fp16": torch.float16}
_LOSS, _SUM, _SHARE = "loss", "sum of ", "share of "
SUSPECTS = 4  # micro-batches that are described, at most


@dataclass
class Trainer:
    """Modules, their optimizer, and what became of the steps that could not be taken.

    watch: what a step is compared with. `rollbacks` times in a run, `rollback_after` skipped steps in a row ask for
    going back to a checkpoint (`wants_rollback`, which `loop.fit` answers).
    team: the processes of the run. Whatever decides over a step is summed over them or is the same on all anyway (the
    norm of a summed gradient), so every one takes, skips or rolls back the same step.
    noise_seed: of dropout; None where there is none.
    describe: rows of a micro-batch in words, for `record`, which is told of every skipped step.
    """

    modules: Mapping[str, nn.Module]
    optimizer: ScheduledOptimizer
    max_skips: int = 5
    precision: str = "fp32"
    noise_seed: int | None = None
    watch: Watch = field(default_factory=Watch)
    rollbacks: int = 0
    rollback_after: int = 3
    team: Team = field(default_factory=Team)
    describe: Callable[[Batch], list[dict[str, Any]]] | None = None
    record: Callable[..., None] = lambda _step, _kind, **_record: None
    updates: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    rolled_back_to: list[int] = field(default_factory=list)
    wants_rollback: bool = False

    def __post_init__(self) -> None:
        self.team.take(self.optimizer)
        self.loss_scale = LossScale() if self.precision == "fp16" else None

    def update(self, batches: Sequence[Batch], objective: Objective) -> dict[str, float]:
        """One optimizer step: loss = sum(weight * loss) / sum(weight), both sums over all micro-batches and ranks.

        A step without supervised tokens, or with a loss or gradient norm that is not finite or (as `watch` says) a
        spike, changes no weight; after more than `max_skips` of them in a row Anomaly is raised. Returns metrics (loss
        in nats, grad_norm, lr, ...). In fp16 an overflow leaves the step out, too, and lowers the scale of the loss.
        """
        weights = [objective.weight(batch) for batch in batches]
        weight = self.team.world.totals({"weight": sum(weights)})["weight"]
        if not weight > 0:
            return self._skip(Finding("no supervised token in the whole step"), curable=False)
        self.optimizer.zero_grad()
        if isinstance(objective, StepObjective):
            objective.begin(self.team.evened(batches), weight)
        device = batches[0].tokens.device.type
        narrow = NARROW.get(self.precision)

        def around(number: int) -> AbstractContextManager[Any]:
            if self.noise_seed is not None:
                # A function of the step alone, so that a resumed run drops what the uninterrupted one drops.
                place = number * self.team.world.data.size + self.team.world.data.place
                torch.manual_seed(hash((self.noise_seed, self.updates, place)))
            return torch.autocast(device, narrow) if narrow else contextlib.nullcontext()

        scale = self.loss_scale.scale if self.loss_scale is not None else 1.0
        parts = self.team.passes(batches, objective, weight / scale, around, narrow or torch.float32)
        self.team.sum_gradients()
        self._unscale(scale)
        # Only here is the device waited for: all its work of this step is queued by now.
        clipped = self.optimizer.clip()
        losses = [float(terms.total) for terms in parts]
        own = {_LOSS: sum(losses)}
        for name in sorted({name for terms in parts for name in terms.sums}):
            pairs = [terms.sums[name] for terms in parts if name in terms.sums]
            for i, what in enumerate((_SUM, _SHARE)):
                own[what + name] = sum(float(pair[i]) for pair in pairs)
        sums = self.team.world.totals(own)
        total = sums.pop(_LOSS)
        norms = {label: float(norm) for label, norm in clipped.items()}
        first = next(iter(norms))
        watched = {"loss": total / weight, "gradient norm": norms[first]}
        watched.update({f"gradient norm of {label}": norm for label, norm in norms.items() if label != first})
        overflow = math.isfinite(watched["loss"]) and not all(map(math.isfinite, norms.values()))
        if overflow and self.loss_scale is not None and self.loss_scale.overflowed():
            self.optimizer.zero_grad()
            self.updates += 1
            return {"loss": watched["loss"], "overflow": 1.0, "loss_scale": self.loss_scale.scale}
        finding = self.watch.judge(watched)
        if finding is not None:
            return self._skip(finding, watched, self._suspects(batches, losses, weights))
        self.watch.accept(watched)
        if self.loss_scale is not None:
            self.loss_scale.went_well()
        self.optimizer.step(self.updates)
        self.team.publish()
        metrics = {"loss": total / weight, "grad_norm": norms[first], "lr": self.optimizer.rate(first, self.updates)}
        metrics.update({f"grad_norm_{label}": norm for label, norm in norms.items() if label != first})
        names = [name.removeprefix(_SHARE) for name, share in sums.items() if name.startswith(_SHARE) and share]
        metrics.update({name: sums[_SUM + name] / sums[_SHARE + name] for name in names})
        if self.loss_scale is not None:
            metrics["loss_scale"] = self.loss_scale.scale
        self.updates += 1
        self.skipped_in_a_row = 0
        return metrics

    def _unscale(self, scale: float) -> None:
        """Divide all gradients by a power of two."""
        if scale != 1.0:
            gradients = [p.grad for module in self.modules.values() for p in module.parameters() if p.grad is not None]
            torch._foreach_mul_(gradients, 1.0 / scale)

    def _skip(
        self,
        finding: Finding,
        watched: Mapping[str, float] | None = None,
        suspects: Sequence[Mapping[str, Any]] = (),
        *,
        curable: bool = True,
    ) -> dict[str, float]:
        """Leave the weights as they are; `curable`: older weights or other data may help."""
        self.optimizer.zero_grad()
        self.updates += 1
        self.skipped += 1
        self.skipped_in_a_row += 1
        say(f"step skipped, no weight was changed: {finding.reason}")
        numbers = {name.replace(" ", "_"): value for name, value in (watched or {}).items()}
        self.record(self.updates, "skipped", reason=finding.reason, **numbers, z_score=finding.z, rows=list(suspects))
        left = self.rollbacks - len(self.rolled_back_to)
        self.wants_rollback = curable and left > 0 and self.skipped_in_a_row >= self.rollback_after
        if self.wants_rollback:
            return {"skipped": 1.0}
        spent = curable and self.rollbacks > 0 and self.skipped_in_a_row >= self.rollback_after
        if self.skipped_in_a_row > self.max_skips or spent:
            raise self.gives_up(finding.reason)
        return {"skipped": 1.0}

    def gives_up(self, reason: str) -> Anomaly:
        """The error that ends a run of which nothing more can be hoped."""
        tried = f" It went back to a checkpoint {len(self.rolled_back_to)} times." if self.rolled_back_to else ""
        return Anomaly(
            f"{self.skipped_in_a_row} steps in a row were skipped, the last because {reason}.{tried} "
            f"The weights of the last good step are kept. Likely causes: {'; '.join(CAUSES)}."
        )

    def _suspects(
        self, batches: Sequence[Batch], losses: Sequence[float], weights: Sequence[float]
    ) -> list[dict[str, Any]]:
        """What the micro-batches hold that have no finite loss or, where all have one, the one with the highest.

        Of every process; nothing from a pipeline, in which none has a whole model to look with.
        """
        if self.describe is None or self.team.pipe is not None:
            return []
        means = [loss / share if share else 0.0 for loss, share in zip(losses, weights, strict=True)]
        bad = [i for i, mean in enumerate(means) if not math.isfinite(mean)][:SUSPECTS]
        chosen = bad or [max(range(len(means)), key=means.__getitem__)]
        found: list[dict[str, Any]] = []
        for n in range(self.team.rounds(len(chosen))):
            try:
                rows = self.describe(batches[chosen[min(n, len(chosen) - 1)]])
            except PeerLost:
                raise
            except Exception as error:  # a description that fails must not end what it only describes
                rows = [{"error": f"could not be described: {error}"}]
            found += rows if n < len(chosen) else []
        self.team.let_go()
        world = self.team.world
        return [row for rows in world.gather(found if world.tensor.place == 0 else []) for row in rows]

    def gone_back(self, checkpoint: int, *, updates: int, skipped: int, earlier: Sequence[int]) -> None:
        """Say that what was loaded is a checkpoint gone back to: the count of steps goes on from where it was.

        `earlier`: checkpoints gone back to before.
        """
        self.updates, self.skipped, self.skipped_in_a_row = updates, skipped, 0
        self.rolled_back_to, self.wants_rollback = [*earlier, checkpoint], False
        reason = f"weights and moments are those after step {checkpoint} again"
        self.record(updates, "rolled back", reason=reason, checkpoint=checkpoint)

    def state(self) -> State:
        """Optimizer moments, counters, and the window that steps are compared with."""
        values = {
            "updates": self.updates,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "rolled_back_to": self.rolled_back_to,
            "watch": self.watch.state(),
            "loss_scale": None if self.loss_scale is None else self.loss_scale.state(),
        }
        return State(values, {"optimizer": self.team.whole_state(self.optimizer.tensors())})

    def begin_with(self, moments: Mapping[str, Tensor]) -> None:
        """Take over the optimizer's state of another run, as `state` gave it."""
        self.optimizer.load_tensors(self.team.part_state(moments))

    def load(self, state: State) -> None:
        """Put back what `state` gave."""
        self.begin_with(state.tensors.get("optimizer", {}))
        self.updates = state.values["updates"]
        self.skipped = state.values["skipped"]
        self.skipped_in_a_row = state.values["skipped_in_a_row"]
        self.rolled_back_to = list(state.values["rolled_back_to"])
        self.watch.load(state.values["watch"])
        if self.loss_scale is not None:
            self.loss_scale.load(state.values["loss_scale"])
