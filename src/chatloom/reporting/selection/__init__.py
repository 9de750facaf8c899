"""The page of a selection: what each rule took, what the labels look like, and examples to judge it by.

It draws the figures of `report.json` and nothing else, so any saved report can be drawn again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chatloom.reporting import blocks
from chatloom.reporting.report import Section, flatten, render_report
from chatloom.reporting.selection.copies import copies_section, edits_section
from chatloom.reporting.selection.labels import labels_section
from chatloom.reporting.selection.rules import examples_section, overlap_section, steps_section, summary_section
from chatloom.reporting.selection.shares import shares_section

LEAD = (
    "Which documents stay, which go and why. Every number here is a count over all documents, none an estimate; "
    "examples are drawn by a keyed hash of their ids. All figures are in report.json too."
)


def render_selection_page(figures: Mapping[str, Any], *, title: str, settings: Mapping[str, Any], seed: int) -> str:
    """The page as one HTML document, from the figures of `chatloom.corpus.report.figures`."""
    sections = [
        summary_section(figures),
        steps_section(figures),
        shares_section(figures),
        overlap_section(figures),
        examples_section(figures),
        edits_section(figures["edits"]),
        copies_section(figures["copies"]),
        labels_section(figures["labels"]),
        Section("Settings", "设置", [blocks.pairs(flatten(settings))]),
    ]
    facts = [f"seed {seed}", "tokens counted" if "tokens" in figures["units"] else "tokens not counted"]
    shown = [section for section in sections if section is not None]
    return render_report(shown, title, LEAD, facts=facts, eyebrow="chatloom selection")
