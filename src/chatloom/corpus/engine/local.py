"""The default engine: processes of this machine with a deadline and a memory limit a task, replaced when killed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from chatloom.corpus.engine.steps import Lost, Receipt, Work, run_task
from chatloom.corpus.workers import BATCH_BYTES, Failure, Workers


class LocalPool:
    """`processes` children; a task may take `seconds` and `memory_bytes`. Raises nothing: what dies is Lost."""

    def __init__(self, processes: int, *, seconds: float = 3600.0, memory_bytes: int = 8 << 30) -> None:
        self.processes, self.seconds, self.memory_bytes = max(1, processes), seconds, memory_bytes

    def map(self, work: Iterable[Work]) -> Iterator[Receipt | Lost]:
        """Receipts in the order of the work."""
        keys: list[str] = []

        def items() -> Iterator[tuple[Work, int]]:
            for item in work:
                keys.append(item.task.key)
                yield item, BATCH_BYTES  # a batch of its own, so that a death costs one task

        with Workers(
            "chatloom.corpus.engine.local:work_here", None, self.processes, self.seconds, self.memory_bytes
        ) as pool:
            for number, result in enumerate(pool.map(items())):
                yield Lost(keys[number], result.reason) if isinstance(result, Failure) else result


class InProcess:
    """Runs every task in this process, one after another: for tests, and where no process may be started."""

    def map(self, work: Iterable[Work]) -> Iterator[Receipt | Lost]:
        """Receipts in the order of the work."""
        for item in work:
            yield run_task(item)


def work_here(work: Work, options: None) -> Receipt:
    """What a child does with a piece of work."""
    del options
    return run_task(work)
