"""Promises of tables: the same cells everywhere, missing is a dash, nothing in a cell is markup."""

from __future__ import annotations

import io
import math
from html.parser import HTMLParser

from rich.console import Console

from chatloom.reporting.tables import Column, best_rows, format_value, render_html, render_markdown, render_rich

COLUMNS = [
    Column("method", "method"),
    Column("f1", "gold F1", ".1%", low="low", high="high", best="max"),
    Column("kl", "KL", ".2f", best="min"),
]
ROWS = [
    {"group": "All", "method": "sft", "f1": 0.71, "low": 0.68, "high": 0.74, "kl": None},
    {"group": "All", "method": "ppo", "f1": 0.875, "low": 0.85, "high": 0.9, "kl": -0.5},
    {"group": "中文", "method": "[red]<b>|x", "f1": math.nan, "kl": 0.25},
]


def test_values_are_written_for_people() -> None:
    given = (None, math.nan, True, 1234567, 0.5, -3, "text")
    assert [format_value(v) for v in given] == ["–", "–", "yes", "1,234,567", "0.5", "−3", "text"]
    assert format_value(-0.0312, "+.1%") == "−3.1%"
    # no exponent where a person would write the number, nor the signs of Python around a list
    large = [format_value(v) for v in (10612.3, 183785.5, 10000.0, 9.54e-06, 0.0005, 61.67)]
    assert large == ["10,612", "183,786", "10,000", "9.54e−06", "0.0005", "61.67"]
    assert [format_value(v) for v in (["sft", "dpo"], [0.9, 0.95], [], {})] == ["sft, dpo", "0.9, 0.95", "–", "–"]


def test_markdown_holds_every_cell_and_cannot_be_broken_by_one() -> None:
    text = render_markdown(COLUMNS, ROWS, group="group")
    lines = text.splitlines()
    assert lines[0] == "| method | gold F1 | KL |"
    assert lines[1] == "| --- | ---: | ---: |"
    assert lines[2] == "| **All** | | |"
    assert lines[4] == "| ppo | **87.5% \\[85.0%, 90.0%\\]** | −0.50 |"
    assert lines[5] == "| **中文** | | |"
    assert lines[6] == "| \\[red\\]\\<b\\>\\|x | – | 0.25 |"


def test_html_escapes_cells_and_is_well_formed() -> None:
    class Balance(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []
            self.seen: list[str] = []

        def handle_starttag(self, tag: str, attrs: object) -> None:
            self.open.append(tag)
            self.seen.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    page = render_html(
        COLUMNS, ROWS, group="group", caption="<i>caption</i>", highlight=lambda row: row["method"] == "ppo"
    )
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert "b" not in parser.seen
    assert "i" not in parser.seen
    assert "[red]&lt;b&gt;|x" in page
    assert page.count('class="highlight"') == 1
    assert '<span class="interval">85.0% to 90.0%</span>' in page


def test_the_terminal_shows_model_text_as_it_is() -> None:
    screen = io.StringIO()
    Console(file=screen, width=120).print(render_rich(COLUMNS, ROWS, group="group", title="[b]T"))
    text = screen.getvalue()
    assert "[red]<b>|x" in text
    assert "[b]T" in text
    assert "87.5% [85.0%, 90.0%]" in text


def test_the_best_of_a_group_is_marked_unless_all_look_alike() -> None:
    assert best_rows(COLUMNS, ROWS[:2]) == {(1, 1)}
    assert best_rows(COLUMNS, [{"f1": 0.50001, "kl": 1.0}, {"f1": 0.5, "kl": 2.0}]) == {(2, 0)}
    assert best_rows(COLUMNS, [{"f1": 0.9}, {"f1": 0.9001}, {"f1": 0.1}]) == {(1, 0), (1, 1)}
