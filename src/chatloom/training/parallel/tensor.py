"""Tensor parallelism (Shoeybi et al. 2019, Megatron-LM, section 3): the matrices of every block in shares.

    attention      qkv by heads (rows)         output by the same heads (columns), then one sum over the processes
    feed-forward   gate and up by units (rows)   down by the same units (columns), then one sum over the processes

Our qkv holds queries, keys and values, our gate_up gate and up; each process has its share of every part. Norms,
embeddings and the residual stream are whole and the same everywhere. A block costs two sums forward, two backward.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from chatloom.errors import ChatloomError
from chatloom.model.attention import Attention
from chatloom.model.feedforward import FeedForward
from chatloom.training.parallel.layout import Cut
from chatloom.training.parallel.world import Axis


class _Enter(torch.autograd.Function):
    """The same x everywhere -> x; backward: the sum of what every process found."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        gradient = grads[0].contiguous().clone()
        dist.all_reduce(gradient, group=ctx.group)
        return gradient, None


class _Leave(torch.autograd.Function):
    """A part of a sum on each process -> the sum everywhere; backward: the same gradient for each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        del ctx
        total = x.contiguous().clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        del ctx
        return grads[0], None


class RowsLinear(nn.Linear):
    """A linear layer of which this process has some rows: whole input, its own part of the output."""

    group: dist.ProcessGroup

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., own out]."""
        return F.linear(_Enter.apply(x, self.group), self.weight, self.bias)


class ColumnsLinear(nn.Linear):
    """A linear layer of which this process has some columns: its own part of the input, whole output."""

    group: dist.ProcessGroup

    def forward(self, x: Tensor) -> Tensor:
        """[..., own in] -> [..., out]; the bias is added once, after the sum."""
        total: Tensor = _Leave.apply(F.linear(x, self.weight), self.group)
        return total if self.bias is None else total + self.bias.to(total.dtype)


def check(body: nn.Module, size: int) -> None:
    """Raise ChatloomError for a model that cannot be shared out among `size` processes."""
    config: Any = body.config
    for name in ("n_heads", "n_kv_heads", "intermediate_size"):
        value = getattr(config, name)
        if value % size:
            raise ChatloomError(
                f"loop.parallel.tensor is {size}, which does not divide model.{name} = {value}; heads and units of the "
                "feed-forward layer are shared out whole"
            )
    refused = {
        "a mixture of experts": getattr(config, "n_experts", 0),
        "dropout": getattr(config, "dropout", 0.0) or getattr(config, "attention_dropout", 0.0),
        f"positions: {getattr(config, 'positions', '')}": getattr(config, "positions", "") in ("alibi", "t5"),
    }
    for what, found in refused.items():
        if found:
            raise ChatloomError(
                f"loop.parallel.tensor is {size}, and the model has {what}, which is not shared out; use "
                "loop.parallel.data instead"
            )
    for name, layer in body.named_modules():
        if isinstance(layer, Attention | FeedForward):
            odd = [n for n, part in layer.named_children() if n in _PLACES and type(part) is not nn.Linear]
            if odd:
                raise ChatloomError(
                    f"loop.parallel.tensor is {size}, and {name}.{odd[0]} is no plain linear layer (an adapter?); use "
                    "loop.parallel.data instead"
                )


_PLACES = ("qkv", "output", "gate_up", "up", "down")


@torch.no_grad()
def share_out(body: nn.Module, axis: Axis) -> tuple[dict[str, Cut], set[str]]:
    """Leave each process its share of every block's matrices, in place.

    Returns how the parameters were cut, by name, and which whole ones have gradients that are to be summed over the
    axis (norms of single heads, as each process has other heads). Raises ChatloomError as `check` does.
    """
    check(body, axis.size)
    cuts: dict[str, Cut] = {}
    partial: set[str] = set()
    for name, layer in list(body.named_modules()):
        if isinstance(layer, Attention):
            head = layer.head_dim
            parts = (layer.n_heads * head, layer.n_kv_heads * head, layer.n_kv_heads * head)
            cuts |= _rows(layer, "qkv", name, parts, axis)
            cuts |= _columns(layer, "output", name, axis)
            layer.n_heads //= axis.size
            layer.n_kv_heads //= axis.size
            partial |= {
                f"{name}.{norm}.{p}"
                for norm in ("query_norm", "key_norm")
                if getattr(layer, norm, None) is not None
                for p, _ in getattr(layer, norm).named_parameters()
            }
        elif isinstance(layer, FeedForward):
            if hasattr(layer, "gate_up"):
                half = layer.gate_up.out_features // 2
                cuts |= _rows(layer, "gate_up", name, (half, half), axis)
            else:
                up: Any = layer.up
                cuts |= _rows(layer, "up", name, (up.out_features,), axis)
            cuts |= _columns(layer, "down", name, axis)
    return cuts, partial


def _rows(layer: nn.Module, place: str, prefix: str, parts: tuple[int, ...], axis: Axis) -> dict[str, Cut]:
    cut = Cut(0, parts)
    linear: nn.Linear = getattr(layer, place)
    setattr(layer, place, _narrow(RowsLinear, linear, cut, cut, axis))
    return {f"{prefix}.{place}.{name}": cut for name, _ in linear.named_parameters()}


def _columns(layer: nn.Module, place: str, prefix: str, axis: Axis) -> dict[str, Cut]:
    linear: nn.Linear = getattr(layer, place)
    cut = Cut(1, (linear.in_features,))
    setattr(layer, place, _narrow(ColumnsLinear, linear, cut, None, axis))
    return {f"{prefix}.{place}.weight": cut}


def _narrow(
    kind: type[RowsLinear] | type[ColumnsLinear], linear: nn.Linear, of_weight: Cut, of_bias: Cut | None, axis: Axis
) -> nn.Linear:
    weight = of_weight.take(linear.weight, axis.place, axis.size)
    made = nn.utils.skip_init(kind, weight.shape[1], weight.shape[0], bias=linear.bias is not None, device="meta")
    assert axis.group is not None
    made.group = axis.group
    made.weight = nn.Parameter(weight, requires_grad=linear.weight.requires_grad)
    if linear.bias is not None:
        bias = linear.bias.clone() if of_bias is None else of_bias.take(linear.bias, axis.place, axis.size)
        made.bias = nn.Parameter(bias, requires_grad=linear.bias.requires_grad)
    return made
