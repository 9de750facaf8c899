"""The figures of shares and amounts: funnel, calibration, intervals, histograms; plain numbers in, inline SVG out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from chatloom.progress import value_text
from chatloom.reporting.axes import LABEL_SIZE, STEPS, is_finite, nothing, tick
from chatloom.reporting.figure import (
    GRID,
    HEIGHT,
    INK,
    MUTED,
    SERIES,
    SURFACE,
    WIDTH,
    Canvas,
    color_of,
    drawing,
    text_width,
)
from chatloom.reporting.html import Html, clean


@drawing
def funnel(
    steps: Sequence[Mapping[str, Any]], *, description: str, unit: str = "documents", width: int = 760, row: int = 34
) -> Html:
    """What is left after each step of cleaning: level bars from `{"name", "kept", "dropped"}`, first step first."""
    if not steps:
        return nothing(description, width, 120)
    total = max(max(float(step["kept"]) + float(step.get("dropped", 0)) for step in steps), 1.0)
    names = [clean(step["name"]) for step in steps]
    left = 16 + max(map(text_width, names))
    canvas = Canvas(width=width, height=row * len(steps) + 16, left=min(left, 0.4 * width), right=150, top=4, bottom=12)
    axes = canvas.axes
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    for index, step in enumerate(steps):
        kept, dropped = float(step["kept"]), float(step.get("dropped", 0))
        axes.barh(-index, kept, height=0.62, color=SERIES[0], linewidth=0)
        axes.barh(-index, dropped, left=kept, height=0.62, color=SERIES[1], alpha=0.35, linewidth=0)
        label = f"{kept:,.0f} {unit}" + (f"  (−{dropped:,.0f})" if dropped else "")
        axes.annotate(label, (kept + dropped, -index), xytext=(8, 0), textcoords="offset points", va="center",
                      size=LABEL_SIZE, color=INK, annotation_clip=False)  # fmt: skip
    axes.set_xlim(0, total)
    axes.set_ylim(-len(steps) + 0.5, 0.5)
    axes.xaxis.set_major_locator(NullLocator())
    axes.yaxis.set_major_locator(FixedLocator([-index for index in range(len(steps))]))
    axes.set_yticklabels(names, color=INK, size=LABEL_SIZE)
    return canvas.svg(description)


@drawing
def calibration(bins: Sequence[Mapping[str, float]], *, description: str, width: int = 400, height: int = 340) -> Html:
    """Accuracy against confidence, a dot per bin (larger for more pairs) with its interval; the diagonal is honest."""
    if not bins:
        return nothing(description, width, height)
    canvas = Canvas(width=width, height=height, left=52)
    axes = canvas.axes
    axes.plot([0.5, 1.0], [0.5, 1.0], color=MUTED, linewidth=1.0, dashes=(3, 3))
    largest = max(float(row["n"]) for row in bins)
    for row in bins:
        place = float(row["confidence"])
        axes.plot([place, place], [row["low"], row["high"]], color=SERIES[0], linewidth=1.2, alpha=0.6)
        size = 5 + 13 * math.sqrt(float(row["n"]) / largest)
        axes.plot([place], [row["accuracy"]], "o", color=SERIES[0], markersize=size, markeredgecolor=SURFACE)
    low = min(0.5, *(float(row["accuracy"]) for row in bins)) - 0.04
    axes.set_xlim(0.49, 1.02)
    axes.set_ylim(max(0.0, low), 1.03)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))
    axes.xaxis.set_major_locator(FixedLocator([0.5, 0.6, 0.7, 0.8, 0.9, 1.0]))
    canvas.label("confidence", "accuracy")
    return canvas.svg(description)


@drawing
def intervals(
    rows: Sequence[Mapping[str, Any]],
    *,
    description: str,
    reference: float | None = None,
    percent: bool = True,
    x: str = "",
    width: int = WIDTH,
    row: int = 30,
) -> Html:
    """A dot with its interval per row, `{"name", "value", "low", "high"}`: accuracies by kind, win rates, gains."""
    rows = [item for item in rows if is_finite(item.get("value"))]
    if not rows:
        return nothing(description, width, 120)
    names = [clean(item["name"]) for item in rows]
    canvas = Canvas(width=width, height=row * len(rows) + 64, left=min(0.45 * width, 14 + max(map(text_width, names))),
                    right=58, top=8, bottom=48)  # fmt: skip
    axes = canvas.axes
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x", color=GRID, linewidth=0.8)
    if reference is not None:
        axes.axvline(reference, color=MUTED, linewidth=1.0, dashes=(3, 3))
    for index, item in enumerate(rows):
        color = color_of(str(item.get("method", "")), 0)
        value = float(item["value"])
        low, high = (float(item[key]) if is_finite(item.get(key)) else value for key in ("low", "high"))
        axes.plot([low, high], [-index, -index], color=color, linewidth=2.4, alpha=0.45, solid_capstyle="round")
        axes.plot([value], [-index], "o", color=color, markersize=8.5, markeredgecolor=SURFACE, markeredgewidth=1.2)
        text = f"{100 * value:.1f}%" if percent else value_text(value)
        axes.annotate(text, (1, -index), xycoords=("axes fraction", "data"), xytext=(10, 0), size=LABEL_SIZE,
                      textcoords="offset points", va="center", color=INK, annotation_clip=False)  # fmt: skip
    axes.set_ylim(-len(rows) + 0.4, 0.6)
    axes.yaxis.set_major_locator(FixedLocator([-index for index in range(len(rows))]))
    axes.set_yticklabels(names, color=INK, size=LABEL_SIZE)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    axes.xaxis.set_major_formatter(FuncFormatter((lambda v, _: f"{100 * v:.0f}%") if percent else tick))
    canvas.label(x)
    return canvas.svg(description)


@drawing
def histogram(
    groups: Mapping[str, Sequence[float]],
    *,
    description: str,
    x: str = "",
    bins: int = 30,
    shares: bool = True,
    width: int = WIDTH,
    height: int = HEIGHT,
) -> Html:
    """How values are spread, one named group over another on the same bins; `shares` makes sizes comparable."""
    arrays = {clean(name): np.asarray(values, dtype=float) for name, values in groups.items()}
    arrays = {name: values[np.isfinite(values)] for name, values in arrays.items()}
    arrays = {name: values for name, values in arrays.items() if len(values)}
    if not arrays:
        return nothing(description, width, height)
    low, high = min(v.min() for v in arrays.values()), max(v.max() for v in arrays.values())
    whole = all(np.all(values == np.round(values)) for values in arrays.values())
    if whole and high - low < bins:  # small whole numbers get a bar each
        edges = np.arange(low - 0.5, high + 1.0)
    else:
        edges = np.linspace(low, high if high > low else low + 1.0, bins + 1)
    canvas = Canvas(width=width, height=height, left=52)
    axes = canvas.axes
    for index, (name, values) in enumerate(arrays.items()):
        color = color_of(name, index)
        counts = np.histogram(values, edges)[0] / (len(values) if shares else 1)
        axes.stairs(counts, edges, fill=True, color=color, alpha=0.16, linewidth=0)
        axes.stairs(counts, edges, color=color, linewidth=1.6, baseline=None)
        if len(arrays) > 1:
            axes.annotate(name, (1, 1), xycoords="axes fraction", xytext=(0, -4 - 16 * index), ha="right", va="top",
                          textcoords="offset points", size=LABEL_SIZE, color=color, weight="bold")  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=STEPS))
    axes.xaxis.set_major_formatter(FuncFormatter(tick))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    axes.yaxis.set_major_formatter(FuncFormatter((lambda v, _: f"{100 * v:.3g}%") if shares else tick))
    canvas.label(x, "share" if shares else "number")
    return canvas.svg(description)
