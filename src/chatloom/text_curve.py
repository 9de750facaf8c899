"""A curve in plain text: blocks of eighths of a line, readable in a terminal and in a mail."""

from __future__ import annotations

from collections.abc import Sequence

EIGHTHS = " ▁▂▃▄▅▆▇█"


def text_curve(
    values: Sequence[float], *, width: int = 60, height: int = 4, noun: str = "step", total: int | None = None
) -> str:
    """Values >= 0 over 1 .. total, evenly spaced, from 0 up: `height` lines of at most `width` blocks, and the axes.

    Where there are more values than blocks, a block shows the largest of its stretch, so that no peak is lost. What is
    above 0 is seen: it takes an eighth of a line at least. With one line the axes are left out.
    """
    top = max(values)
    heights = [_level(max(part), top, height) for part in _stretches(values, width)]
    lines = ["".join(EIGHTHS[min(max(n - 8 * row, 0), 8)] for n in heights) for row in reversed(range(height))]
    if height == 1:
        return lines[0]
    names = [f"{top:.3g}", *[""] * (height - 2), "0"]
    room = max(map(len, names))
    drawn = [f"{name:>{room}} │{line.rstrip()}" for name, line in zip(names, lines, strict=True)]
    first, last = f"{noun} 1", f"{total or len(values):,}"
    return "\n".join([*drawn, " " * (room + 2) + first + last.rjust(max(len(last) + 1, len(heights) - len(first)))])


def _level(value: float, top: float, height: int) -> int:
    """Eighths of a line that a value reaches."""
    return max(round(8 * height * value / top), 1) if value > 0 else 0


def _stretches(values: Sequence[float], width: int) -> list[Sequence[float]]:
    """The values cut into at most `width` stretches of nearly one length."""
    n = min(width, len(values))
    return [values[len(values) * i // n : len(values) * (i + 1) // n] for i in range(n)]
