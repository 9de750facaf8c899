"""The whole search for copied documents, one step after the other: what an engine runs shard by shard, range by range.

    names, text hashes, url hashes (a shard) -> equals (a range) -> bands (a shard, one of equal documents only)
    -> pairs (a range) -> sets (a shard) -> edges (a range) -> clusters (once) -> members (a shard) -> resolve (a range)

`search` runs the steps here and now; the result is the same for any number and order of shards and ranges.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
from pydantic import Field

from chatloom.corpus.duplicates import clusters, exact, near, places, sets
from chatloom.corpus.duplicates.external_sort import MEMORY
from chatloom.corpus.duplicates.minhash import Banding
from chatloom.corpus.duplicates.near import BANDING, MOST_COMPARED
from chatloom.corpus.duplicates.runs import Run
from chatloom.corpus.record import Document
from chatloom.corpus.text.units import U64
from chatloom.settings import Settings, runtime

Shard = Callable[[], Iterable[Document]]  # reads the shard's documents from the beginning
URL = "url"


class CopySettings(Settings):
    """Which documents are copies of each other."""

    exact: bool = Field(True, description="search for documents of equal text (lower-cased, white space collapsed)")
    url: bool = Field(True, description="search for documents of the same address (normalised)")
    near: bool = Field(True, description="search for documents of nearly equal text")
    threshold: float = Field(
        0.7, gt=0.0, le=1.0, description="Jaccard similarity of 5-gram shingles from which two documents are copies"
    )
    bands: int = Field(BANDING.bands, ge=1, le=256, description="bands of a MinHash signature: more find more")
    rows: int = Field(BANDING.rows, ge=1, le=64, description="hashes in a band: fewer find more, and cost more")
    most_compared: int = Field(
        MOST_COMPARED, ge=1, description="members of a bucket that every other member is compared with"
    )
    memory_megabytes: int = runtime(MEMORY >> 20, ge=1, description="megabytes of records that a step holds at once")

    def banding(self) -> Banding:
        """How signatures are cut."""
        return Banding(self.bands, self.rows)


def search(
    shards: Sequence[Shard],
    folder: Path,
    settings: CopySettings,
    *,
    parts: int = 1,
    priority: Callable[[Document], int] = lambda _: 0,
) -> tuple[pa.Table, list[tuple[str, list[str]]]]:
    """All copies (clusters.DUPLICATES), and the clusters as (name, ids) for the split, which also hold same addresses.

    Of a cluster the document with the lowest (priority, id) is kept. `folder` is for files between the steps and is
    emptied at the end. Raises ChatloomError for ids that are not distinct and for damaged files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return _Search(shards, folder, settings, parts, priority).run()
    finally:
        shutil.rmtree(folder)


class _Search:
    def __init__(
        self,
        shards: Sequence[Shard],
        folder: Path,
        settings: CopySettings,
        parts: int,
        priority: Callable[[Document], int],
    ) -> None:
        self.shards, self.folder, self.settings, self.parts, self.priority = shards, folder, settings, parts, priority
        self.memory = settings.memory_megabytes << 20

    def run(self) -> tuple[pa.Table, list[tuple[str, list[str]]]]:
        for number, shard in enumerate(self.shards):
            places.write_names(number, (document.id for document in shard()), self.file("names", number))
        for part in range(self.parts):
            places.check_names(self.files("names", len(self.shards)), part, self.parts)
        equals, edges = [], []
        if self.settings.exact:
            equals = self.equal_texts()
            edges += equals
        if self.settings.near:
            edges += self.near_texts(self.located("equals", equals))
        found = self.sets if self.settings.near else None
        tables = [self.copies(edges, equals, found, clusters.NEAR, "text")] if edges else []
        if self.settings.url:
            addresses = self.equal_urls()
            tables.append(self.copies(addresses, [], None, URL, URL))
            edges = edges + addresses
        groups: list[tuple[str, list[str]]] = []
        if edges:
            self.copies(edges, [], None, URL, "all")
            for part in range(self.parts):
                members = self.files("members all", len(self.shards))
                groups += clusters.cluster_members(members, part=part, parts=self.parts)
        return pa.concat_tables([clusters.DUPLICATES.empty_table(), *tables]), groups

    def equal_texts(self) -> list[Path]:
        for number, shard in enumerate(self.shards):
            texts = ((document.id, document.text) for document in shard())
            exact.write_hashes(texts, self.file("hashes", number), memory_bytes=self.memory)
        return self.equals("hashes", exact.HASHES)

    def equal_urls(self) -> list[Path]:
        for number, shard in enumerate(self.shards):
            urls = ((document.id, document.url) for document in shard())
            exact.write_urls(urls, self.file("urls", number), memory_bytes=self.memory)
        return self.equals("urls", exact.URLS)

    def equals(self, name: str, kind: str) -> list[Path]:
        runs, found = self.files(name, len(self.shards)), self.files(f"equal {name}", self.parts)
        for part, path in enumerate(found):
            exact.write_equals(runs, path, kind, part=part, parts=self.parts, memory_bytes=self.memory)
        return found

    def near_texts(self, equals: list[Path]) -> list[Path]:
        """Edges of nearly equal texts; of equal ones the first only takes part."""
        n_shards, parts, memory = len(self.shards), self.parts, self.memory
        for number, shard in enumerate(self.shards):
            copies = {int(row) for row in self.rows(equals, number)[:, 0]} if equals else set()
            texts = ((d.id, d.text) for row, d in enumerate(shard()) if row not in copies)
            near.write_bands(texts, self.file("bands", number), self.settings.banding(), memory_bytes=memory)
        pairs, wanted = self.files("pairs", parts), self.files("wanted", parts)
        for part in range(parts):
            near.write_pairs(
                self.files("bands", n_shards), pairs[part], wanted[part], part=part, parts=parts,
                most_compared=self.settings.most_compared, memory_bytes=memory,
            )  # fmt: skip
        located = self.located("wanted", wanted)
        for number, shard in enumerate(self.shards):
            name_of = {int(row): int(name) for row, name in self.rows(located, number)[:, :2].tolist()}
            some = ((name_of[row], d.text) for row, d in enumerate(shard()) if row in name_of)
            sets.write_sets(number, some, self.file("sets", number))
        index = self.file("index", 0)
        sets.merge_indexes([sets.index_of(path) for path in self.files("sets", n_shards)], index)
        self.sets = sets.Sets(index, lambda number: self.file("sets", number))
        edges = self.files("edges", parts)
        for part, path in enumerate(edges):
            near.write_edges(
                pairs, self.sets, path, threshold=self.settings.threshold, part=part, parts=parts, memory_bytes=memory
            )
        return edges

    def copies(self, edges: list[Path], equals: list[Path], found: sets.Sets | None, kind: str, label: str) -> pa.Table:
        grouped = self.file(f"clusters {label}", 0)
        clusters.write_clusters(edges, grouped, memory_bytes=self.memory)
        located = self.located(f"in clusters {label}", [grouped])
        equal = self.located(f"equal in clusters {label}", equals)
        members = self.files(f"members {label}", len(self.shards))
        for number, shard in enumerate(self.shards):
            documents = ((document.id, self.priority(document)) for document in shard())
            clusters.write_members(documents, self.rows(located, number), self.rows(equal, number), members[number])
        tables = [
            clusters.resolve(members, found, kind=kind, part=part, parts=self.parts, memory_bytes=self.memory)
            for part in range(self.parts)
        ]
        return pa.concat_tables(tables)

    def located(self, name: str, wanted: list[Path]) -> list[Path]:
        found = self.files(f"located {name}", self.parts) if wanted else []
        known = self.files("names", len(self.shards))
        for part, path in enumerate(found):
            runs = [Run(file) for file in wanted]
            places.locate(known, runs, path, part=part, parts=self.parts, memory_bytes=self.memory)
        return found

    def rows(self, located: list[Path], number: int) -> U64:
        return places.rows_of(located, number) if located else clusters.NO_ROWS

    def file(self, name: str, number: int) -> Path:
        return self.folder / f"{name} {number:05}"

    def files(self, name: str, count: int) -> list[Path]:
        return [self.file(name, number) for number in range(count)]


def read_shard(path: Path) -> Shard:
    """A shard that is a Parquet file of documents."""
    from chatloom.corpus.record import read_documents

    def read() -> Iterator[Document]:
        return read_documents(path)

    return read
