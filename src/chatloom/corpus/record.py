"""The corpus's records: Document (kept), Dropped (removed by a decision), Quarantined (could not be read).

Nothing disappears: every page that was read ends in exactly one of `shards/` (with one `label_*` column for each
label), `dropped/` (text and reason) or `quarantine.jsonl` (file, line, reason).
"""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from chatloom.errors import ChatloomError

Label = str | int | float | bool | None
LABEL = "label_"
SHARDS = "shards"
ROW_GROUP_ROWS = 4096
ROW_GROUP_CHARACTERS = 32_000_000  # bounds the memory of a writer and of a reader, whatever the documents' lengths
ON_DISK: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}  # a flipped bit is found when it is read

# Arrow says so in many ways: also as ValueError (ArrowInvalid) and as an error of the system without a number.
DAMAGE = (pa.ArrowException, OSError)

DOCUMENT_FIELDS = [
    pa.field("id", pa.string(), nullable=False),
    pa.field("text", pa.large_string(), nullable=False),
    pa.field("source", pa.string(), nullable=False),
    pa.field("url", pa.string()),
    pa.field("time", pa.string()),
    pa.field("metadata", pa.string(), nullable=False),  # a JSON object: its keys differ from document to document
]
DROPPED_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("language", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("url", pa.string()),
        pa.field("text", pa.large_string(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class Document:
    """A text with where it came from and what is known about it; `time` is ISO 8601, labels hold plain values."""

    id: str
    text: str
    source: str = ""
    url: str | None = None
    time: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, Label] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Dropped:
    """A page that a step decided against: which step, the rule's name, what it measured, and the text itself."""

    id: str
    stage: str
    reason: str
    detail: str = ""
    text: str = ""
    language: str = ""
    source: str = ""
    url: str | None = None


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A record that could not be read; `line` counts from 1 (in a WARC or Parquet file: the record), 0 = the file."""

    file: str
    line: int
    reason: str


class ParquetWriter:
    """Writes rows to one Parquet file in bounded memory; use in a `with`. An empty file still has its columns."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.rows = 0
        self._schema = schema
        self._writer = pq.ParquetWriter(path, schema, **ON_DISK)
        self._buffer: list[dict[str, Any]] = []
        self._characters = 0

    def write(self, row: dict[str, Any], characters: int) -> None:
        """Add one row; `characters` is the length of its text."""
        self._buffer.append(row)
        self._characters += characters
        self.rows += 1
        if len(self._buffer) >= ROW_GROUP_ROWS or self._characters >= ROW_GROUP_CHARACTERS:
            self.flush()

    def flush(self) -> None:
        if self._buffer:
            self._writer.write_table(pa.Table.from_pylist(self._buffer, schema=self._schema))
            self._buffer, self._characters = [], 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, ChatloomError):  # what a refused run dropped is there to be looked at
            self.flush()
        self._writer.close()


class DocumentWriter(ParquetWriter):
    """Writes documents; `labels` maps each label's name to its Arrow type and every document must fit it."""

    def __init__(self, path: Path, labels: Mapping[str, pa.DataType]) -> None:
        self._labels = dict(labels)
        super().__init__(path, pa.schema(DOCUMENT_FIELDS + [pa.field(LABEL + n, t) for n, t in self._labels.items()]))

    def add(self, document: Document) -> None:
        """Append a document; raises ValueError for a label that was not declared."""
        unknown = set(document.labels) - set(self._labels)
        if unknown:
            raise ValueError(f"document {document.id!r} has undeclared labels {sorted(unknown)}")
        row: dict[str, Any] = {
            "id": document.id,
            "text": document.text,
            "source": document.source,
            "url": document.url,
            "time": document.time,
            "metadata": json.dumps(dict(document.metadata), ensure_ascii=False, sort_keys=True, default=str),
        }
        row |= {LABEL + name: document.labels.get(name) for name in self._labels}
        self.write(row, len(document.text))


class DroppedWriter(ParquetWriter):
    """Writes dropped pages with their reasons."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, DROPPED_SCHEMA)

    def add(self, dropped: Dropped) -> None:
        """Append a dropped page."""
        self.write(asdict(dropped), len(dropped.text))


def document_files(folder: Path) -> list[Path]:
    """The Parquet files of an artifact's documents in order. Raises ChatloomError where there is none."""
    files = sorted((folder / SHARDS).glob("*.parquet"))
    if not files:
        raise ChatloomError(f"{folder}: holds no documents (no {SHARDS}/*.parquet)")
    return files


def write_documents(path: Path, documents: Iterable[Document], labels: Mapping[str, pa.DataType]) -> int:
    """Write all documents to a Parquet file, whose folder is made; the number written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with DocumentWriter(path, labels) as writer:
        for document in documents:
            writer.add(document)
    return writer.rows


def read_documents(path: Path) -> Iterator[Document]:
    """Documents of a Parquet file in order, a few at a time.

    Raises ChatloomError for a missing file, one that is not Parquet, or one without a document's columns.
    """
    with open_table(path) as file:
        names = file.schema_arrow.names
        missing = [field.name for field in DOCUMENT_FIELDS if field.name not in names]
        if missing:
            raise ChatloomError(f"{path}: not a file of documents: no column {', '.join(missing)}; found {names}")
        for batch in file.iter_batches(batch_size=256):
            for row in batch.to_pylist():
                labels = {name[len(LABEL) :]: row[name] for name in names if name.startswith(LABEL)}
                yield Document(
                    row["id"], row["text"], row["source"], row["url"], row["time"], json.loads(row["metadata"]), labels
                )


def read_fields(path: Path, *names: str) -> Iterator[tuple[Any, ...]]:
    """The columns of these names of a file of documents, row by row; reads no other column.

    Raises ChatloomError as `read_documents` does.
    """
    with open_table(path) as file:
        missing = sorted(set(names) - set(file.schema_arrow.names))
        if missing:
            found = file.schema_arrow.names
            raise ChatloomError(f"{path}: not a file of documents: no column {', '.join(missing)}; found {found}")
        for batch in file.iter_batches(batch_size=256 if "text" in names else 8192, columns=list(names)):
            yield from zip(*(batch.column(name).to_pylist() for name in names))


def read_dropped(path: Path) -> Iterator[Dropped]:
    """Dropped pages of a Parquet file in order; raises ChatloomError as `read_documents` does."""
    with open_table(path) as file:
        if file.schema_arrow.names != DROPPED_SCHEMA.names:
            raise ChatloomError(f"{path}: not a file of dropped pages; found columns {file.schema_arrow.names}")
        for batch in file.iter_batches(batch_size=256):
            yield from (Dropped(**row) for row in batch.to_pylist())


def count_rows(files: Iterable[Path]) -> int:
    """Rows of Parquet files together; raises ChatloomError as `open_table` does."""
    total = 0
    for path in files:
        with open_table(path) as file:
            total += file.metadata.num_rows
    return total


def schema_of(path: Path) -> pa.Schema:
    """Columns of a Parquet file; raises ChatloomError as `open_table` does."""
    with open_table(path) as file:
        return file.schema_arrow


@contextlib.contextmanager
def open_table(path: Path) -> Iterator[pq.ParquetFile]:
    """A Parquet file of an artifact, to be read in a `with`; the checksums of its pages are compared.

    Raises ChatloomError that names the file where it is missing, is no Parquet file, or is damaged.
    """
    if not path.is_file():
        raise ChatloomError(f"{path}: no such file; give a shard that the stage `documents` or `selection` wrote")
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EIO):
            raise  # of the system, not of the file's content
        raise ChatloomError(
            f"{path}: not a readable Parquet file, or a damaged one ({error}); make its artifact again"
        ) from None
