"""Pipeline parallelism: each process has some consecutive blocks; hidden states travel on, their gradients back.

Every stage reads the same micro-batches, so targets, positions, segments and weights are at hand where they are needed
and only hidden states travel; the weight of the whole step is agreed on before the first pass. The first stage has the
embedding, the last one the final norm, the output matrix (or a head) and the loss. A tied embedding is on both, and its
gradient is the sum of theirs.

Forward and backward travel in process groups of their own: the two directions must never wait for each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from chatloom.errors import ChatloomError
from chatloom.tokens.packing import Batch
from chatloom.training.parallel.schedules import Pass
from chatloom.training.parallel.world import Axis, World, answering


class Received(nn.Embedding):
    """Stands where the embedding was: gives what the stage before has sent, whatever the tokens.

    Holds the weight of a tied embedding, which the last stage needs for its logits; empty [0, hidden] elsewhere.
    """

    def __init__(self, weight: Tensor | None, hidden_size: int) -> None:
        rows = 0 if weight is None else weight.shape[0]
        super().__init__(rows, hidden_size, device="meta")
        del self.weight
        if weight is None:
            self.register_parameter("weight", None)
        else:
            self.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
        self.activation: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        """tokens [batch, time] -> [batch, time, hidden]."""
        del input
        if self.activation is None:
            raise RuntimeError("a stage of a pipeline was run before it had received anything")
        return self.activation


def bounds(n_layers: int, stages: int) -> list[range]:
    """The blocks of each stage, as evenly as can be; the last stages, which have more to do besides, get fewer."""
    share, more = divmod(n_layers, stages)
    starts = [stage * share + min(stage, more) for stage in range(stages + 1)]
    return [range(starts[i], starts[i + 1]) for i in range(stages)]


def check(module: nn.Module, stages: int) -> None:
    """Raise ChatloomError for a model that cannot be made a pipeline of so many stages."""
    body: Any = getattr(module, "body", module)
    config = body.config
    if config.n_layers < stages:
        raise ChatloomError(
            f"loop.parallel.pipeline is {stages}, and the model has {config.n_layers} layers; every process needs one"
        )
    positions = getattr(config, "positions", "rope")
    refused = {
        "a mixture of experts": getattr(config, "n_experts", 0),
        "dropout": getattr(config, "dropout", 0.0) or getattr(config, "attention_dropout", 0.0),
        f"positions: {positions}": positions in ("learned", "sinusoidal", "t5"),
        "layers with and without a window": getattr(config, "full_every", 0),
    }
    for what, found in refused.items():
        if found:
            raise ChatloomError(
                f"loop.parallel.pipeline is {stages}, and the model has {what}, which a pipeline does not carry; use "
                "loop.parallel.data or tensor instead"
            )


def keep_stage(module: nn.Module, axis: Axis) -> tuple[dict[str, str], dict[str, str]]:
    """Leave a module only the blocks of this process's stage, in place.

    Returns (names, copies): of each parameter that remained, by the name it had; copies are those that another stage
    answers for. Raises ChatloomError as `check` does.
    """
    check(module, axis.size)
    body: Any = getattr(module, "body", module)
    prefix = "" if body is module else "body."
    first, last = axis.place == 0, axis.place == axis.size - 1
    mine = bounds(len(body.layers), axis.size)[axis.place]
    tied = body.output_embedding is None
    if not first:
        weight = body.embedding.weight if last and tied else None
        body.embedding = Received(weight, body.config.hidden_size)
    if not last:
        body.norm = nn.Identity()
        body.output_embedding = None
        if body is not module:
            for name in [name for name, _ in module.named_children() if name != "body"]:
                setattr(module, name, nn.Identity())
    body.layers = nn.ModuleList([body.layers[layer] for layer in mine])
    names: dict[str, str] = {}
    copies: dict[str, str] = {}
    start = f"{prefix}layers."
    for name, _ in module.named_parameters():
        whole = name
        if name.startswith(start):
            layer, _, rest = name.removeprefix(start).partition(".")
            whole = f"{start}{mine[int(layer)]}.{rest}"
        answered = first or name != f"{prefix}embedding.weight"
        (names if answered else copies)[name] = whole
    return names, copies


class Pipe:
    """What moves hidden states and gradients between the stages of one pipeline; made before the model is cut."""

    def __init__(self, world: World, body: nn.Module) -> None:
        self.axis, self.body = world.pipeline, body
        self.tied = body.output_embedding is None
        assert world.mesh is not None
        self._forward, self._backward = (_groups(world) for _ in range(2))
        self.first, self.last = self.axis.place == 0, self.axis.place == self.axis.size - 1
        self._under_way: list[tuple[dist.Work, Tensor]] = []

    def run(
        self,
        passes: Sequence[Pass],
        batches: Sequence[Batch],
        forward: Callable[[int], Tensor],
        dtype: torch.dtype,
    ) -> None:
        """Do the passes of this stage. Collective along the pipeline.

        `forward(n)` runs this stage on micro-batch n and gives what leaves it: hidden states [rows, time, hidden], on
        the last stage the loss to differentiate. dtype: of the hidden states.
        """
        entered: dict[int, Tensor] = {}
        left: dict[int, Tensor] = {}
        body: Any = self.body
        for step in passes:
            n = step.number
            if step.forward:
                if not self.first:
                    shape = (*batches[n].tokens.shape, body.config.hidden_size)
                    hidden = torch.empty(shape, dtype=dtype, device=batches[n].tokens.device)
                    self._take(hidden, self._forward, self.axis.place - 1)
                    entered[n] = body.embedding.activation = hidden.requires_grad_()
                left[n] = forward(n)
                if not self.last:
                    self._send(left[n].detach(), self._forward, self.axis.place + 1)
                continue
            leaving = left.pop(n)
            if self.last:
                leaving.backward()
            else:
                gradient = torch.empty_like(leaving, memory_format=torch.contiguous_format)
                self._take(gradient, self._backward, self.axis.place + 1)
                leaving.backward(gradient)
            if not self.first:
                returning = entered.pop(n).grad
                assert returning is not None
                self._send(returning, self._backward, self.axis.place - 1)
        with answering():
            for work, _ in self._under_way:
                work.wait()
        self._under_way.clear()
        if not self.first:
            body.embedding.activation = None

    def sum_tied(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add up the gradients of a tied embedding, which the first and the last stage have; no-op on the others."""
        for parameter in parameters if self.first or self.last else ():
            if parameter.grad is None:  # a head that makes no logits
                parameter.grad = torch.zeros_like(parameter)
            other = torch.empty_like(parameter.grad)
            there = self.axis.size - 1 if self.first else 0
            to, fro = (self._forward, self._backward) if self.first else (self._backward, self._forward)
            with answering():
                sending = dist.isend(parameter.grad, group=to, group_dst=there)
                dist.recv(other, group=fro, group_src=there)
                assert sending is not None
                sending.wait()
            parameter.grad += other

    def _send(self, tensor: Tensor, group: dist.ProcessGroup, place: int) -> None:
        whole = tensor.contiguous()
        with answering():
            work = dist.isend(whole, group=group, group_dst=place)
        assert work is not None
        self._under_way = [item for item in self._under_way if not item[0].is_completed()]
        self._under_way.append((work, whole))

    def _take(self, tensor: Tensor, group: dist.ProcessGroup, place: int) -> None:
        with answering():
            dist.recv(tensor, group=group, group_src=place)


def _groups(world: World) -> dist.ProcessGroup:
    """A process group of its own for each pipeline; this process's. Collective over the whole world."""
    assert world.mesh is not None
    ranks = world.mesh.mesh.flatten(1).t().tolist()  # one list for each pipeline, from the first stage to the last
    with answering():
        group, _ = dist.new_subgroups_by_enumeration(ranks)
    assert isinstance(group, dist.ProcessGroup)
    return group
