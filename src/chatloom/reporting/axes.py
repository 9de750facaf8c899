"""Parts that figures share: how axes are numbered, how lines are named at their ends, what counts as a value."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from chatloom.reporting.figure import MUTED, Canvas, spread
from chatloom.reporting.html import Html, clean
from chatloom.reporting.tables import MINUS

LABEL_SIZE = 12.0
STEPS = [1, 2, 2.5, 5, 10]  # axes are numbered in these only


def name_ends(canvas: Canvas, ends: Sequence[tuple[str, float, str]]) -> None:
    """Write names beside the right ends of lines, moved apart where they would cover each other."""
    heights = [height_of(canvas.axes, value) * canvas.plot_height for _, value, _ in ends]
    for (name, _, color), height in zip(ends, spread(heights, 14, 4, canvas.plot_height)):
        canvas.axes.annotate(clean(name), (1, 0), xycoords="axes fraction", xytext=(7, height), va="center",
                             textcoords="offset points", size=LABEL_SIZE, color=color, weight="bold")  # fmt: skip


def height_of(axes: Axes, value: float) -> float:
    """Where a value stands between the bottom (0) and the top (1) of the axes."""
    return float(axes.transAxes.inverted().transform(axes.transData.transform((axes.get_xlim()[0], value)))[1])


def number_axes(axes: Axes, log_x: bool, log_y: bool) -> None:
    for axis, log in ((axes.xaxis, log_x), (axes.yaxis, log_y)):
        if log:
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=6))
        else:
            axis.set_major_locator(MaxNLocator(5, steps=STEPS, integer=axis is axes.xaxis))
        axis.set_major_formatter(FuncFormatter(_numbers(axis, even=not log)))
        axis.set_minor_locator(NullLocator())


def square_root_ticks(axes: Axes) -> None:
    """Round numbers of nats on an axis of their roots, none so close to the one before that they touch."""
    right = axes.get_xlim()[1] ** 2
    unit = 10.0 ** math.floor(math.log10(right)) if right > 0 else 1.0
    candidates = sorted({0.0} | {step * unit * scale for scale in (0.1, 1.0) for step in (1, 2, 5)})
    chosen: list[float] = []
    for value in candidates:
        if value <= right and (not chosen or math.sqrt(value) - math.sqrt(chosen[-1]) > 0.1 * math.sqrt(right)):
            chosen.append(value)
    axes.xaxis.set_major_locator(FixedLocator([math.sqrt(value) for value in chosen]))
    axes.set_xticklabels([tick(value, 0) for value in chosen])


def _numbers(axis: Axis, *, even: bool) -> Callable[[float, object], str]:
    """Writes the numbers of an axis; on an `even` one with as many digits as tell neighbours apart."""

    def write(value: float, place: object) -> str:
        ticks = axis.get_majorticklocs()
        return tick(value, place, float(abs(ticks[1] - ticks[0])) if even and len(ticks) > 1 else 0.0)

    return write


def tick(value: float, _: object, step: float = 0.0) -> str:
    if abs(value) < step / 1000:
        return "0"
    if 0 < step < abs(value) < 1000 and abs(float(f"{value:.3g}") - value) > step / 1000:
        return f"{value:.{max(0, math.ceil(-math.log10(step)) + 1)}f}".rstrip("0").rstrip(".").replace("-", MINUS)
    if value == 0:
        return "0"
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):g}{letter}".replace("-", MINUS)
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}".replace("e-0", "e-")
    return text.replace("-", MINUS)


def room_for_numbers(series: Sequence[np.ndarray]) -> float:
    """Left margin for the numbers of an axis."""
    values = [abs(float(value)) for ys in series for value in (np.min(ys), np.max(ys))]
    return 52 if values and (max(values) >= 1000 or max(values) < 0.01) else 44


def finite_points(x: Any, y: Any, log_x: bool, log_y: bool) -> tuple[np.ndarray, np.ndarray]:
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    keep = np.isfinite(xs) & np.isfinite(ys) & ((xs > 0) | (not log_x)) & ((ys > 0) | (not log_y))
    return xs[keep], ys[keep]


def is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def nothing(description: str, width: int, height: int) -> Html:
    canvas = Canvas(width=width, height=height)
    canvas.axes.set_axis_off()
    canvas.axes.annotate("no values were recorded", (0.5, 0.5), xycoords="axes fraction", ha="center", color=MUTED)
    return canvas.svg(description)
