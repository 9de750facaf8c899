"""How well a step used its machine: share of the measured matrix rate, share of time spent on data, peak memory."""

from __future__ import annotations

import resource
import sys

import torch

from chatloom.model.config import TransformerConfig
from chatloom.scaling.speed import measured_matmul_rate
from chatloom.training.trainer import NARROW

# An accelerator's rate is that of large products; a processor's is reached by small ones already.
ACCELERATOR_SIZE, PROCESSOR_SIZE = 8192, 512


class Meter:
    """Rates of a model's training steps on `processes` devices like `device`; products are in `precision`."""

    def __init__(self, device: torch.device, precision: str, config: TransformerConfig, *, processes: int = 1) -> None:
        self._device, self._config, self._processes = device, config, processes
        accelerated = device.type == "cuda"
        self.peak = measured_matmul_rate(
            size=ACCELERATOR_SIZE if accelerated else PROCESSOR_SIZE,
            seconds=0.3 if accelerated else 0.05,
            device=str(device),
            dtype=NARROW.get(precision, torch.float32) if accelerated else torch.float32,
        )
        if accelerated:
            torch.cuda.reset_peak_memory_stats(device)

    def rates(self, tokens: int, keys: int, seconds: float, waited: float) -> dict[str, float]:
        """Of one step over `tokens` that see `keys` together: `mfu`, `data_wait` (share of the seconds), `memory`.

        `memory` is in bytes, at the highest so far.

        `mfu` is model FLOPs utilisation (Chowdhery et al. 2022, PaLM, appendix B), but of the rate that was measured
        here, and with the attention that packed documents need, not that of whole rows.
        """
        flops = self._config.flops_per_token(2 * keys / tokens - 1) * tokens  # a context of c has (c + 1) / 2 keys
        return {
            "mfu": flops / (seconds * self.peak * self._processes),
            "data_wait": waited / seconds,
            "memory": float(self._memory()),
        }

    def _memory(self) -> int:
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
