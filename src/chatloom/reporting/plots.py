"""The figures of lines: curves over steps, reward against KL, best-of-n; plain numbers in, inline SVG out.

Lines carry their own names at their ends, so there is no legend to look up; values that are not finite are left out,
and a figure without any value says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from chatloom.reporting.axes import (
    LABEL_SIZE,
    STEPS,
    finite_points,
    height_of,
    name_ends,
    nothing,
    number_axes,
    room_for_numbers,
    square_root_ticks,
    tick,
)
from chatloom.reporting.figure import (
    HEIGHT,
    INK,
    MUTED,
    SERIES,
    SURFACE,
    WIDTH,
    Canvas,
    color_of,
    drawing,
    spread,
    text_width,
)
from chatloom.reporting.html import Html, clean

MAX_POINTS = 500


@dataclass(frozen=True)
class Line:
    """One named series; `smooth` draws raw values faintly and, above, their exponential mean of that weight."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: str = ""
    smooth: float = 0.0
    dashed: bool = False


@drawing
def curves(
    lines: Sequence[Line],
    *,
    description: str,
    x: str = "steps",
    y: str = "",
    log_x: bool = False,
    log_y: bool = False,
    levels: Mapping[str, float] | None = None,
    marks: Mapping[str, float] | None = None,
    width: int = WIDTH,
    height: int = HEIGHT,
) -> Html:
    """Lines over steps, named at their right ends; `levels` are named level lines, `marks` named moments."""
    cleaned = [(line, *finite_points(line.x, line.y, log_x, log_y)) for line in lines]
    shown = [(line, xs, ys) for line, xs, ys in cleaned if len(xs)]
    if not shown:
        return nothing(description, width, height)
    named = len(shown) > 1 or bool(levels)
    names = [line.name for line, _, _ in shown if named] + list(levels or {})
    right = min(0.34 * width, 20 + max((text_width(name) for name in names), default=0.0))
    left = room_for_numbers([ys for _, _, ys in shown])
    canvas = Canvas(width=width, height=height, right=right, left=left, top=30 if y else 14)
    axes = canvas.axes
    if log_y:
        axes.set_yscale("log")
    if log_x:
        axes.set_xscale("log")
    ends: list[tuple[str, float, str]] = []
    for index, (line, xs, ys) in enumerate(shown):
        color = line.color or SERIES[index % len(SERIES)]
        last = _draw_line(axes, line, xs, ys, color)
        if named:
            ends.append((line.name, last, color))
    for name, level in (levels or {}).items():
        if math.isfinite(level) and not (log_y and level <= 0):
            axes.axhline(level, color=MUTED, linewidth=1.0, dashes=(3, 3))
            ends.append((name, level, MUTED))
    for name, moment in (marks or {}).items():
        axes.axvline(moment, color=MUTED, linewidth=0.8, dashes=(1, 2))
        axes.annotate(clean(name), (moment, 1), xycoords=("data", "axes fraction"), xytext=(3, -2),
                      textcoords="offset points", size=9.5, color=MUTED, va="top")  # fmt: skip
    number_axes(axes, log_x, log_y)
    name_ends(canvas, ends)
    canvas.label(x, y)
    return canvas.svg(description)


@drawing
def against_kl(
    paths: Sequence[Mapping[str, Any]],
    *,
    description: str,
    y: str = "reward",
    square_root: bool = True,
    width: int = WIDTH,
    height: int = 320,
) -> Html:
    """What each nat of KL bought: a path per method, `{"name", "kl": [...], "y": [...], "low"?, "high"?}`.

    The last point of a path is the finished method, drawn large and named, with its interval if given. The x axis is
    the root of the KL, on which over-optimisation is nearly a parabola (Gao et al. 2022, arXiv 2210.10760, section
    3).
    """
    shown = []
    for index, path in enumerate(paths):
        xs, ys = finite_points(path["kl"], path["y"], False, False)
        if len(xs):
            shown.append((path, np.sqrt(np.maximum(xs, 0.0)) if square_root else xs, ys, color_of(path["name"], index)))
    if not shown:
        return nothing(description, width, height)
    names = [clean(path["name"]) for path, *_ in shown]
    canvas = Canvas(width=width, height=height, right=24 + max(map(text_width, names)), bottom=44,
                    left=room_for_numbers([ys for _, _, ys, _ in shown]))  # fmt: skip
    axes = canvas.axes
    for path, xs, ys, color in shown:
        axes.plot(xs, ys, color=color, linewidth=1.6, alpha=0.75, solid_capstyle="round")
        axes.plot(xs[:-1], ys[:-1], "o", color=color, markersize=3.5, markeredgewidth=0, alpha=0.75)
        if path.get("low") is not None and path.get("high") is not None:
            axes.plot([xs[-1]] * 2, [path["low"], path["high"]], color=color, linewidth=1.6)
        axes.plot(xs[-1:], ys[-1:], "o", color=color, markersize=9, markeredgecolor=SURFACE, markeredgewidth=1.5)
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    if square_root:
        square_root_ticks(axes)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    axes.yaxis.set_major_formatter(FuncFormatter(tick))
    heights = [height_of(axes, float(ys[-1])) * canvas.plot_height for _, _, ys, _ in shown]
    for name, (_, xs, ys, _), at in zip(names, shown, spread(heights, 14, 6, canvas.plot_height - 4)):
        # beside its point, moved only where two names would cover each other
        offset = at - height_of(axes, float(ys[-1])) * canvas.plot_height
        axes.annotate(name, (xs[-1], ys[-1]), xytext=(9, offset), textcoords="offset points", va="center",
                      size=LABEL_SIZE, color=INK, weight="bold", annotation_clip=False)  # fmt: skip
    canvas.label("KL to SFT, nats per answer" + (" (root scale)" if square_root else ""), y)
    return canvas.svg(description)


@drawing
def best_of_n(
    n: Sequence[int],
    lines: Sequence[Line],
    *,
    description: str,
    y: str = "score",
    width: int = WIDTH,
    height: int = 300,
) -> Html:
    """Score against the number of answers chosen from; below each n the KL it costs at most, log n - (n - 1) / n nats.

    (Nakano et al. 2021, arXiv 2112.09332, appendix G.3; the bound is reached when no two answers are equal.)
    """
    shown = [(line, *finite_points(line.x, line.y, True, False)) for line in lines]
    shown = [(line, xs, ys) for line, xs, ys in shown if len(xs)]
    if not shown:
        return nothing(description, width, height)
    right = max(66.0, 20 + max(text_width(line.name) for line, _, _ in shown))
    left = room_for_numbers([ys for _, _, ys in shown])
    canvas = Canvas(width=width, height=height, bottom=48, left=left, right=right)
    axes = canvas.axes
    ends = []
    for index, (line, xs, ys) in enumerate(shown):
        color = line.color or SERIES[index % len(SERIES)]
        xs = np.log2(xs)
        axes.plot(xs, ys, color=color, linewidth=2.0, dashes=(4, 2) if line.dashed else (None, None))
        axes.plot(xs, ys, "o", color=color, markersize=6, markeredgecolor=SURFACE, markeredgewidth=1.2)
        ends.append((line.name, float(ys[-1]), color))
    ticks = [math.log2(value) for value in n]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.set_xticklabels([f"{value}\n{math.log(value) - (value - 1) / value:.2f}" for value in n], linespacing=1.5)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    axes.yaxis.set_major_formatter(FuncFormatter(tick))
    common: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "color": MUTED, "size": 10.5}
    axes.annotate("answers\nKL, nats", (1, 0), xytext=(16, -5), ha="left", va="top", linespacing=1.5, **common)
    name_ends(canvas, ends)
    canvas.label(y=y)
    return canvas.svg(description)


def exponential_mean(values: Sequence[float] | np.ndarray, weight: float) -> np.ndarray:
    """m_t = weight * m_(t-1) + (1 - weight) * v_t, corrected for its start at 0 (as Adam does): float [n]."""
    result, mean, scale = np.empty(len(values)), 0.0, 0.0
    for index, value in enumerate(values):
        mean = weight * mean + (1 - weight) * float(value)
        scale = weight * scale + (1 - weight)
        result[index] = mean / scale
    return result


def thin(x: np.ndarray, y: np.ndarray, limit: int = MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most about `limit` points that look like all of them: lowest and highest of each stretch, and both ends."""
    if len(x) <= limit:
        return x, y
    keep = {0, len(x) - 1}
    for part in np.array_split(np.arange(len(x)), max(1, limit // 2)):
        keep |= {int(part[np.argmin(y[part])]), int(part[np.argmax(y[part])])}
    index = np.array(sorted(keep))
    return x[index], y[index]


def _draw_line(axes: Axes, line: Line, xs: np.ndarray, ys: np.ndarray, color: str) -> float:
    """Draw one line and return the height of its end."""
    dashes: Any = (4, 2) if line.dashed else (None, None)
    if not line.smooth or len(xs) < 3:
        axes.plot(*thin(xs, ys), color=color, linewidth=1.8, dashes=dashes)
        if len(xs) == 1:
            axes.plot(xs, ys, "o", color=color, markersize=5)
        return float(ys[-1])
    mean = exponential_mean(ys, line.smooth)
    axes.plot(*thin(xs, ys), color=color, linewidth=0.8, alpha=0.3)
    axes.plot(*thin(xs, mean), color=color, linewidth=2.0, dashes=dashes)
    return float(mean[-1])
