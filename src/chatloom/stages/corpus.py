"""Stage `corpus`: raw pages -> cleaned, labelled documents; everything dropped is kept beside them with its reason."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from chatloom.corpus.compression import unpacked_bytes
from chatloom.corpus.pipeline import clean
from chatloom.corpus.pydoc_pages import identity, render
from chatloom.corpus.settings import CorpusSettings
from chatloom.errors import ChatloomError
from chatloom.progress import progress, say
from chatloom.settings import runtime
from chatloom.stage import Context, Input, Line, Plan, PlanContext, Stage

PAGES = "pages"


def _library() -> str:
    return " ".join(str(value) for value in identity().values())


class CorpusStageSettings(CorpusSettings):
    """Where the pages come from, and everything that decides what comes out of cleaning."""

    source: Literal["files", "pydoc"] = Field(
        "files", description="files: the input `pages`; pydoc: the pages that Python's own pydoc renders, made here"
    )
    library: str = Field(
        default_factory=_library, description="renderer and Python whose library pydoc renders; this one by default"
    )
    workers: int = runtime(0, ge=0, description="processes; 0: one for each processor")


def run(context: Context) -> None:
    """Render the pages if asked to, then clean them."""
    settings: CorpusStageSettings = context.settings
    sources = _sources(context, settings)
    plain = CorpusSettings.parse(
        {name: getattr(settings, name) for name in CorpusSettings.model_fields}, where=f"stages.{context.name}"
    )
    with progress(None, unit="pages", label=context.name, quiet=context.quiet) as bar:
        metrics = clean(plain, sources, context.path, workers=settings.workers or None, seed=context.seed, progress=bar)
    context.metrics.update(metrics)


def _sources(context: Context, settings: CorpusStageSettings) -> list[Path]:
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
    """Bytes to be read, what they unpack to, and time at 60 pages a second (trafilatura's fast mode on two cores)."""
    settings: CorpusStageSettings = context.settings
    if settings.source == "pydoc":
        return Plan((Line("disk", 30e6, "bytes"), Line("time", 20.0, "s"), Line("bytes", 3.4e6, "bytes")))
    pages = context.inputs.get("pages", [])
    files = [file for item in (pages if isinstance(pages, list) else [pages]) for file in _files(item)]
    if not files:
        return Plan(refusals=("the input `pages` holds no file",))
    size = unpacked_bytes(files)
    return Plan(
        (
            Line("read", float(sum(file.stat().st_size for file in files)), "bytes", exact=True),
            Line("bytes", size, "bytes"),
            Line("disk", 3 * size, "bytes"),
            Line("time", size / 2e6, "s"),
        )
    )


def _files(item: object) -> list[Path]:
    if not isinstance(item, Path):
        return []
    return [item] if item.is_file() else [file for file in item.rglob("*") if file.is_file()]


STAGE = Stage(
    kind="corpus",
    about="raw pages -> cleaned, labelled documents",
    version=1,
    settings=CorpusStageSettings,
    inputs={
        "pages": Input("files or folders: WARC, HTML, text, JSON lines, Parquet", required=False, many=True, files=True)
    },
    output="documents",
    run=run,
    plan=plan,
)
