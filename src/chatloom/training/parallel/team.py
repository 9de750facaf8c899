"""The processes of one run together: what each does of a step and what each holds, behind a few calls of the loop.

    team = Team.of(settings, device)
    team.spread({"model": model}, device)    # in place; before the optimizer is made
    team.take(optimizer)                     # zero1: each process steps and remembers its share
    terms = team.passes(...)                 # forward and backward of this process's part of a step
    team.sum_gradients()                     # now every gradient is that of the whole step
    norm = team.clip("model", 1.0)           # by the norm of the whole gradient
    team.publish()                           # after the optimizer's step
    with team.whole():                       # to save: the first process's modules are whole meanwhile

One process alone goes through the same calls, which then do nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from chatloom.errors import ChatloomError
from chatloom.progress import say
from chatloom.tokens.packing import Batch
from chatloom.training.parallel import pipeline, tensor
from chatloom.training.parallel.gradients import local, squares, sum_gradients, sum_over
from chatloom.training.parallel.layout import Spread, hollow
from chatloom.training.parallel.schedules import idle_share, order
from chatloom.training.parallel.settings import ParallelSettings
from chatloom.training.parallel.sharded import Owners, shard
from chatloom.training.parallel.shares import nothing_of
from chatloom.training.parallel.world import ALONE, World, answering, join

if TYPE_CHECKING:
    from chatloom.training.optimizers import ScheduledOptimizer
    from chatloom.training.trainer import Objective, Terms


TOO_IDLE = 0.25  # share of the time from which a pipeline's waiting is told


class Released(Exception):
    """This process's part of a stage is done; the first one goes on alone with what only one can do."""


@dataclass
class Team:
    """A world, and the modules that are spread over it, by label."""

    world: World = ALONE
    settings: ParallelSettings = field(default_factory=ParallelSettings)
    spreads: dict[str, Spread] = field(default_factory=dict)
    owners: Owners | None = None
    device: torch.device | str = "cpu"
    pipe: pipeline.Pipe | None = None
    warned: bool = False

    @classmethod
    def of(cls, settings: ParallelSettings, device: torch.device) -> Team:
        """The team of a run; raises ChatloomError for settings that cannot work with these processes. Collective."""
        world = join(settings, device)
        if settings.pipeline > 1 and settings.data in ("zero2", "zero3"):
            raise ChatloomError(
                f"loop.parallel.pipeline {settings.pipeline} and data {settings.data} do not go together: every pass "
                "of a micro-batch would gather the weights anew; use data: zero1 or replicate"
            )
        return cls(world, settings)

    @property
    def structures(self) -> dict[str, nn.Module]:
        """The modules as they would be whole, without storage; none where nothing is spread."""
        return {label: made.hollow for label, made in self.spreads.items()}

    @property
    def sharded(self) -> bool:
        """Whether weights are shared out over the `data` axis, so that its processes must do equally many passes."""
        return self.settings.data in ("zero2", "zero3") and self.world.mesh is not None

    def spread(self, modules: Mapping[str, nn.Module], device: torch.device) -> None:
        """Leave every process its part of some modules, which all have whole and equal now, on its device. In place.

        Raises ChatloomError for a model that cannot be spread so. Collective.
        """
        world, self.device = self.world, device
        if world.mesh is None:
            for module in modules.values():
                module.to(device)
            return
        if world.pipeline.size > 1 and len(modules) > 1:
            raise ChatloomError("loop.parallel.pipeline works for one model at a time, and this stage trains two")
        for label, module in modules.items():
            made = Spread(module, world, hollow(module))
            body: Any = getattr(module, "body", module)
            if world.pipeline.size > 1:
                self.pipe = pipeline.Pipe(world, body)
                made.names, made.copies = pipeline.keep_stage(module, world.pipeline)
            else:
                made.names = {name: name for name, _ in module.named_parameters()}
            if world.tensor.size > 1:
                prefix = "" if body is module else "body."
                cuts, partial = tensor.share_out(body, world.tensor)
                made.cuts = {prefix + name: cut for name, cut in cuts.items()}
                made.partial = {prefix + name for name in partial}
            if self.sharded:
                shard(module, world, keep_gathered=self.settings.data == "zero2")
            module.to(device)
            self.spreads[label] = made
        if self.settings.data == "zero1" and world.data.size > 1:
            trained = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
            self.owners = Owners(trained, world.data)

    def take(self, optimizer: ScheduledOptimizer) -> None:
        """Leave a fresh optimizer only what this process is to step, and have it clip by whole norms.

        Raises ChatloomError for one that needs whole matrices where they are cut.
        """
        for label, made in self.spreads.items():
            name = optimizer.settings[label].name
            if name != "adamw" and (self.sharded or made.cuts):
                how = f"data {self.settings.data}" if self.sharded else f"tensor {self.settings.tensor}"
                raise ChatloomError(
                    f"optimizer {name} needs whole matrices, and loop.parallel ({how}) cuts them; use data: zero1 or "
                    "replicate, or the optimizer adamw"
                )
        if self.spreads:
            optimizer.clipper = self.clip
        for item in optimizer.optimizers if self.owners is not None else ():
            assert self.owners is not None
            self.owners.narrow(item)

    def rounds(self, passes: int) -> int:
        """How many passes to do for one's own: gathering weights takes all processes of the `data` axis. Collective."""
        return max(self.world.gather(passes)) if self.sharded and not self.world.alone else passes

    def evened(self, batches: Sequence[Batch]) -> list[Batch]:
        """Micro-batches and, where all have to do equally many passes, as much padding as is missing. Collective."""
        return [*batches, *[nothing_of(batches[-1])] * (self.rounds(len(batches)) - len(batches))]

    @property
    def reduce(self) -> Callable[[Tensor], Tensor] | None:
        """Sums a tensor over the processes that read other data; None where there are none."""
        return (lambda value: sum_over(value, [self.world.data])) if self.world.data.size > 1 else None

    def counted(self, batches: Sequence[Batch]) -> dict[str, int]:
        """Of a step on all processes: `tokens`, `keys` that they see together, `losses` of them. Collective."""
        own = {
            "tokens": sum(batch.n_tokens for batch in batches),
            "keys": sum(batch.n_keys for batch in batches),
            "losses": sum(len(batch.supervised) for batch in batches),
        }
        return {name: int(value) for name, value in self.world.totals(own).items()}

    def passes(
        self,
        batches: Sequence[Batch],
        objective: Objective,
        weight: float,
        context: Callable[[int], AbstractContextManager[Any]],
        dtype: torch.dtype,
    ) -> list[Terms]:
        """Forward and backward of total / weight for this process's micro-batches; what its objective gave. Collective.

        context(n): entered around the forward pass of micro-batch n (autocast, random numbers). dtype: of hidden
        states. In a pipeline only the last stage has terms to give.
        """
        if self.pipe is not None:
            return self._pipelined(self.pipe, batches, objective, weight, context, dtype)
        with answering():
            return self._one_by_one(batches, objective, weight, context)

    def _one_by_one(
        self,
        batches: Sequence[Batch],
        objective: Objective,
        weight: float,
        context: Callable[[int], AbstractContextManager[Any]],
    ) -> list[Terms]:
        found: list[Terms] = []
        for n in range(self.rounds(len(batches))):
            # Others have more to do, and gathering weights takes all: go along with something that counts for nothing.
            counts = n < len(batches)
            with context(n):
                terms = objective(batches[n if counts else -1])
            (terms.total / weight if counts else terms.total * 0.0).backward()
            if counts:
                found.append(terms.detached())
        return found

    def _pipelined(
        self,
        pipe: pipeline.Pipe,
        batches: Sequence[Batch],
        objective: Objective,
        weight: float,
        context: Callable[[int], AbstractContextManager[Any]],
        dtype: torch.dtype,
    ) -> list[Terms]:
        found: list[Terms] = []
        body: Any = pipe.body

        def forward(n: int) -> Tensor:
            with context(n):
                if not pipe.last:
                    hidden: Tensor = body.over(batches[n])
                    return hidden
                terms = objective(batches[n])
            found.append(terms.detached())
            return terms.total / weight

        axis = self.world.pipeline
        idle = idle_share(axis.size, len(batches))
        if idle > TOO_IDLE and not self.warned:
            self.warned = True
            say(
                f"a pipeline of {axis.size} with micro-batches in steps of {len(batches)} idles for {idle:.0%} of the "
                "time; a smaller loop.micro_batch_tokens gives it more of them"
            )
        pipe.run(order(self.settings.schedule, axis.place, axis.size, len(batches)), batches, forward, dtype)
        return found

    def sum_gradients(self) -> None:
        """Make every gradient that of the whole step, on every process that holds the parameter. Collective."""
        for made in self.spreads.values():
            parameters = made.parameters
            whole = [p for p in parameters.values() if not isinstance(p, DTensor)]
            sum_gradients(whole, self.world.data.group)
            sum_gradients([parameters[name] for name in sorted(made.partial)], self.world.tensor.group)
            if self.pipe is not None and self.pipe.tied:
                tied = [p for name, p in parameters.items() if name.endswith("embedding.weight")]
                self.pipe.sum_tied(tied)

    def norm(self, label: str) -> Tensor:
        """Norm of the whole gradient of a module, the same everywhere: fp32 scalar. Collective."""
        made, world = self.spreads[label], self.world
        here = [(n, p, p.grad) for n, p in made.parameters.items() if p.grad is not None and n not in made.copies]
        like = next(iter(made.parameters.values()))

        def of(*, sliced: bool) -> Tensor:
            """Sums of squares of what is whole on the `tensor` axis and of what is cut there: [2]."""
            found = [(n in made.cuts, g) for n, p, g in here if isinstance(p, DTensor) == sliced]
            return torch.stack([squares([g for is_cut, g in found if is_cut == cut], like) for cut in (False, True)])

        sums = of(sliced=False)
        if self.sharded:
            sums = sums + sum_over(of(sliced=True), [world.data])
        total = sums[0] + sum_over(sums[1].clone(), [world.tensor])
        return sum_over(total, [world.pipeline]).sqrt()

    def clip(self, label: str, limit: float) -> Tensor:
        """Scale a module's gradient down to a norm of `limit` (0: never); the norm before. Collective."""
        norm = self.norm(label)
        if limit > 0:
            found = [local(p.grad) for p in self.spreads[label].parameters.values() if p.grad is not None]
            torch._foreach_mul_(found, torch.clamp(limit / (norm + 1e-6), max=1.0))
        return norm

    def publish(self) -> None:
        """Bring every process's copy of the weights up to date after a step. Collective."""
        if self.owners is not None:
            self.owners.publish()

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """The modules are whole meanwhile, on the CPU, on the first process; on the others they stay. Collective."""
        with contextlib.ExitStack() as stack:
            for made in self.spreads.values():
                whole = made.gathered()
                if whole is not None:
                    stack.enter_context(made.standing_in(whole))
            yield

    @contextlib.contextmanager
    def filling(self) -> Iterator[None]:
        """The modules are whole and empty meanwhile, on the CPU; what they are filled with then is each one's part."""
        with contextlib.ExitStack() as stack:
            for made in self.spreads.values():
                stack.enter_context(made.filling())
            yield

    def let_go(self) -> None:
        """Give up gathered weights, which a forward pass without a backward one leaves behind."""
        for made in self.spreads.values():
            for part in made.module.modules():
                if isinstance(part, FSDPModule):
                    part.reshard()

    def release(self) -> None:
        """The first process's modules are whole from now on, and it goes on alone. Collective.

        Raises Released on the others.
        """
        for made in self.spreads.values():
            made.restore(self.device)
        leads = self.world.leads
        self.world, self.spreads, self.pipe, self.owners = ALONE, {}, None, None
        if not leads:
            raise Released

    def tell(self, order: str, value: Any = None) -> None:
        """Say to the others, who `hear`, what all do next (training/sharing.py). Only the first process speaks."""
        if self.world.leads and not self.world.alone:
            self.world.first((order, value))

    def hear(self) -> tuple[str, Any]:
        """What the first process tells."""
        heard: tuple[str, Any] = self.world.first(("", None))
        return heard

    def share_signals(self, caught: list[int]) -> None:
        """Where any process has caught a signal, all have. Collective."""
        if not self.world.alone:
            others = [number for number in self.world.gather(caught[0] if caught else 0) if number]
            if others and not caught:
                caught.append(others[0])

    def whole_state(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """An optimizer's tensors, named `key.label.parameter`, as one process would have them. Collective.

        On the first process; nothing on the others. With one process the tensors are given back as they are.
        """
        if not self.spreads:
            return dict(tensors)
        found: dict[str, Tensor] = {}
        # Every process must do the same in the same order, also where it owns nothing of a kind.
        keys = sorted({item for given in self.world.gather({_parse(name)[:2] for name in tensors}) for item in given})
        for key, label in keys:
            own = {_parse(name)[2]: t for name, t in tensors.items() if _parse(name)[:2] == (key, label)}
            whole = self.spreads[label].whole(own, owned=self.owners is not None)
            found.update({f"{key}.{label}.{name}": value for name, value in whole.items()})
        return found

    def part_state(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What this process holds of the tensors that `whole_state` gave."""
        if not self.spreads:
            return dict(tensors)
        found: dict[str, Tensor] = {}
        for label, made in self.spreads.items():
            here = {whole: name for name, whole in {**made.names, **made.copies}.items()}
            parameters = made.parameters
            for given, value in tensors.items():
                key, owner, whole = _parse(given)
                if owner != label or whole not in here:
                    continue
                name = here[whole]
                if self.owners is None or self.owners.owns(parameters[name]):
                    found[f"{key}.{label}.{name}"] = made.part(name, value)
        return found


def _parse(name: str) -> tuple[str, str, str]:
    """`key.label.parameter` -> its three."""
    key, _, rest = name.partition(".")
    label, _, parameter = rest.partition(".")
    return key, label, parameter
