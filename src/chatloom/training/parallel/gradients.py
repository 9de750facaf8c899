"""Gradients of several processes: their sum, and the norm of a gradient that no process holds whole.

Every process differentiates total / W, where W is the weight of the whole step on all processes. So the gradient of
the step is the plain sum of theirs, not their mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from chatloom.training.parallel.world import Axis, answering

BUCKET_BYTES = 32 * 2**20


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds; the tensor itself where nothing shares it out."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sum_gradients(parameters: Iterable[nn.Parameter], group: dist.ProcessGroup | None) -> None:
    """Replace every gradient by its sum over the processes of a group; no-op without one. Collective.

    Gradients travel in buckets of `BUCKET_BYTES`, one being laid out while others are on their way.
    """
    if group is None or dist.get_world_size(group) == 1:
        return
    found = [p.grad for p in parameters if p.grad is not None]
    under_way: list[tuple[Tensor, list[Tensor], dist.Work]] = []
    with answering():
        for bucket in _buckets(found):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            work = dist.all_reduce(flat, group=group, async_op=True)
            assert work is not None
            under_way.append((flat, bucket, work))
        for flat, bucket, work in under_way:
            work.wait()
            parts = flat.split([gradient.numel() for gradient in bucket])
            torch._foreach_copy_(bucket, [p.view_as(g) for p, g in zip(parts, bucket, strict=True)])


def _buckets(gradients: Sequence[Tensor]) -> list[list[Tensor]]:
    """Neighbours of one type together, up to `BUCKET_BYTES` (or one that is larger)."""
    buckets: list[list[Tensor]] = []
    filled = 0
    for gradient in gradients:
        size = gradient.numel() * gradient.element_size()
        if not buckets or filled + size > BUCKET_BYTES or buckets[-1][0].dtype != gradient.dtype:
            buckets.append([])
            filled = 0
        buckets[-1].append(gradient)
        filled += size
    return buckets


def sum_over(value: Tensor, axes: Iterable[Axis]) -> Tensor:
    """A tensor summed over the processes of some axes, one after the other. Collective."""
    for axis in axes:
        if axis.group is not None and axis.size > 1:
            with answering():
                dist.all_reduce(value, group=axis.group)
    return value


def squares(gradients: Sequence[Tensor], like: Tensor) -> Tensor:
    """Sum of the squares of what this process holds of some gradients: fp32 scalar on the device of `like`."""
    norms = [norm.float() for norm in torch._foreach_norm([local(g) for g in gradients])] if gradients else []
    return torch.stack(norms).square().sum() if norms else torch.zeros((), device=like.device)
