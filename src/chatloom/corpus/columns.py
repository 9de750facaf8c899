"""Label columns on disk: one Parquet file a labeller and document shard, row by row as the shard, each with the ids.

    <labeller>/<shard>.parquet   id, then the labeller's columns
    <labeller>/about.json        name, version, settings, and the key: a hash of all that decides the columns

That the rows belong together is checked by the ids whenever columns are read beside documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from chatloom.corpus.record import ON_DISK, Document, open_table, read_documents
from chatloom.errors import ChatloomError

BATCH = 256
ROWS_AT_ONCE = 4096
ABOUT = "about.json"


class ColumnWriter:
    """Writes one labeller's columns for one shard; use in a `with`."""

    def __init__(self, path: Path, columns: Mapping[str, pa.DataType]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        fields = [pa.field("id", pa.string(), nullable=False)]
        self._schema = pa.schema(fields + [pa.field(name, kind) for name, kind in columns.items()])
        self._writer = pq.ParquetWriter(path, self._schema, **ON_DISK)
        self._path = path

    def add(self, documents: Sequence[Document], labels: Sequence[Mapping[str, Any]]) -> None:
        """Append the labels of documents, in order. Raises ValueError unless each has exactly the columns declared."""
        expected = set(self._schema.names) - {"id"}
        for document, row in zip(documents, labels, strict=True):
            if set(row) != expected:
                raise ValueError(f"document {document.id!r}: labels {sorted(row)}, declared are {sorted(expected)}")
        rows = [{"id": document.id, **row} for document, row in zip(documents, labels, strict=True)]
        self._writer.write_table(pa.Table.from_pylist(rows, schema=self._schema))

    def __enter__(self) -> ColumnWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.close()


def write_rows(path: Path, columns: Mapping[str, pa.DataType], rows: Iterable[tuple[str, Mapping[str, Any]]]) -> int:
    """Write a column file from (document id, its labels) in the order of the documents; returns their number."""
    count = 0
    with ColumnWriter(path, columns) as writer:
        source = iter(rows)
        while batch := list(islice(source, ROWS_AT_ONCE)):
            writer.add([Document(name, "") for name, _ in batch], [labels for _, labels in batch])
            count += len(batch)
    return count


def read_labelled(shard: Path, columns: Iterable[Path]) -> Iterator[list[Document]]:
    """Documents of a shard, BATCH at a time, with the labels of all column files of that shard added to their own.

    A column takes the place of a document's own label of that name. Raises ChatloomError when a column file is missing,
    is of other documents, or repeats another one's label.
    """
    files = list(columns)
    streams = [_rows(file) for file in files]
    batch: list[Document] = []
    for document in read_documents(shard):
        measured: dict[str, Any] = {}
        for file, stream in zip(files, streams):
            row = next(stream, None)
            if row is None or row.pop("id") != document.id:
                found = "ends before it" if row is None else "has another document in its place"
                raise ChatloomError(
                    f"{file}: does not fit {shard.name}: at document {document.id!r} it {found}; make the labels again"
                )
            if repeated := measured.keys() & row.keys():
                raise ChatloomError(f"{file}: label {min(repeated)!r} is there twice; give it by one labeller only")
            measured |= row
        labels = {**document.labels, **measured}
        batch.append(
            Document(
                document.id, document.text, document.source, document.url, document.time, document.metadata, labels
            )
        )
        if len(batch) >= BATCH:
            yield batch
            batch = []
    for file, stream in zip(files, streams):
        if next(stream, None) is not None:
            raise ChatloomError(f"{file}: has more rows than {shard.name}; make the labels again")
    if batch:
        yield batch


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with open_table(path) as file:
        for part in file.iter_batches(batch_size=1024):
            yield from part.to_pylist()
