"""Stage `duplicates`: documents -> which are copies of which, and on which side of the split each one is.

Copies are found for the whole corpus, before anything is selected, so that `selection` can keep of each cluster one
that passes. The columns lie beside the documents as labels do: `cluster`, `duplicate_kind`, `similarity`, `split`;
where they are asked for, spans of passages and substrings that stood earlier, and which books another one holds.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import Field

from chatloom.artifact import write_json
from chatloom.corpus.columns import ABOUT
from chatloom.corpus.duplicates.book_search import COLUMNS as BOOK_COLUMNS
from chatloom.corpus.duplicates.book_search import BookSettings, search_books
from chatloom.corpus.duplicates.books import SCALE
from chatloom.corpus.duplicates.layout import FAN_IN, Layout
from chatloom.corpus.duplicates.meanings import meanings_of
from chatloom.corpus.duplicates.search import CopySearch, CopySettings
from chatloom.corpus.duplicates.span_search import (
    SUBSTRINGS,
    Passages,
    columns_of,
    left_out,
    search_passages,
    search_substrings,
)
from chatloom.corpus.duplicates.tasks import COLUMNS
from chatloom.corpus.engine.choice import EngineSettings, is_little
from chatloom.corpus.engine.running import run_steps
from chatloom.corpus.engine.steps import Step, total
from chatloom.corpus.record import count_rows, document_files
from chatloom.corpus.split import HELD_OUT, TRAIN
from chatloom.settings import runtime
from chatloom.stage import Context, Input, Line, Plan, PlanContext, Stage

FOLDER, BOOKS, SCRATCH = "duplicates", "books", "scratch"
DOCUMENTS_IN_A_RANGE = 1_000_000  # what a task on one range of hashes holds rows of at most
USUAL_RANGES = 16
DOCUMENT_BYTES, SHARD_BYTES = 3e3, 32e6  # usual sizes, for the plan
PASSAGE_BYTES, SUBSTRING_BYTES = 0.4, 1.2  # between the steps, a byte of text
SECONDS_A_MEGABYTE = 0.15  # the searches for documents, one processor


class DuplicatesSettings(CopySettings):
    """Which documents are copies, which passages and books repeat others, and how many documents are held out."""

    held_out_share: float = Field(0.05, ge=0.0, lt=1.0, description="share of documents held out (whole clusters)")
    passages: Passages = Field("none", description="search for lines, or paragraphs, that stood earlier in the corpus")
    passage_characters: int = Field(
        20, ge=1, description="characters (Han and kana count twice) of a line or paragraph below which it may repeat"
    )
    substring: int | None = Field(
        None, ge=2, description="search for stretches of so many characters that stood earlier; null: do not"
    )
    books: BookSettings | None = Field(None, description="search for books that another one holds; null: do not")
    ranges: int = runtime(
        0, ge=0, le=FAN_IN, description="ranges of hashes that the search is cut into, each a task; 0: by the corpus"
    )
    engine: EngineSettings = Field(default_factory=EngineSettings, description="where the work runs")


@dataclass
class Searches:
    """All steps in order, and those that write columns (folder -> step, columns)."""

    steps: list[Step]
    columns: dict[str, tuple[Step, Mapping[str, pa.DataType]]]


def run(context: Context) -> None:
    """The steps of the searches into a folder that is removed at the end, then the columns shard by shard."""
    settings: DuplicatesSettings = context.settings
    shards = document_files(context.artifact("documents").path)
    scratch = context.path / SCRATCH
    searches = plan_searches(settings, shards, context.path, scratch, context.seed)
    last = [step for step, _ in searches.columns.values()]
    # Where the columns are there already, the end was cut off after they were: nothing is searched for again.
    steps = [*([] if all(step.complete() for step in last) else searches.steps), *last]
    run_steps(steps, settings.engine, label=context.name, quiet=context.quiet, here=is_little(shards))
    if scratch.exists():
        shutil.rmtree(scratch)
    for folder, (_, columns) in searches.columns.items():
        about = {"columns": {name: str(kind) for name, kind in columns.items()}, "meanings": meanings_of(columns)}
        write_json(context.path / folder / ABOUT, {"name": folder, **about})
    counts = {folder: total(step.done().values()) for folder, step in zip(searches.columns, last)}
    context.metrics.update(_metrics(counts))


def plan_searches(
    settings: DuplicatesSettings, shards: Sequence[Path], folder: Path, scratch: Path, seed: int
) -> Searches:
    """The searches that settings ask for: which steps there are, in order."""
    rows = count_rows(shards)
    usual = 1 if is_little(shards) else min(len(shards), USUAL_RANGES)
    ranges = settings.ranges or min(FAN_IN, max(usual, 1 + rows // DOCUMENTS_IN_A_RANGE))
    layout = Layout(shards, scratch, ranges, settings.memory_megabytes << 20)
    plain = CopySettings.parse({name: getattr(settings, name) for name in CopySettings.model_fields})
    found = CopySearch(layout, plain, held_out_share=settings.held_out_share, seed=seed)
    found.finish()
    columns: dict[str, tuple[Step, Mapping[str, pa.DataType]]] = {}
    books = None
    if settings.books is not None:
        books = search_books(layout, settings.books, found.copies)
        found.steps += books.steps
        found.join(books.edges)
        columns[BOOKS] = books.columns(BOOKS, folder / BOOKS), BOOK_COLUMNS
    without = left_out(found.copies, books)
    if settings.passages != "none":
        what, size = settings.passages, settings.passage_characters
        steps, last = search_passages(layout, without, what, size, f"{what} cut", folder / what)
        found.steps += steps
        columns[what] = last, columns_of(what)
    if settings.substring is not None:
        steps, last = search_substrings(layout, without, settings.substring, f"{SUBSTRINGS} cut", folder / SUBSTRINGS)
        found.steps += steps
        columns[SUBSTRINGS] = last, columns_of(SUBSTRINGS)
    return Searches(found.steps, {FOLDER: (found.columns(FOLDER, folder / FOLDER), COLUMNS), **columns})


def _metrics(counts: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """What the columns' counts say, by folder."""
    own = counts[FOLDER]
    metrics: dict[str, Any] = {
        "documents": own["documents"],
        "clusters": own["clusters"],
        "copies": {name.removeprefix("kind:"): n for name, n in own.items() if name.startswith("kind:")},
        "split": {side: own.get(f"split:{side}", 0) for side in (TRAIN, HELD_OUT)},
    }
    if BOOKS in counts:
        metrics["book_copies"] = counts[BOOKS]["gone"]
    for what in ("lines", "paragraphs", SUBSTRINGS):
        if what in counts:
            metrics[f"repeated_{what}"] = {name: counts[what][name] for name in ("characters", "repeated")}
    return metrics


def plan(context: PlanContext) -> Plan:
    """Columns, the files between the steps (for documents of 3 kB, a fifth of them compared), and the time."""
    settings: DuplicatesSettings = context.settings
    documents = context.plans.get("documents")
    size = documents.value("bytes") if documents is not None else 0.0
    a_document = 16 + 24 * settings.exact + 24 * settings.url + 16 * settings.bands * settings.near
    times = 2 if size / SHARD_BYTES > FAN_IN else 1  # as they are written, and put together
    a_byte = {
        "sets": 0.2 * 8 / 5 * settings.near,  # 64 bits a shingle, one shingle for about five bytes of text
        "passages": times * PASSAGE_BYTES * (settings.passages != "none"),
        "substrings": times * SUBSTRING_BYTES * (settings.substring is not None),
        "books": times * 16 / 5 / SCALE * (settings.books is not None),
    }
    searches = 1 + (settings.passages != "none") + 2 * (settings.substring is not None) + (settings.books is not None)
    lines = (
        Line("disk", 40 * size / DOCUMENT_BYTES * searches, "bytes"),
        Line("disk_meanwhile", size * (times * a_document / DOCUMENT_BYTES + sum(a_byte.values())), "bytes"),
        Line("time", SECONDS_A_MEGABYTE * size / 1e6 * searches, "s"),
    )
    return Plan(lines)


STAGE = Stage(
    kind="duplicates",
    about="documents -> which are copies, and the split",
    version=3,
    settings=DuplicatesSettings,
    inputs={"documents": Input("the texts", kinds=("documents",))},
    output="duplicates",
    run=run,
    plan=plan,
)
