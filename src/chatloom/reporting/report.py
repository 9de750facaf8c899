"""A whole page as one HTML file that asks the network for nothing: the report of a run, and the page of a single stage.

The page carries a content policy that forbids scripts and outside addresses, so even a hole in the escaping would
not let a model's text run. Nothing in it depends on the time of rendering: the same data gives the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chatloom.progress import duration
from chatloom.reporting import blocks
from chatloom.reporting.html import Html, escape, to_html
from chatloom.reporting.panels import Panel, is_number, metric_figures
from chatloom.reporting.stylesheet import STYLESHEET

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True)
class Section:
    """A chapter of a page: English title, Chinese title, and blocks (`Html` from `blocks`, or plain text)."""

    title: str
    other: str = ""
    blocks: Sequence[Html | str] = field(default_factory=tuple)


def render_report(
    sections: Sequence[Section],
    title: str,
    lead: str = "",
    *,
    facts: Sequence[str] = (),
    eyebrow: str = "chatloom",
    footer: str = "",
    language: str = "en",
) -> str:
    """The report as one HTML document: header, contents, sections, footer. `facts` stand small below the lead."""
    anchors = _anchors([section.title for section in sections])
    contents = "".join(
        f'<li><a href="#{anchor}">{escape(section.title)}</a></li>' for anchor, section in zip(anchors, sections)
    )
    body = "".join(
        f'<section id="{anchor}"><h2>{escape(section.title)}{_other(section.other)}</h2>'
        f"{''.join(map(to_html, section.blocks))}</section>\n"
        for anchor, section in zip(anchors, sections)
    )
    small = "".join(f"<span>{escape(fact)}</span>" for fact in facts)
    listed = len(sections) > 1  # one section needs no table of contents
    lines = [
        "<!DOCTYPE html>",
        f'<html lang="{escape(language)}">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLESHEET}</style>",
        "</head>",
        "<body>",
        f'<div class="page{" listed" if listed else ""}">',
        f'<header><p class="eyebrow">{escape(eyebrow)}</p><h1>{escape(title)}</h1>{_lead(lead)}',
        f'<p class="facts">{small}</p></header>' if small else "</header>",
        f'<nav aria-label="contents"><ol>{contents}</ol></nav>' if listed else "",
        f"<main>\n{body}</main>",
        f"<footer>{to_html(footer)}</footer>" if footer else "",
        "</div>",
        "</body>",
        "</html>",
    ]
    return "\n".join(line for line in lines if line) + "\n"


def render_stage_page(
    rows: Sequence[Mapping[str, Any]],
    *,
    title: str,
    lead: str = "",
    settings: Mapping[str, Any] | None = None,
    summary: Mapping[str, Any] | None = None,
    levels: Mapping[str, Mapping[str, float]] | None = None,
    panels: Mapping[str, Panel] | None = None,
    extra: Sequence[Section] = (),
    seconds: float | None = None,
    memory_bytes: float | None = None,
) -> str:
    """The page that a stage leaves behind, from the rows of its metrics.jsonl: curves, figures, settings.

    Each metric that varies becomes a figure; rows of other kinds (such as held-out scores) join the metric of the
    same name as a line of their own. `levels` draws named level lines into a metric's figure: `{"bits_per_byte":
    {"trigram": 2.1}}`.
    """
    figures = metric_figures(rows, panels=panels, levels=levels)
    steps = [row["step"] for row in rows if is_number(row.get("step"))]
    items: list[dict[str, Any]] = [{"label": name, "value": value} for name, value in (summary or {}).items()]
    if seconds is not None:
        items.append({"label": "time", "value": duration(seconds)})
    if memory_bytes is not None:
        items.append({"label": "peak memory", "value": blocks.size(memory_bytes)})
    sections = []
    if items:
        sections.append(Section("Summary", "概要", [blocks.cards(items)]))
    if figures:
        sections.append(Section("Curves", "曲线", [blocks.side_by_side(*figures)]))
    elif not items:
        sections.append(Section("Curves", "曲线", ["No metrics were recorded."]))
    sections += extra
    if settings:
        sections.append(Section("Settings", "设置", [blocks.pairs(flatten(settings))]))
    facts = [f"{max(steps):,} steps"] if steps else []
    return render_report(sections, title, lead, facts=facts, eyebrow="chatloom stage")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted names, the way they are given on the command line."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _lead(lead: str) -> str:
    return to_html(lead).replace("<p>", '<p class="lead">') if lead else ""


def _other(title: str) -> str:
    return f' <span class="other" lang="zh">{escape(title)}</span>' if title else ""


def _anchors(titles: Sequence[str]) -> list[str]:
    """A readable id for each section, all different."""
    anchors: list[str] = []
    for number, title in enumerate(titles, start=1):
        name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or f"section-{number}"
        anchors.append(name if name not in anchors else f"{name}-{number}")
    return anchors
