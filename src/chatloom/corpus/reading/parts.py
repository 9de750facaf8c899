"""Raw files -> parts of about equal size, each one task's work: big line files and Parquet files are cut, small files
are put together. Where a cut lies depends on the files alone, so the parts are the same on every machine.

JSON lines are cut behind a line's end, Parquet between row groups; packed files, WARC files and texts stay whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from chatloom.corpus.reading.compression import SUFFIXES as PACKED
from chatloom.corpus.reading.files import LINES, PARQUET, Slice, format_of

PART_BYTES = 64 << 20
PIECE = 1 << 22


@dataclass(frozen=True)
class Part:
    """Slices of files that one task reads in order; `bytes` is their size on disk."""

    slices: tuple[Slice, ...]
    bytes: int

    def values(self) -> list[dict[str, Any]]:
        """JSON-ready; `slices_of` reads it."""
        return [asdict(piece) | {"path": str(piece.path)} for piece in self.slices]


def slices_of(values: Sequence[dict[str, Any]]) -> list[Slice]:
    """The slices that `Part.values` described."""
    return [Slice(**(value | {"path": Path(value["path"])})) for value in values]


def parts_of(files: Sequence[tuple[Path, str]], part_bytes: int = PART_BYTES) -> list[Part]:
    """Parts of at most about `part_bytes`, in the files' order; a file that cannot be cut is a part of any size."""
    parts: list[Part] = []
    gathered: list[Slice] = []
    size = 0
    for path, name in files:
        for piece, piece_bytes in _slices(path, name, part_bytes):
            if gathered and size + piece_bytes > part_bytes:
                parts.append(Part(tuple(gathered), size))
                gathered, size = [], 0
            gathered.append(piece)
            size += piece_bytes
    if gathered:
        parts.append(Part(tuple(gathered), size))
    return parts


def _slices(path: Path, name: str, part_bytes: int) -> Iterator[tuple[Slice, int]]:
    size, kind = path.stat().st_size, format_of(path)
    if size <= part_bytes or path.suffix.lower() in PACKED or kind not in (LINES, PARQUET):
        yield Slice(path, name), size
    elif kind == LINES:
        yield from _line_slices(path, name, size, part_bytes)
    else:
        yield from _row_group_slices(path, name, size, part_bytes)


def _line_slices(path: Path, name: str, size: int, part_bytes: int) -> Iterator[tuple[Slice, int]]:
    """Cut behind the first line end after every `part_bytes`; line numbers go on from slice to slice."""
    start, first_line, lines, position = 0, 1, 0, 0
    with open(path, "rb") as file:
        while piece := file.read(PIECE):
            offset = 0
            while (end := piece.find(b"\n", max(offset, start + part_bytes - position))) >= 0:
                lines += piece.count(b"\n", offset, end + 1)
                offset = end + 1
                cut = position + offset
                if cut < size:
                    yield Slice(path, name, start, cut, first_line), cut - start
                    start, first_line = cut, 1 + lines
                else:
                    break
            lines += piece.count(b"\n", offset)
            position += len(piece)
    yield Slice(path, name, start, size, first_line), size - start


def _row_group_slices(path: Path, name: str, size: int, part_bytes: int) -> Iterator[tuple[Slice, int]]:
    try:
        with pq.ParquetFile(path) as file:
            groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    except (pa.ArrowException, OSError):
        yield Slice(path, name), size  # reading it says what is wrong
        return
    sizes = [sum(group.column(i).total_compressed_size for i in range(group.num_columns)) for group in groups]
    start, rows, held, held_rows = 0, 0, 0, 0
    for number, group in enumerate(groups):
        if number > start and held + sizes[number] > part_bytes:
            yield Slice(path, name, start, number, rows + 1), held
            start, rows, held, held_rows = number, rows + held_rows, 0, 0
        held += sizes[number]
        held_rows += group.num_rows
    yield Slice(path, name, start, len(groups), rows + 1), held
