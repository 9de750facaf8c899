"""A step of corpus work: tasks that each write the files of one shard, committed one by one with a receipt.

    <folder>/tmp/<key>.*/         what a task is writing; thrown away when it does not finish
    <folder>/<file>               a finished task's files, put in place by rename
    <folder>/receipts/<key>.json  then the receipt: what was asked, the files with sizes and sha256, the counts

A task's function is pure: the same arguments give the same bytes, so a task that was cut off between its renames and
its receipt is simply done again, and two processes that do the same task at once do no harm. A step's counts are the
sums over its receipts, never over what some process remembers.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from chatloom.artifact import fsync_file, sha256_file, write_json
from chatloom.errors import ChatloomError
from chatloom.settings import digest

RECEIPTS, TEMPORARY = "receipts", "tmp"
Counts = dict[str, int]


@dataclass(frozen=True)
class Task:
    """One shard's work: `function` ("package.module:name") is called as function(arguments, folder) -> counts.

    `arguments` is plain JSON, so that any engine can ship it and its hash tells whether a receipt is still true;
    `key` names the shard, one file-name-safe word. The function writes below `folder` only.
    """

    key: str
    function: str
    arguments: Mapping[str, Any]

    @property
    def identity(self) -> str:
        """Hash of what is asked: function and arguments."""
        return digest({"function": self.function, "arguments": dict(self.arguments)})[:16]


@dataclass(frozen=True)
class Receipt:
    """A finished task: its files (name -> bytes and sha256) and its counts."""

    key: str
    identity: str
    files: Mapping[str, Mapping[str, Any]]
    counts: Mapping[str, int]
    seconds: float = 0.0


@dataclass(frozen=True)
class Lost:
    """A task that could not be finished: the reason."""

    key: str
    reason: str


@dataclass(frozen=True)
class Work:
    """A task on its way to where it runs; `careful` asks the function to isolate what kills its process.

    `wanted` names a file that is there as long as somebody waits for the task: without it nothing is put in place.
    """

    task: Task
    folder: str
    careful: bool = False
    wanted: str = ""


class Engine(Protocol):
    """Where tasks run. `map` yields the receipt of each piece of work, or why it was lost, in any order."""

    def map(self, work: Iterable[Work]) -> Iterable[Receipt | Lost]:
        """Run each piece of work somewhere."""


class HeldEngine(Engine, Protocol):
    """An engine that keeps its processes or its cluster from one step to the next inside a `with`."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class StepFailed(ChatloomError):
    """A task was lost in every attempt."""


@dataclass
class Step:
    """Tasks that write into one folder. `name` is for people."""

    name: str
    folder: Path
    tasks: Sequence[Task]
    _done: dict[str, Receipt] = field(default_factory=dict)
    _sound: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        keys = [task.key for task in self.tasks]
        if len(set(keys)) != len(keys):
            raise ValueError(f"step {self.name}: task keys are not distinct")

    def done(self) -> dict[str, Receipt]:
        """Receipts that are true: of a task as it is asked now, with all files there in the size written."""
        for task in self.tasks:
            if task.key not in self._done and (receipt := read_receipt(self.folder, task)) is not None:
                self._done[task.key] = receipt
        return self._done

    def complete(self) -> bool:
        """Whether every task has been done, and its files are what it wrote."""
        return len(self._intact()) == len(self.tasks)

    def _intact(self) -> dict[str, Receipt]:
        """What is done and has the content written (compared once); what has not is done again."""
        done = self.done()
        for key in [key for key in done if key not in self._sound]:
            if is_sound(self.folder, done[key]):
                self._sound.add(key)
            else:
                del done[key]
                (self.folder / RECEIPTS / f"{key}.json").unlink(missing_ok=True)
        return done

    def run(self, engine: Engine, *, advance: Callable[[Receipt], None] | None = None) -> list[Receipt]:
        """Do what is missing; receipts of all tasks in the tasks' order.

        Raises StepFailed when a task is lost twice (the second time carefully).
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        done = self._intact()
        todo = [task for task in self.tasks if task.key not in done]
        lost: dict[str, str] = {}
        for careful in (False, True):
            if careful:
                todo = [task for task in todo if task.key in lost]
                lost = {}
            if not todo:
                break
            for result in engine.map(Work(task, str(self.folder), careful) for task in todo):
                if isinstance(result, Lost):
                    lost[result.key] = result.reason
                    continue
                done[result.key] = result
                self._sound.add(result.key)
                if advance is not None:
                    advance(result)
        if lost:
            key, reason = next(iter(lost.items()))
            raise StepFailed(
                f"{self.name}: {len(lost)} of {len(self.tasks)} shards could not be done, first {key}: {reason}; "
                "what is done is kept: run the same command again once the cause is gone"
            )
        shutil.rmtree(self.folder / TEMPORARY, ignore_errors=True)
        return [done[task.key] for task in self.tasks]


def read_receipt(folder: Path, task: Task) -> Receipt | None:
    """The receipt of a task if it is there, is of this very task, and its files are; else None."""
    try:
        values = json.loads((folder / RECEIPTS / f"{task.key}.json").read_text(encoding="utf-8"))
        receipt = Receipt(**values)
    except (OSError, ValueError, TypeError):
        return None
    if receipt.identity != task.identity:
        return None
    for name, entry in receipt.files.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != entry["bytes"]:
            return None
    return receipt


def is_sound(folder: Path, receipt: Receipt) -> bool:
    """Whether the files of a receipt have the content that was written; damage may leave their sizes as they are."""
    return all(sha256_file(folder / name) == entry["sha256"] for name, entry in receipt.files.items())


def run_task(work: Work) -> Receipt:
    """Do one task where we are, and commit it: files by rename, then the receipt."""
    import time

    started = time.perf_counter()
    task, folder = work.task, Path(work.folder)
    function = load_function(task.function)
    (folder / TEMPORARY).mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{task.key}.", dir=folder / TEMPORARY))  # machines may share process ids
    try:
        arguments = {**task.arguments, "careful": True} if work.careful else dict(task.arguments)
        counts = function(arguments, temporary)
        files: dict[str, Mapping[str, Any]] = {}
        for file in sorted(item for item in temporary.rglob("*") if item.is_file()):
            fsync_file(file)
            files[file.relative_to(temporary).as_posix()] = {
                "bytes": file.stat().st_size,
                "sha256": sha256_file(file),
            }
        if work.wanted and not Path(work.wanted).exists():
            raise ChatloomError(f"{task.key}: nobody waits for it any more")
        for name in files:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(temporary / name, target)
        for parent in {(folder / name).parent for name in files}:
            fsync_file(parent)
        receipt = Receipt(task.key, task.identity, files, dict(counts), round(time.perf_counter() - started, 3))
        (folder / RECEIPTS).mkdir(exist_ok=True)
        write_json(temporary / "receipt", vars(receipt))  # named for this process, until it is whole
        os.replace(temporary / "receipt", folder / RECEIPTS / f"{task.key}.json")
        return receipt
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_function(name: str) -> Callable[[dict[str, Any], Path], Counts]:
    """The function called "package.module:name"."""
    module, _, attribute = name.partition(":")
    function: Callable[[dict[str, Any], Path], Counts] = getattr(importlib.import_module(module), attribute)
    return function


def total(receipts: Iterable[Receipt]) -> Counts:
    """Sums of the counts of receipts, by name."""
    sums: Counts = {}
    for receipt in receipts:
        for name, value in receipt.counts.items():
            sums[name] = sums.get(name, 0) + value
    return dict(sorted(sums.items()))
