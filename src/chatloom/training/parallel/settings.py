"""How the processes of a run share it out; runtime settings, as they do not change the result beyond rounding."""

from __future__ import annotations

from typing import Literal

from chatloom.settings import Settings, runtime


class ParallelSettings(Settings):
    """Processes = data x tensor x pipeline; the number for data is what remains of those that torchrun started."""

    data: Literal["replicate", "zero1", "zero2", "zero3"] = runtime(
        "replicate",
        description="what processes that read other data share out: nothing; the optimizer; gradients too; weights too",
    )
    tensor: int = runtime(1, ge=1, description="processes that share out every matrix of a block")
    pipeline: int = runtime(1, ge=1, description="processes that share out the blocks, one after the other")
    schedule: Literal["1f1b", "gpipe"] = runtime(
        "1f1b", description="order of a pipeline's passes: each backward soon; all forward first"
    )
    timeout: float = runtime(600.0, gt=0, description="seconds after which a process that does not answer ends all")
