"""How the tensors of a model that is spread over processes make up whole ones, and back.

A spread module is one whose parameters were changed in place, so that each process holds a part. Three ways, which may
be combined: whole blocks lie in other processes (`pipeline`), rows or columns of a matrix do (`tensor`, a `Cut`), or
slices of every parameter do (`data` with zero2 and zero3, torch's DTensor). Whatever has the shape of a parameter, such
as a moment of an optimizer, is parted and put together the same way.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from chatloom.training.parallel.world import Axis, World, answering


@dataclass(frozen=True)
class Cut:
    """A tensor shared out along `dim` inside each of `parts` (sizes along it, whole): every process has some of each.

    A matrix of queries, keys and values is three parts: with two processes the first one has the first half of each.
    """

    dim: int
    parts: tuple[int, ...]

    def take(self, whole: Tensor, place: int, size: int) -> Tensor:
        """What the process at `place` of `size` holds, as a tensor of its own."""
        pieces = [part.tensor_split(size, self.dim)[place] for part in whole.split(self.parts, self.dim)]
        return torch.cat(pieces, self.dim)

    def join(self, pieces: Sequence[Tensor]) -> Tensor:
        """The whole tensor from what each process holds, in order."""
        shares = [part // len(pieces) for part in self.parts]
        split = [piece.split(shares, self.dim) for piece in pieces]
        return torch.cat([split[place][part] for part in range(len(shares)) for place in range(len(pieces))], self.dim)


@dataclass
class Spread:
    """A module whose weights are spread over processes, and all that is needed to make it whole.

    names: of each parameter here, by the name it has in the whole module; only those that this process answers for.
    copies: parameters here that another stage of the pipeline answers for (a tied embedding).
    cuts: by name here. partial: parameters that are whole here and whose gradients are sums over the `tensor` axis.
    """

    module: nn.Module
    world: World
    hollow: nn.Module
    names: dict[str, str] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    cuts: dict[str, Cut] = field(default_factory=dict)
    partial: set[str] = field(default_factory=set)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """By name here."""
        return dict(self.module.named_parameters())

    def whole(self, tensors: Mapping[str, Tensor], *, owned: bool = False) -> dict[str, Tensor]:
        """Whole CPU tensors by their whole names, on the first process; nothing on the others. Collective.

        tensors: by name here, each of the shape of that parameter (or of any other shape, if it is the same
        everywhere). owned: other processes on the `data` axis give other names (zero1), else all give the same. The
        result may share memory with them.
        """
        shapes = {name: parameter.shape for name, parameter in self.parameters.items()}
        found: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            value = tensor.detach()
            with answering():
                value = value.full_tensor() if isinstance(value, DTensor) else value
                if name in self.cuts and tensor.shape == shapes[name]:
                    value = self.cuts[name].join(_all(value, self.world.tensor))
            if self.world.tensor.place == 0 and name in self.names and (owned or self.world.data.place == 0):
                found[self.names[name]] = value.cpu().contiguous()
        if self.world.tensor.place:
            return {}
        if owned:
            found = _to_first(found, self.world.data)
        if self.world.data.place:
            return {}
        return _to_first(found, self.world.pipeline)

    def part(self, name: str, whole: Tensor) -> Tensor:
        """What this process holds of a whole tensor that belongs to the parameter `name` (as named here)."""
        parameter = self.parameters[name]
        if whole.dim() == 0 and parameter.dim() > 0:
            return whole  # a counter
        value = whole
        if name in self.cuts:
            value = self.cuts[name].take(value, self.world.tensor.place, self.world.tensor.size)
        if isinstance(parameter, DTensor):
            value = value.to(parameter.device)
            return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
        return value

    @torch.no_grad()
    def fill(self, whole: Mapping[str, Tensor]) -> None:
        """Copy whole weights, by their whole names, into what this process holds of them."""
        for name, parameter in self.parameters.items():
            parameter.copy_(self.part(name, whole[{**self.names, **self.copies}[name]]))
        buffers = dict(self.module.named_buffers())
        for name, buffer in buffers.items():
            buffer.copy_(whole[name])

    def gathered(self) -> nn.Module | None:
        """The whole module, made anew on the CPU, on the first process; None on the others. Collective."""
        state = self.whole(self.parameters)
        if not self.world.leads:
            return None
        made = copy.deepcopy(self.hollow)
        made.load_state_dict({**state, **dict(self.module.named_buffers())}, strict=True, assign=True)
        return made

    @contextlib.contextmanager
    def standing_in(self, whole: nn.Module) -> Iterator[None]:
        """The module is, in place, another one meanwhile."""
        own = type(self.module), self.module.__dict__
        self.module.__class__, self.module.__dict__ = type(whole), whole.__dict__
        try:
            yield
        finally:
            self.module.__class__, self.module.__dict__ = own

    @contextlib.contextmanager
    def filling(self) -> Iterator[None]:
        """The module is whole and without content meanwhile; what is loaded into it is then parted."""
        empty = copy.deepcopy(self.hollow).to_empty(device="cpu")
        with self.standing_in(empty):
            yield
            state = self.module.state_dict()
        self.fill(state)

    def restore(self, device: torch.device | str) -> None:
        """Turn the module, in place, into the whole one on the first process, so that it can go on alone. Collective.

        Replaces class and contents: the ways of spreading a module that torch offers cannot be undone piece by piece.
        """
        made = self.gathered()
        if made is not None:
            made.to(device)
            self.module.__class__ = type(made)
            self.module.__dict__ = made.__dict__


def hollow(module: nn.Module) -> nn.Module:
    """A copy of a module's structure whose parameters have shapes and no storage."""
    empty = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in module.parameters()
    }
    return copy.deepcopy(module, memo=dict(empty))


def _to_first(found: dict[str, Tensor], axis: Axis) -> dict[str, Tensor]:
    """CPU tensors of all processes of an axis, at the first; nothing at the others. Collective."""
    if axis.size == 1:
        return found
    listed: list[Any] = [None] * axis.size
    result = dict(found) if axis.place == 0 else {}
    with answering():
        dist.all_gather_object(listed, {name: (t.shape, t.dtype) for name, t in found.items()}, group=axis.group)
        for place, names in enumerate(listed):
            for name, (shape, dtype) in names.items() if place else ():
                if axis.place == place:
                    dist.send(found[name], group=axis.group, group_dst=0)
                elif axis.place == 0:
                    result[name] = torch.empty(shape, dtype=dtype)
                    dist.recv(result[name], group=axis.group, group_src=place)
    return result


def _all(tensor: Tensor, axis: Axis) -> list[Tensor]:
    """What every process of an axis holds, in order; all of one shape. Collective."""
    found = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(axis.size)]
    dist.all_gather(found, tensor.contiguous(), group=axis.group)
    return found
