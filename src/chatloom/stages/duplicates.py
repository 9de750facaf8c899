"""Stage `duplicates`: documents -> which are copies of which, and on which side of the split each one is.

Copies are found for the whole corpus, before anything is selected, so that `selection` can keep of each cluster one
that passes. The columns lie beside the documents as labels do: `cluster`, `duplicate_kind`, `similarity`, `split`.
"""

from __future__ import annotations

import shutil

import pyarrow.parquet as pq
from pydantic import Field

from chatloom.artifact import write_json
from chatloom.corpus.columns import ABOUT
from chatloom.corpus.duplicates.search import CopySearch, CopySettings, Layout
from chatloom.corpus.duplicates.series import FAN_IN
from chatloom.corpus.duplicates.tasks import COLUMNS
from chatloom.corpus.engine.choice import EngineSettings, make_engine
from chatloom.corpus.engine.steps import total
from chatloom.corpus.record import document_files
from chatloom.corpus.split import HELD_OUT, TRAIN
from chatloom.progress import progress
from chatloom.settings import runtime
from chatloom.stage import Context, Input, Line, Plan, PlanContext, Stage

FOLDER, SCRATCH = "duplicates", "scratch"
DOCUMENTS_IN_A_RANGE = 1_000_000  # what a task on one range of hashes holds rows of at most
USUAL_RANGES = 16
DOCUMENT_BYTES, SHARD_BYTES = 3e3, 32e6  # usual sizes, for the plan
SECONDS_A_MEGABYTE = 0.15  # all searches, one processor


class DuplicatesSettings(CopySettings):
    """Which documents are copies, and how many are held out."""

    held_out_share: float = Field(0.05, ge=0.0, lt=1.0, description="share of documents held out (whole clusters)")
    ranges: int = runtime(
        0, ge=0, le=FAN_IN, description="ranges of hashes that the search is cut into, each a task; 0: by the corpus"
    )
    engine: EngineSettings = Field(default_factory=EngineSettings, description="where the work runs")


def run(context: Context) -> None:
    """The steps of the search into a folder that is removed at the end, then the columns shard by shard."""
    settings: DuplicatesSettings = context.settings
    shards = document_files(context.artifact("documents").path)
    rows = sum(pq.read_metadata(shard).num_rows for shard in shards)
    plain = CopySettings.parse({name: getattr(settings, name) for name in CopySettings.model_fields})
    ranges = settings.ranges or min(FAN_IN, max(min(len(shards), USUAL_RANGES), 1 + rows // DOCUMENTS_IN_A_RANGE))
    scratch = context.path / SCRATCH
    layout = Layout(shards, scratch, ranges, settings.memory_megabytes << 20)
    found = CopySearch(layout, plain, held_out_share=settings.held_out_share, seed=context.seed)
    found.finish()
    columns = found.columns(context.name, context.path / FOLDER)
    # Where the columns are there already, the end was cut off after they were: nothing is searched for again.
    steps = [*([] if columns.complete() else found.steps), columns]
    n_tasks = sum(len(step.tasks) for step in steps)
    with (
        make_engine(settings.engine) as engine,
        progress(n_tasks, unit="tasks", label=context.name, quiet=context.quiet) as bar,
    ):
        for step in steps:
            bar.advance(len(step.done()))
            receipts = step.run(engine, advance=lambda _: bar.advance(1))
    if scratch.exists():
        shutil.rmtree(scratch)
    write_json(context.path / FOLDER / ABOUT, {"name": FOLDER, "columns": {n: str(t) for n, t in COLUMNS.items()}})
    counts = total(receipts)
    context.metrics.update(
        documents=counts["documents"],
        clusters=counts["clusters"],
        copies={name.removeprefix("kind:"): n for name, n in counts.items() if name.startswith("kind:")},
        split={side: counts.get(f"split:{side}", 0) for side in (TRAIN, HELD_OUT)},
    )


def plan(context: PlanContext) -> Plan:
    """Columns, the files between the steps (for documents of 3 kB, a fifth of them compared), and the time."""
    settings: DuplicatesSettings = context.settings
    documents = context.plans.get("documents")
    size = documents.value("bytes") if documents is not None else 0.0
    a_document = 16 + 24 * settings.exact + 24 * settings.url + 16 * settings.bands * settings.near
    times = 2 if size / SHARD_BYTES > FAN_IN else 1  # as they are written, and put together
    sets = 0.2 * 8 / 5 * settings.near  # 64 bits a shingle, one shingle for about five bytes of text
    lines = (
        Line("disk", 40 * size / DOCUMENT_BYTES, "bytes"),
        Line("disk_meanwhile", size * (times * a_document / DOCUMENT_BYTES + sets), "bytes"),
        Line("time", SECONDS_A_MEGABYTE * size / 1e6, "s"),
    )
    return Plan(lines)


STAGE = Stage(
    kind="duplicates",
    about="documents -> which are copies, and the split",
    version=2,
    settings=DuplicatesSettings,
    inputs={"documents": Input("the texts", kinds=("documents",))},
    output="duplicates",
    run=run,
    plan=plan,
)
