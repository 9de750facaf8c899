"""Stage `selection`: documents, labels and copies -> the documents that stay, with weights; decided last, from labels.

It writes what every later stage reads: shards of documents with their labels. What goes is in `dropped/` with its
reason and the text's beginning; the whole text stays in the documents artifact.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from chatloom.artifact import write_json
from chatloom.corpus.columns import ABOUT
from chatloom.corpus.engine.choice import EngineSettings, is_little, make_engine
from chatloom.corpus.engine.steps import total
from chatloom.corpus.record import document_files
from chatloom.corpus.selection.choice import SelectionSettings
from chatloom.corpus.selection.funnel import selection_funnel
from chatloom.corpus.selection.tasks import selection_steps
from chatloom.corpus.split import TRAIN
from chatloom.errors import ChatloomError
from chatloom.progress import progress
from chatloom.stage import Context, Input, Line, Plan, PlanContext, Stage

SCRATCH = "scratch"
DOCUMENTS_IN_A_RANGE = 1_000_000  # of which a task that chooses copies holds the clusters


class SelectionStageSettings(SelectionSettings):
    """Everything that decides which documents stay, and where the work runs."""

    engine: EngineSettings = Field(default_factory=EngineSettings, description="where the work runs")


def run(context: Context) -> None:
    """Judge every document, choose one of each cluster of copies, write what stays."""
    settings: SelectionStageSettings = context.settings
    documents = context.artifact("documents")
    shards = document_files(documents.path)
    folders = column_folders(context)
    types = label_types(folders, shards[0])
    plain = SelectionSettings.parse({name: getattr(settings, name) for name in SelectionSettings.model_fields})
    rows = sum(pq.read_metadata(shard).num_rows for shard in shards)
    scratch = context.path / SCRATCH
    steps = selection_steps(
        context.name,
        shards,
        folders,
        plain,
        folder=context.path,
        scratch=scratch,
        seed=context.seed,
        labels=types,
        ranges=1 + rows // DOCUMENTS_IN_A_RANGE,
    )
    if steps[-1].complete():  # the end was cut off after it: nothing is judged again
        steps = steps[-1:]
    n_tasks = sum(len(step.tasks) for step in steps)
    with (
        make_engine(settings.engine, here=is_little(shards)) as engine,
        progress(n_tasks, unit="tasks", label=context.name, quiet=context.quiet) as bar,
    ):
        for step in steps:
            bar.advance(len(step.done()))
            step.run(engine, advance=lambda _: bar.advance(1))
    if scratch.exists():
        shutil.rmtree(scratch)
    counts = total(steps[-1].done().values())
    report = selection_funnel(counts, documents.metrics)
    if not report["documents"]:
        raise ChatloomError(_nothing_left(context.name, report))
    if not report["splits"].get(TRAIN):
        raise ChatloomError(f"stage `{context.name}`: every document is held out; lower `held_out_share`")
    write_json(context.path / "funnel.json", report)
    context.metrics.update(report)


def column_folders(context: Context) -> list[Path]:
    """Folders of label columns of all inputs, in order."""
    artifacts = [*context.artifacts("labels"), *context.artifacts("duplicates")]
    return [file.parent for artifact in artifacts for file in sorted(artifact.path.glob(f"*/{ABOUT}"))]


def label_types(folders: Sequence[Path], shard: Path) -> dict[str, str]:
    """Plain labels (no spans) of the column files and of the documents themselves, with their Arrow types' names."""
    types: dict[str, str] = {}
    for folder in folders:
        for field in pq.read_schema(folder / shard.name):
            if field.name != "id" and not pa.types.is_list(field.type):
                types[field.name] = str(field.type)
    return types


def _nothing_left(name: str, report: Mapping[str, Any]) -> str:
    taken = [
        f"{removed['documents']:,} by {step['step']}/{reason}"
        for step in report["steps"]
        for reason, removed in step["removed"].items()
    ]
    return f"stage `{name}`: no document stays: {'; '.join(taken)}; loosen what took most of them"


def plan(context: PlanContext) -> Plan:
    """Disk of the texts that may stay, and two readings."""
    documents = context.plans.get("documents")
    size = documents.value("bytes") if documents is not None else 0.0
    return Plan((Line("bytes", size, "bytes"), Line("disk", size / 2, "bytes"), Line("time", size / 20e6, "s")))


STAGE = Stage(
    kind="selection",
    about="documents + labels + copies -> the documents that stay",
    version=1,
    settings=SelectionStageSettings,
    inputs={
        "documents": Input("the texts", kinds=("documents",)),
        "labels": Input("what is known of them", kinds=("labels",), required=False, many=True),
        "duplicates": Input("which are copies, and the split", kinds=("duplicates",), required=False),
    },
    output="selection",
    run=run,
    plan=plan,
)
