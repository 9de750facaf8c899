"""What the members of a crew know of each other: files in one folder that all of them see.

    leader.json            who leads: an id, drawn anew by each leader, the number of shards, and what all must share
    0.beat, 1.beat, ...    a member is alive: the id, a count that goes up, and the number of the batch that it is in
    ID-NUMBER.json         the tasks that are done now; taken away when all of them are
    ID-NUMBER.I.lost       tasks of that batch that member I could not do, with their reasons
    end.json               the leader has ended: the id, and what went wrong or null

Clocks of different machines are never compared: a member is alive as long as its beat changes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from chatloom.corpus.engine.steps import Lost, Task, Work
from chatloom.errors import ChatloomError

FOLDER = ".shards"
LEADER, END = "leader.json", "end.json"
BEAT_SECONDS = 2.0
PATIENCE_SECONDS = 60.0  # longer than a shared file system takes to show a change


@dataclass(frozen=True)
class Part:
    """The part of all tasks that this process does: i, i + n, i + 2n, ... of every list."""

    i: int
    n: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read "i/N", i from 0 to N-1; raises ChatloomError otherwise."""
        first, _, second = text.partition("/")
        if not (first.isdecimal() and second.isdecimal() and int(first) < int(second)):
            raise ChatloomError(f"--shard is {text!r}; expected i/N with i from 0 to N-1, such as 3/16")
        return cls(int(first), int(second))


@dataclass(frozen=True)
class Batch:
    """Tasks that are to be done now, and what one of them may take."""

    number: int
    work: Sequence[Work]
    workers: int
    seconds: float
    memory_bytes: int

    def values(self) -> dict[str, Any]:
        """JSON-ready."""
        rows = [[w.task.key, w.task.function, dict(w.task.arguments), w.folder, w.careful] for w in self.work]
        limits = {name: getattr(self, name) for name in ("number", "workers", "seconds", "memory_bytes")}
        return {**limits, "work": rows}

    @classmethod
    def of(cls, values: Mapping[str, Any], wanted: str) -> Batch:
        """From JSON; `wanted` is the file that is there as long as somebody waits for the tasks."""
        work = [
            Work(Task(key, function, arguments), folder, careful, wanted)
            for key, function, arguments, folder, careful in values["work"]
        ]
        return cls(**{**values, "work": work})


def batch_file(folder: Path, run: str, number: int) -> Path:
    """Where a batch's tasks are."""
    return folder / f"{run}-{number:06d}.json"


def write_lost(folder: Path, run: str, number: int, member: int, lost: Sequence[Lost]) -> None:
    """Tell which tasks of a batch a member could not do."""
    put(folder / f"{run}-{number:06d}.{member}.lost", {item.key: item.reason for item in lost})


def read_lost(folder: Path, run: str, number: int, member: int) -> dict[str, str]:
    """Reasons by key of what a member could not do."""
    return get(folder / f"{run}-{number:06d}.{member}.lost") or {}


class Beat:
    """Says that this member is alive, from a thread of its own, inside a `with`."""

    def __init__(self, folder: Path, run: str, member: int) -> None:
        self._file, self._run = folder / f"{member}.beat", run
        self._count, self._batch = 0, 0
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        self.tell(0)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def tell(self, batch: int) -> None:
        """Say at once which batch this member is in (0: in none)."""
        with self._lock:
            self._batch = batch
            self._write()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with self._lock:
                self._write()

    def _write(self) -> None:
        self._count += 1
        with contextlib.suppress(OSError):  # a beat that is lost is like one that is late
            put(self._file, {"run": self._run, "count": self._count, "batch": self._batch})


class Hearing:
    """Which members are alive, as seen from here."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._last: dict[int, tuple[Any, float]] = {}

    def batch(self, member: int, run: str) -> int | None:
        """The batch that a member is in (0: in none); None when it is not heard of in this run."""
        beat = get(self._folder / f"{member}.beat")
        now = time.monotonic()
        before = self._last.get(member)
        if beat is not None and beat["run"] == run and (before is None or before[0] != beat):
            self._last[member] = before = (beat, now)
        if before is None or before[0]["run"] != run or now - before[1] > PATIENCE_SECONDS:
            return None
        return int(before[0]["batch"])


def put(file: Path, values: Any) -> None:
    """Write JSON that others read at any moment: the old text or the new one."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}")
    temporary.write_text(json.dumps(values), encoding="utf-8")
    os.replace(temporary, file)


def get(file: Path) -> Any:
    """What `put` wrote; None when there is nothing."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ESTALE:  # replaced on its server while it was read
            return None
        raise
