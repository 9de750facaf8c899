"""Every reply in an append-only file of JSON lines, by the key of its request, so that no call is made twice.

    {"key": "9f2c...", "text": "...", "finish": "stop", "prompt_tokens": 31, "completion_tokens": 208, ...}
    {"key": "07aa...", "failed": 429, "message": "...", "attempts": 6}       a call without a reply, for the budget

A line is written by one call and flushed before anybody sees the reply. A last line without its end was cut off by a
kill and is removed when the file is opened. In memory are the keys and where their lines are, never the texts.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Container, Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from chatloom.endpoints.requests import Reply
from chatloom.errors import ChatloomError

READ_AT_ONCE = 1 << 20


class Recorded:
    """The replies of a file; opened by `with`, or by the Endpoint it is given to. Safe to use from several threads.

    Raises ChatloomError where another process writes the file, and for a line that is no record.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.calls = 0  # calls and tokens of all records
        self.tokens = 0
        self.torn = 0  # bytes of a last line that was cut off
        self._places: dict[bytes, tuple[int, int]] = {}
        self._file = -1
        self._end = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ChatloomError(f"{self.path}: another process is writing replies into it; wait for it") from None
            self._read()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return bytes.fromhex(key) in self._places

    def get(self, key: str) -> Reply | None:
        """The reply to the request of this key, if it is there."""
        place = self._places.get(bytes.fromhex(key))
        if place is None:
            return None
        start, length = place
        return Reply(**json.loads(os.pread(self._file, length, start)))

    def add(self, reply: Reply, *, flush: bool = True) -> None:
        """Write a reply down, and flush it to disk unless more are to follow at once."""
        start, length = self._append(asdict(reply), flush=flush)
        with self._lock:
            self._places[bytes.fromhex(reply.key)] = (start, length)
            self._count(reply.attempts, reply.tokens)

    def add_failure(self, key: str, status: int, message: str, attempts: int) -> None:
        """Write down that a request got no reply, so that its calls are counted; it will be asked again."""
        self._append({"key": key, "failed": status, "message": message, "attempts": attempts})
        with self._lock:
            self._count(attempts, 0)

    def take_over(self, path: Path, keys: Container[str]) -> int:
        """Add the replies to these requests that another file has and this one has not; how many.

        The other file is only read; a last line that was cut off is left out. Raises ChatloomError for any other line
        that is no record.
        """
        taken = 0
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                reply = _parsed(path, number, line) if line.endswith(b"\n") else None
                if isinstance(reply, Reply) and reply.key in keys and reply.key not in self:
                    self.add(reply, flush=False)
                    taken += 1
        os.fsync(self._file)
        return taken

    def _append(self, values: dict[str, Any], *, flush: bool = True) -> tuple[int, int]:
        line = json.dumps(values, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        with self._lock:
            start = self._end
            written = 0
            try:
                while written < len(line):
                    written += os.pwrite(self._file, line[written:], start + written)
            except OSError:
                os.ftruncate(self._file, start)  # a full disk: no half line may stand before the next one
                raise
            self._end += len(line)
        if flush:
            os.fsync(self._file)
        return start, len(line)

    def _count(self, attempts: int, tokens: int) -> None:
        self.calls += attempts
        self.tokens += tokens

    def _read(self) -> None:
        self.calls = self.tokens = self.torn = 0
        self._places.clear()
        for number, (start, line) in enumerate(self._lines(), 1):
            reply = _parsed(self.path, number, line)
            if isinstance(reply, int):
                self._count(reply, 0)
                continue
            self._places[bytes.fromhex(reply.key)] = (start, len(line))
            self._count(reply.attempts, reply.tokens)

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Whole lines with their places; what is behind the last line end is cut off."""
        rest, place = b"", 0
        while piece := os.pread(self._file, READ_AT_ONCE, place + len(rest)):
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                yield place, line
                place += len(line) + 1
        self._end = place
        if rest:
            self.torn = len(rest)
            os.ftruncate(self._file, place)
            os.fsync(self._file)


def _parsed(path: Path, number: int, line: bytes) -> Reply | int:
    """The reply of a line, or the calls of a failure; raises ChatloomError for anything else."""
    try:
        values = json.loads(line)
        if "failed" in values:
            return int(values["attempts"])
        reply = Reply(**values)
        bytes.fromhex(reply.key)
        return reply
    except (ValueError, TypeError, KeyError) as error:
        raise ChatloomError(
            f"{path}, line {number}: not a recorded reply ({type(error).__name__}); the file was changed or damaged: "
            "delete this line, and its call will be made again"
        ) from None
