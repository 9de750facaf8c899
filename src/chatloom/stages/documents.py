"""Stage `documents`: raw files -> shards of documents, as they are; what cannot be read or extracted is kept apart."""

from __future__ import annotations

from pydantic import Field

from chatloom.corpus import gathering
from chatloom.corpus.engine.choice import EngineSettings, ShardSettings, make_engine
from chatloom.corpus.reading.files import list_files
from chatloom.corpus.reading.sources import (
    PYDOC_SECONDS,
    PYDOC_TEXT_BYTES,
    SourceSettings,
    open_sources,
    planned_reading,
)
from chatloom.corpus.settings import ExtractionSettings, ReadingSettings
from chatloom.progress import progress
from chatloom.stage import Context, Input, Line, Plan, PlanContext, Stage

# Measured on two cores: trafilatura's fast mode on pages of 144 kB; plain texts go ten times as fast.
BYTES_A_SECOND = 2e6


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
    """Render the pages if asked to, then read and extract them, shard by shard."""
    settings: DocumentsSettings = context.settings
    files = list_files(open_sources(context, settings))
    step = gathering.step_of(
        context.name, context.path, files, settings.reading, settings.extraction, settings.shards, settings.limit
    )
    with progress(len(step.tasks), unit="shards", label=context.name, quiet=context.quiet) as bar:
        receipts = step.run(
            make_engine(settings.engine), advance=lambda receipt: bar.advance(1, documents=receipt.counts["documents"])
        )
    context.metrics.update(gathering.finish(context.name, context.path, receipts, settings.reading))


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
        return Plan(refusals=("the input `pages` holds no file",))
    read, size = reading
    lines = (Line("bytes", size, "bytes"), Line("disk", size / 2, "bytes"), Line("time", size / BYTES_A_SECOND, "s"))
    return Plan((read, *lines))


STAGE = Stage(
    kind="documents",
    about="raw pages -> texts, one document each",
    version=1,
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
