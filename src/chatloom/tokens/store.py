"""The token store: documents as token ids in one memory-mapped file, each token traceable to its document and labels.

    tokens.bin            ids of all documents one after another, little-endian uint16 (uint32 beyond 65,536 entries)
    tokens.idx.npy        uint64 [documents + 1]: where each document starts in tokens.bin, and the end of the last
    tokens.docs.parquet   one row a document: id, kind, source, start, length, and one column `label_*` for each label
    tokens.mask.bin       where not every token is to be learnt: uint8 [tokens], 1 = a target, 0 = only read
    tokens.json           the header, written last: counts, dtype, sha256 of the contents and of the vocabulary

A store without a header does not exist for readers, so a writer that was stopped leaves nothing half-readable.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chatloom.errors import ChatloomError
from chatloom.tokens.vocabulary import Vocabulary

FORMAT = 2
ROW_GROUP = 16_384
LABEL = "label_"
DOCUMENT_FIELDS = [
    pa.field("id", pa.string(), nullable=False),
    pa.field("kind", pa.string(), nullable=False),  # document, or conversation
    pa.field("source", pa.string(), nullable=False),
    pa.field("start", pa.int64(), nullable=False),
    pa.field("length", pa.int64(), nullable=False),
]
COLUMNS = tuple(field.name for field in DOCUMENT_FIELDS)


class TokenStoreError(ChatloomError):
    """A token store is missing, damaged, or belongs to another vocabulary."""


class TokenStore:
    """Read access to a store: documents as arrays, straight from the memory-mapped file; 8 bytes of memory a document.

    `labels`: names of the labels that its documents carry.
    """

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
        self.dtype = np.dtype(self.header["dtype"]).newbyteorder("<")
        self._tokens = self._map("bin", self.dtype, "sha256", verify)
        masked = self.header["mask_sha256"] is not None
        self._mask = self._map("mask.bin", np.dtype(np.uint8), "mask_sha256", verify) if masked else None
        self.offsets = self._read_offsets()

    def _map(self, ending: str, dtype: np.dtype, digest: str, verify: bool) -> np.memmap:
        path = self.folder / f"{self.name}.{ending}"
        found = path.stat().st_size if path.is_file() else -1
        if found != self.n_tokens * dtype.itemsize:
            state = "is missing" if found < 0 else f"has {found} bytes"
            raise TokenStoreError(
                f"{path} {state}; its header says {self.n_tokens} tokens, {self.n_tokens * dtype.itemsize} bytes. "
                "The store is damaged: run its stage again"
            )
        content = np.memmap(path, dtype=dtype, mode="r")
        if verify and hashlib.sha256(content.data).hexdigest() != self.header[digest]:
            raise TokenStoreError(f"{path}: the content is not what was written (sha256 differs); run its stage again")
        return content

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

    @property
    def has_mask(self) -> bool:
        """Whether some tokens are only read, not learnt."""
        return self._mask is not None

    def read(self, document: int, start: int = 0, end: int | None = None) -> np.ndarray:
        """Ids start..end of one document: int64 [end - start]. Raises IndexError outside it."""
        return np.asarray(self._tokens[self._place(document, start, end)], dtype=np.int64)

    def weights(self, document: int, start: int = 0, end: int | None = None) -> np.ndarray:
        """Weight of each of these tokens as a target, 1 or 0: float32 [end - start]. Raises IndexError outside it."""
        place = self._place(document, start, end)
        if self._mask is None:
            return np.ones(place.stop - place.start, dtype=np.float32)
        return np.asarray(self._mask[place], dtype=np.float32)

    def _place(self, document: int, start: int, end: int | None) -> slice:
        if not 0 <= document < self.n_documents:
            raise IndexError(f"document {document} of {self.n_documents}")
        first, last = int(self.offsets[document]), int(self.offsets[document + 1])
        end = last - first if end is None else end
        if not 0 <= start <= end <= last - first:
            raise IndexError(f"tokens {start}..{end} of document {document}, which has {last - first}")
        return slice(first + start, first + end)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.read(i) for i in range(self.n_documents))

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels of the documents."""
        with self._documents() as file:
            return tuple(name[len(LABEL) :] for name in file.schema_arrow.names if name.startswith(LABEL))

    def describe(self, documents: Sequence[int]) -> list[dict[str, Any]]:
        """Rows of the document table in the order asked for: id, kind, source, start, length, labels (a mapping)."""
        if not len(documents):
            return []
        wanted = np.asarray(documents, dtype=np.int64)
        if wanted.min() < 0 or wanted.max() >= self.n_documents:
            raise IndexError(f"documents {wanted.min()}..{wanted.max()} of {self.n_documents}")
        found: dict[int, dict[str, Any]] = {}
        with self._documents() as file:
            for group in sorted({int(number) for number in wanted // ROW_GROUP}):
                inside = np.unique(wanted[wanted // ROW_GROUP == group])
                rows = file.read_row_group(group).take(pa.array(inside - group * ROW_GROUP)).to_pylist()
                found.update(zip(inside.tolist(), rows, strict=True))
        return [
            {name: found[n][name] for name in COLUMNS}
            | {"labels": {k[len(LABEL) :]: v for k, v in found[n].items() if k.startswith(LABEL)}}
            for n in wanted.tolist()
        ]

    def tables(self, names: Sequence[str]) -> Iterator[pa.Table]:
        """Columns of the document table (labels by their own names; one that is not there is all null), in order.

        At most ROW_GROUP documents at a time.
        """
        with self._documents() as file:
            there = file.schema_arrow.names
            columns = {name: name if name in COLUMNS else LABEL + name for name in names}
            for group in range(file.num_row_groups):
                part = file.read_row_group(group, columns=[c for c in columns.values() if c in there] or ["start"])
                absent = pa.nulls(part.num_rows)
                yield pa.table({name: part[c] if c in there else absent for name, c in columns.items()} or part)

    def _documents(self) -> pq.ParquetFile:
        path = self.folder / f"{self.name}.docs.parquet"
        try:
            file = pq.ParquetFile(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise TokenStoreError(f"{path} cannot be read: {error}; run its stage again") from error
        if file.metadata.num_rows != self.n_documents:
            rows = file.metadata.num_rows
            raise TokenStoreError(f"{path} has {rows} rows for {self.n_documents} documents; run its stage again")
        return file


def _read_header(path: Path) -> dict[str, Any]:
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TokenStoreError(f"no token store at {path.parent}: {path.name} is not there") from None
    except (OSError, ValueError) as error:
        raise TokenStoreError(f"{path} is not a token store's header: {error}") from error
    needed = {"format", "dtype", "n_tokens", "n_documents", "sha256", "mask_sha256", "vocabulary_sha256"}
    if not isinstance(header, dict) or header.get("format") != FORMAT or not needed <= header.keys():
        raise TokenStoreError(
            f"{path} is not a token store's header of format {FORMAT}; run its stage again with this version"
        )
    if header["dtype"] not in ("uint16", "uint32"):
        raise TokenStoreError(f"{path}: dtype {header['dtype']!r}; expected uint16 or uint32")
    return header
