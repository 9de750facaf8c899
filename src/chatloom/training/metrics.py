"""metrics.jsonl: one JSON line a step, appended as the run goes; the record that curves and reports are drawn from.

A killed run leaves at most one torn last line, which is cut off and counted. A resumed run first calls
`truncate_after` with the step of its checkpoint, so that the file ends up with each step once; should a file hold a
step twice all the same, the later line wins. Numbers JSON cannot write (NaN, infinities) are kept as the strings
"NaN", "Infinity", "-Infinity".
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from chatloom.artifact import is_disk_full
from chatloom.errors import ChatloomError
from chatloom.progress import say

Row = dict[str, Any]

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class MetricsError(ChatloomError):
    """A row that cannot be written, or a metrics file that cannot be read."""


@dataclass(frozen=True)
class Metrics:
    """What a metrics file holds: rows in order of (step, first seen), and what had to be left out of them."""

    rows: list[Row] = field(default_factory=list)
    torn_lines: int = 0  # lines that are not a row: the mark of a kill in the middle of a write
    replaced_rows: int = 0  # rows of an earlier attempt at the same step

    def column(self, name: str, kind: str = "train") -> tuple[list[int], list[float]]:
        """Steps and values of one metric, where it was recorded as a number."""
        rows = [row for row in self.rows if row.get("kind", "train") == kind and is_number(row.get(name))]
        return [row["step"] for row in rows], [float(row[name]) for row in rows]


class MetricsFile:
    """Appends rows to a metrics file; every row is on its way to the disk before `append` returns."""

    def __init__(self, path: Path | str, *, fsync_seconds: float = 5.0) -> None:
        """Open for appending, making the file or cutting off a torn last line (`torn_lines` counts it)."""
        self.path = Path(path)
        self.fsync_seconds = fsync_seconds
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.torn_lines = _cut_torn_end(self.path)
        self._synced_at = time.monotonic()
        self._descriptor = _open_append(self.path)
        self._waiting: deque[tuple[int, str, Row]] = deque()

    def append(self, step: int, kind: str = "train", **values: Any) -> None:
        """Write one row: `{"step": step, **values}`, with `kind` if it is another than "train".

        Raises MetricsError for a value that is no number, string, list or mapping of these; OSError (disk full, ...)
        leaves the file as it was before the row.
        """
        row: Row = {"step": int(step)}
        if kind != "train":
            row["kind"] = kind
        row.update(values)
        line = (encode_row(row) + "\n").encode("utf-8")
        start = os.fstat(self._descriptor).st_size
        try:
            written = 0
            while written < len(line):
                written += os.write(self._descriptor, line[written:])
        except OSError:
            os.ftruncate(self._descriptor, start)
            raise
        now = time.monotonic()
        if abs(now - self._synced_at) >= self.fsync_seconds:
            os.fsync(self._descriptor)
            self._synced_at = now

    def offer(self, step: int, kind: str = "train", **values: Any) -> bool:
        """Append a row, and those that a full disk has held up before; False: they wait in memory for the next call."""
        self._waiting.append((step, kind, values))
        try:
            self.catch_up()
        except OSError as error:
            if not is_disk_full(error):
                raise
            if len(self._waiting) == 1:
                say(f"WARNING: {self.path}: {error.strerror}; metrics wait in memory until there is room again")
            return False
        return True

    def catch_up(self) -> None:
        """Append what a full disk has held up; raises OSError when there still is no room."""
        while self._waiting:
            step, kind, values = self._waiting[0]
            self.append(step, kind, **values)
            self._waiting.popleft()

    def truncate_after(self, step: int) -> int:
        """Drop all rows of later steps (a resumed run makes them again), all or none; returns how many."""
        self.close()
        dropped = truncate_after(self.path, step)
        self._descriptor = _open_append(self.path)
        return dropped

    def close(self) -> None:
        """Flush to the disk and close; closing twice is harmless."""
        if self._descriptor >= 0:
            os.fsync(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(path: Path | str) -> Metrics:
    """Read a metrics file, also of a stage that still runs or was killed; a missing file has no rows."""
    path = Path(path)
    if not path.exists():
        return Metrics()
    rows: dict[tuple[int, str], Row] = {}
    torn = replaced = 0
    with path.open("rb") as lines:
        for line in lines:
            if not line.strip():
                continue
            row = decode_row(line)
            if row is None:
                torn += 1
                continue
            key = (row["step"], str(row.get("kind", "train")))
            replaced += rows.pop(key, None) is not None
            rows[key] = row
    return Metrics(sorted(rows.values(), key=lambda row: row["step"]), torn, replaced)


def truncate_after(path: Path | str, step: int) -> int:
    """Rewrite a metrics file without rows after `step`, torn lines and replaced rows; returns how many rows went.

    step -1 empties it. A missing file stays missing.
    """
    path = Path(path)
    if not path.exists():
        return 0
    metrics = read_metrics(path)
    kept = [row for row in metrics.rows if row["step"] <= step]
    if len(kept) == len(metrics.rows) and not metrics.torn_lines and not metrics.replaced_rows:
        return 0
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as out:
        for row in kept:
            out.write((encode_row(row) + "\n").encode("utf-8"))
        out.flush()
        os.fsync(out.fileno())
    os.replace(temporary, path)
    _fsync_folder(path.parent)
    return len(metrics.rows) - len(kept)


def encode_row(row: Row) -> str:
    """One row as a line of strict JSON, keys in the order given; numpy and torch scalars become numbers."""
    try:
        return json.dumps(_plain(row, "row"), ensure_ascii=False, allow_nan=False, separators=(", ", ": "))
    except (TypeError, ValueError) as error:
        raise MetricsError(f"cannot write this row of metrics as JSON: {error}") from error


def decode_row(line: bytes | str) -> Row | None:
    """The row that a line holds, or None if it is not a JSON object with a whole-number `step`."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or isinstance(row.get("step"), bool) or not isinstance(row.get("step"), int):
        return None
    return {key: _NON_FINITE.get(value, value) if isinstance(value, str) else value for key, value in row.items()}


def is_number(value: Any) -> bool:
    """Whether a value of a row can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, dict):
        return {str(key): _plain(inner, f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, f"{where}[{index}]") for index, inner in enumerate(value)]
    if getattr(value, "shape", None) == () and hasattr(value, "item"):  # a numpy or torch scalar, neither imported here
        return _plain(value.item(), where)
    kind = type(value).__name__
    raise MetricsError(f"{where} is a {kind}; a metric is a number, a string, or a list or mapping of these")


def _open_append(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)


def _cut_torn_end(path: Path) -> int:
    """Cut off what follows the last newline, so that the next row has a line of its own; returns 1 if there was any."""
    if not path.exists():
        return 0
    with path.open("r+b") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end == size:
            return 0
        file.truncate(end)
        file.flush()
        os.fsync(file.fileno())
        return 1


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
