"""How every figure is drawn: one frame, one palette, and SVG that takes its colours and fonts from the page around it.

matplotlib draws with fixed stand-in colours; in the SVG each becomes a CSS variable of the report (with the colour
itself as a fallback), so that one figure fits light, dark and print. Text stays text, set in the reader's own fonts:
Chinese needs no font file. The same data gives the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import re
import threading
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from chatloom.reporting.html import Html, clean, escape

P = ParamSpec("P")

INK, MUTED, GRID, SURFACE = "#1b1e23", "#68707c", "#dfe2e6", "#fefefd"
# Hues of Okabe & Ito (2008), safe for colour-blind readers, darkened to be read as text on white.
SERIES = ("#1f6fb2", "#c4500f", "#0b8763", "#9c4490", "#a07100", "#525c6b")
# One colour for a method on every page; what is not named here takes the next free one.
METHODS = {
    "sft": SERIES[5],
    "best_of_n": SERIES[4],
    "dpo": SERIES[0],
    "ppo": SERIES[1],
    "base": SERIES[2],
    "random": SERIES[3],
}

_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", SURFACE: "--surface"} | {
    color: f"--series-{number}" for number, color in enumerate(SERIES, start=1)
}
_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "chatloom",
    "text.parse_math": False,
    "font.size": 11.0,
    "font.family": ["DejaVu Sans"],
    "axes.unicode_minus": True,
    "path.simplify": True,
}
# matplotlib keeps its settings in one global table, so figures are drawn one at a time
_LOCK = threading.RLock()

POINTS_PER_INCH = 72.0  # so that one point of matplotlib is one px of the page
WIDTH, HEIGHT = 470, 270
WIDE = 1000


def drawing(chart: Callable[P, Html]) -> Callable[P, Html]:
    """Mark a function that draws: it runs with this file's settings, and alone."""

    @wraps(chart)
    def alone(*args: P.args, **kwargs: P.kwargs) -> Html:
        with _LOCK, matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
            # matplotlib misses glyphs when it measures; the browser has the fonts that draw them
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            return chart(*args, **kwargs)

    return alone


class Canvas:
    """A figure with one pair of axes in a frame of fixed margins; sizes in px, at which text is 12 px high."""

    def __init__(
        self,
        *,
        width: int = WIDTH,
        height: int = HEIGHT,
        left: float = 46,
        right: float = 14,
        top: float = 30,
        bottom: float = 42,
    ) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / POINTS_PER_INCH, height / POINTS_PER_INCH), dpi=POINTS_PER_INCH)
        FigureCanvasSVG(self.figure)
        self.figure.patch.set_visible(False)
        self.plot_width, self.plot_height = width - left - right, height - top - bottom
        box = (left / width, bottom / height, self.plot_width / width, self.plot_height / height)
        self.axes: Axes = self.figure.add_axes(box)
        self._left = left
        dress(self.axes)

    def label(self, x: str = "", y: str = "") -> None:
        """Name the axes: y above its axis, where it is read first and level; x below the right end."""
        common: dict[str, Any] = {
            "xycoords": "axes fraction",
            "textcoords": "offset points",
            "color": MUTED,
            "size": 12,
        }
        if y:
            self.axes.annotate(clean(y), (0, 1), xytext=(-self._left + 4, 12), ha="left", va="bottom", **common)
        if x:
            self.axes.annotate(clean(x), (1, 0), xytext=(0, -36), ha="right", va="bottom", **common)

    def svg(self, description: str) -> Html:
        """The drawing as inline SVG with a spoken description."""
        out = io.StringIO()
        self.figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        return Html(_for_page(out.getvalue(), self.width, self.height, description))


def dress(axes: Axes) -> None:
    """The look of all axes: no box, faint level lines, small quiet numbers."""
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set(color=MUTED, linewidth=0.8)
    axes.patch.set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.tick_params(axis="both", colors=MUTED, labelcolor=MUTED, labelsize=11.5, length=0, pad=5)
    axes.tick_params(axis="x", length=3.5, width=0.8)
    axes.margins(x=0.02, y=0.08)


def color_of(method: str, index: int = 0) -> str:
    """The colour of a method, the same in every figure; else the `index`-th of the palette."""
    key = method.lower().replace("-", "_").replace(" ", "_").split("@")[0]
    for name, color in METHODS.items():
        if (
            key == name
            or key.startswith((name + "_", name + ":"))
            or (name == "best_of_n" and key.startswith("best_of"))
        ):
            return color
    return SERIES[index % len(SERIES)]


def color_for_page(color: str) -> str:
    """The page's variable of one of the palette's colours, with the colour itself as a fallback."""
    return f"var({_VARIABLES[color]}, {color})"


def text_width(text: str, size: float = 12.0) -> float:
    """About how wide a text is drawn, in px: Chinese characters take a full square, Latin ones about half."""
    return size * sum(1.0 if unicodedata.east_asian_width(character) in "WF" else 0.57 for character in text)


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move label positions as little as needed to stand at least `gap` apart, inside low..high where they fit."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    placed = [positions[i] for i in order]
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    overshoot = max(0.0, placed[-1] - high) if placed else 0.0
    for i in range(len(placed) - 1, -1, -1):
        limit = placed[i + 1] - gap if i + 1 < len(placed) else high
        placed[i] = min(placed[i], limit) if overshoot else placed[i]
    result = [0.0] * len(positions)
    for place, i in zip(placed, order):
        result[i] = max(low, place) if len(positions) == 1 else place
    return result


def _for_page(svg: str, width: int, height: int, description: str) -> str:
    """Cut matplotlib's file down to what stands in a page: page colours and fonts, ids of its own, no more."""
    svg = clean(svg)  # a label may hold characters that no SVG can
    svg = svg[svg.index(">", svg.index("<svg")) + 1 :]
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    prefix = "f" + hashlib.sha256(f"{description}{svg}".encode()).hexdigest()[:8]
    svg = re.sub(r"<[^<>]*>", lambda tag: _tag_for_page(tag.group(), prefix), svg)
    title = escape(description)
    head = (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="{title}" '
        f'stroke-linejoin="round" xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
        f"<title>{title}</title>"
    )
    return head + re.sub(r"\n\s*", "\n", svg).strip()


def _tag_for_page(tag: str, prefix: str) -> str:
    tag = re.sub(r"\s*\n\s*", " ", tag)
    if tag.startswith("<g "):
        tag = re.sub(r' id="[^"]*"', "", tag)
    tag = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", tag)
    tag = re.sub(r"font-family: [^;\"]*;? ?", "", tag)
    tag = re.sub(r' transform="rotate\(-0 [^"]*\)"', "", tag)
    tag = re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number.group()):.2f}".rstrip("0").rstrip("."), tag)
    for color in _VARIABLES:
        tag = re.sub(rf"(fill|stroke): {color}\b", rf"\g<1>: {color_for_page(color)}", tag)
    return tag
