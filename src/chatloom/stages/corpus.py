"""Stage `corpus`: raw pages -> cleaned, labelled documents; everything dropped is kept beside them with its reason."""

from __future__ import annotations

from chatloom.corpus.pipeline import clean
from chatloom.corpus.reading.sources import (
    PYDOC_SECONDS,
    PYDOC_TEXT_BYTES,
    SourceSettings,
    open_sources,
    planned_reading,
)
from chatloom.corpus.settings import CorpusSettings
from chatloom.progress import progress
from chatloom.settings import runtime
from chatloom.stage import Context, Input, Line, Plan, PlanContext, Stage


class CorpusStageSettings(SourceSettings, CorpusSettings):
    """Where the pages come from, and everything that decides what comes out of cleaning."""

    workers: int = runtime(0, ge=0, description="processes; 0: one for each processor")


def run(context: Context) -> None:
    """Render the pages if asked to, then clean them."""
    settings: CorpusStageSettings = context.settings
    sources = open_sources(context, settings)
    plain = CorpusSettings.parse(
        {name: getattr(settings, name) for name in CorpusSettings.model_fields}, where=f"stages.{context.name}"
    )
    with progress(None, unit="pages", label=context.name, quiet=context.quiet) as bar:
        metrics = clean(plain, sources, context.path, workers=settings.workers or None, seed=context.seed, progress=bar)
    context.metrics.update(metrics)


def plan(context: PlanContext) -> Plan:
    """Bytes to be read, what they unpack to, and time at 60 pages a second (trafilatura's fast mode on two cores)."""
    settings: CorpusStageSettings = context.settings
    if settings.source == "pydoc":
        lines = (
            Line("disk", 30e6, "bytes"),
            Line("time", PYDOC_SECONDS, "s"),
            Line("bytes", PYDOC_TEXT_BYTES, "bytes"),
        )
        return Plan(lines)
    reading = planned_reading(context)
    if reading is None:
        return Plan(refusals=("the input `pages` holds no file",))
    read, size = reading
    return Plan((read, Line("bytes", size, "bytes"), Line("disk", 3 * size, "bytes"), Line("time", size / 2e6, "s")))


STAGE = Stage(
    kind="corpus",
    about="raw pages -> cleaned, labelled documents",
    version=1,
    settings=CorpusStageSettings,
    inputs={
        "pages": Input(
            "files or folders: WARC, HTML, text, JSON lines, CSV, Parquet", required=False, many=True, files=True
        )
    },
    output="documents",
    run=run,
    plan=plan,
)
