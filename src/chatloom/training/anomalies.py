"""What is out of the ordinary in an optimizer step, found before the step is taken: no number, or a jump upwards.

`judge` is a pure function of numbers that are the same on every rank, so that all ranks decide the same. `Watch` holds
the numbers of the last good steps, which are part of a run's state. What was found is written to `anomalies.jsonl`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from chatloom.errors import ChatloomError
from chatloom.progress import say
from chatloom.training.metrics import MetricsFile, truncate_after

FILE = "anomalies.jsonl"
WINDOW = 128
FEWEST = 64  # no verdict from fewer steps than this
FLOOR = 0.01  # a spread below this share of the median counts as this share


class Anomaly(ChatloomError):
    """Training cannot go on: too many steps in a row could not be taken."""


@dataclass(frozen=True)
class Finding:
    """Why a step must not be taken; `z` is how far out a spike lies, None where a number is not finite."""

    reason: str
    z: float | None = None


def modified_z(value: float, earlier: Sequence[float]) -> float:
    """How far above the median of `earlier` a value lies, in robust standard deviations (negative below it).

    M = 0.6745 (x - median) / MAD, with MAD the median absolute deviation (Iglewicz & Hoaglin 1993, section 3.3). The
    spread MAD / 0.6745 is taken as at least 1 % of the median: numbers that hardly differ must not make every next one
    an outlier.
    """
    middle = median(earlier)
    spread = median(abs(item - middle) for item in earlier) / 0.6745
    spread = max(spread, FLOOR * abs(middle))
    if spread == 0.0:
        return 0.0 if value == middle else math.copysign(math.inf, value - middle)
    return (value - middle) / spread


def judge(values: Mapping[str, float], earlier: Mapping[str, Sequence[float]], threshold: float) -> Finding | None:
    """The finding on a step whose loss and gradient norms are `values`; None when it may be taken.

    earlier: the same numbers of the good steps before. A number that is not finite is always a finding; one that lies
    `threshold` or more robust standard deviations above its median is, once there are FEWEST of them (0: never).
    """
    for name, value in values.items():
        if not math.isfinite(value):
            return Finding(f"the {name} is {value}")
    for name, value in values.items() if threshold else ():
        before = earlier.get(name, ())
        if len(before) >= FEWEST and (z := modified_z(value, before)) >= threshold:
            return Finding(f"the {name} is {value:.4g}, {z:.3g} robust deviations above {median(before):.4g}", z)
    return None


@dataclass
class Watch:
    """The loss and gradient norms of the last WINDOW good steps of one regime.

    A regime is a stretch of training whose steps are alike (one stage of a mixture, say). With another one the window
    begins anew: other data have another loss, which is no spike.
    """

    threshold: float = 0.0
    regime: str = ""
    values: dict[str, deque[float]] = field(default_factory=dict)

    def enter(self, regime: str) -> None:
        """Say which regime the next step belongs to."""
        if regime != self.regime:
            self.regime, self.values = regime, {}

    def judge(self, values: Mapping[str, float]) -> Finding | None:
        """The finding on a step, which is not taken into the window yet."""
        return judge(values, self.values, self.threshold)

    def accept(self, values: Mapping[str, float]) -> None:
        """Take the numbers of a good step into the window."""
        if self.threshold:
            for name, value in values.items():
                self.values.setdefault(name, deque(maxlen=WINDOW)).append(value)

    def state(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"regime": self.regime, "values": {name: list(values) for name, values in self.values.items()}}

    def load(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave."""
        self.regime = state["regime"]
        self.values = {name: deque(values, maxlen=WINDOW) for name, values in state["values"].items()}


class AnomalyLog:
    """`anomalies.jsonl` of a run: a line for each step that was not taken and each rollback; no file where none is.

    A line's `step` counts optimizer steps from 1 (of PPO: minibatches).
    """

    def __init__(self, folder: Path, done: int) -> None:
        """`done`: optimizer steps that the run resumes after; what was found later will be found again."""
        self.path = folder / FILE
        truncate_after(self.path, done)

    def __call__(self, step: int, kind: str, **record: Any) -> None:
        """Append a line, kind "skipped" or "rolled back"; a full disk costs the line, not the run."""
        try:
            with MetricsFile(self.path) as file:
                file.append(step, kind, **record)
        except OSError as error:
            say(f"{self.path}: {error.strerror}; step {step} ({kind}) is not recorded: {record}")
