"""Learning-rate schedules: pure functions of the step."""

from __future__ import annotations

import math
from typing import Literal

Shape = Literal["cosine", "linear", "constant"]


def learning_rate(
    step: int, *, peak: float, total: int, warmup: int = 0, final_share: float = 0.1, shape: Shape = "cosine"
) -> float:
    """Learning rate of optimizer step `step` (counted from 0) out of `total`.

    Rises linearly over `warmup` steps, reaching `peak` at step `warmup - 1` (so the first step is never zero), then
    falls to `final_share * peak` at the last step: cosine (LLaMA section 2.3: to 10 %), linear, or not at all.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    span = max(total - 1 - warmup, 1)
    progress = min(max((step - warmup) / span, 0.0), 1.0)
    floor = final_share * peak
    if shape == "constant":
        return peak
    if shape == "linear":
        return peak + (floor - peak) * progress
    return floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))
