"""How a number is spread in several groups of documents: one panel a group, on one axis, with the limits drawn in.

A page has one for every label, so they are written as SVG straight away, in a hundredth of matplotlib's time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.ticker import MaxNLocator

from chatloom.reporting.axes import STEPS, tick
from chatloom.reporting.figure import INK, MUTED, SERIES, WIDTH, color_for_page
from chatloom.reporting.html import Html, escape

PANEL, ABOVE = 58, 27  # px: a panel's bars, and its name above them
LEFT, RIGHT, BELOW = 12, 14, 46  # px: margins
SEEN = 1.5  # px: no bar is lower
INK_, MUTED_, BAR, LIMIT = map(color_for_page, (INK, MUTED, SERIES[0], SERIES[1]))
STAYS_ABOVE, STAYS_BELOW = (">=", ">"), ("<=", "<")


@dataclass(frozen=True)
class _Axis:
    """Where values stand on a figure of some width, px; `half`: half a bar, where bars stand around their numbers."""

    edges: Sequence[float]
    width: int
    log: bool
    half: float

    def x(self, value: float) -> float:
        """In px; on a logarithmic axis zero stands an octave below the first edge above it."""
        first, last = self._ends()
        part = math.log(value / first) / math.log(last / first) if self.log else (value - first) / (last - first)
        return LEFT + part * (self.width - LEFT - RIGHT)

    def places(self) -> list[float]:
        """The edges in px."""
        return [self.x(self._ends()[0] if self.log and edge == 0 else edge - self.half) for edge in self.edges]

    def _ends(self) -> tuple[float, float]:
        first = self.edges[1] / 2 if self.log and self.edges[0] == 0 else self.edges[0] - self.half
        return first, self.edges[-1] - self.half

    def inside(self, value: float) -> bool:
        """Whether a value is on the axis."""
        first, last = self._ends()
        return first < value < last

    def marks(self) -> list[tuple[float, str]]:
        """Numbers on the axis: where, in px, and what."""
        first, last = self._ends()
        if not self.log:
            values = [float(v) for v in MaxNLocator(6, steps=STEPS).tick_values(first, last) if first <= v <= last]
            step = values[1] - values[0] if len(values) > 1 else 0.0
            return [(self.x(value), tick(value, 0, step)) for value in values]
        zero = self.edges[0] == 0
        least = 3 * first if zero else first  # beside the zero there is no room for another number
        decades = math.log10(last / first)
        steps = (1, 2, 5) if decades < 2.5 else (1,) if decades > 5 else (1, 3)
        powers = range(math.floor(math.log10(first)), math.ceil(math.log10(last)) + 1)
        values = [value for power in powers for step in steps if least <= (value := step * 10.0**power) <= last]
        middle = (LEFT + self.x(self.edges[1])) / 2
        return [*([(middle, "0")] if zero else []), *((self.x(value), tick(value, 0)) for value in values)]


def spreads(
    groups: Sequence[Mapping[str, Any]],
    edges: Sequence[float],
    *,
    description: str,
    log: bool = False,
    whole: bool = False,
    x: str = "",
    width: int = WIDTH,
) -> Html:
    """Histograms of counts between `edges`, a panel each: `{"name", "all", "part", "limits"?}`, the part drawn strong.

    Limits are `{"value", "stays": ">=", ...}`: a dashed line, and shade on the side that goes. Each panel is as high as
    its own highest bar. With `log` an edge of 0 stands for the bin of zero alone; `whole` numbers have their bar above
    them.
    """
    if not groups or len(edges) < 2:
        return _svg(width, 60, description, _text(width / 2, 34, "no values were recorded", "middle"))
    ones = whole and not log and all(other - one == 1 for one, other in itertools.pairwise(edges))
    axis = _Axis(edges, width, log, 0.5 if ones else 0.0)
    panels = [_panel(group, axis, ABOVE + number * (PANEL + ABOVE)) for number, group in enumerate(groups)]
    bottom = len(groups) * (PANEL + ABOVE)
    marks = "".join(
        f'<path d="M{place:.1f} {bottom}v4" stroke="currentColor"/>{_text(place, bottom + 18, name, "middle")}'
        for place, name in axis.marks()
    )
    name = _text(width - RIGHT, bottom + 37, x, "end") if x else ""
    height = bottom + (BELOW if x else BELOW - 17)
    return _svg(width, height, description, f'{"".join(panels)}<g style="color:{MUTED_}">{marks}</g>{name}')


def _panel(group: Mapping[str, Any], axis: _Axis, top: int) -> str:
    """One group's name, bars and limits; `top` is where its highest bar ends."""
    floor, places, highest = top + PANEL, axis.places(), max(*group["all"], 1)
    out = [_text(LEFT, top - 9, group["name"], "start", INK_)]
    for counts, style in ((group["all"], f"fill:{MUTED_};opacity:.3"), (group["part"], f"fill:{BAR};opacity:.9")):
        if path := _bars(counts, places, floor, highest):
            out.append(f'<path d="{path}" style="{style}"/>')
    out.append(f'<path d="M{places[0]:.1f} {floor}H{places[-1]:.1f}" style="stroke:{MUTED_};opacity:.7"/>')
    for limit in group.get("limits", ()):
        stays = limit["stays"]
        beside = {">=": -axis.half, "<": -axis.half, "<=": axis.half, ">": axis.half}  # of the bar of the limit itself
        value = float(limit["value"]) + beside.get(stays, 0.0)
        if not axis.inside(value):
            continue
        place = axis.x(value)
        for signs, left, right in ((STAYS_ABOVE, places[0], place), (STAYS_BELOW, place, places[-1])):
            if stays in signs:
                box = f'x="{left:.1f}" y="{top}" width="{right - left:.1f}" height="{PANEL}"'
                out.append(f'<rect {box} style="fill:{LIMIT};opacity:.1"/>')
        out.append(
            f'<path d="M{place:.1f} {floor}V{top - 4}" style="stroke:{LIMIT};stroke-width:1.3;stroke-dasharray:5 3"/>'
        )
    return "".join(out)


def _bars(counts: Sequence[int], places: Sequence[float], floor: int, highest: float) -> str:
    """An outline of bars that stand on the floor; bars of nothing are left out."""
    path, there = [], False
    for n, left, right in zip(counts, places, places[1:]):
        if n:
            top = floor - max(PANEL * n / highest, SEEN)
            path.append(f"{'' if there else f'M{left:.1f} {floor}'}V{top:.1f}H{right:.1f}")
        elif there:
            path.append(f"V{floor}Z")
        there = bool(n)
    return "".join(path) + (f"V{floor}Z" if there else "")


def _text(x: float, y: float, text: str, anchor: str, color: str = "") -> str:
    style = f"font-size:11.5px;text-anchor:{anchor};fill:{color or MUTED_}"
    return f'<text x="{x:.1f}" y="{y:.1f}" style="{style}">{escape(text)}</text>'


def _svg(width: int, height: int, description: str, inside: str) -> Html:
    title = escape(description)
    return Html(
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="{title}" '
        f'fill="none" xmlns="http://www.w3.org/2000/svg"><title>{title}</title>{inside}</svg>'
    )
