"""Commands on recipes: `demo`, `run`, `plan`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from chatloom import recipe
from chatloom.artifact import Artifact
from chatloom.cli import frame, shards
from chatloom.cli.frame import Quiet, Set, amount, console, relative
from chatloom.recipe import PlanReport
from chatloom.stage import Line

_COLUMNS = (
    ("parameters", "params"),
    ("tokens", "tokens"),
    ("flops", "FLOPs"),
    ("memory", "memory"),
    ("disk", "disk"),
    ("time", "time"),
)
# Of the table of results, in 80 columns.
_HEADLINE = ("method", "exact", "polite", "f1_gain", "polite_gain", "reward", "kl")
_STATES = {"done": "green", "stale": "yellow", "half done": "cyan", "to do": "white"}

Name = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a recipe that comes with chatloom.")
]
Out = Annotated[Path | None, typer.Option("--out", help="Folder of the run; default runs/NAME.")]
Until = Annotated[
    str | None, typer.Option("--until", metavar="STAGE", help="Stop after this stage; make only what it needs.")
]
StartOver = Annotated[
    list[str] | None,
    typer.Option(
        "--start-over", metavar="STAGE", help="Make this stage again, dropping what was half done. May be repeated."
    ),
]
Shard = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="i/N",
        help="Be one of N processes that do the run's corpus work together: start this N times, i from 0 to N-1.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    frame.register(app, demo, "demo", "Recipes")
    frame.register(app, run, "run", "Recipes")
    frame.register(app, plan, "plan", "Recipes")


def demo(
    full: Annotated[
        bool, typer.Option("--full", help="Three seeds and a start from random weights; about an hour.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the run; default runs/demo or runs/demo-full.")
    ] = None,
    assignments: Set = None,
    until: Until = None,
    start_over: StartOver = None,
    quiet: Quiet = False,
) -> None:
    """Make a chat model out of this Python's own documentation pages, before your eyes, and talk to it."""
    run("demo-full" if full else "demo", out, assignments, until, start_over, quiet)


def run(
    name: Name,
    out: Out = None,
    assignments: Set = None,
    until: Until = None,
    start_over: StartOver = None,
    quiet: Quiet = False,
    shard: Shard = None,
) -> None:
    """Run a recipe: stages that are done are skipped, a half-done one goes on where it was."""
    graph = recipe.read(name, assignments or ())
    folder = out or Path("runs") / graph.name
    with shards.member(graph, folder, shard, until=until) as leads:
        if leads:
            made = recipe.run(graph, folder, until=until, start_over=start_over or (), quiet=quiet)
            _show_result(made)


def plan(
    name: Name,
    out: Out = None,
    assignments: Set = None,
    until: Until = None,
    start_over: StartOver = None,
) -> None:
    """Show what a run would do and cost, and what stands in its way; nothing is run or written."""
    graph = recipe.read(name, assignments or ())
    report = recipe.plan(graph, out or Path("runs") / graph.name, until=until, start_over=start_over or ())
    _show_plan(report)
    report.check()


def _show_plan(report: PlanReport) -> None:
    shown = [(key, title) for key, title in _COLUMNS if key in report.totals or key == "time"]
    table = Table(
        title=f"{report.recipe.name} -> {relative(report.out)}",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    # Narrow enough for 80 columns: a stage's kind is told only where its name does not tell it.
    table.add_column("stage", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for _, title in shown:
        table.add_column(title, justify="right", no_wrap=True)
    for stage in report.stages:
        lines = {line.name: line for line in stage.figures.lines}
        cells = [_figure(lines.get(key)) for key, _ in shown]
        kind = stage.node.stage.kind
        told = kind in (stage.node.name, stage.node.name.rpartition(".")[2])
        name = stage.node.name if told else f"{stage.node.name} ({kind})"
        table.add_row(name, Text(stage.state, style=_STATES[stage.state]), *cells)
    table.add_section()
    totals = [_figure(report.totals.get(key)) for key, _ in shown]
    table.add_row("to do", "", *totals, style="bold")
    table.caption = "~ estimated, other figures exact. Last line: the largest for parameters and memory, else sums."
    out = console()
    out.print(table)
    for stage in report.stages:
        if stage.state == "stale" and stage.difference:
            out.print(f"`{stage.node.name}` is stale: {'; '.join(stage.difference)}", markup=False)
        for note in stage.figures.notes if stage.state != "done" else ():
            out.print(f"`{stage.node.name}` {note.title}\n{note.text}\n", markup=False, soft_wrap=True)
    for warning in report.warnings:
        out.print(Text(f"warning: {warning}", style="yellow"))


def _figure(line: Line | None) -> str:
    if line is None:
        return ""
    text = amount(line.value, line.unit).removesuffix("FLOP").strip()  # the column's title says it
    return text if line.exact else f"~{text}"


def _show_table(folder: Path, text: str) -> None:
    """The whole table where it fits; elsewhere its headline in a few columns, and where the whole is."""
    out = console()
    if not (folder / "table.json").is_file() or max(map(len, text.splitlines()), default=0) <= out.width:
        out.print(text, markup=False, soft_wrap=True)
        return
    from chatloom.evaluation.comparison import visible_columns
    from chatloom.reporting.tables import render_rich

    tables = json.loads((folder / "table.json").read_text(encoding="utf-8"))
    name, rows = next((name, tables[name]) for name in ("sampled", *tables) if name in tables)
    headline = [row for row in rows if row["group"] == rows[0]["group"]]
    columns = [column for column in visible_columns(headline) if column.key in _HEADLINE]
    columns.sort(key=lambda column: _HEADLINE.index(column.key))
    out.print(render_rich(columns, headline, title=f"{name} answers: {rows[0]['group_title']}"))
    out.print(f"the whole table: {relative(folder / 'table.txt')}", markup=False, soft_wrap=True)


def _show_result(made: Mapping[str, Artifact]) -> None:
    """The tables that stages left for people, the reports, and how to talk to the newest chat models."""
    out = console()
    for item in made.values():
        table = item.path / "table.txt"
        if item.kind in ("evaluation", "report") and table.is_file():
            _show_table(item.path, table.read_text(encoding="utf-8").rstrip())
    for item in made.values():
        if (item.path / "report.html").is_file():
            out.print(f"report: {relative(item.path / 'report.html')}", markup=False, soft_wrap=True)
    models = [item for item in made.values() if item.kind == "model" and (item.path / "chat_template.json").is_file()]
    if models:
        aligned = [item for item in models if item.manifest.get("stage") in ("dpo", "ppo")]
        best = (aligned or models)[-1]
        out.print(f"talk to it: chatloom chat {relative(best.path)}", markup=False, soft_wrap=True)
    elif made:
        out.print(f"made: {relative(list(made.values())[-1].path)}", markup=False, soft_wrap=True)
