"""Stage `documents`: raw files -> shards of documents, as they are; what cannot be read or extracted is kept apart."""

from __future__ import annotations

import math
import shutil
import sys

from pydantic import Field

from chatloom.corpus import gathering
from chatloom.corpus.engine.choice import EngineSettings, ShardSettings, make_engine
from chatloom.corpus.engine.steps import Receipt
from chatloom.corpus.reading.files import list_files
from chatloom.corpus.reading.parts import parts_of, stays_whole
from chatloom.corpus.reading.sources import (
    PYDOC_SECONDS,
    PYDOC_TEXT_BYTES,
    SourceSettings,
    open_sources,
    planned_files,
    planned_reading,
)
from chatloom.corpus.settings import ExtractionSettings, ReadingSettings
from chatloom.progress import progress
from chatloom.stage import Context, Input, Line, Plan, PlanContext, Stage

# Measured on two cores: trafilatura's fast mode on pages of 144 kB; plain texts go ten times as fast.
BYTES_A_SECOND = 2e6
UNCUT_PARTS = 4  # a file that cannot be cut is worth a word from this many parts on


class DocumentsSettings(SourceSettings):
    """Where the pages come from, and how they become texts."""

    reading: ReadingSettings = Field(default_factory=ReadingSettings, description="how raw files are read")
    extraction: ExtractionSettings = Field(default_factory=ExtractionSettings, description="how HTML becomes text")
    shards: ShardSettings = Field(default_factory=ShardSettings, description="how big the pieces of work are")
    limit: int | None = Field(
        None, ge=1, description="read at most this many records of the sources (for a first look)"
    )
    engine: EngineSettings = Field(default_factory=EngineSettings, description="where the work runs")


def run(context: Context) -> None:
    """Render the pages if asked to, cut big files, then read and extract them, shard by shard."""
    settings: DocumentsSettings = context.settings
    files = list_files(open_sources(context, settings))
    name, scratch = context.name, context.path / "scratch"
    documents = 0

    def advance(receipt: Receipt) -> None:
        nonlocal documents
        documents += receipt.counts["documents"]
        bar.advance(1, documents=documents)

    with make_engine(settings.engine) as engine:
        if settings.limit is None:
            size = gathering.part_bytes(files, settings.shards)
            parts = gathering.cut(name, scratch, files, settings.reading, size, engine)
        else:  # the first records of all, in order: one task
            parts = parts_of(files, sys.maxsize)
        step = gathering.step_of(
            name, context.path, parts, settings.reading, settings.extraction, settings.shards, settings.limit
        )
        with progress(len(parts), unit="shards", label=name, quiet=context.quiet) as bar:
            bar.advance(len(step.done()))
            receipts = step.run(engine, advance=advance)
    shutil.rmtree(scratch, ignore_errors=True)
    context.metrics.update(gathering.finish(name, context.path, receipts, settings.reading))


def plan(context: PlanContext) -> Plan:
    """Bytes to be read, what they unpack to, the texts' disk and the time."""
    settings: DocumentsSettings = context.settings
    if settings.source == "pydoc":
        lines = (
            Line("disk", 10e6, "bytes"),
            Line("time", PYDOC_SECONDS, "s"),
            Line("bytes", PYDOC_TEXT_BYTES, "bytes"),
        )
        return Plan(lines)
    reading = planned_reading(context)
    if reading is None:
        return Plan(refusals=("the input `pages` holds no file; give `pages: {path: FILES}`, or `source: pydoc`",))
    read, size = reading
    long = math.inf if settings.limit else UNCUT_PARTS * settings.shards.part_megabytes * 1e6
    whole = [file for file in planned_files(context) if stays_whole(file, long)]
    warnings = tuple(
        f"{file} ({file.stat().st_size / 1e6:,.0f} MB) cannot be cut: one process reads it from end to end; split it "
        "into files of about `shards.part_megabytes`, or store it as plain JSON lines or Parquet"
        for file in whole
    )
    lines = (Line("bytes", size, "bytes"), Line("disk", size / 2, "bytes"), Line("time", size / BYTES_A_SECOND, "s"))
    return Plan((read, *lines), warnings=warnings)


STAGE = Stage(
    kind="documents",
    about="raw pages -> texts, one document each",
    version=2,
    settings=DocumentsSettings,
    inputs={
        "pages": Input(
            "files or folders: WARC, HTML, text, JSON lines, CSV, Parquet", required=False, many=True, files=True
        )
    },
    output="documents",
    run=run,
    plan=plan,
)
