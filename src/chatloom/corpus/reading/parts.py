"""Raw files -> parts of about equal size, each one task's work: big files of lines, WARC and Parquet files are cut,
small files are put together. Where a cut lies depends on the files alone, so the parts are the same on every machine.

JSON lines are cut behind a line's end, WARC files before a record, Parquet between row groups. To find the place in a
big file of lines or WARC file it is read once, each file by a task (`write_cuts`). Packed lines, tables and texts stay
whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from chatloom.corpus.reading.compression import SUFFIXES as PACKED
from chatloom.corpus.reading.files import HTML, LINES, PARQUET, WARC, Slice, format_of
from chatloom.corpus.reading.warc import warc_cuts
from chatloom.errors import ChatloomError

PART_BYTES = 64 << 20
PIECE = 1 << 22
CUTS = "cuts"
Cut = tuple[int, int]  # byte, and number of the line or record that begins there


@dataclass(frozen=True)
class Part:
    """Slices of files that one task reads in order; `bytes` is their size on disk."""

    slices: tuple[Slice, ...]
    bytes: int

    def values(self) -> list[dict[str, Any]]:
        """JSON-ready; `slices_of` reads it. Each file's state is noted, for `check_unchanged`."""
        states = {piece.path: state_of(piece.path) for piece in self.slices}
        return [asdict(piece) | {"path": str(piece.path), "state": states[piece.path]} for piece in self.slices]


def slices_of(values: Sequence[Mapping[str, Any]]) -> list[Slice]:
    """The slices that `Part.values` described."""
    plain = [{key: value for key, value in piece.items() if key != "state"} for piece in values]
    return [Slice(**(value | {"path": Path(value["path"])})) for value in plain]


def state_of(path: Path) -> list[int]:
    """Size and time of change of a file: as long as both stay, it is the file that it was."""
    found = os.stat(path)
    return [found.st_size, found.st_mtime_ns]


def check_unchanged(values: Sequence[Mapping[str, Any]]) -> None:
    """Raise ChatloomError when a file is not in the state any more in which `Part.values` found it."""
    for piece in values:
        if state_of(Path(piece["path"])) != list(piece["state"]):
            raise ChatloomError(
                f"{piece['path']}: the file was changed while it was read; let it be until this stage is done, and "
                "run the same command again"
            )


def parts_of(
    files: Sequence[tuple[Path, str]], part_bytes: int = PART_BYTES, cuts: Mapping[Path, Sequence[Cut]] | None = None
) -> list[Part]:
    """Parts of at most about `part_bytes`, in the files' order; a file that cannot be cut is a part of any size.

    `cuts` are those of the files that `has_cuts` names (`find_cuts`).
    """
    parts: list[Part] = []
    gathered: list[Slice] = []
    size = 0
    for path, name in files:
        for piece, piece_bytes in _slices(path, name, part_bytes, (cuts or {}).get(path, ())):
            if gathered and size + piece_bytes > part_bytes:
                parts.append(Part(tuple(gathered), size))
                gathered, size = [], 0
            gathered.append(piece)
            size += piece_bytes
    if gathered:
        parts.append(Part(tuple(gathered), size))
    return parts


def has_cuts(path: Path, part_bytes: int) -> bool:
    """Whether a file is big and of a format whose cuts are found by reading it."""
    kind = format_of(path)
    is_lines = kind == LINES and path.suffix.lower() not in PACKED
    return (is_lines or kind == WARC) and path.stat().st_size > part_bytes


def stays_whole(path: Path, bytes_of_one: float) -> bool:
    """Whether a file's format allows no cut although it is longer than `bytes_of_one`: one process reads all of it."""
    kind = format_of(path)
    cuttable = kind in (HTML, PARQUET, WARC) or (kind == LINES and path.suffix.lower() not in PACKED)
    return not cuttable and path.stat().st_size > bytes_of_one


def find_cuts(path: Path, part_bytes: int, max_record_bytes: int) -> list[Cut]:
    """Where a file of lines or WARC file is cut into parts of about `part_bytes`; it is read once."""
    if format_of(path) == WARC:
        return list(warc_cuts(path, part_bytes, max_record_bytes))
    return list(_line_cuts(path, part_bytes))


def write_cuts(arguments: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """The task: `cuts/KEY.json`, the cuts of one file. `arguments`: key, path, state, part_bytes, max_record_bytes."""
    found = find_cuts(Path(arguments["path"]), arguments["part_bytes"], arguments["max_record_bytes"])
    check_unchanged([arguments])
    (folder / CUTS).mkdir()
    (folder / CUTS / f"{arguments['key']}.json").write_text(json.dumps(found), encoding="utf-8")
    return {"cuts": len(found)}


def _slices(path: Path, name: str, part_bytes: int, cuts: Sequence[Cut]) -> Iterator[tuple[Slice, int]]:
    size = path.stat().st_size
    if cuts:
        ends = [start for start, _ in cuts]
        for (start, number), stop in zip([(0, 1), *cuts], [*ends, None], strict=True):
            yield Slice(path, name, start, stop, number), (size if stop is None else stop) - start
    elif size > part_bytes and format_of(path) == PARQUET:
        yield from _row_group_slices(path, name, size, part_bytes)
    else:
        yield Slice(path, name), size


def _line_cuts(path: Path, part_bytes: int) -> Iterator[Cut]:
    """Behind the first line end after every `part_bytes`."""
    size = path.stat().st_size
    last, lines, position = 0, 0, 0
    with open(path, "rb") as file:
        while piece := file.read(PIECE):
            offset = 0
            while (end := piece.find(b"\n", max(offset, last + part_bytes - position - 1))) >= 0:
                lines += piece.count(b"\n", offset, end + 1)
                offset = end + 1
                last = position + offset
                if last >= size:
                    break
                yield last, 1 + lines
            lines += piece.count(b"\n", offset)
            position += len(piece)


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
