"""One description of a table, four ways to show it: terminal (rich), Markdown, HTML, and plain numbers for a summary.

A table is rows of plain dicts and a list of columns; a column says which key it shows, how numbers are written and,
with `low` and `high`, which keys hold the bounds of its interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from chatloom.reporting.html import Html, escape

Row = Mapping[str, Any]

MISSING = "–"
MINUS = "−"


@dataclass(frozen=True)
class Column:
    """One column: the key it shows, its title, and how a value is written."""

    key: str
    title: str
    format: str = ""  # of str.format, such as ".1%" or ",.2f"; empty: by type
    low: str = ""  # keys of the bounds of an interval, shown beside the value
    high: str = ""
    about: str = ""  # what the figure means, shown on hover and in the legend
    best: Literal["", "max", "min"] = ""  # which value of a group is set in bold

    def text(self, row: Row) -> str:
        """The cell of a row as plain text; a missing value is a dash, never a zero."""
        value = format_value(row.get(self.key), self.format)
        low, high = self.bounds(row)
        return f"{value} [{low}, {high}]" if low else value

    def bounds(self, row: Row) -> tuple[str, str]:
        """Lower and upper bound as text, both empty if there is no interval."""
        low, high = row.get(self.low), row.get(self.high)
        if not self.low or low is None or high is None:
            return "", ""
        return format_value(low, self.format), format_value(high, self.format)

    def is_number(self, rows: Sequence[Row]) -> bool:
        """Whether the column is set as numbers: right-aligned, tabular figures."""
        return any(_is_number(row.get(self.key)) for row in rows)


def format_value(value: Any, format_: str = "") -> str:
    """A value as a person reads it: `format_` for numbers, yes/no for truth values, a dash for nothing and NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if _is_number(value):
        return format(value, format_ or _digits(value)).replace("-", MINUS)
    if isinstance(value, list | tuple | dict) and not value:
        return MISSING
    if isinstance(value, list | tuple):
        return ", ".join(format_value(item) for item in value)
    return str(value)


def _digits(value: float) -> str:
    """Whole numbers in full, others with four digits; only what is tiny or beyond counting has an exponent."""
    if isinstance(value, int) or 1e3 <= abs(value) < 1e15:
        return ",.0f" if isinstance(value, float) else ","
    return ".4g" if value == 0 or abs(value) >= 1e-4 else ".3g"


def render_markdown(columns: Sequence[Column], rows: Sequence[Row], *, group: str = "") -> str:
    """A GitHub table; with `group`, that key's value becomes a bold line of its own whenever it changes."""
    head = "| " + " | ".join(_markdown(column.title) for column in columns) + " |"
    rule = "|" + "|".join(" ---: " if column.is_number(rows) else " --- " for column in columns) + "|"
    lines = [head, rule]
    for name, members in grouped(rows, group):
        if name:
            lines.append(f"| **{_markdown(name)}** |" + " |" * (len(columns) - 1))
        best = best_rows(columns, members)
        for index, row in enumerate(members):
            cells = [_markdown(column.text(row)) for column in columns]
            marked = [f"**{cell}**" if (i, index) in best else cell for i, cell in enumerate(cells)]
            lines.append("| " + " | ".join(marked) + " |")
    return "\n".join(lines) + "\n"


def render_rich(columns: Sequence[Column], rows: Sequence[Row], *, group: str = "", title: str = "") -> RichTable:
    """A table for the terminal; model text in cells is shown as it is, never read as markup."""
    table = RichTable(title=Text(title) if title else None, box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(Text(column.title), justify="right" if column.is_number(rows) else "left")
    for number, (name, members) in enumerate(grouped(rows, group)):
        if name:
            if number:
                table.add_section()
            table.add_row(Text(name, style="bold cyan"), *[""] * (len(columns) - 1))
        best = best_rows(columns, members)
        for index, row in enumerate(members):
            cells = [Text(column.text(row), "bold" if (i, index) in best else "") for i, column in enumerate(columns)]
            table.add_row(*cells)
    return table


def render_html(
    columns: Sequence[Column],
    rows: Sequence[Row],
    *,
    group: str = "",
    caption: str = "",
    highlight: Callable[[Row], bool] | None = None,
) -> Html:
    """An HTML table in a frame that scrolls sideways on a narrow screen; all text is escaped."""
    out = ['<div class="table-frame" tabindex="0"><table><thead><tr>']
    for column in columns:
        css = ' class="number"' if column.is_number(rows) else ""
        about = f' title="{escape(column.about)}"' if column.about else ""
        out.append(f'<th scope="col"{css}{about}>{escape(column.title)}</th>')
    out.append("</tr></thead>")
    for name, members in grouped(rows, group):
        out.append("<tbody>")
        if name:
            out.append(
                f'<tr class="group"><th scope="rowgroup" colspan="{len(columns)}"><span>{escape(name)}</span></th></tr>'
            )
        best = best_rows(columns, members)
        for index, row in enumerate(members):
            out.append('<tr class="highlight">' if highlight is not None and highlight(row) else "<tr>")
            out += [_html_cell(column, row, rows, (i, index) in best, i == 0) for i, column in enumerate(columns)]
            out.append("</tr>")
        out.append("</tbody>")
    out.append("</table></div>")
    if caption:
        out.append(f'<p class="note">{escape(caption)}</p>')
    return Html("".join(out))


def grouped(rows: Sequence[Row], key: str) -> list[tuple[str, list[Row]]]:
    """Consecutive rows with the same value of `key`, in order; one group without a name if no key is given."""
    groups: list[tuple[str, list[Row]]] = []
    for row in rows:
        name = str(row.get(key, "")) if key else ""
        if not groups or groups[-1][0] != name:
            groups.append((name, []))
        groups[-1][1].append(row)
    return groups


def best_rows(columns: Sequence[Column], rows: Sequence[Row]) -> set[tuple[int, int]]:
    """(column, row) places to set in bold: the best of each column that has a best, if values differ as written."""
    places: set[tuple[int, int]] = set()
    for i, column in enumerate(columns):
        values: list[Any] = [row.get(column.key) for row in rows]
        numbers: list[float] = [value for value in values if _is_number(value) and math.isfinite(value)]
        if not column.best or len({format_value(value, column.format) for value in numbers}) < 2:
            continue
        best = format_value(max(numbers) if column.best == "max" else min(numbers), column.format)
        places |= {(i, j) for j, value in enumerate(values) if format_value(value, column.format) == best}
    return places


def _html_cell(column: Column, row: Row, rows: Sequence[Row], bold: bool, first: bool) -> str:
    value = escape(format_value(row.get(column.key), column.format))
    if bold:
        value = f"<strong>{value}</strong>"
    low, high = column.bounds(row)
    if low:
        value += f' <span class="interval">{escape(low)} to {escape(high)}</span>'
    if first:
        return f'<th scope="row">{value}</th>'
    return f'<td class="number">{value}</td>' if column.is_number(rows) else f"<td>{value}</td>"


def _markdown(text: str) -> str:
    for character in "\\|*_`<>[]":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
