"""Which engine runs the tasks, as settings; nothing here changes what comes out."""

from __future__ import annotations

import os
from typing import Literal

from pydantic import Field

from chatloom.corpus.engine.local import LocalPool
from chatloom.corpus.engine.steps import HeldEngine
from chatloom.settings import Settings, runtime

Name = Literal["local", "ray", "beam"]


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

    part_megabytes: float = Field(64.0, gt=0, description="size of the parts that big source files are cut into")
    shard_megabytes: float = Field(32.0, gt=0, description="millions of characters in one shard of documents")


def make_engine(settings: EngineSettings) -> HeldEngine:
    """The engine that was asked for; in a `with` it lasts for several steps.

    Raises ChatloomError where its package is not installed.
    """
    if settings.name == "ray":
        from chatloom.corpus.engine.on_ray import OnRay

        return OnRay(settings.address, cpus=settings.workers or None, seconds=settings.seconds)
    if settings.name == "beam":
        from chatloom.corpus.engine.on_beam import OnBeam

        return OnBeam(settings.options)
    return LocalPool(
        settings.workers or usable_cpus(), seconds=settings.seconds, memory_bytes=int(settings.gigabytes * 1e9)
    )


def usable_cpus() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
