"""Stage `selection`: documents, labels and copies -> the documents that stay, with weights; decided last, from labels.

It writes what every later stage reads: shards of documents with their labels. What goes is in `dropped/` with its
reason and the text's beginning; the whole text stays in the documents artifact.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from chatloom.artifact import write_json
from chatloom.corpus.columns import ABOUT
from chatloom.corpus.engine.choice import EngineSettings, make_engine
from chatloom.corpus.engine.steps import Step, Task, total
from chatloom.corpus.record import document_files
from chatloom.corpus.selection.choice import SelectionSettings
from chatloom.corpus.selection.funnel import selection_funnel
from chatloom.corpus.selection.tasks import choose_copies
from chatloom.corpus.split import TRAIN
from chatloom.errors import ChatloomError
from chatloom.progress import progress
from chatloom.stage import Context, Input, Line, Plan, PlanContext, Stage

COPIES = "copies.npy"
VERDICTS = "verdicts"


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
    shared = {"settings": plain.everything()}
    engine = make_engine(settings.engine)

    def tasks(function: str, more: Any) -> list[Task]:
        return [
            Task(
                shard.stem,
                f"chatloom.corpus.selection.tasks:{function}",
                {
                    "shard": str(shard),
                    "columns": [str(folder / shard.name) for folder in folders],
                    **shared,
                    **more(shard),
                },
            )
            for shard in shards
        ]

    scratch = context.path / "scratch"
    with progress(2 * len(shards), unit="shards", label=context.name, quiet=context.quiet) as bar:
        judged = Step(f"{context.name}, verdicts", scratch, tasks("write_verdicts", lambda _: {}))
        judged.run(engine, advance=lambda _: bar.advance(1))
        copies = choose_copies(scratch / VERDICTS / shard.name for shard in shards)
        np.save(scratch / COPIES, copies, allow_pickle=False)
        written = Step(
            context.name,
            context.path,
            tasks(
                "write_selected",
                lambda shard: {
                    "verdicts": str(scratch / VERDICTS / shard.name),
                    "copies": str(scratch / COPIES),
                    "seed": context.seed,
                    "labels": types,
                },
            ),
        )
        counts = total(written.run(engine, advance=lambda _: bar.advance(1)))
    shutil.rmtree(scratch)
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
