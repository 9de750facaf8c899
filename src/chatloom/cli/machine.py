"""`chatloom doctor`: is this machine fit, and does kill-and-resume hold on it?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from chatloom.cli import frame
from chatloom.cli.frame import console

_MARKS = {"good": ("ok", "green"), "note": ("note", "yellow"), "bad": ("bad", "red")}


def register(app: typer.Typer) -> None:
    """Add the command."""
    frame.register(app, doctor, "doctor", "This machine")


def doctor(
    folder: Annotated[
        Path, typer.Option("--folder", help="Where runs will be written; its disk is looked at.")
    ] = Path(),
    quick: Annotated[bool, typer.Option("--quick", help="Leave out the training that is killed and resumed.")] = False,
) -> None:
    """Check Python, torch, memory, disk and device, then train, kill and resume a toy model (about 20 s)."""
    from chatloom import doctor as checks

    out, bad = console(), 0
    for finding in checks.examine(folder, toy=not quick):
        mark, style = _MARKS[finding.verdict]
        out.print(Text.assemble((f"{mark:>4}", style), f"  {finding.name}: {finding.text}"), soft_wrap=True)
        bad += finding.verdict == "bad"
    if bad:
        raise typer.Exit(1)
