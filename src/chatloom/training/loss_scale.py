"""Dynamic loss scaling, which fp16 needs: its gradients vanish below 6e-8 (Micikevicius et al. 2018, section 3.2).

The loss is multiplied by the scale before the backward pass and the fp32 gradients divided by it after. A gradient that
is not finite then means that the scale was too large: the step is left out and the scale halved. That is how the scale
finds its place and no anomaly, unless there is nothing left to halve.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

GROW_AFTER = 2000  # steps without an overflow, after which the scale is doubled
SMALLEST, LARGEST = 1.0, 2.0**24


@dataclass
class LossScale:
    """A power of two, so that scaling and unscaling round nothing; `calm`: steps since it changed."""

    scale: float = 2.0**16
    calm: int = 0

    def overflowed(self) -> bool:
        """Halve the scale; False where it is at its smallest, so that the gradient itself must be broken."""
        if self.scale <= SMALLEST:
            return False
        self.scale, self.calm = self.scale / 2, 0
        return True

    def went_well(self) -> None:
        """Count a step without an overflow."""
        self.calm += 1
        if self.calm >= GROW_AFTER:
            self.scale, self.calm = min(self.scale * 2, LARGEST), 0

    def state(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def load(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave."""
        self.scale, self.calm = state["scale"], state["calm"]
