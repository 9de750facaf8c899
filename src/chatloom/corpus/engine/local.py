"""The default engine: processes of this machine with a deadline and a memory limit a task, replaced when killed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

from chatloom.corpus.engine.steps import Lost, Receipt, Work, run_task
from chatloom.corpus.workers import BATCH_BYTES, TOO_MUCH_MEMORY, Failure, Workers


class LocalPool:
    """`processes` children; a task may take `seconds` and `memory_bytes`. Raises nothing: what dies is Lost.

    In a `with` the children live as long as it does, else as long as one `map`.
    """

    def __init__(self, processes: int, *, seconds: float = 3600.0, memory_bytes: int = 8 << 30) -> None:
        self.processes, self.seconds, self.memory_bytes = max(1, processes), seconds, memory_bytes
        self._held: Workers | None = None

    def __enter__(self) -> Self:
        self._held = self._workers()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._held is not None:
            self._held.__exit__(kind, error, trace)
        self._held = None

    def _workers(self) -> Workers:
        function = "chatloom.corpus.engine.local:work_here"
        return Workers(function, None, self.processes, self.seconds, self.memory_bytes)

    def _told(self, failure: Failure) -> str:
        limit = f" ({self.memory_bytes / 1e9:g} GB: engine.gigabytes)" if TOO_MUCH_MEMORY in failure.reason else ""
        return failure.reason + limit

    def map(self, work: Iterable[Work]) -> Iterator[Receipt | Lost]:
        """Receipts in the order of the work."""
        keys: list[str] = []

        def items() -> Iterator[tuple[Work, int]]:
            for item in work:
                keys.append(item.task.key)
                yield item, BATCH_BYTES  # a batch of its own, so that a death costs one task

        pool, ended = self._held or self._workers(), False
        try:
            for number, result in enumerate(pool.map(items())):
                yield Lost(keys[number], self._told(result)) if isinstance(result, Failure) else result
            ended = True
        finally:
            if self._held is None or not ended:  # children in the middle of something answer no other question
                pool.__exit__(None, None, None)


class InProcess:
    """Runs every task in this process, one after another; what it raises is raised, what kills it kills all."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def map(self, work: Iterable[Work]) -> Iterator[Receipt | Lost]:
        """Receipts in the order of the work."""
        for item in work:
            yield run_task(item)


def work_here(work: Work, options: None) -> Receipt:
    """What a child does with a piece of work."""
    del options
    return run_task(work)
