"""How fast this machine multiplies matrices, measured in a fraction of a second: the base of every time estimate."""

from __future__ import annotations

import time

import torch

from chatloom.scaling.compute import matmul_flops


def measured_matmul_rate(
    *, size: int = 512, seconds: float = 0.3, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> float:
    """FLOPs per second of [size, size] matrix products: the median of short timed runs after a warm-up.

    The median, because another program's burst on a shared machine should not decide the estimate.
    """
    # Random numbers, because tensor cores run faster on constant ones than on any real data.
    draw = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, size, generator=draw).to(device, dtype) for _ in range(2))
    for _ in range(3):
        torch.mm(left, right)
    _wait(device)
    rates: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(rates) < 3:
        start = time.perf_counter()
        for _ in range(4):
            torch.mm(left, right)
        _wait(device)
        rates.append(4 * matmul_flops(size, size, size) / max(time.perf_counter() - start, 1e-9))
    return sorted(rates)[len(rates) // 2]


def _wait(device: str) -> None:
    # accelerators run ahead of Python: without waiting one would time the queueing, not the work
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    elif device.startswith("mps"):
        torch.mps.synchronize()
