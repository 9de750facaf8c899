"""Learning-rate schedules: pure functions of the step.

Steps count from 0 to total - 1. Every schedule rises linearly over the warm-up and reaches its peak at the warm-up's
last step, so the first step is never zero; no rate lies above the peak. What comes then is its shape:

| shape | after the warm-up | source |
|---|---|---|
| cosine | half a cosine from the peak to the final rate | Loshchilov & Hutter 2017; LLaMA, section 2.3: to 10 % |
| cosine, several cycles | the same, begun anew at the peak in each cycle | SGDR, Loshchilov & Hutter 2017, equation 5 |
| linear | a line to the final rate | Devlin et al. 2019 |
| inverse_sqrt | peak * sqrt(warmup / step) | Vaswani et al. 2017, section 5.3 |
| constant | the peak | |
| wsd | the peak, then a decay in the last steps | MiniCPM, Hu et al. 2024, section 4 |
| wcsd | half a cosine to a plateau, the plateau, then a decay in the last steps | as wsd, with a softer begin |

Decays of the last two: `linear`, `cosine`, or `one_minus_sqrt`, 1 - sqrt(progress) (Hägele et al. 2024, section 3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from chatloom.errors import ChatloomError

Shape = Literal["cosine", "linear", "inverse_sqrt", "constant", "wsd", "wcsd"]
Decay = Literal["linear", "cosine", "one_minus_sqrt"]


@dataclass(frozen=True)
class Schedule:
    """A schedule in whole steps. `rate(step)` is the learning rate; beyond the last step it stays what it was there.

    warmup: steps of the rise, which begins at `warmup_from` of the peak (0: one step's worth above zero). final_share:
    last rate as a share of the peak, of shapes that have one. cycles: of cosine, each `cycle_growth` times as long as
    the one before. decay: steps of the last decay of wsd and wcsd; stable_from, stable_share: the step from which wcsd
    is level, and at which share of the peak. Raises ChatloomError when these phases do not fit after one another.
    """

    peak: float
    total: int
    shape: Shape = "cosine"
    warmup: int = 0
    warmup_from: float = 0.0
    final_share: float = 0.1
    cycles: int = 1
    cycle_growth: float = 1.0
    decay: int = 0
    decay_shape: Decay = "one_minus_sqrt"
    stable_from: int = 0
    stable_share: float = 1.0

    def __post_init__(self) -> None:
        last = self.decay if self.shape in ("wsd", "wcsd") else 0
        if self.warmup + last > self.total:
            parts = f"{self.warmup} steps of warm-up" + (f" and {last} of decay" if last else "")
            raise ChatloomError(f"schedule: {parts} do not fit into {self.total} steps; make them shorter")
        if self.shape == "wcsd" and not self.warmup <= self.stable_from <= self.total - self.decay:
            raise ChatloomError(
                f"schedule: wcsd is level from step {self.stable_from} of {self.total}; expected after the warm-up of "
                f"{self.warmup} steps and before the last {self.decay}, which decay; change stable_from"
            )

    def rate(self, step: int) -> float:
        """Learning rate of an optimizer step."""
        step, last, peak, final = min(step, self.total - 1), self.total - 1, self.peak, self.final_share * self.peak
        if step < self.warmup:
            start = self.warmup_from * peak
            return start + (peak - start) * (step + 1) / self.warmup
        if self.shape == "constant":
            return peak
        if self.shape == "inverse_sqrt":
            return peak * math.sqrt(max(self.warmup, 1) / (step + 1))
        if self.shape == "linear":
            return between(peak, final, progress(step, self.warmup, last), "linear")
        if self.shape == "cosine":
            first, end = cycle_of(step, self.warmup, self.total, self.cycles, self.cycle_growth)
            return between(peak, final, progress(step, first, end - 1), "cosine")
        level = peak if self.shape == "wsd" else self.stable_share * peak
        decay_from = max(last - self.decay, self.warmup)
        if step > decay_from:
            return between(level, final, progress(step, decay_from, last), self.decay_shape)
        return between(peak, level, progress(step, self.warmup, min(self.stable_from, decay_from)), "cosine")


def progress(step: int, first: int, last: int) -> float:
    """How far `step` is from `first` (0) to `last` (1); 0 where there is no way between them but the way itself."""
    if last <= first:
        return 0.0 if step <= first else 1.0
    return min(max((step - first) / (last - first), 0.0), 1.0)


def between(start: float, end: float, done: float, shape: Decay) -> float:
    """What lies between two values when a share `done` of the way is behind: `start` at 0, `end` at 1."""
    if shape == "linear":
        return start + (end - start) * done
    left = 0.5 * (1.0 + math.cos(math.pi * done)) if shape == "cosine" else 1.0 - math.sqrt(done)
    return end + (start - end) * left


def cycle_of(step: int, start: int, total: int, cycles: int, growth: float) -> tuple[int, int]:
    """First step of the cycle that `step` is in, and of the next; `cycles` of them fill the steps start .. total - 1.

    Each is `growth` times as long as the one before (T_mult of SGDR), rounded to whole steps.
    """
    lengths = [growth**number for number in range(cycles)]
    first = start
    for number in range(1, cycles + 1):
        end = start + round((total - start) * sum(lengths[:number]) / sum(lengths))
        if step < end or number == cycles:
            return first, end
        first = end
    raise AssertionError(f"{cycles} cycles: expected at least one")
