"""The page that every stage leaves beside its result: curves, figures, settings; what one opens instead of a log."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chatloom.reporting.report import flatten, render_stage_page
from chatloom.training.metrics import read_metrics

PAGE = "page.html"


def write_stage_page(
    folder: Path,
    name: str,
    about: str,
    settings: Mapping[str, Any],
    metrics: Mapping[str, Any],
    seconds: float,
    memory_bytes: int,
) -> None:
    """Write `page.html` from `metrics.jsonl` (curves, where there is one) and the stage's figures."""
    shown = {
        key: value
        for key, value in flatten(metrics).items()
        if isinstance(value, int | float | str) and len(str(value)) < 60
    }
    rows = read_metrics(folder / "metrics.jsonl").rows
    page = render_stage_page(
        rows,
        title=name,
        lead=about,
        settings=settings,
        summary=dict(list(shown.items())[:24]),
        seconds=seconds,
        memory_bytes=memory_bytes,
    )
    (folder / PAGE).write_text(page, encoding="utf-8")
