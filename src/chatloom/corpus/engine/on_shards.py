"""Processes started by hand or by a batch scheduler do one run together: the same command with --shard i/N on each.

Shard 0 leads: it runs the recipe, writes down the tasks of every step, does its own part of them and waits for the
others'. They do nothing but these tasks. What a member does not get done, because it never started or was killed, the
leader does itself: a task is a pure function, so one that is done twice writes the same bytes. All members must see
the run's folder by the same path.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from chatloom.artifact import locked
from chatloom.corpus.engine import crew
from chatloom.corpus.engine.crew import Batch, Beat, Hearing, Part
from chatloom.corpus.engine.local import LocalPool
from chatloom.corpus.engine.steps import RECEIPTS, Lost, Receipt, Work, read_receipt
from chatloom.errors import ChatloomError
from chatloom.progress import say

POLL_SECONDS = 0.2
START_SECONDS = 20.0  # members that are started together are not heard of at once
TELL_SECONDS = 60.0
TAKEN_AT_ONCE = 4  # tasks a process; then the others' work is looked at again
LEADING: ContextVar[Leader | None] = ContextVar("leading", default=None)


class Leader:
    """Shard 0 of a crew, inside a `with`: engines made meanwhile give the other members their part.

    `shared` names what all members must have alike (recipe, versions). Raises ArtifactError when another process leads.
    """

    def __init__(self, run_folder: Path, part: Part, shared: Mapping[str, str]) -> None:
        self.folder, self.part, self._shared = run_folder / crew.FOLDER, part, dict(shared)
        self.run, self._number = secrets.token_hex(8), 0
        self._stack = contextlib.ExitStack()
        self._begun, self._told_silent = 0.0, set[int]()

    def __enter__(self) -> Self:
        self._stack.enter_context(locked(self.folder))
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.hearing = Hearing(self.folder)
        self.beat = self._stack.enter_context(Beat(self.folder, self.run, 0))
        crew.put(self.folder / crew.LEADER, {"run": self.run, "n": self.part.n, "shared": self._shared})
        self._token, self._begun = LEADING.set(self), time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        LEADING.reset(self._token)
        with contextlib.suppress(OSError):
            crew.put(self.folder / crew.END, {"run": self.run, "failed": None if error is None else _told(error)})
        self._stack.close()

    def open(self, work: list[Work], pool: LocalPool, workers: int) -> Batch:
        """Let the others begin with tasks."""
        self._number += 1
        file = crew.batch_file(self.folder, self.run, self._number)
        work = [Work(item.task, str(Path(item.folder).absolute()), item.careful, str(file)) for item in work]
        batch = Batch(self._number, work, workers, pool.seconds, pool.memory_bytes)
        crew.put(file, batch.values())
        self.beat.tell(self._number)
        return batch

    def close(self, batch: Batch) -> None:
        """End a batch: what somebody still does of it is not put in place any more."""
        crew.batch_file(self.folder, self.run, batch.number).unlink(missing_ok=True)
        self.beat.tell(0)

    def silent(self, members: Iterable[int]) -> set[int]:
        """Members that are not heard of, so that their part has to be done here; said once of each."""
        found = {member for member in members if self.hearing.batch(member, self.run) is None}
        if time.monotonic() - self._begun < START_SECONDS:
            return set()
        for member in sorted(found - self._told_silent):
            say(f"shard {member}/{self.part.n} is not heard of; its part is done here until it is")
        self._told_silent |= found
        return found

    def wait_for_all(self, batch: Batch) -> None:
        """Until no member that is alive does anything of a batch, so that its folders may be moved."""
        while any(self.hearing.batch(member, self.run) == batch.number for member in range(1, self.part.n)):
            time.sleep(POLL_SECONDS)


class OnShards:
    """The engine of a leader: a pool of this machine's processes for its part, and the other members for theirs."""

    def __init__(self, leader: Leader, pool: LocalPool, workers: int) -> None:
        self._leader, self._pool, self._workers = leader, pool, workers

    def __enter__(self) -> Self:
        self._pool.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.__exit__(kind, error, trace)

    def map(self, work: Iterable[Work]) -> Iterator[Receipt | Lost]:
        """Receipts as they come in, from whoever did the work."""
        leader = self._leader
        batch = leader.open(list(work), self._pool, self._workers)
        own = list(batch.work[0 :: leader.part.n])
        others = {
            item.task.key: (member, item)
            for member in range(1, leader.part.n)
            for item in batch.work[member :: leader.part.n]
        }
        try:
            for result in self._pool.map(own):
                yield result
                yield from self._arrived(batch, others)
            while others:
                before = len(others)
                yield from self._arrived(batch, others)
                yield from self._taken_over(others)
                if len(others) == before:
                    time.sleep(POLL_SECONDS)
        finally:
            leader.close(batch)
        leader.wait_for_all(batch)

    def _arrived(self, batch: Batch, others: dict[str, tuple[int, Work]]) -> Iterator[Receipt | Lost]:
        """What other members have ended since the last look."""
        there = {folder: _names(folder) for folder in {item.folder for _, item in others.values()}}
        lost = {
            member: crew.read_lost(self._leader.folder, self._leader.run, batch.number, member)
            for member in {member for member, _ in others.values()}
        }
        for key, (member, item) in list(others.items()):
            if f"{key}.json" in there[item.folder]:
                receipt = read_receipt(Path(item.folder), item.task)
                if receipt is not None:
                    del others[key]
                    yield receipt
                    continue
            if key in lost[member]:
                del others[key]
                yield Lost(key, lost[member][key])

    def _taken_over(self, others: dict[str, tuple[int, Work]]) -> Iterator[Receipt | Lost]:
        """Some of the work of members of which nothing is heard, done here."""
        silent = self._leader.silent({member for member, _ in others.values()})
        keys = [key for key, (member, _) in others.items() if member in silent][: TAKEN_AT_ONCE * self._pool.processes]
        if keys:
            yield from self._pool.map([others.pop(key)[1] for key in keys])


def follow(run_folder: Path, part: Part, shared: Mapping[str, str]) -> None:
    """Do this part of every batch until the leader ends; waits for a leader as long as there is none.

    Raises ChatloomError when the leader failed, is not heard of any more, or runs something else.
    """
    folder = run_folder / crew.FOLDER
    run = _await_leader(folder, part, shared)
    say(f"shard {part.i}/{part.n}: found the leader")
    hearing, last, tasks = Hearing(folder), 0, 0
    with Beat(folder, run, part.i) as beat, contextlib.ExitStack() as stack:
        pools: dict[tuple[int, float, int], LocalPool] = {}
        while True:
            end = crew.get(folder / crew.END)
            if end is not None and end["run"] == run:
                break
            number = hearing.batch(0, run)
            if number is None:
                raise ChatloomError(
                    f"shard {part.i}/{part.n}: shard 0/{part.n} has not been heard of for {crew.PATIENCE_SECONDS:g} s; "
                    "what is done is kept: start all shards again"
                )
            if number > last:
                last = number
                tasks += _do_part(folder, run, number, part, beat, pools, stack)
            time.sleep(POLL_SECONDS)
    if end["failed"] is not None:
        raise ChatloomError(f"shard 0/{part.n} failed: {end['failed']}")
    say(f"shard {part.i}/{part.n}: {tasks} tasks done")


def _do_part(
    folder: Path,
    run: str,
    number: int,
    part: Part,
    beat: Beat,
    pools: dict[tuple[int, float, int], LocalPool],
    stack: contextlib.ExitStack,
) -> int:
    """Do what is left of a part of a batch; returns how many tasks were done."""
    beat.tell(number)
    try:
        file = crew.batch_file(folder, run, number)
        values = crew.get(file)
        if values is None:
            return 0
        batch = Batch.of(values, str(file))
        limits = (batch.workers, batch.seconds, batch.memory_bytes)
        if limits not in pools:
            from chatloom.corpus.engine.choice import usable_cpus

            pool = LocalPool(batch.workers or usable_cpus(), seconds=batch.seconds, memory_bytes=batch.memory_bytes)
            pools[limits] = stack.enter_context(pool)
        own = batch.work[part.i :: part.n]
        # Looked at one by one: the leader may have done some of it, or ended the batch.
        todo = (item for item in own if file.exists() and read_receipt(Path(item.folder), item.task) is None)
        lost, done = [], 0
        for result in pools[limits].map(todo):
            if isinstance(result, Lost):
                lost.append(result)
                crew.write_lost(folder, run, number, part.i, lost)
            else:
                done += 1
        return done
    finally:
        beat.tell(0)


def _await_leader(folder: Path, part: Part, shared: Mapping[str, str]) -> str:
    """The id of the run that is led now."""
    hearing, told = Hearing(folder), float("-inf")
    first: Any = None
    while True:
        found = crew.get(folder / crew.LEADER)
        end = crew.get(folder / crew.END)
        if found is not None and (end is None or end["run"] != found["run"]):
            beat = crew.get(folder / "0.beat")
            first = first or beat
            # One beat may have been left by a leader that was killed; two were not.
            if hearing.batch(0, found["run"]) is not None and beat != first:
                _check_alike(found, part, shared)
                return str(found["run"])
        if time.monotonic() - told > TELL_SECONDS:
            told = time.monotonic()
            say(f"shard {part.i}/{part.n}: waits for shard 0/{part.n} to start in {folder.parent}")
        time.sleep(POLL_SECONDS)


def _check_alike(found: Mapping[str, Any], part: Part, shared: Mapping[str, str]) -> None:
    theirs = {"number of shards": str(found["n"]), **found["shared"]}
    own = {"number of shards": str(part.n), **shared}
    for name in own:
        if own[name] != theirs.get(name):
            raise ChatloomError(
                f"shard {part.i}/{part.n}: {name} is {own[name]} here and {theirs.get(name)} at shard 0; "
                "start all shards with the same command, in the same folder, with the same versions"
            )


def _names(folder: str) -> set[str]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return {item.name for item in (Path(folder) / RECEIPTS).iterdir()}
    return set()


def _told(error: BaseException) -> str:
    return str(error) or type(error).__name__
