"""Section about shares: what languages and sources were, are, and weigh; and what is held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chatloom.reporting import blocks
from chatloom.reporting.amounts import amount, level_bars, listing, named, share
from chatloom.reporting.html import Html
from chatloom.reporting.report import Section
from chatloom.reporting.tables import Column, render_html

Figures = Mapping[str, Any]
MOST_BARS = 8


def shares_section(figures: Figures) -> Section:
    """Two figures, two tables behind them, and the sides of the split."""
    units = figures["units"]
    languages, sources = figures["shares"]["by_language"], figures["shares"]["by_source"]
    shown: list[Html | str] = [
        blocks.side_by_side(_figure(languages, "language", "语言"), _figure(sources, "source", "来源"))
    ]
    shown.append(listing(_table(languages, "languages", units), _table(sources, "sources", units)))
    shown += _splits(figures["splits"], units)
    return Section("Languages, sources, weights", "语言、来源与权重", shown)


def _figure(rows: Sequence[Figures], what: str, chinese: str) -> Html:
    """Bars of characters: pale what there was, strong what stays."""
    most = rows[:MOST_BARS]
    bars = [
        {"name": row["name"], "all": row["before"]["characters"], "part": row["after"]["characters"],
         "text": share(row["after"]["characters"], row["before"]["characters"]),
         "note": f"{amount(row['after']['characters'])} of {amount(row['before']['characters'])}"}
        for row in sorted(most, key=lambda row: -row["before"]["characters"])
    ]  # fmt: skip
    caption = f"Characters by {what}: pale what there was, strong what stays, and its share."
    if len(rows) > len(most):
        caption += f" The {len(most)} with most documents of {len(rows)}."
    return blocks.figure(level_bars(bars), f"What stays, by {what} · {chinese}", caption)


def _table(rows: Sequence[Figures], what: str, units: Sequence[str]) -> Html:
    totals = {part: sum(row[part]["characters"] for row in rows) for part in ("before", "after", "weighted")}
    listed = [
        {
            "name": row["name"],
            "in": row["before"]["documents"],
            "stay": row["after"]["documents"],
            "stays": row["after"]["documents"] / max(row["before"]["documents"], 1),
            **{unit: row["after"][unit] for unit in units[1:]},
            **{part: row[part]["characters"] / (totals[part] or 1) for part in totals},
        }
        for row in rows
    ]
    columns = [
        Column("name", what[:-1]),
        Column("in", "documents", ","),
        Column("stay", "stay", ","),
        Column("stays", "share that stays", ".1%"),
        *(Column(unit, unit, ",") for unit in units[1:]),
        Column("before", "of all text", ".1%", about="share of the characters there were"),
        Column("after", "of what stays", ".1%", about="share of the characters that stay"),
        Column("weighted", "with weights", ".1%", about="share of characters times sample weight"),
    ]
    caption = (
        "The last three columns are shares of characters: before the selection, after it, and after it with the sample "
        "weights, which is how much of the training text each one effectively is."
    )
    told = f"{what.capitalize()} in numbers ({len(rows):,}): {', '.join(units)}, shares before and after, with weights"
    return blocks.details(told, named(render_html(columns, listed, caption=caption)))


def _splits(rows: Sequence[Figures], units: Sequence[str]) -> list[Html | str]:
    sides: dict[str, dict[str, Any]] = {}
    for row in rows:
        side = sides.setdefault(row["side"], {"side": row["side"], **dict.fromkeys(units, 0), "languages": []})
        for unit in units:
            side[unit] += row[unit]
        side["languages"].append((row["language"], row["documents"]))
    total = sum(side["documents"] for side in sides.values())
    listed = [
        {
            **side,
            "share": side["documents"] / (total or 1),
            "languages": ", ".join(
                f"{name} {n:,}" for name, n in sorted(side["languages"], key=lambda item: (-item[1], item[0]))[:5]
            ),
        }
        for side in sorted(sides.values(), key=lambda side: -side["documents"])
    ]
    columns = [
        Column("side", "side"),
        *(Column(unit, unit, ",") for unit in units),
        Column("share", "of the documents", ".1%"),
        Column("languages", "documents by language"),
    ]
    caption = "What is held out measures models and trains none; copies of one document are all on one side."
    return [blocks.heading("Train and held out · 训练与留出"), render_html(columns, listed, caption=caption)]
