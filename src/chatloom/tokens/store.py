"""The token store: documents as token ids in one memory-mapped file, each token traceable to its document and labels.

    tokens.bin            ids of all documents one after another, little-endian uint16 (uint32 beyond 65,536 entries)
    tokens.idx.npy        uint64 [documents + 1]: where each document starts in tokens.bin, and the end of the last
    tokens.docs.parquet   one row a document: id, source, start, n, labels (a JSON object)
    tokens.json           the header, written last: counts, dtype, sha256 of the content and of the vocabulary

A store without a header does not exist for readers, so a writer that was stopped leaves nothing half-readable.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chatloom.errors import ChatloomError
from chatloom.tokens.vocabulary import Vocabulary

FORMAT = 1
ROW_GROUP = 16_384
DOCUMENT_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("start", pa.int64(), nullable=False),
        pa.field("n", pa.int64(), nullable=False),
        pa.field("labels", pa.string(), nullable=False),
    ]
)


class TokenStoreError(ChatloomError):
    """A token store is missing, damaged, or belongs to another vocabulary."""


class TokenWriter:
    """Writes one store into a folder; use in a `with`: leaving it without an error writes the header and syncs.

    Memory use does not grow with the number of tokens.
    """

    def __init__(self, folder: str | Path, vocabulary: Vocabulary, *, name: str = "tokens") -> None:
        self.folder, self.name = Path(folder), name
        self.n_tokens = self.n_documents = 0
        self._vocabulary = vocabulary
        self._dtype = np.dtype("<u2" if vocabulary.size <= 2**16 else "<u4")
        self._hash = hashlib.sha256()
        self._rows: list[dict[str, Any]] = []
        self._offsets = [0]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._header.unlink(missing_ok=True)  # what is being overwritten must not be readable meanwhile
        self._bin = open(self.folder / f"{name}.bin", "wb")  # noqa: SIM115 (closed in __exit__)
        self._docs = pq.ParquetWriter(self.folder / f"{name}.docs.parquet", DOCUMENT_SCHEMA, compression="zstd")

    @property
    def _header(self) -> Path:
        return self.folder / f"{self.name}.json"

    def add(
        self, document_id: str, source: str, ids: Sequence[int] | np.ndarray, labels: Mapping[str, Any] | None = None
    ) -> None:
        """Append a document. Raises TokenStoreError when it has no token, or an id outside the vocabulary."""
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
        content = values.astype(self._dtype).tobytes()
        self._bin.write(content)
        self._hash.update(content)
        self._rows.append(
            {
                "id": document_id,
                "source": source,
                "start": self.n_tokens,
                "n": len(values),
                "labels": json.dumps(dict(labels or {}), ensure_ascii=False, sort_keys=True),
            }
        )
        self.n_tokens += len(values)
        self.n_documents += 1
        self._offsets.append(self.n_tokens)
        if len(self._rows) >= ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._docs.write_table(pa.Table.from_pylist(self._rows, schema=DOCUMENT_SCHEMA))
            self._rows = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._bin.close()
            self._docs.close()

    def _finish(self) -> None:
        if self.n_documents == 0:
            raise TokenStoreError(f"{self.folder}: no document was given, so there is nothing to train on")
        self._flush()
        self._docs.close()
        self._bin.flush()
        os.fsync(self._bin.fileno())
        with open(self.folder / f"{self.name}.idx.npy", "wb") as file:
            np.save(file, np.array(self._offsets, dtype="<u8"), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        header = {
            "format": FORMAT,
            "dtype": self._dtype.name,
            "n_tokens": self.n_tokens,
            "n_documents": self.n_documents,
            "sha256": self._hash.hexdigest(),
            "vocabulary_sha256": self._vocabulary.sha256,
            "vocabulary_size": self._vocabulary.size,
        }
        with open(self._header, "w", encoding="utf-8") as text:
            text.write(json.dumps(header, indent=2) + "\n")
            text.flush()
            os.fsync(text.fileno())


class TokenStore:
    """Read access to a store: documents as arrays, straight from the memory-mapped file."""

    def __init__(
        self, folder: str | Path, vocabulary: Vocabulary | None = None, *, name: str = "tokens", verify: bool = False
    ) -> None:
        """Open a store; with `verify` the content is read through and its hash compared.

        Raises TokenStoreError when a file is missing, cut short or contradicts the header, when `vocabulary` is not
        the one the store was written with, or when the content hash differs.
        """
        self.folder, self.name = Path(folder), name
        self.header = _read_header(self.folder / f"{name}.json")
        if vocabulary is not None and vocabulary.sha256 != self.header["vocabulary_sha256"]:
            raise TokenStoreError(
                f"{self.folder}: written with vocabulary {self.header['vocabulary_sha256'][:12]}, to be read with "
                f"{vocabulary.sha256[:12]}; make the tokens again with this vocabulary"
            )
        self.n_tokens, self.n_documents = int(self.header["n_tokens"]), int(self.header["n_documents"])
        dtype = np.dtype(self.header["dtype"]).newbyteorder("<")
        path = self.folder / f"{name}.bin"
        found = path.stat().st_size if path.is_file() else -1
        if found != self.n_tokens * dtype.itemsize:
            state = "is missing" if found < 0 else f"has {found} bytes"
            raise TokenStoreError(
                f"{path} {state}; its header says {self.n_tokens} tokens, {self.n_tokens * dtype.itemsize} bytes. "
                "The store is damaged: run its stage again"
            )
        self._tokens = np.memmap(path, dtype=dtype, mode="r")
        self.offsets = self._read_offsets()
        if verify and hashlib.sha256(self._tokens.data).hexdigest() != self.header["sha256"]:
            raise TokenStoreError(f"{path}: the content is not what was written (sha256 differs); run its stage again")

    def _read_offsets(self) -> np.ndarray:
        path = self.folder / f"{self.name}.idx.npy"
        try:
            offsets = np.load(path, allow_pickle=False).astype(np.int64)
        except (OSError, ValueError) as error:
            raise TokenStoreError(f"{path} cannot be read: {error}; run its stage again") from error
        fits = offsets.shape == (self.n_documents + 1,) and offsets[0] == 0 and offsets[-1] == self.n_tokens
        if not fits or (np.diff(offsets) <= 0).any():
            raise TokenStoreError(f"{path} does not describe {self.n_documents} documents of {self.n_tokens} tokens")
        return offsets

    def __len__(self) -> int:
        return self.n_documents

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document: int64 [documents]."""
        return np.diff(self.offsets)

    def read(self, document: int, start: int = 0, end: int | None = None) -> np.ndarray:
        """Ids start..end of one document: int64 [end - start]. Raises IndexError outside it."""
        if not 0 <= document < self.n_documents:
            raise IndexError(f"document {document} of {self.n_documents}")
        first, last = int(self.offsets[document]), int(self.offsets[document + 1])
        end = last - first if end is None else end
        if not 0 <= start <= end <= last - first:
            raise IndexError(f"tokens {start}..{end} of document {document}, which has {last - first}")
        return np.asarray(self._tokens[first + start : first + end], dtype=np.int64)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.read(i) for i in range(self.n_documents))

    def describe(self, documents: Sequence[int]) -> list[dict[str, Any]]:
        """Rows of the document table: id, source, start, n (tokens) and labels, in the order asked for."""
        path = self.folder / f"{self.name}.docs.parquet"
        try:
            table = pq.read_table(path).take(pa.array(documents, pa.int64()))
        except (OSError, pa.ArrowInvalid) as error:
            raise TokenStoreError(f"{path} cannot be read: {error}; run its stage again") from error
        return [{**row, "labels": json.loads(row["labels"])} for row in table.to_pylist()]


def _read_header(path: Path) -> dict[str, Any]:
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TokenStoreError(f"no token store at {path.parent}: {path.name} is not there") from None
    except (OSError, ValueError) as error:
        raise TokenStoreError(f"{path} is not a token store's header: {error}") from error
    needed = {"format", "dtype", "n_tokens", "n_documents", "sha256", "vocabulary_sha256"}
    if not isinstance(header, dict) or not needed <= header.keys() or header["format"] != FORMAT:
        raise TokenStoreError(f"{path} is not a token store's header of format {FORMAT}")
    if header["dtype"] not in ("uint16", "uint32"):
        raise TokenStoreError(f"{path}: dtype {header['dtype']!r}; expected uint16 or uint32")
    return header
