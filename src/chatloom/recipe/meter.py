"""Wall seconds and peak memory of a stage, also over several attempts (killed and run again)."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from chatloom.artifact import write_json

_SECONDS_BETWEEN_SAMPLES = 0.2
_SECONDS_BETWEEN_NOTES = 5.0


class Meter:
    """Times a `with` block and samples memory while it runs.

    Memory is the sum of the resident sizes of this process and all its children, sampled by a thread every 0.2 s, in
    bytes: a shorter peak may be missed, and pages that processes share count once for each. The sums so far are noted
    in `.NAME.effort.json` beside the artifact every 5 s, so that an attempt that is killed still counts.
    """

    def __init__(self, target: Path, *, go_on: bool) -> None:
        self._file = target.with_name(f".{target.name}.effort.json")
        before = self._read() if go_on else {}
        self._seconds_before = float(before.get("seconds", 0.0))
        self.peak = int(before.get("peak", 0))
        self.attempts = int(before.get("attempts", 0)) + 1
        self._start = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="chatloom-meter", daemon=True)
        self.seconds = self._seconds_before

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        self._sample()
        self._note()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()
        self._note()

    def forget(self) -> None:
        """Remove the note; the numbers are in the manifest now."""
        self._file.unlink(missing_ok=True)

    def _watch(self) -> None:
        noted = time.monotonic()
        while not self._stop.wait(_SECONDS_BETWEEN_SAMPLES):
            self._sample()
            if time.monotonic() - noted >= _SECONDS_BETWEEN_NOTES:
                noted = time.monotonic()
                self._note()

    def _sample(self) -> None:
        self.seconds = self._seconds_before + time.monotonic() - self._start
        process = psutil.Process()
        total = process.memory_info().rss
        for child in _children(process):
            try:
                total += child.memory_info().rss
            except psutil.Error:
                continue  # it ended meanwhile
        self.peak = max(self.peak, total)

    def _note(self) -> None:
        try:
            write_json(self._file, {"seconds": self.seconds, "peak": self.peak, "attempts": self.attempts})
        except OSError:
            return  # a full disk stops the stage itself with a better sentence

    def _read(self) -> dict[str, float]:
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []
