"""The processes of a run as torchrun started them: which one this is, and how they agree on something.

Every process has a place on three axes, `pipeline` x `data` x `tensor`; neighbours on `tensor` are neighbours in rank,
as they talk most. One process without torchrun is a world of size 1, in which every question is answered at once.

Numbers about a step (weights, losses, decisions) travel as CPU objects through gloo, so that no accelerator waits for
them; gradients and weights travel through the device's own backend (NCCL on CUDA).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from chatloom.errors import ChatloomError
from chatloom.training.parallel.launch import launched, local_rank, restarts, world_size
from chatloom.training.parallel.settings import ParallelSettings

T = TypeVar("T")
AXES = ("pipeline", "data", "tensor")
PATIENCE = timedelta(days=30)


class PeerLost(ChatloomError):
    """Another process of this run ended, or did not answer in time."""


@dataclass(frozen=True)
class Axis:
    """One axis of the mesh as this process sees it: how many are on it, which one this is, and their group."""

    size: int = 1
    place: int = 0
    group: dist.ProcessGroup | None = None


@dataclass(frozen=True)
class World:
    """Rank and axes of this process; `mesh` is None for a process that torchrun did not start."""

    size: int = 1
    rank: int = 0
    mesh: DeviceMesh | None = None
    pipeline: Axis = field(default_factory=Axis)
    data: Axis = field(default_factory=Axis)
    tensor: Axis = field(default_factory=Axis)

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files, prints and holds the lock."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.size == 1

    @property
    def speaks(self) -> bool:
        """Whether this process counts where the ones that saw the same data would say the same: the last stage's first.

        The last process of a pipeline has the loss.
        """
        return self.tensor.place == 0 and self.pipeline.place == self.pipeline.size - 1

    def gather(self, value: T) -> list[T]:
        """What every process says, in the order of ranks. Collective."""
        if self.alone:
            return [value]
        found: list[Any] = [None] * self.size
        with answering():
            dist.all_gather_object(found, value)
        return found

    def first(self, value: T) -> T:
        """What the first process says. Collective."""
        if self.alone:
            return value
        told: list[Any] = [value]
        with answering():
            dist.broadcast_object_list(told, src=0)
        result: T = told[0]
        return result

    def any(self, value: bool) -> bool:
        """Whether any process says so. Collective."""
        return any(self.gather(value))

    def totals(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Sums over all data, in fp64 and always in the same order: the same bits on every process. Collective.

        What the processes that do not `speak` say is not counted.
        """
        if self.alone:
            return dict(sums)
        result: dict[str, float] = {}
        for part in self.gather(dict(sums) if self.speaks else {}):
            for name, value in part.items():
                result[name] = result.get(name, 0.0) + value
        return result

    def wait(self) -> None:
        """Go on when all have come here. Collective."""
        self.gather(None)


ALONE = World()


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """Turns the backend's errors about a lost process into PeerLost; all others stay what they are."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        raise PeerLost(
            f"another process of this run ended or did not answer in time ({str(error).splitlines()[0][:160]}); "
            "what was saved is intact: run the same command to go on, or let torchrun do it (--max-restarts)"
        ) from error


def connect(timeout: float = 600.0) -> None:
    """Find the other processes; does nothing for one that no launcher started, or that is connected already.

    Raises PeerLost when they do not come within `timeout` seconds.
    """
    if not launched() or dist.is_initialized():
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
    with answering():
        patience = timedelta(seconds=timeout)
        store, rank, size = next(dist.rendezvous("env://", timeout=patience))
        # torchrun may give a restarted job the store of the attempt before, with the addresses of ended processes.
        attempt = dist.PrefixStore(f"attempt {restarts()}", store)
        dist.init_process_group(backend, store=attempt, rank=rank, world_size=size, timeout=patience)


@dataclass(frozen=True)
class Line:
    """On which the first process tells the others something, however long they have waited for it."""

    group: dist.ProcessGroup

    @classmethod
    def open(cls, timeout: float) -> Line:
        """Connects; `timeout` is for all else that the processes do together. Collective."""
        connect(timeout)
        with answering():
            group = dist.new_group(backend="gloo", timeout=PATIENCE)
        assert isinstance(group, dist.ProcessGroup)
        return cls(group)

    def tell(self, value: Any) -> None:
        """Say something to all others, which `hear`."""
        with answering():
            dist.broadcast_object_list([value], src=0, group=self.group)

    def hear(self) -> Any:
        """What the first process tells; raises PeerLost when it ends instead."""
        told: list[Any] = [None]
        with answering():
            dist.broadcast_object_list(told, src=0, group=self.group)
        return told[0]


def disconnect() -> None:
    """Leave the others, when all have come here; does nothing for a process that is not connected."""
    if dist.is_initialized():
        with answering():
            dist.barrier()
        dist.destroy_process_group()


def join(settings: ParallelSettings, device: torch.device) -> World:
    """The world of a run with these settings, on devices of this kind; connects if nobody has yet.

    Raises ChatloomError when the processes cannot be laid out as the settings say. Collective.
    """
    wanted = settings.tensor * settings.pipeline
    size = world_size()
    if size % wanted:
        raise ChatloomError(
            f"loop.parallel asks for tensor {settings.tensor} x pipeline {settings.pipeline} = {wanted} processes for "
            f"each share of the data, and {size} {'runs' if size == 1 else 'run'}; start a multiple of {wanted} "
            f"(torchrun --nproc-per-node {wanted} -m chatloom ...), or lower these settings"
        )
    if not launched():
        return ALONE
    connect(settings.timeout)
    shape = (settings.pipeline, size // wanted, settings.tensor)
    with answering():
        mesh = init_device_mesh(device.type, shape, mesh_dim_names=AXES)
        axes = {
            name: Axis(length, mesh.get_local_rank(name), mesh.get_group(name))
            for name, length in zip(AXES, shape, strict=True)
        }
    return World(size, dist.get_rank(), mesh, **axes)
