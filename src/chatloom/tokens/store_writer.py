"""Writing a token store: one document after another, in memory that does not grow with their number.

The layout is told in `store`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chatloom.tokens.store import COLUMNS, DOCUMENT_FIELDS, FORMAT, LABEL, ROW_GROUP, TokenStoreError
from chatloom.tokens.vocabulary import Vocabulary

DOCUMENT, CONVERSATION = "document", "conversation"
RESERVED = {*COLUMNS, "store"}  # what expressions call a document's own columns


class TokenWriter:
    """Writes one store into a folder; use in a `with`: leaving it without an error writes the header and syncs.

    `labels` maps the label names that documents may carry to their Arrow types. With `masked` a loss mask is written,
    1 where `add` is given none.
    """

    def __init__(
        self,
        folder: str | Path,
        vocabulary: Vocabulary,
        *,
        name: str = "tokens",
        labels: Mapping[str, pa.DataType] | None = None,
        masked: bool = False,
    ) -> None:
        """Raises TokenStoreError for a label that has the name of a document's own column."""
        self.folder, self.name = Path(folder), name
        self.n_tokens = self.n_documents = 0
        self._labels = dict(labels or {})
        if clash := RESERVED & set(self._labels):
            raise TokenStoreError(
                f"a label cannot be called {', '.join(sorted(clash))}: documents have a column of that name; rename it"
            )
        self._vocabulary = vocabulary
        self._dtype = np.dtype("<u2" if vocabulary.size <= 2**16 else "<u4")
        self._schema = pa.schema([*DOCUMENT_FIELDS, *(pa.field(LABEL + n, t) for n, t in self._labels.items())])
        self._columns: list[list[Any]] = [[] for _ in self._schema.names]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._header.unlink(missing_ok=True)  # what is being overwritten must not be readable meanwhile
        (self.folder / f"{name}.mask.bin").unlink(missing_ok=True)
        self._bin = _Hashed(self.folder / f"{name}.bin")
        self._mask = _Hashed(self.folder / f"{name}.mask.bin") if masked else None
        self._offsets = open(self.folder / f"{name}.idx.npy", "w+b")  # noqa: SIM115 (closed in __exit__)
        self._write_offsets_header(0)
        self._offsets.write(np.array([0], dtype="<u8").tobytes())
        self._docs = pq.ParquetWriter(self.folder / f"{name}.docs.parquet", self._schema, compression="zstd")

    @property
    def _header(self) -> Path:
        return self.folder / f"{self.name}.json"

    def add(
        self,
        document_id: str,
        source: str,
        ids: Sequence[int] | np.ndarray,
        labels: Mapping[str, Any] | None = None,
        *,
        kind: str = DOCUMENT,
        mask: Sequence[float] | np.ndarray | None = None,
    ) -> None:
        """Append a document; `mask` is 1 for each token that is a target and 0 for one that is only read.

        Raises TokenStoreError when it has no token, an id outside the vocabulary, a label that was not declared, or a
        mask of another length or with other values (or any mask in a store without one).
        """
        values = np.asarray(ids, dtype=np.int64)
        if values.ndim != 1 or len(values) == 0:
            raise TokenStoreError(
                f"document {document_id!r} has ids of shape {list(values.shape)}; expected [n], n >= 1"
            )
        if values.min() < 0 or values.max() >= self._vocabulary.size:
            raise TokenStoreError(
                f"document {document_id!r} has ids {values.min()}..{values.max()}; "
                f"the vocabulary has 0..{self._vocabulary.size - 1}"
            )
        given = dict(labels or {})
        if not given.keys() <= self._labels.keys():
            unknown = ", ".join(sorted(given.keys() - self._labels.keys()))
            raise TokenStoreError(f"document {document_id!r} has undeclared labels {unknown}")
        weights = self._weights(document_id, len(values), mask)
        self._bin.write(values.astype(self._dtype).tobytes())
        if self._mask is not None:
            self._mask.write(weights.tobytes())
        row = (document_id, kind, source, self.n_tokens, len(values), *(given.get(name) for name in self._labels))
        for column, value in zip(self._columns, row, strict=True):
            column.append(value)
        self.n_tokens += len(values)
        self.n_documents += 1
        if self.n_documents % ROW_GROUP == 0:
            self._flush()

    def _weights(self, document_id: str, length: int, mask: Sequence[float] | np.ndarray | None) -> np.ndarray:
        if mask is None:
            return np.ones(length, dtype=np.uint8)
        weights = np.asarray(mask)
        if self._mask is None:
            raise TokenStoreError(f"document {document_id!r} has a loss mask; open the writer with masked=True")
        if weights.shape != (length,) or not np.isin(weights, (0, 1)).all():
            raise TokenStoreError(
                f"document {document_id!r} has a loss mask of shape {list(weights.shape)} with values "
                f"{np.unique(weights)[:5].tolist()}; expected {length} values, each 0 or 1"
            )
        return weights.astype(np.uint8)

    def _flush(self) -> None:
        if not self._columns[0]:
            return
        arrays = []
        for field, values in zip(self._schema, self._columns, strict=True):
            try:
                arrays.append(pa.array(values, field.type))
            except (pa.ArrowException, TypeError, OverflowError) as error:
                name = field.name.removeprefix(LABEL)
                raise TokenStoreError(f"label `{name}` was declared as {field.type}: {error}") from None
        self._docs.write_table(pa.Table.from_arrays(arrays, schema=self._schema), row_group_size=ROW_GROUP)
        starts, lengths = (np.array(self._columns[COLUMNS.index(name)], dtype="<u8") for name in ("start", "length"))
        self._offsets.write((starts + lengths).tobytes())
        self._columns = [[] for _ in self._schema.names]

    def _write_offsets_header(self, count: int) -> None:
        """NumPy leaves room in a header for a length that grows, so the true one fits over that of an empty file."""
        description = {"descr": "<u8", "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(self._offsets, description)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._bin.file.close()
            if self._mask is not None:
                self._mask.file.close()
            self._offsets.close()
            self._docs.close()

    def _finish(self) -> None:
        if self.n_documents == 0:
            raise TokenStoreError(f"{self.folder}: no document was given, so there is nothing to train on")
        self._flush()
        self._docs.close()
        before = self._offsets.tell()
        self._offsets.seek(0)
        self._write_offsets_header(self.n_documents + 1)
        self._offsets.seek(before)
        _sync(self._offsets)
        header = {
            "format": FORMAT,
            "dtype": self._dtype.name,
            "n_tokens": self.n_tokens,
            "n_documents": self.n_documents,
            "sha256": self._bin.finish(),
            "mask_sha256": None if self._mask is None else self._mask.finish(),
            "vocabulary_sha256": self._vocabulary.sha256,
            "vocabulary_size": self._vocabulary.size,
        }
        with open(self._header, "w", encoding="utf-8") as text:
            text.write(json.dumps(header, indent=2) + "\n")
            _sync(text)


class _Hashed:
    """A file being written whose content is hashed on the way."""

    def __init__(self, path: Path) -> None:
        self.file = open(path, "wb")  # noqa: SIM115 (closed by the writer)
        self._hash = hashlib.sha256()

    def write(self, content: bytes) -> None:
        """Append."""
        self.file.write(content)
        self._hash.update(content)

    def finish(self) -> str:
        """Sync, and the hash of all that was written."""
        _sync(self.file)
        return self._hash.hexdigest()


def _sync(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())
