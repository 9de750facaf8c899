"""What pydoc's pages should say, taken from `inspect`, and how much of it a text kept.

`python tests/corpus/docstrings.py` prints the table of docs/corpus.md over all pages of the demo.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import pydoc
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

SPACE = re.compile(r"\s+")


def documented(module: ModuleType) -> Iterator[tuple[str, str]]:
    """Name and docstring of the module, its own public functions and classes, and the classes' own methods."""
    everything = getattr(module, "__all__", None)
    if inspect.getdoc(module):
        yield module.__name__, str(inspect.getdoc(module))
    for name, value in inspect.getmembers(module):
        if not pydoc.visiblename(name, everything, module):
            continue
        if inspect.isclass(value) and (everything is not None or value.__module__ == module.__name__):
            yield from _own(f"{module.__name__}.{name}", value)
            for key, method in vars(value).items():
                if pydoc.visiblename(key, obj=value) and callable(getattr(value, key, None)):
                    yield from _own(f"{module.__name__}.{name}.{key}", getattr(value, key), method)
        elif inspect.isroutine(value) and (everything is not None or inspect.getmodule(value) is module):
            yield from _own(f"{module.__name__}.{name}", value)


def _own(name: str, value: Any, raw: Any = None) -> Iterator[tuple[str, str]]:
    if inspect.isclass(raw) or (inspect.isclass(value) and vars(value).get("__doc__") is None):
        return  # pydoc shows a class's own docstring only, `inspect` also the one it inherits
    doc = inspect.getdoc(value)
    if doc and doc.strip():
        yield name, doc.expandtabs()


def flat(text: str) -> str:
    """Text with every stretch of white space as one space."""
    return SPACE.sub(" ", text).strip()


@dataclass
class Kept:
    """Counts of what was looked for and found: characters, line breaks, line breaks with their indentation."""

    characters: int = 0
    characters_kept: int = 0
    breaks: int = 0
    breaks_kept: int = 0
    indented_kept: int = 0
    objects: int = 0

    def add(self, other: Kept) -> None:
        for name in vars(self):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def character_share(self) -> float:
        return self.characters_kept / max(1, self.characters)

    @property
    def break_share(self) -> float:
        return self.breaks_kept / max(1, self.breaks)

    @property
    def indentation_share(self) -> float:
        return self.indented_kept / max(1, self.breaks)


def compare(module: ModuleType, text: str) -> Kept:
    """How much of the module's docstrings `text` holds.

    Characters: white space aside, a whole docstring must occur, else each of its lines counts by itself. Line breaks:
    two lines that follow each other in a docstring must follow each other as lines of the text (empty lines aside);
    with indentation, the second must also be indented against the first by as much as in the docstring.
    """
    whole, kept = flat(text), Kept()
    pairs = set(_pairs(text))
    breaks = {(first, second) for first, second, _ in pairs}
    for _, doc in documented(module):
        kept.objects += 1
        content = flat(doc)
        kept.characters += len(content)
        if content in whole:
            kept.characters_kept += len(content)
        else:
            lines = [flat(line) for line in doc.split("\n")]
            kept.characters_kept += min(len(content), sum(len(line) + 1 for line in lines if line and line in whole))
        for first, second, shift in _pairs(doc):
            kept.breaks += 1
            kept.breaks_kept += (first, second) in breaks
            kept.indented_kept += (first, second, shift) in pairs
    return kept


def _pairs(text: str) -> Iterator[tuple[str, str, int]]:
    lines = [line.rstrip() for line in text.expandtabs().split("\n")]
    lines = [line for line in lines if line]
    for first, second in itertools.pairwise(lines):
        indents = [len(line) - len(line.lstrip()) for line in (first, second)]
        yield flat(first), flat(second), indents[1] - indents[0]


def main() -> None:
    """Render, extract with each extractor, compare, print a Markdown table."""
    from chatloom.corpus.extraction.extract import Extractor, extract
    from chatloom.corpus.extraction.pydoc_pages import MODULES, render

    warnings.simplefilter("ignore")
    extractors: tuple[Extractor, ...] = ("trafilatura", "resiliparse-main", "resiliparse", "blocks")
    with tempfile.TemporaryDirectory() as folder:
        rendering = render(Path(folder))
        print(f"{len(rendering.pages)} of {len(MODULES)} pages, {rendering.html_bytes / 1e6:.1f} MB of HTML")
        for extractor in extractors:
            total, seconds, characters = Kept(), 0.0, 0
            for page in rendering.pages:
                html = page.read_bytes()
                started = time.perf_counter()
                text = extract(html, extractor).text
                seconds += time.perf_counter() - started
                characters += len(text)
                total.add(compare(importlib.import_module(page.stem), text))
            print(
                f"| `{extractor}` | {characters / 1e6:.2f} | {100 * total.character_share:.1f} % "
                f"| {100 * total.break_share:.1f} % | {100 * total.indentation_share:.1f} % "
                f"| {len(rendering.pages) / seconds:.0f} |"
            )
        print(f"{total.objects} documented objects, {total.characters / 1e6:.2f} M characters of docstrings")


if __name__ == "__main__":
    sys.exit(main())
