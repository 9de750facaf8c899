"""Child processes that can be killed: a function is mapped over items with a deadline for each, order kept.

Extractors and detectors may hang, crash or eat all memory on a hostile page, and Python cannot stop a function from
outside. So the work happens in children started as fresh interpreters (never forked, so that no thread's lock is
inherited), which get batches through a pipe. A batch whose child dies or is late is done again item by item in a new
child, so that only the culprit fails; the others lose nothing. Results come in the order of the items, whatever the
number of children.
"""

from __future__ import annotations

import collections
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from chatloom.errors import ChatloomError

BATCH_ITEMS = 32
BATCH_BYTES = 1 << 19
START_SECONDS = 60.0  # a cold interpreter on a busy machine
MEMORY_BYTES = 4 << 30
TOO_MUCH_MEMORY = "needed more memory than a process may have"
_NO_MEMORY = ("failed to map segment", "Cannot allocate memory")  # libraries loaded late, and the system


@dataclass(frozen=True, slots=True)
class Failure:
    """An item whose work did not end: `reason` says whether it was late, killed its process, or raised."""

    reason: str


@dataclass
class _Batch:
    number: int  # place in the order of results
    items: list[Any]
    deadline: float = 0.0
    first: int = 0  # items before it are done already
    alone: bool = False  # sent one by one, after a failure
    results: list[Any] = field(default_factory=list)


class Workers:
    """`count` children that each load `function` (as "package.module:name") and call it as function(item, options)."""

    def __init__(
        self, function: str, options: Any, count: int, seconds_per_item: float, memory_bytes: int = MEMORY_BYTES
    ) -> None:
        self._setup = (function, options, memory_bytes)
        self._count = max(1, count)
        self._seconds = seconds_per_item
        self._children: list[_Child] = []
        self.restarts = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End all children; `map` starts new ones."""
        for child in self._children:
            child.stop()
        self._children = []

    def map(self, items: Iterable[tuple[Any, int]]) -> Iterator[Any]:
        """Results (or Failures) in order; `items` are pairs of an item and its size in bytes, taken as needed.

        May be called again once it has ended; what is still under way when it is left early is stopped.
        """
        running: dict[_Child, _Batch] = {}
        try:
            yield from self._map(self._batches(items), running)
        finally:
            for child in running:  # its answer belongs to nobody and must not be taken for that of a later call
                self._replace(child)

    def _map(self, batches: Iterator[_Batch], running: dict[_Child, _Batch]) -> Iterator[Any]:
        waiting: collections.deque[_Batch] = collections.deque()
        finished: dict[int, _Batch] = {}
        next_out, exhausted = 0, False
        while True:
            # The window bounds what waits behind a slow batch, and so the memory.
            while not exhausted and len(waiting) + len(running) + len(finished) < 4 * self._count:
                batch = next(batches, None)
                if batch is None:
                    exhausted = True
                else:
                    waiting.append(batch)
            while waiting and len(running) < self._count:
                batch = waiting.popleft()
                running[self._send(batch, running)] = batch
            if not running:
                break
            ready = wait([child.pipe for child in running], timeout=self._patience(running.values()))
            for child in list(running):
                batch = running[child]
                if child.pipe in ready:
                    if not child.ready:
                        child.await_ready()
                        batch.deadline = time.monotonic() + self._seconds
                        continue
                    outcome = child.receive()
                elif time.monotonic() > batch.deadline:
                    if not child.ready:
                        raise ChatloomError(f"corpus: a worker process did not start within {START_SECONDS:g} s")
                    outcome = f"took longer than {self._seconds:g} s"
                else:
                    continue
                del running[child]
                if isinstance(outcome, str):
                    self._replace(child)
                self._settle(batch, outcome, waiting, finished)
            while next_out in finished:
                yield from finished.pop(next_out).results
                next_out += 1

    def _settle(
        self,
        batch: _Batch,
        outcome: list[Any] | str,
        waiting: collections.deque[_Batch],
        finished: dict[int, _Batch],
    ) -> None:
        if isinstance(outcome, list):
            batch.results += outcome
            batch.first += len(outcome)
        elif batch.alone or len(batch.items) == 1:
            batch.results.append(Failure(outcome))
            batch.first += 1
        else:
            batch.alone = True
        if batch.first == len(batch.items):
            finished[batch.number] = batch
        else:
            waiting.appendleft(batch)

    def _send(self, batch: _Batch, running: dict[_Child, _Batch]) -> _Child:
        child = next((child for child in self._children if child not in running), None)
        if child is None:
            child = _Child(self._setup)
            self._children.append(child)
        part = batch.items[batch.first : batch.first + 1] if batch.alone else batch.items
        batch.deadline = time.monotonic() + (self._seconds if child.ready else START_SECONDS)
        child.send(part)
        return child

    def _replace(self, child: _Child) -> None:
        child.kill()
        self._children = [other for other in self._children if other is not child]
        self.restarts += 1

    @staticmethod
    def _patience(batches: Iterable[_Batch]) -> float:
        return max(0.01, min(batch.deadline for batch in batches) - time.monotonic())

    @staticmethod
    def _batches(items: Iterable[tuple[Any, int]]) -> Iterator[_Batch]:
        number, part, size = 0, list[Any](), 0
        for item, item_bytes in items:
            if part and (len(part) >= BATCH_ITEMS or size + item_bytes > BATCH_BYTES):
                yield _Batch(number, part)
                number, part, size = number + 1, [], 0
            part.append(item)
            size += item_bytes
        if part:
            yield _Batch(number, part)


class _Child:
    """One interpreter at the other end of a pipe."""

    def __init__(self, setup: tuple[str, Any, int]) -> None:
        self.pipe, theirs = Pipe(duplex=True)
        self.ready = False  # whether it has loaded the function
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        # One thread each: the children are the parallelism.
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "chatloom.corpus.workers", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            env=os.environ | threads | {"PYTHONPATH": path},
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C reaches the parent, which ends its children in order
        )
        theirs.close()
        self.send(setup)

    def send(self, value: Any) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a dead child is noticed when receiving
            self.pipe.send(value)

    def await_ready(self) -> None:
        """Take the child's first message; raises ChatloomError when it could not load its function."""
        try:
            problem = self.pipe.recv()
        except (EOFError, OSError):
            problem = f"it ended with status {self.process.wait()}"
        if problem:
            raise ChatloomError(f"corpus: a worker process could not start: {problem}")
        self.ready = True

    def receive(self) -> list[Any] | str:
        """The batch's results, or a sentence about how the child ended."""
        try:
            return list(self.pipe.recv())
        except (EOFError, OSError):
            code = self.process.wait()
            how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
            return f"its process {how}"

    def stop(self) -> None:
        self.pipe.close()  # the child ends when its pipe does
        try:
            self.process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.pipe.close()


def _serve(descriptor: int) -> None:
    """A child's life: load the function, answer batches until the pipe closes."""
    import importlib

    with contextlib.closing(Connection(descriptor)) as pipe:
        try:
            name, options, memory_bytes = pipe.recv()
            _limit_memory(memory_bytes)
            try:
                module, _, attribute = name.partition(":")
                function = getattr(importlib.import_module(module), attribute)
            except Exception as error:
                pipe.send(f"{type(error).__name__}: {error}")
                return
            pipe.send("")
            while True:
                pipe.send([_answer(function, item, options) for item in pipe.recv()])
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return


def _answer(function: Any, item: Any, options: Any) -> Any:
    try:
        return function(item, options)
    except MemoryError:
        return Failure(TOO_MUCH_MEMORY)
    except RecursionError:
        return Failure("nests too deeply")
    except Exception as error:
        if isinstance(error, ImportError | OSError) and any(text in str(error) for text in _NO_MEMORY):
            return Failure(TOO_MUCH_MEMORY)
        return Failure(f"{type(error).__name__}: {error}")


def _limit_memory(memory_bytes: int) -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    except (ImportError, ValueError, OSError):
        pass  # macOS refuses this limit; the deadline still holds there


if __name__ == "__main__":
    # Under `-m` this file is `__main__`; Failure must come from the importable module for the parent to know it.
    from chatloom.corpus.workers import _serve as serve

    serve(int(sys.argv[1]))
