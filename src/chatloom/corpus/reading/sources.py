"""Where a stage's raw pages come from: the user's files, or the pages that Python's own pydoc renders here."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from chatloom.corpus.extraction.pydoc_pages import identity, render
from chatloom.corpus.reading.compression import unpacked_bytes
from chatloom.errors import ChatloomError
from chatloom.progress import say
from chatloom.settings import Settings
from chatloom.stage import Context, Line, PlanContext

PAGES = "pages"  # the input's name, and the folder of rendered pages
PYDOC_TEXT_BYTES, PYDOC_SECONDS = 3.4e6, 20.0


def library() -> str:
    """The renderer and the Python whose library pydoc renders here."""
    return " ".join(str(value) for value in identity().values())


class SourceSettings(Settings):
    """Where the pages come from."""

    source: Literal["files", "pydoc"] = Field(
        "files", description="files: the input `pages`; pydoc: the pages that Python's own pydoc renders, made here"
    )
    library: str = Field(
        default_factory=library, description="renderer and Python whose library pydoc renders; this one by default"
    )


def open_sources(context: Context, settings: SourceSettings) -> list[Path]:
    """The files and folders to be read; pydoc's pages are rendered into the artifact first.

    Raises ChatloomError when no source is given, or two, or the library of another interpreter is asked for.
    """
    given = context.files(PAGES)
    if settings.source == "files":
        if not given:
            raise ChatloomError(
                f"stage `{context.name}`: no source; give `pages: {{path: FOLDER_OR_FILES}}`, or `source: pydoc`"
            )
        return given
    if given:
        raise ChatloomError(f"stage `{context.name}`: both `pages` and `source: pydoc` are given; leave one out")
    if settings.library != library():
        raise ChatloomError(
            f"stage `{context.name}`: asks for the pages of `{settings.library}`; this interpreter makes `{library()}`"
        )
    rendered = render(context.path / PAGES)
    if not context.quiet:
        say(f"pydoc rendered {len(rendered.pages)} pages; {len(rendered.skipped)} modules cannot be imported here")
    context.metrics["pages_rendered"] = len(rendered.pages)
    context.metrics["modules_skipped"] = dict(rendered.skipped)
    return [context.path / PAGES]


def planned_files(context: PlanContext) -> list[Path]:
    """The files of the input, also of formats that are passed over."""
    given = context.inputs.get(PAGES, [])
    paths = [item for item in (given if isinstance(given, list) else [given]) if isinstance(item, Path)]
    return [file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]


def planned_reading(context: PlanContext) -> tuple[Line, float] | None:
    """The line of bytes that will be read, and what they unpack to; None when the input holds no file."""
    files = planned_files(context)
    if not files:
        return None
    read = float(sum(file.stat().st_size for file in files))
    return Line("read", read, "bytes", exact=True), unpacked_bytes(files)
