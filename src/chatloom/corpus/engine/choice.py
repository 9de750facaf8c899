"""Which engine runs the tasks, as settings; nothing here changes what comes out."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field

from chatloom.corpus.engine.local import InProcess, LocalPool
from chatloom.corpus.engine.on_shards import LEADING, OnShards
from chatloom.corpus.engine.steps import HeldEngine
from chatloom.errors import ChatloomError
from chatloom.settings import Settings, runtime

Name = Literal["local", "ray", "beam"]
LITTLE = 4_000_000  # bytes of shards on disk, about 15 MB of text: a step over it takes less than processes to start


class EngineSettings(Settings):
    """Where corpus work runs; every engine writes the same bytes."""

    name: Name = runtime("local", description="local (processes of this machine), ray or beam (extras of these names)")
    workers: int = runtime(
        0, ge=0, description="local: processes, 0 for one a processor; ray at `local`: its processors"
    )
    address: str = runtime(
        "auto", description="ray: the cluster's address; auto: this machine's; local: one started here"
    )
    options: tuple[str, ...] = runtime((), description="beam: the runner's options, such as --runner=FlinkRunner")
    seconds: float = runtime(3600.0, gt=0, description="seconds one shard may take before it is done again, carefully")
    gigabytes: float = runtime(8.0, gt=0, description="local: memory one process may take")


class ShardSettings(Settings):
    """How big the pieces of work are."""

    part_megabytes: float = Field(
        64.0, gt=0, description="most megabytes of sources in a part, one task; little is cut into smaller parts"
    )
    shard_megabytes: float = Field(32.0, gt=0, description="millions of characters in one shard of documents")


def make_engine(settings: EngineSettings, *, here: bool = False) -> HeldEngine:
    """The engine that was asked for; in a `with` it lasts for several steps.

    `here`: where `local` was asked for and no number of workers, this process itself, for little work (`is_little`)
    that no text can kill or hold up. Raises ChatloomError where the engine's package is not installed.
    """
    leader = LEADING.get()
    if leader is not None and settings.name != "local":
        raise ChatloomError(
            f"engine `{settings.name}` gives out work itself; leave out --shard, or set `engine.name: local`"
        )
    if settings.name == "ray":
        from chatloom.corpus.engine.on_ray import OnRay

        return OnRay(settings.address, cpus=settings.workers or None, seconds=settings.seconds)
    if settings.name == "beam":
        from chatloom.corpus.engine.on_beam import OnBeam

        return OnBeam(settings.options)
    if here and not settings.workers:
        return InProcess()
    pool = LocalPool(
        settings.workers or usable_cpus(), seconds=settings.seconds, memory_bytes=int(settings.gigabytes * 1e9)
    )
    return pool if leader is None else OnShards(leader, pool, settings.workers)


def is_little(shards: Iterable[Path]) -> bool:
    """Whether there is so little to work on that it is not worth starting processes."""
    return sum(shard.stat().st_size for shard in shards) <= LITTLE


def usable_cpus() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
