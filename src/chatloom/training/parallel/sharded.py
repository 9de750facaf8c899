"""ZeRO (Rajbhandari et al. 2020): what copies of a model would hold twice is held once, in shares.

| | weights | gradients | optimizer state | through |
|---|---|---|---|---|
| zero1 | whole | whole | shared out, parameter by parameter | `Owners`, here |
| zero2 | shared out; whole from forward to backward | shared out | shared out | FSDP2, gathering once |
| zero3 | shared out; one block at a time whole | shared out | shared out | FSDP2, gathering twice |

zero1 gives each parameter one owner, so an optimizer that needs whole matrices (Muon, LAMB) works as it does alone.
FSDP2 (Zhao et al. 2023) cuts every parameter along its first dimension.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard

from chatloom.model.transformer import Block
from chatloom.training.parallel.gradients import BUCKET_BYTES
from chatloom.training.parallel.world import Axis, World, answering


def shard(module: nn.Module, world: World, *, keep_gathered: bool) -> None:
    """Share out weights, gradients and optimizer state of a module over the `data` axis, in place.

    keep_gathered: blocks stay whole between forward and backward (ZeRO-2), else they are gathered again (ZeRO-3).
    Gradients are summed over the processes, not averaged.
    """
    assert world.mesh is not None
    mesh = world.mesh["data"]
    for block in [m for m in module.modules() if isinstance(m, Block)]:
        fully_shard(block, mesh=mesh, reshard_after_forward=not keep_gathered)
    root = getattr(module, "body", module)
    # The loss reads the unembedding after the last block, so what lies outside the blocks stays whole until backward.
    fully_shard(root, mesh=mesh, reshard_after_forward=False)
    for head in [part for part in module.children() if root is not module and part is not root]:
        fully_shard(head, mesh=mesh, reshard_after_forward=False)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)


def owners_of(sizes: Sequence[int], ranks: int) -> list[int]:
    """The rank that owns each parameter: largest first, each to the rank with least so far; ties to the lower one."""
    loads = [0] * ranks
    found = [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        found[index] = min(range(ranks), key=lambda rank: (loads[rank], rank))
        loads[found[index]] += sizes[index]
    return found


class Owners:
    """ZeRO-1: which process of the `data` axis steps which parameter, and how the others get it."""

    def __init__(self, parameters: Iterable[nn.Parameter], axis: Axis) -> None:
        self.axis = axis
        found = list(parameters)
        owners = owners_of([p.numel() for p in found], axis.size)
        pairs = list(zip(found, owners, strict=True))
        self._owned = [[p for p, owner in pairs if owner == rank] for rank in range(axis.size)]
        self._mine = {id(p) for p in self._owned[axis.place]}

    def owns(self, parameter: nn.Parameter) -> bool:
        """Whether this process steps a parameter and holds its state."""
        return id(parameter) in self._mine

    def narrow(self, optimizer: torch.optim.Optimizer) -> None:
        """Leave an optimizer, which has no state yet, only what this process owns."""
        groups: list[dict[str, Any]] = optimizer.param_groups
        for group in groups:
            group["params"] = [p for p in group["params"] if self.owns(p)]

    @torch.no_grad()
    def publish(self) -> None:
        """Give every process the parameters that their owners have stepped. Collective."""
        if self.axis.group is None or self.axis.size == 1:
            return
        under_way = []
        with answering():
            for rank, parameters in enumerate(self._owned):
                for bucket in _buckets(parameters):
                    flat = torch.cat([p.detach().flatten() for p in bucket])
                    work = dist.broadcast(flat, group=self.axis.group, group_src=rank, async_op=True)
                    assert work is not None
                    under_way.append((work, flat, bucket, rank))
            for work, flat, bucket, rank in under_way:
                work.wait()
                if rank != self.axis.place:
                    for parameter, value in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                        parameter.copy_(value.view_as(parameter))


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    bucket: list[nn.Parameter] = []
    filled = 0
    for parameter in parameters:
        size = parameter.numel() * parameter.element_size()
        if bucket and (filled + size > BUCKET_BYTES or bucket[-1].dtype != parameter.dtype):
            yield bucket
            bucket, filled = [], 0
        bucket.append(parameter)
        filled += size
    if bucket:
        yield bucket
