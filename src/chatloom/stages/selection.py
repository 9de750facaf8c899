"""Stage `selection`: documents, labels and copies -> the documents that stay, with weights; decided last, from labels.

It writes what every later stage reads: shards of documents with their labels. What goes is in `dropped/` with its
reason and the text's beginning; the whole text stays in the documents artifact. `report.html` and `report.json` show
what each rule took, what the labels look like, and examples; `tallies/` holds the counts of each shard behind them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from chatloom.artifact import write_json
from chatloom.corpus.columns import ABOUT
from chatloom.corpus.engine.choice import EngineSettings, is_little
from chatloom.corpus.engine.running import run_steps
from chatloom.corpus.engine.steps import total
from chatloom.corpus.record import count_rows, document_files
from chatloom.corpus.report.columns import LabelColumn, label_columns
from chatloom.corpus.report.figures import report_figures
from chatloom.corpus.report.survey import FRAME, read_frame
from chatloom.corpus.report.tally import read_tallies
from chatloom.corpus.selection.choice import SelectionSettings
from chatloom.corpus.selection.funnel import selection_funnel
from chatloom.corpus.selection.tasks import TALLIES, selection_steps
from chatloom.corpus.split import TRAIN
from chatloom.errors import ChatloomError
from chatloom.reporting.selection import render_selection_page
from chatloom.stage import Context, Input, Line, Plan, PlanContext, Stage

SCRATCH, REPORT, PAGE = "scratch", "report.json", "report.html"
READ_BYTES, ENCODED_BYTES = 20e6, 3e6  # a second
DOCUMENTS_IN_A_RANGE = 1_000_000  # of which a task that chooses copies holds the clusters


class SelectionStageSettings(SelectionSettings):
    """Everything that decides which documents stay, and where the work runs."""

    engine: EngineSettings = Field(default_factory=EngineSettings, description="where the work runs")


def run(context: Context) -> None:
    """Judge every document, choose one of each cluster of copies, write what stays and the report of it all."""
    settings: SelectionStageSettings = context.settings
    documents, vocabulary = context.artifact("documents"), context.optional("vocabulary")
    shards = document_files(documents.path)
    folders = column_folders(context)
    labels = label_columns(folders, shards[0].name)
    plain = SelectionSettings.parse({name: getattr(settings, name) for name in SelectionSettings.model_fields})
    rows = count_rows(shards)
    scratch = context.path / SCRATCH
    steps = selection_steps(
        context.name,
        shards,
        folders,
        plain,
        folder=context.path,
        scratch=scratch,
        seed=context.seed,
        labels=labels,
        vocabulary=vocabulary.path if vocabulary is not None else None,
        ranges=1 + rows // DOCUMENTS_IN_A_RANGE,
    )
    if steps[-1].complete():  # the end was cut off after it: nothing is judged again
        steps = steps[-1:]
    receipts = run_steps(steps, settings.engine, label=context.name, quiet=context.quiet, here=is_little(shards))
    funnel = selection_funnel(total(receipts), documents.metrics)
    if not funnel["documents"]:
        raise ChatloomError(_nothing_left(context.name, funnel))
    if not funnel["splits"].get(TRAIN):
        raise ChatloomError(f"stage `{context.name}`: every document is held out; lower `held_out_share`")
    write_json(context.path / "funnel.json", funnel)
    if not (context.path / REPORT).exists():
        _write_report(context, shards, plain, labels, funnel, tokens=vocabulary is not None)
    if scratch.exists():
        shutil.rmtree(scratch)
    context.metrics.update(funnel)


def _write_report(
    context: Context,
    shards: Sequence[Path],
    settings: SelectionSettings,
    labels: Sequence[LabelColumn],
    funnel: Mapping[str, Any],
    *,
    tokens: bool,
) -> None:
    """The page, then its figures: where these are, both are."""
    tally = read_tallies(context.path / TALLIES, (shard.stem for shard in shards))
    frame = read_frame(context.path / SCRATCH / FRAME)
    figures = report_figures(tally, frame, settings, labels, funnel, tokens=tokens)
    page = render_selection_page(figures, title=context.name, settings=settings.result(), seed=context.seed)
    (context.path / PAGE).write_text(page, encoding="utf-8", newline="\n")
    write_json(context.path / REPORT, figures)


def column_folders(context: Context) -> list[Path]:
    """Folders of label columns of all inputs, in order."""
    artifacts = [*context.artifacts("labels"), *context.artifacts("duplicates")]
    return [file.parent for artifact in artifacts for file in sorted(artifact.path.glob(f"*/{ABOUT}"))]


def _nothing_left(name: str, report: Mapping[str, Any]) -> str:
    taken = [
        f"{removed['documents']:,} by {step['step']}/{reason}"
        for step in report["steps"]
        for reason, removed in step["removed"].items()
    ]
    return f"stage `{name}`: no document stays: {'; '.join(taken)}; loosen what took most of them"


def plan(context: PlanContext) -> Plan:
    """Disk of the texts that may stay, two readings, and the counting of tokens where a vocabulary is given."""
    documents = context.plans.get("documents")
    size = documents.value("bytes") if documents is not None else 0.0
    counted = "vocabulary" in context.inputs or "vocabulary" in context.plans
    seconds = size / READ_BYTES + (size / ENCODED_BYTES if counted else 0.0)
    return Plan((Line("bytes", size, "bytes"), Line("disk", size / 2, "bytes"), Line("time", seconds, "s")))


STAGE = Stage(
    kind="selection",
    about="documents + labels + copies -> the documents that stay",
    version=2,
    settings=SelectionStageSettings,
    inputs={
        "documents": Input("the texts", kinds=("documents",)),
        "labels": Input("what is known of them", kinds=("labels",), required=False, many=True),
        "duplicates": Input("which are copies, and the split", kinds=("duplicates",), required=False),
        "vocabulary": Input("counts tokens for the report", kinds=("vocabulary",), required=False),
    },
    output="selection",
    run=run,
    plan=plan,
)
