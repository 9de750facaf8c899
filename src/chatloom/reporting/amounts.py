"""Amounts and shares as bars, tables of shade, and texts with changes marked: blocks of HTML that need no drawing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from chatloom.reporting.html import Html, breakable, escape
from chatloom.reporting.tables import MISSING

MARKS = {"same": "span", "cut": "del", "new": "ins"}


def amount(number: float) -> str:
    """A count as a person reads it: in full below 100,000, then 123 k, 4.56 M, 7.89 G."""
    if not math.isfinite(number):
        return MISSING
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e5, "k")):
        if abs(number) >= size:
            value = number / (1e3 if letter == "k" else size)
            return f"{value:.3g} {letter}" if value < 999.5 else f"{value:,.0f} {letter}"
    return f"{number:,.0f}"


def share(part: float, whole: float) -> str:
    """A share in percent; tells a little from nothing, and nearly all from all."""
    if not whole:
        return MISSING
    percent = 100 * part / whole
    if 0 < percent < 0.05:
        return "<0.1%"
    if 99.95 <= percent < 100:
        return ">99.9%"
    return f"{percent:.1f}%" if percent < 99.95 else "100%"


def level_bars(rows: Sequence[Mapping[str, Any]], *, of: float | None = None) -> Html:
    """Level bars: `{"name", "all", "part"?, "text", "note"?}`; the part is drawn strong inside the pale whole.

    Lengths are measured against `of`, or the longest. The text stands beside the bar, so nothing has to be read off.
    """
    longest = max([float(row["all"]) for row in rows] + [float(of or 0.0)], default=0.0) or 1.0
    out = []
    for row in rows:
        whole, part = (100 * max(0.0, float(row.get(key, 0.0))) / longest for key in ("all", "part"))
        note = f' <span class="interval">{escape(row["note"])}</span>' if row.get("note") else ""
        out.append(
            f'<div class="level"><dt>{escape(row["name"])}</dt><dd><span class="track">'
            f'<i style="width:{whole:.2f}%"></i><i class="part" style="width:{part:.2f}%"></i></span>'
            f'<span class="told">{escape(row["text"])}{note}</span></dd></div>'
        )
    return Html(f'<dl class="levels">{"".join(out)}</dl>')


def shade_table(
    names: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[Sequence[tuple[str, float, str]]],
    *,
    corner: str = "",
    titles: Sequence[str] = (),
) -> Html:
    """A table of cells (text, shade 0..1, what it says in words): the darker the more; names of columns are short.

    `titles` are the columns' full names, shown on hover.
    """
    heads = "".join(
        f'<th scope="col" class="number" title="{escape(titles[i] if titles else name)}">{escape(name)}</th>'
        for i, name in enumerate(columns)
    )
    rows = []
    for name, row in zip(names, cells, strict=True):
        shaded = "".join(
            f'<td class="number" style="--shade:{100 * min(max(shade, 0.0), 1.0):.0f}%" title="{escape(words)}">'
            f"{escape(text)}</td>"
            for text, shade, words in row
        )
        rows.append(f'<tr><th scope="row">{breakable(name)}</th>{shaded}</tr>')
    return named(
        Html(
            '<div class="table-frame" tabindex="0"><table class="shades"><thead><tr>'
            f'<th scope="col">{escape(corner)}</th>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        )
    )


def named(table: Html) -> Html:
    """A table whose first column holds names that may be long: they are broken, so that the numbers stay in sight."""
    return Html(f'<div class="named">{table}</div>')


def listing(*parts: Html) -> Html:
    """Blocks that belong together, close below each other."""
    return Html(f'<div class="listing">{"".join(parts)}</div>')


def marked(pieces: Sequence[Sequence[str]], language: str = "") -> Html:
    """A text whose pieces (kind, text) say what was cut, what is new, and how much is left out between."""
    out = []
    for kind, text in pieces:
        if kind == "gap":
            out.append(f'<span class="gap">⋯ {escape(amount(int(text)))} characters ⋯</span>')
        else:
            tag = MARKS[kind]
            out.append(f"<{tag}>{escape(text)}</{tag}>")
    return Html(f'<div class="excerpt"{_lang(language)}>{"".join(out)}</div>')


def excerpt(text: str, length: int, language: str = "") -> Html:
    """The beginning of a text that is `length` characters long."""
    rest = length - len(text)
    more = f'<span class="gap">⋯ {escape(amount(rest))} more characters</span>' if rest > 0 else ""
    return Html(f'<div class="excerpt"{_lang(language)}>{escape(text) or "<em>(empty)</em>"}{more}</div>')


def example(head: str, facts: Sequence[str], body: Html) -> Html:
    """One example: a line that says why it is here, small facts below, and its text."""
    small = "".join(f"<span>{escape(fact)}</span>" for fact in facts if fact)
    title = f'<p class="why">{escape(head)}</p>' if head else ""
    return Html(f'<article class="example">{title}<p class="facts">{small}</p>{body}</article>')


def place(entry: Mapping[str, Any]) -> list[str]:
    """Where a document is from: its address or id, and its source unless that is told by it already."""
    name, source = str(entry["url"] or entry["id"]), str(entry["source"])
    return [name] if name.startswith(source) else [name, source]


def examples(shown: Iterable[Html]) -> Html:
    """Examples below each other, beside each other too where there is room."""
    return Html(f'<div class="examples">{"".join(shown)}</div>')


def _lang(language: str) -> str:
    return f' lang="{escape(language)}"' if language.isalpha() and 2 <= len(language) <= 3 else ""
