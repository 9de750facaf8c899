"""The book rule over shards: the steps, and the tasks they call.

    samples (a shard) -> counts (a range of shingles) -> sums (a range of books) -> candidates (a range of books)
    -> sets (a shard) -> contained (a range of books) -> decided (once) -> columns (a shard)

A document is a book, or a piece of the one that its source, its address or a field of its metadata names. Books that
hold each other are on one side of the split, with all their pieces: `edges` is for `CopySearch.join`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from chatloom.corpus.columns import write_rows
from chatloom.corpus.duplicates import books, near, sets
from chatloom.corpus.duplicates.external_sort import external_sort, merge, open_runs
from chatloom.corpus.duplicates.layout import Layout
from chatloom.corpus.duplicates.places import names
from chatloom.corpus.duplicates.runs import Run
from chatloom.corpus.duplicates.series import Series, all_paths, file_name, paths_of, within
from chatloom.corpus.duplicates.tasks import Arguments, found_rows, sets_of
from chatloom.corpus.engine.steps import Step, Task
from chatloom.corpus.record import read_fields
from chatloom.settings import Settings

HERE = "chatloom.corpus.duplicates.book_search"
BOOK = "\0"  # before the name of a book that has pieces, so that it is not taken for a document of that id
COLUMNS = {"book": pa.string(), "book_copy_of": pa.string(), "book_share": pa.float64()}
DECIDED = pa.schema(
    [
        pa.field("book", pa.string(), nullable=False),
        pa.field("copy_of", pa.string()),  # null: it stays, and others go for it
        pa.field("share", pa.float64()),
    ]
)
COLUMNS_OF_DOCUMENTS, METADATA = ("source", "url"), "metadata"
ROWS_AT_ONCE = 4096


class BookSettings(Settings):
    """When a book goes for another one that holds it."""

    share: float = Field(0.9, gt=0.0, le=1.0, description="share of a book's shingles that another one must hold")
    field: str = Field(
        "", description="what names a piece's book: source, url or a field of the metadata; empty: a document is a book"
    )
    min_shingles: int = Field(5000, ge=1, description="different shingles from which a text counts as a book")


@dataclass
class BookSearch:
    """The steps of the rule; `edges` join documents for the split, `columns` writes what was decided."""

    layout: Layout
    settings: BookSettings
    steps: list[Step]
    edges: list[Series]
    decided: Path

    def values(self) -> dict[str, str]:
        """What `rows_gone` needs, as a task's arguments hold it."""
        return {"field": self.settings.field, "decided": str(self.decided)}

    def columns(self, name: str, folder: Path) -> Step:
        """The last step: a file of COLUMNS for each shard, in `folder`."""
        return self.layout.columns(name, folder, f"{HERE}:write_columns", **self.values())


def search_books(layout: Layout, settings: BookSettings, copies: Sequence[Series]) -> BookSearch:
    """The steps of the book rule. Documents that are `copies` of another take no part, unless books have pieces."""
    shared: dict[str, Any] = {"field": settings.field}
    left_out = [] if settings.field else [series.values() for series in copies]
    steps = [layout.by_shard("book samples", f"{HERE}:write_samples", copies=left_out, **shared)]

    def put_together(found: tuple[list[Step], Series]) -> Series:
        steps.extend(found[0])
        return found[1]

    samples = put_together(layout.gathered(layout.of_shards("book samples", "samples"), scale=books.SCALE))
    steps.append(layout.by_range("book counts", f"{HERE}:write_counts", samples=samples.values()))
    counts = layout.of_ranges("book counts", "counts")
    steps.append(layout.by_range("book sums", f"{HERE}:write_sums", counts=counts.values()))
    sizes = put_together(layout.gathered_to_one(layout.of_ranges("book sums", "sizes")))
    rule = {"share": settings.share, "min_shingles": settings.min_shingles}
    pairs = layout.of_ranges("book sums", "pairs").values()
    steps.append(
        layout.by_range("book candidates", f"{HERE}:write_candidates", pairs=pairs, sizes=sizes.values(), **rule)
    )
    wanted = put_together(layout.gathered_to_one(layout.of_ranges("book candidates", "wanted")))
    steps.append(layout.by_shard("book sets", f"{HERE}:write_sets", wanted=wanted.values(), copies=left_out, **shared))
    index = put_together(layout.gathered_to_one(layout.of_shards("book sets", "sets", ".index")))
    steps.append(
        layout.by_range(
            "books contained",
            f"{HERE}:write_contained",
            candidates=layout.of_ranges("book candidates", "candidates").values(),
            sets=layout.of_shards("book sets", "sets").values(),
            index=index.values(),
            share=settings.share,
        )
    )
    folder = layout.folder / "books decided"
    arguments = {
        "contained": layout.of_ranges("books contained", "contained").values(),
        "ids": layout.of_shards("book sets", "ids", ".parquet").values(),
        "share": settings.share,
        "memory": layout.memory,
    }
    steps.append(Step("books decided", folder, [Task("books", f"{HERE}:decide", arguments)]))
    pieces = put_together(layout.gathered_to_one(layout.of_shards("book sets", "pieces")))
    edges = [Series(str(folder), "edges", 1), *([pieces] if settings.field else [])]
    return BookSearch(layout, settings, steps, edges, folder / "decided.parquet")


def write_samples(arguments: Arguments, folder: Path) -> dict[str, int]:
    """A shard's `samples`."""
    path = folder / file_name("samples", arguments["number"])
    pieces = ((book, text) for book, _, text in _pieces(arguments))
    return {"records": books.write_samples(pieces, path, memory_bytes=arguments["memory"])}


def write_counts(arguments: Arguments, folder: Path) -> dict[str, int]:
    """Of one range of shingles: `counts`."""
    part = arguments["part"]
    runs = paths_of(arguments["samples"], part)
    return {"records": books.write_counts(runs, folder / file_name("counts", part), **within(arguments))}


def write_sums(arguments: Arguments, folder: Path) -> dict[str, int]:
    """Of one range of books: `pairs` and `sizes`."""
    pairs, sizes = (folder / file_name(name, arguments["part"]) for name in ("pairs", "sizes"))
    return {"pairs": books.write_sums(all_paths([arguments["counts"]]), pairs, sizes, **within(arguments))}


def write_candidates(arguments: Arguments, folder: Path) -> dict[str, int]:
    """Of one range of books: `candidates`, and the books `wanted` for them."""
    part = arguments["part"]
    path, wanted = (folder / file_name(name, part) for name in ("candidates", "wanted"))
    (sizes,) = paths_of(arguments["sizes"])
    count = books.write_candidates(
        Series.of(arguments["pairs"]).path(part), sizes, path, wanted, share=arguments["share"],
        min_shingles=arguments["min_shingles"], memory_bytes=arguments["memory"],
    )  # fmt: skip
    return {"pairs": count}


def write_sets(arguments: Arguments, folder: Path) -> dict[str, int]:
    """Of a shard's pieces of books wanted: their `sets`, the books' `ids`, and edges from document to book `pieces`."""
    number = arguments["number"]
    (wanted,) = paths_of(arguments["wanted"])
    ids = np.unique(names([book for book, _, _ in _pieces(arguments, texts=False)]))
    known = set(Run(wanted, books.WANTED).of(ids)[:, 0].tolist())
    found: dict[int, str] = {}
    edges: list[tuple[int, ...]] = []

    def texts() -> Iterator[tuple[int, str]]:
        for book, document, text in _pieces(arguments):
            name, own = names([book, document]).tolist()
            if name in known:
                found[name] = book
                edges.append((min(name, own), max(name, own)))
                yield name, text

    count = sets.write_sets(number, texts(), folder / file_name("sets", number))
    table = pa.table({"name": pa.array(list(found), pa.uint64()), "book": pa.array(list(found.values()), pa.string())})
    pq.write_table(table, folder / f"{file_name('ids', number)}.parquet", compression="zstd")
    records = np.array(edges, np.uint64).reshape(-1, 2)
    external_sort([records], folder / file_name("pieces", number), near.EDGES, ("a", "b"))
    return {"sets": count}


def write_contained(arguments: Arguments, folder: Path) -> dict[str, int]:
    """Of one range of books: those `contained` in another."""
    part = arguments["part"]
    candidates = Series.of(arguments["candidates"]).path(part)
    path = folder / file_name("contained", part)
    return books.write_contained(
        candidates, sets_of(arguments), path, share=arguments["share"], memory_bytes=arguments["memory"]
    )


def decide(arguments: Arguments, folder: Path) -> dict[str, int]:
    """Which books go and for which, and the `edges` between books that hold each other."""
    contained = all_paths([arguments["contained"]])
    runs = open_runs(contained, books.CONTAINED)
    edges = (block[:, :2] for block in merge(runs, memory_bytes=arguments["memory"]))
    external_sort(edges, folder / file_name("edges", 0), near.EDGES, ("a", "b"), memory_bytes=arguments["memory"])

    def ids() -> Iterator[tuple[str, int]]:
        for path in all_paths([arguments["ids"]]):
            yield from ((book, 0) for book in pq.read_table(path)["book"].to_pylist())

    copies = books.decide(contained, ids(), share=arguments["share"])
    rows = [{"book": copy.book, "copy_of": copy.kept, "share": copy.share} for copy in copies]
    rows += [{"book": kept, "copy_of": None, "share": None} for kept in sorted({copy.kept for copy in copies})]
    pq.write_table(pa.Table.from_pylist(rows, schema=DECIDED), folder / "decided.parquet", compression="zstd")
    return {"books": len(copies)}


def write_columns(arguments: Arguments, folder: Path) -> dict[str, int]:
    """A shard's columns: its book, where something was decided about it, and for which book it goes."""
    shard = Path(arguments["shard"])
    decided = _decided(shard, arguments["field"], Path(arguments["decided"]))
    counts = {"gone": 0}

    def rows() -> Iterator[tuple[str, Mapping[str, Any]]]:
        for name, book in _books(shard, arguments["field"]):
            found = decided.get(book or "", {})
            copy_of = found.get("copy_of")
            counts["gone"] += copy_of is not None
            yield (
                name,
                {
                    "book": (book or "").removeprefix(BOOK) if found else None,
                    "book_copy_of": copy_of.removeprefix(BOOK) if copy_of is not None else None,
                    "book_share": found.get("share"),
                },
            )

    counts["documents"] = write_rows(folder / shard.name, COLUMNS, rows())
    return counts


def rows_gone(shard: Path, field: str, decided: str) -> set[int]:
    """Rows of a shard that go with their book."""
    found = _decided(shard, field, Path(decided))
    gone = {book for book, row in found.items() if row["copy_of"] is not None}
    return {row for row, (_, book) in enumerate(_books(shard, field)) if book in gone}


def _decided(shard: Path, field: str, path: Path) -> dict[str, dict[str, Any]]:
    """What was decided about the books of a shard, by their names."""
    wanted = pa.array(sorted({book for _, book in _books(shard, field) if book is not None}), pa.string())
    found: dict[str, dict[str, Any]] = {}
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=ROWS_AT_ONCE):
            some = batch.filter(pc.is_in(batch.column("book"), value_set=wanted))
            found |= {row["book"]: row for row in some.to_pylist()}
    return found


def _books(shard: Path, field: str) -> Iterator[tuple[str, str | None]]:
    """(id, book or None) of the documents of a shard."""
    if not field:
        yield from ((name, name) for (name,) in read_fields(shard, "id"))
        return
    column = field if field in COLUMNS_OF_DOCUMENTS else METADATA
    for name, value in read_fields(shard, "id", column):
        book = json.loads(value).get(field) if column == METADATA else value
        yield name, None if book is None else f"{BOOK}{book}"


def _pieces(arguments: Arguments, *, texts: bool = True) -> Iterator[tuple[str, str, str]]:
    """(book, document, text) of the documents of a shard that are books or pieces of one."""
    shard = Path(arguments["shard"])
    copied = {found["row"] for series in arguments["copies"] for found in found_rows(series, arguments["number"])}
    contents = read_fields(shard, "text") if texts else iter(lambda: ("",), None)
    for row, ((name, book), (text,)) in enumerate(zip(_books(shard, arguments["field"]), contents)):
        if book is not None and row not in copied:
            yield book, name, text
