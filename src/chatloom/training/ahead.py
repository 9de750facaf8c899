"""The data of the next step, made by a thread while this one computes; what the loop still waits is measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """`make(i)` for rising i below `total`, one ahead; `make` must be a pure function of i."""

    def __init__(self, make: Callable[[int], T], total: int) -> None:
        self._make, self._total = make, total
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="data")
        self._next: tuple[int, Future[T]] | None = None

    def take(self, index: int) -> tuple[T, float]:
        """What `make(index)` gives, and the seconds that it was waited for; errors of `make` are raised here."""
        started = time.perf_counter()
        if self._next is not None and self._next[0] == index:
            value = self._next[1].result()
        else:
            value = self._make(index)
        waited = time.perf_counter() - started
        self._next = None
        if index + 1 < self._total:
            self._next = (index + 1, self._pool.submit(self._make, index + 1))
        return value, waited

    def close(self) -> None:
        """End the thread; what it is making is thrown away."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
