"""Stage `documents`: raw files -> shards of documents, as they are; what cannot be read or extracted is kept apart."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from chatloom.corpus import gathering
from chatloom.corpus.compression import unpacked_bytes
from chatloom.corpus.engine.choice import EngineSettings, ShardSettings, make_engine
from chatloom.corpus.pydoc_pages import identity, render
from chatloom.corpus.reading import list_files
from chatloom.corpus.settings import ExtractionSettings, ReadingSettings
from chatloom.errors import ChatloomError
from chatloom.progress import progress, say
from chatloom.settings import Settings
from chatloom.stage import Context, Input, Line, Plan, PlanContext, Stage

PAGES = "pages"
# Measured on two cores: trafilatura's fast mode on pages of 144 kB; plain texts go ten times as fast.
BYTES_A_SECOND = 2e6


def _library() -> str:
    return " ".join(str(value) for value in identity().values())


class DocumentsSettings(Settings):
    """Where the pages come from, and how they become texts."""

    source: Literal["files", "pydoc"] = Field(
        "files", description="files: the input `pages`; pydoc: the pages that Python's own pydoc renders, made here"
    )
    library: str = Field(
        default_factory=_library, description="renderer and Python whose library pydoc renders; this one by default"
    )
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
    sources = _sources(context, settings)
    files = list_files(sources)
    if not files:
        raise ChatloomError(f"stage `{context.name}`: no source was given; name at least one file or folder")
    step = gathering.step_of(
        context.name, context.path, files, settings.reading, settings.extraction, settings.shards, settings.limit
    )
    with progress(len(step.tasks), unit="shards", label=context.name, quiet=context.quiet) as bar:
        receipts = step.run(
            make_engine(settings.engine), advance=lambda receipt: bar.advance(1, documents=receipt.counts["documents"])
        )
    context.metrics.update(gathering.finish(context.name, context.path, receipts, settings.reading))


def _sources(context: Context, settings: DocumentsSettings) -> list[Path]:
    given = context.files("pages")
    if settings.source == "files":
        if not given:
            raise ChatloomError(
                f"stage `{context.name}`: no source; give `pages: {{path: FOLDER_OR_FILES}}`, or `source: pydoc`"
            )
        return given
    if given:
        raise ChatloomError(f"stage `{context.name}`: both `pages` and `source: pydoc` are given; leave one out")
    if settings.library != _library():
        raise ChatloomError(
            f"stage `{context.name}`: asks for the pages of `{settings.library}`; this interpreter makes `{_library()}`"
        )
    rendered = render(context.path / PAGES)
    if not context.quiet:
        say(f"pydoc rendered {len(rendered.pages)} pages; {len(rendered.skipped)} modules cannot be imported here")
    context.metrics["pages_rendered"] = len(rendered.pages)
    context.metrics["modules_skipped"] = dict(rendered.skipped)
    return [context.path / PAGES]


def plan(context: PlanContext) -> Plan:
    """Bytes to be read, what they unpack to, the texts' disk and the time."""
    settings: DocumentsSettings = context.settings
    if settings.source == "pydoc":
        return Plan((Line("disk", 10e6, "bytes"), Line("time", 20.0, "s"), Line("bytes", 3.4e6, "bytes")))
    pages = context.inputs.get("pages", [])
    files = [file for item in (pages if isinstance(pages, list) else [pages]) for file in _files(item)]
    if not files:
        return Plan(refusals=("the input `pages` holds no file",))
    size = unpacked_bytes(files)
    return Plan(
        (
            Line("read", float(sum(file.stat().st_size for file in files)), "bytes", exact=True),
            Line("bytes", size, "bytes"),
            Line("disk", size / 2, "bytes"),
            Line("time", size / BYTES_A_SECOND, "s"),
        )
    )


def _files(item: object) -> list[Path]:
    if not isinstance(item, Path):
        return []
    return [item] if item.is_file() else [file for file in item.rglob("*") if file.is_file()]


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
