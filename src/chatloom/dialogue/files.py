"""Reads raw records out of JSON, JSON lines, Parquet and CSV files, each with the place where it stands.

What is not a readable record (invalid UTF-8, broken JSON, a line without end) is handed on as a `BadRecord` with
its reason, so that one bad line never stops a run and never disappears. Memory stays bounded by one record.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from chatloom.dialogue.record import DialogueError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
MAX_RECORD_BYTES = 16 * 2**20


@dataclass(frozen=True)
class RawRecord:
    """One record's columns; `line` counts from 1: a line of a text file, an entry of a JSON list, a Parquet row."""

    line: int
    columns: dict[str, Any]


@dataclass(frozen=True)
class BadRecord:
    """A record set aside: where it stands and why."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


def read_records(
    path: Path | str, *, encoding: str = "utf-8", max_record_bytes: int = MAX_RECORD_BYTES
) -> Iterator[RawRecord | BadRecord]:
    """Yield every record of a file in order; `.gz` and `.zst` are unpacked on the way.

    Raises DialogueError where the file is missing, empty, of an unknown suffix, or broken as a whole (cut-off
    compression, a JSON list that does not parse, a damaged Parquet file).
    """
    path = Path(path)
    if path.is_dir():
        raise DialogueError(f"{path} is a folder; name its files one by one")
    if not path.is_file():
        raise DialogueError(f"{path} is missing; expected a file of conversations or preferences")
    if path.stat().st_size == 0:
        raise DialogueError(f"{path} is empty (0 bytes)")
    packed = path.suffix if path.suffix in (".gz", ".zst") else ""
    kind = path.with_suffix("").suffix if packed else path.suffix
    if kind not in SUFFIXES:
        raise DialogueError(
            f"{path} ends in {''.join(path.suffixes[-2:]) or 'no suffix'}; expected one of {', '.join(SUFFIXES)}, "
            "the text ones also with .gz or .zst"
        )
    if kind == ".parquet":
        if packed:
            raise DialogueError(f"{path}: a Parquet file is compressed inside; unpack the {packed} first")
        yield from _parquet(path)
        return
    try:
        with _open(path, packed) as stream:
            if kind == ".csv":
                yield from _csv(path, stream, encoding, max_record_bytes)
            elif kind == ".json" and _starts_a_list(stream):
                yield from _json_list(path, stream, encoding)
            else:
                yield from _json_lines(path, stream, encoding, max_record_bytes)
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise DialogueError(
            f"{path}: its compressed data is broken or cut off ({error}); fetch or pack it again"
        ) from None


def _open(path: Path, packed: str) -> IO[bytes]:
    if packed == ".gz":
        return io.BufferedReader(gzip.open(path, "rb"))
    if packed == ".zst":
        return io.BufferedReader(_WholeFrames(path))
    return path.open("rb")


class _WholeFrames(io.RawIOBase):
    """A zstd reader that raises EOFError when the file ends inside a frame, which the library passes over."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._pending = b""
        self._decompressor: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._pending:
            data = self._file.read(2**17)
            if not data:
                if self._decompressor is not None:
                    raise EOFError("the file ends inside a zstd frame")
                return 0
            self._pending = self._feed(data)
        count = min(len(buffer), len(self._pending))
        buffer[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count

    def _feed(self, data: bytes) -> bytes:
        out = []
        while data:
            if self._decompressor is None:
                self._decompressor = zstandard.ZstdDecompressor().decompressobj()
            out.append(self._decompressor.decompress(data))
            data = b""
            if self._decompressor.eof:
                data = self._decompressor.unused_data
                self._decompressor = None
        return b"".join(out)

    def close(self) -> None:
        self._file.close()
        super().close()


def _starts_a_list(stream: IO[bytes]) -> bool:
    head = stream.peek(4096)  # type: ignore[attr-defined]
    return bool(head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["))


def _json_lines(path: Path, stream: IO[bytes], encoding: str, limit: int) -> Iterator[RawRecord | BadRecord]:
    line = 0
    while True:
        data = stream.readline(limit + 1)
        if not data:
            return
        line += 1
        if len(data) > limit and not data.endswith(b"\n"):
            size = len(data)
            while data and not data.endswith(b"\n"):
                data = stream.readline(2**20)
                size += len(data)
            yield BadRecord(str(path), line, f"line of {size:,} bytes; at most {limit:,} are read")
            continue
        if line == 1:
            data = data.removeprefix(b"\xef\xbb\xbf")
        if data.strip():
            yield _parse(path, line, data, encoding)


def _parse(path: Path, line: int, data: bytes, encoding: str) -> RawRecord | BadRecord:
    try:
        value = orjson.loads(data if encoding == "utf-8" else data.decode(encoding))
    except UnicodeDecodeError as error:
        return BadRecord(str(path), line, f"not {encoding}: {error.reason} at byte {error.start}")
    except orjson.JSONDecodeError as error:
        try:
            data.decode(encoding)
        except UnicodeDecodeError as wrong:
            return BadRecord(str(path), line, f"not {encoding}: {wrong.reason} at byte {wrong.start}")
        return BadRecord(str(path), line, f"not JSON: {error}")
    if not isinstance(value, dict):
        return BadRecord(str(path), line, f"JSON {type(value).__name__}; expected an object")
    return RawRecord(line, value)


def _json_list(path: Path, stream: IO[bytes], encoding: str) -> Iterator[RawRecord | BadRecord]:
    try:
        values = json.loads(stream.read().removeprefix(b"\xef\xbb\xbf").decode(encoding))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise DialogueError(f"{path} is not a JSON list in {encoding}: {error}") from None
    for number, value in enumerate(values, 1):
        if isinstance(value, dict):
            yield RawRecord(number, value)
        else:
            yield BadRecord(str(path), number, f"JSON {type(value).__name__}; expected an object")


def _csv(path: Path, stream: IO[bytes], encoding: str, limit: int) -> Iterator[RawRecord | BadRecord]:
    csv.field_size_limit(limit)
    text = io.TextIOWrapper(stream, "utf-8-sig" if encoding == "utf-8" else encoding, newline="")
    reader = csv.reader(text, strict=True)
    try:
        header = next(reader, [])
        while True:
            line = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            if len(row) == len(header):
                yield RawRecord(line, dict(zip(header, row)))
            elif row:
                yield BadRecord(str(path), line, f"{len(row)} fields; the header has {len(header)}")
    except UnicodeDecodeError as error:
        raise DialogueError(f"{path} is not {encoding} after line {reader.line_num}: {error.reason}") from None
    except csv.Error as error:
        raise DialogueError(f"{path}:{reader.line_num}: broken CSV: {error}") from None


def _parquet(path: Path) -> Iterator[RawRecord | BadRecord]:
    row = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=1024):
            for columns in batch.to_pylist():
                row += 1
                yield RawRecord(row, columns)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DialogueError(f"{path} cannot be read as Parquet after row {row}: {error}") from None
