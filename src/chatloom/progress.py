"""What a person sees while work runs: a live bar on a terminal, a few plain lines elsewhere; rate and time left.

    with progress(1200, unit="steps", label="pretrain") as bar:
        bar.advance(1, loss=2.31, lr=3e-4)
        bar.say("saved step 100")           # a line of its own, above the bar

Everything goes to standard error, so that standard output stays a command's result. Showing progress never stops
the work: a closed pipe or a full disk behind standard error only ends the showing.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import cache
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Column

Value = float | int | str | None

# A log file wants a line at each tenth of the way, yet neither a flood from fast work nor silence from slow work.
MIN_SECONDS_BETWEEN_LINES = 3.0
MAX_SECONDS_BETWEEN_LINES = 30.0
_SECONDS_BETWEEN_REDRAWS = 0.1
_SECONDS_BETWEEN_RATE_SAMPLES = 0.5
_RATE_SAMPLES = 60


def progress(
    total: int | None, unit: str = "steps", label: str = "", quiet: bool = False, *, start: int = 0
) -> Progress:
    """A bar over `total` units of work (None: unknown), for use in a `with`; a resumed run says where it `start`s."""
    return Progress(total, unit=unit, label=label, quiet=quiet, start=start)


def silence() -> None:
    """Show nothing from now on: of several processes that do the same only one is to be seen."""
    _State.silent = True


def say(message: str) -> None:
    """Write one line to standard error, above a live bar if one is shown."""
    _write(message)


class Progress:
    """Counts units done and shows them; safe to advance from several threads; `done` and `values` may be read."""

    def __init__(
        self,
        total: int | None,
        *,
        unit: str = "steps",
        label: str = "",
        quiet: bool = False,
        start: int = 0,
        clock: Callable[[], float] = time.monotonic,
        live: bool | None = None,
    ) -> None:
        self.total = None if total is None else max(0, int(total))
        self.unit, self.label, self.quiet = unit, label, quiet
        self.done = start
        self.values: dict[str, Value] = {}
        self.rate = Rate(clock)
        self._live = live
        self._bar: _LiveBar | None = None
        self._lock = threading.RLock()
        self._last_line_at = 0.0
        self._tenths_shown = 10 * start // self.total if self.total else 0

    def __enter__(self) -> Self:
        self.rate.start()
        live = _is_live_terminal() if self._live is None else self._live
        if live and not self.quiet:
            self._bar = _LiveBar.open(self.label, self.total)
        return self

    def advance(self, n: int = 1, **values: Value) -> None:
        """Count `n` more units as done and remember the newest `values` (shown beside the bar)."""
        with self._lock:
            self.done += n
            self.values.update(values)
            self.rate.add(n)
            if self.quiet:
                return
            if self._bar is not None:
                if self._bar.due(self.rate.elapsed):
                    self._bar.show(self.done, self.total, self._facts())
            elif self._line_is_due():
                self._last_line_at = self.rate.elapsed
                _write(f"{self._count()}  {self._facts()}".rstrip())

    def say(self, message: str) -> None:
        """Write one line of text beside the bar (nothing when quiet)."""
        if not self.quiet:
            say(message)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self.rate.add(0)
            if self._bar is not None:
                self._bar.close()
                self._bar = None
            if not self.quiet:
                ending = "in" if kind is None else "when stopped, after"
                head = f"{self._count()} {ending} {duration(self.rate.elapsed)}"
                _write("  ".join(p for p in (head, rate_text(self.rate.overall, self.unit), self._values_text()) if p))

    @property
    def seconds_left(self) -> float:
        """Estimate of the seconds to the end, at least 0; NaN when it cannot be known."""
        speed = self.rate.per_second
        if self.total is None or not speed > 0:
            return math.nan
        return max(0.0, (self.total - self.done) / speed)

    def _line_is_due(self) -> bool:
        since = self.rate.elapsed - self._last_line_at
        if self.total is not None and self.done >= self.total:
            return False  # the closing line follows at once and says more
        tenths = 10 * self.done // self.total if self.total else 0
        due = since >= MAX_SECONDS_BETWEEN_LINES or (tenths > self._tenths_shown and since >= MIN_SECONDS_BETWEEN_LINES)
        if due:
            self._tenths_shown = tenths
        return due

    def _count(self) -> str:
        head = f"{self.label}: " if self.label else ""
        if self.total is None or self.total == self.done:
            return f"{head}{self.done:,} {self.unit}"
        percent = f" ({100 * self.done / self.total:.0f}%)" if self.total else ""
        return f"{head}{self.done:,}/{self.total:,} {self.unit}{percent}"

    def _facts(self) -> str:
        left = self.seconds_left
        parts = [rate_text(self.rate.per_second, self.unit)]
        if math.isfinite(left):
            parts.append(f"{duration(left)} left")
        parts.append(self._values_text())
        return "  ".join(part for part in parts if part)

    def _values_text(self) -> str:
        return "  ".join(f"{name} {value_text(value)}" for name, value in self.values.items() if value is not None)


class Rate:
    """Units a second over the last half minute or more, from a clock that may stand still or jump either way."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.elapsed = 0.0
        self.start()

    def start(self) -> None:
        """Begin (again) from nothing done at this moment."""
        self._last = self._clock()
        self._done = 0
        self.elapsed = 0.0
        self._samples: deque[tuple[float, int]] = deque([(0.0, 0)], maxlen=_RATE_SAMPLES)

    def add(self, n: int) -> None:
        """Count `n` units at this moment; a clock that ran backwards adds no time."""
        now = self._clock()
        self.elapsed += max(0.0, now - self._last)
        self._last = now
        self._done += n
        if self.elapsed - self._samples[-1][0] >= _SECONDS_BETWEEN_RATE_SAMPLES:
            self._samples.append((self.elapsed, self._done))

    @property
    def per_second(self) -> float:
        """Units a second; NaN before any time has passed."""
        then, done = self._samples[0]
        seconds = self.elapsed - then
        return (self._done - done) / seconds if seconds > 0 else math.nan

    @property
    def overall(self) -> float:
        """Units a second since the start; NaN before any time has passed."""
        return self._done / self.elapsed if self.elapsed > 0 else math.nan


class _LiveBar:
    """One line of the shared live display; the display starts with its first line and stops with its last."""

    _shared: RichProgress | None = None
    _open_lines = 0
    _lock = threading.Lock()

    def __init__(self, display: RichProgress, label: str, total: int | None) -> None:
        self._display = display
        self._task = display.add_task("", total=total, label=label, count="0", facts="")
        self._drawn_at = -math.inf

    @classmethod
    def open(cls, label: str, total: int | None) -> _LiveBar:
        # Bars may nest (a recipe's over a stage's), and a terminal can carry one live display only.
        with cls._lock:
            if cls._shared is None:
                cls._shared = _live_display()
                cls._shared.start()
            cls._open_lines += 1
            return cls(cls._shared, label, total)

    def due(self, elapsed: float) -> bool:
        """Whether enough time has passed to draw again: drawing at each tiny step would cost more than the step."""
        due = elapsed - self._drawn_at >= _SECONDS_BETWEEN_REDRAWS
        if due:
            self._drawn_at = elapsed
        return due

    def show(self, done: int, total: int | None, facts: str) -> None:
        count = f"{done:,}" if total is None else f"{done:,}/{total:,}"
        self._display.update(self._task, completed=done, count=count, facts=facts)

    def close(self) -> None:
        cls = type(self)
        with cls._lock:
            self._display.remove_task(self._task)
            cls._open_lines -= 1
            if cls._open_lines == 0:
                cls._shared = None
                try:
                    self._display.stop()
                except (OSError, ValueError):
                    return  # standard error is gone: nobody is looking any more


def _live_display() -> RichProgress:
    one_line = Column(no_wrap=True, overflow="ellipsis")
    return RichProgress(
        TextColumn("{task.fields[label]}", style="bold", markup=False),
        BarColumn(bar_width=28, complete_style="cyan", finished_style="cyan"),
        TextColumn("{task.fields[count]}", markup=False),
        TextColumn("{task.fields[facts]}", style="dim", markup=False, table_column=one_line),
        console=_console(),
        transient=True,
        refresh_per_second=5,
    )


@cache
def _console() -> Console:
    return Console(stderr=True, highlight=False)


def _is_live_terminal() -> bool:
    # rich also calls a log file a terminal when FORCE_COLOR is set; a bar redrawn into a file is unreadable.
    try:
        is_terminal = sys.stderr.isatty()
    except (AttributeError, ValueError):
        return False
    return is_terminal and not _console().is_dumb_terminal and not os.environ.get("CI")


class _State:
    silent = False


def _write(line: str) -> None:
    if _State.silent:
        return
    try:
        if _LiveBar._shared is not None:
            _console().print(line, markup=False, highlight=False, soft_wrap=True)
        elif sys.stderr is not None:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
    except (OSError, ValueError):
        return  # showing progress must never stop the work


def value_text(value: Value) -> str:
    """A number as a person reads it: 4 significant digits, thousands parted, very small ones in exponent form."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (math.isfinite(value) and value == int(value) and 1000 <= abs(value) < 1e15):
        return f"{int(value):,}"
    if not math.isfinite(value) or value == 0:
        return f"{value:.0f}"
    if abs(value) < 1e-3 or abs(value) >= 1e15:
        return f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def rate_text(per_second: float, unit: str) -> str:
    """`3.4 steps/s`, or `12 s a step` for slow work; empty when unknown."""
    if not math.isfinite(per_second) or per_second <= 0:
        return ""
    if per_second < 0.1:
        return f"{value_text(1 / per_second)} s per {unit.removesuffix('s')}"
    return f"{per_second:,.0f} {unit}/s" if per_second >= 100 else f"{per_second:.3g} {unit}/s"


def duration(seconds: float) -> str:
    """`8.2 s`, `5m 18s`, `2h 04m`, `3d 07h`: two parts at most."""
    if not math.isfinite(seconds):
        return "?"
    seconds = max(0.0, seconds)
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02d}h"
    return f"{hours}h {minutes:02d}m" if hours else f"{minutes}m {rest:02d}s"
