"""In which order a stage of a pipeline does its passes: pure functions of its place.

    gpipe   all forward passes, then all backward passes (Huang et al. 2019): as many activations are kept as there are
            micro-batches
    1f1b    as many forward passes as it takes until the first gradient arrives, then one backward for each forward
            (Narayanan et al. 2019, PipeDream-flush in 2021): at most as many are kept as there are stages

Both do the passes of either kind in the order of the micro-batches, and idle for the same share of the time,
(stages - 1) / (stages - 1 + micro-batches).
"""

from __future__ import annotations

from typing import Literal, NamedTuple


class Pass(NamedTuple):
    """One pass of a micro-batch through a stage."""

    forward: bool
    number: int


def order(schedule: Literal["gpipe", "1f1b"], place: int, stages: int, micro_batches: int) -> list[Pass]:
    """The passes of the stage at `place`, in order."""
    if schedule == "gpipe":
        return [Pass(True, n) for n in range(micro_batches)] + [Pass(False, n) for n in range(micro_batches)]
    ahead = min(stages - 1 - place, micro_batches)
    passes = [Pass(True, n) for n in range(ahead)]
    for n in range(micro_batches - ahead):
        passes += [Pass(True, ahead + n), Pass(False, n)]
    return passes + [Pass(False, n) for n in range(micro_batches - ahead, micro_batches)]


def most_kept(passes: list[Pass]) -> int:
    """Micro-batches whose activations are kept at once, at most."""
    kept = most = 0
    for step in passes:
        kept += 1 if step.forward else -1
        most = max(most, kept)
    return most


def idle_share(stages: int, micro_batches: int) -> float:
    """Share of a step in which a stage waits, if all passes take equally long."""
    return (stages - 1) / (stages - 1 + micro_batches)
