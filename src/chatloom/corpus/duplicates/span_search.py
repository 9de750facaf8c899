"""Passages and substrings that stood earlier in the corpus, as columns of spans: the steps, and the tasks they call.

    passages (a shard) -> seen (a range) -> columns (a shard)
    anchors (a shard) -> shared (a range) -> windows (a shard) -> repeats (a range) -> columns (a shard)

Documents that are copies of another, or go with their book, take no part: none of their text is cut, and none of it is
what stood earlier. So of every passage the first occurrence among the others stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from chatloom.corpus.columns import write_rows
from chatloom.corpus.duplicates import passages, windows
from chatloom.corpus.duplicates.book_search import BookSearch, rows_gone
from chatloom.corpus.duplicates.layout import Layout
from chatloom.corpus.duplicates.passages import Unit, joined
from chatloom.corpus.duplicates.series import Series, all_paths, file_name, paths_of, within
from chatloom.corpus.duplicates.tasks import Arguments, found_rows
from chatloom.corpus.engine.steps import Step
from chatloom.corpus.labelling import SPANS
from chatloom.corpus.record import read_fields

HERE = "chatloom.corpus.duplicates.span_search"
Passages = Literal["none", "lines", "paragraphs"]
UNITS: dict[str, Unit] = {"lines": "line", "paragraphs": "paragraph"}
SUBSTRINGS = "substrings"


def columns_of(what: str) -> dict[str, pa.DataType]:
    """The columns of a search for lines, paragraphs or substrings: spans, and their share of the characters."""
    return {f"repeated_{what}": SPANS, f"repeated_{what}_share": pa.float64()}


def left_out(copies: Sequence[Series], books: BookSearch | None) -> dict[str, Any]:
    """Which documents take no part, as the tasks' arguments hold it."""
    return {"copies": [series.values() for series in copies], "books": books.values() if books is not None else None}


def search_passages(
    layout: Layout, without: Mapping[str, Any], what: Passages, min_characters: int, name: str, folder: Path
) -> tuple[list[Step], Step]:
    """The steps that find lines or paragraphs which stood earlier, and the one that writes the columns."""
    shared: dict[str, Any] = {"what": what, "min_characters": min_characters, **without}
    step = layout.by_shard(what, f"{HERE}:write_passages", **shared)
    gathering, runs = layout.gathered(layout.of_shards(what, "passages"))
    seen = layout.by_range(f"{what} seen", f"{HERE}:write_seen", passages=runs.values())
    found = layout.of_ranges(f"{what} seen", "seen").values()
    columns = layout.columns(name, folder, f"{HERE}:write_passage_columns", seen=found, **shared)
    return [step, *gathering, seen], columns


def search_substrings(
    layout: Layout, without: Mapping[str, Any], min_characters: int, name: str, folder: Path
) -> tuple[list[Step], Step]:
    """The steps that find stretches of so many characters which stood earlier, and the one that writes the columns."""
    shared: dict[str, Any] = {"min_characters": min_characters, **without}
    anchors = layout.by_shard("anchors", f"{HERE}:write_anchors", **shared)
    gathering, runs = layout.gathered(layout.of_shards("anchors", "anchors"))
    common = layout.by_range("shared anchors", f"{HERE}:write_shared", anchors=runs.values())
    found = layout.of_ranges("shared anchors", "shared").values()
    hashed = layout.by_shard("windows", f"{HERE}:write_windows", shared=found, **shared)
    more, runs = layout.gathered(layout.of_shards("windows", "windows"))
    repeats = layout.by_range("repeats", f"{HERE}:write_repeats", windows=runs.values())
    found = layout.of_ranges("repeats", "repeats").values()
    columns = layout.columns(name, folder, f"{HERE}:write_substring_columns", repeats=found, **shared)
    return [anchors, *gathering, common, hashed, *more, repeats], columns


def write_passages(arguments: Arguments, folder: Path) -> dict[str, int]:
    """A shard's `passages`."""
    number = arguments["number"]
    count = passages.write_passages(
        number, _texts(arguments), folder / file_name("passages", number), memory_bytes=arguments["memory"],
        **_passage(arguments),
    )  # fmt: skip
    return {"records": count}


def write_seen(arguments: Arguments, folder: Path) -> dict[str, int]:
    """Of one range of hashes: passages `seen` earlier."""
    part = arguments["part"]
    runs = paths_of(arguments["passages"], part)
    return {"records": passages.write_seen(runs, folder / file_name("seen", part), **within(arguments))}


def write_passage_columns(arguments: Arguments, folder: Path) -> dict[str, int]:
    """A shard's columns of passages that stood earlier."""
    found = passages.seen_in_shard(
        arguments["number"], _texts(arguments), all_paths([arguments["seen"]]), **_passage(arguments)
    )
    return _write_spans(arguments, folder, arguments["what"], ((row, joined(spans)) for row, spans in found))


def write_anchors(arguments: Arguments, folder: Path) -> dict[str, int]:
    """A shard's `anchors`."""
    path, size = folder / file_name("anchors", arguments["number"]), arguments["min_characters"]
    count = windows.write_anchors(
        arguments["number"], _texts(arguments), path, min_characters=size, memory_bytes=arguments["memory"]
    )
    return {"records": count}


def write_shared(arguments: Arguments, folder: Path) -> dict[str, int]:
    """Of one range of anchors: those that are `shared`."""
    part = arguments["part"]
    runs = paths_of(arguments["anchors"], part)
    return {"records": windows.write_shared(runs, folder / file_name("shared", part), **within(arguments))}


def write_windows(arguments: Arguments, folder: Path) -> dict[str, int]:
    """A shard's `windows` with a shared anchor."""
    count = windows.write_windows(
        arguments["number"], _texts(arguments), all_paths([arguments["shared"]]),
        folder / file_name("windows", arguments["number"]), min_characters=arguments["min_characters"],
        memory_bytes=arguments["memory"],
    )  # fmt: skip
    return {"records": count}


def write_repeats(arguments: Arguments, folder: Path) -> dict[str, int]:
    """Of one range of hashes: windows that are `repeats`."""
    part = arguments["part"]
    runs = paths_of(arguments["windows"], part)
    return {"records": windows.write_repeats(runs, folder / file_name("repeats", part), **within(arguments))}


def write_substring_columns(arguments: Arguments, folder: Path) -> dict[str, int]:
    """A shard's columns of stretches that stood earlier."""
    number, size = arguments["number"], arguments["min_characters"]
    rows = (row for row, _ in _texts(arguments))
    found = windows.repeats_in_shard(number, rows, all_paths([arguments["repeats"]]), min_characters=size)
    return _write_spans(arguments, folder, SUBSTRINGS, found)


def _write_spans(
    arguments: Arguments, folder: Path, what: str, found: Iterable[tuple[int, list[int]]]
) -> dict[str, int]:
    """Columns of (row, spans); a row that took no part has none."""
    shard = Path(arguments["shard"])
    counts = {"characters": 0, "repeated": 0}
    spans_name, share_name = columns_of(what)

    def rows() -> Iterator[tuple[str, dict[str, Any]]]:
        waiting = iter(found)
        following = next(waiting, None)
        for row, (name, text) in enumerate(read_fields(shard, "id", "text")):
            spans: list[int] = []
            if following is not None and following[0] == row:
                spans, following = following[1], next(waiting, None)
            repeated = sum(spans[1::2]) - sum(spans[::2])
            counts["characters"] += len(text)
            counts["repeated"] += repeated
            yield name, {spans_name: spans, share_name: repeated / max(len(text), 1)}

    counts["documents"] = write_rows(folder / shard.name, columns_of(what), rows())
    return counts


def _texts(arguments: Arguments) -> Iterator[tuple[int, str]]:
    """(row, text) of the documents of a shard that take part."""
    shard = Path(arguments["shard"])
    without = {found["row"] for series in arguments["copies"] for found in found_rows(series, arguments["number"])}
    if arguments["books"]:
        without |= rows_gone(shard, **arguments["books"])
    for row, (text,) in enumerate(read_fields(shard, "text")):
        if row not in without:
            yield row, text


def _passage(arguments: Arguments) -> dict[str, Any]:
    return {"unit": UNITS[arguments["what"]], "min_characters": arguments["min_characters"]}
