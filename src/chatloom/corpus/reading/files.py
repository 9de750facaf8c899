"""Files and folders -> raw pages, one at a time; a record that cannot be read is set aside with file, line and reason.

Formats by name: `.html .htm .xhtml` (a page a file), `.txt .md .rst` (a text, long ones in pieces), `.jsonl .ndjson`
(a record a line), `.csv .tsv` and `.parquet` (a record a row), `.warc` (a page a response); text formats also `.gz` or
`.zst`, WARC also `.gz`. Files are streamed: memory holds one record, never more than the cap on a record's size.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from chatloom.corpus.reading.compression import SUFFIXES as COMPRESSED
from chatloom.corpus.reading.compression import open_stream
from chatloom.corpus.reading.decoding import Undecodable, decode_line, decode_text, detect_text_encoding
from chatloom.corpus.reading.warc import read_warc
from chatloom.corpus.record import Quarantined
from chatloom.errors import ChatloomError

HTML, TEXT, LINES, TABLE, PARQUET, WARC = "html", "text", "lines", "table", "parquet", "warc"
SUFFIXES = {
    **dict.fromkeys((".html", ".htm", ".xhtml"), HTML),
    **dict.fromkeys((".txt", ".md", ".rst"), TEXT),
    **dict.fromkeys((".jsonl", ".ndjson"), LINES),
    **dict.fromkeys((".csv", ".tsv"), TABLE),
    ".parquet": PARQUET,
    ".warc": WARC,
}
PIECE_CHARACTERS = 200_000


@dataclass(frozen=True, slots=True)
class Page:
    """One raw record: `html` (bytes as served) or `text`; `source` and `number` tell the file and the record in it."""

    id: str
    source: str
    number: int = 0
    html: bytes | None = None
    text: str | None = None
    url: str | None = None
    time: str | None = None
    declared_encoding: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Slice:
    """A file to be read, or a part of one: bytes `start` to `stop` of JSON lines or WARC, row groups of Parquet.

    0 and None: all. `name` is how ids and reasons call the file; `number` is that of the slice's first line, record or
    row, from 1.
    """

    path: Path
    name: str
    start: int = 0
    stop: int | None = None
    number: int = 1


def list_files(sources: Sequence[Path]) -> list[tuple[Path, str]]:
    """Every file of the sources in a fixed order, each with the name it goes by (never an absolute path).

    Raises ChatloomError for a source that does not exist, a file whose format its name does not tell, a folder
    without any file of a known format, and one that holds a folder that may not be read or a link that leads nowhere.
    """
    files: list[tuple[Path, str]] = []
    for source in sources:
        if source.is_dir():
            inside = _inside(source)
            if not inside:
                raise ChatloomError(f"{source}: no file of a known format in this folder; known are {_known()}")
            files += [(path, _readable(path.relative_to(source.parent).as_posix())) for path in inside]
        elif not source.exists():
            raise ChatloomError(f"{source}: no such file or folder; check the path of this source")
        elif format_of(source) is None:
            raise ChatloomError(f"{source}: the file's name does not tell its format; known are {_known()}")
        else:
            files.append((source, _readable(source.name)))
    return files


def _inside(source: Path) -> list[Path]:
    """Files of a known format in a folder and its folders, sorted; links to folders are not followed."""

    def refuse(error: OSError) -> None:
        raise ChatloomError(
            f"{error.filename}: this folder of a source cannot be read ({error.strerror}); give the right to read it, "
            "or leave it out"
        )

    found = (Path(folder, name) for folder, _, names in os.walk(source, onerror=refuse) for name in names)
    known = sorted(path for path in found if format_of(path))
    lost = [path for path in known if path.is_symlink() and not path.exists()]
    if lost:
        raise ChatloomError(f"{lost[0]}: a link that leads nowhere ({len(lost)} of these); mend or remove it")
    return [path for path in known if path.is_file()]


def _readable(name: str) -> str:
    """A file's name as text: bytes in it that are none as \\xff."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def format_of(path: Path) -> str | None:
    """The format that a file's name tells, or None."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    compressed = bool(suffixes) and suffixes[-1] in COMPRESSED
    kind = SUFFIXES.get(suffixes[-2] if compressed and len(suffixes) == 2 else suffixes[-1]) if suffixes else None
    if compressed and (kind == PARQUET or (kind == WARC and suffixes[-1] == ".zst")):
        return None
    return kind


def read_file(
    path: Path, name: str, *, text_field: str = "text", html_field: str = "html", max_record_bytes: int = 20_000_000
) -> Iterator[Page | Quarantined]:
    """Pages of one file in order, mixed with what had to be set aside; `name` is how ids and reasons call the file."""
    yield from read_slice(
        Slice(path, name), text_field=text_field, html_field=html_field, max_record_bytes=max_record_bytes
    )


def read_slice(
    piece: Slice, *, text_field: str = "text", html_field: str = "html", max_record_bytes: int = 20_000_000
) -> Iterator[Page | Quarantined]:
    """Pages of a file or of a part of one, as `read_file` gives them; the parts' pages one by one are the file's."""
    path, name = piece.path, piece.name
    kind = format_of(path)
    if path.stat().st_size == 0:
        yield Quarantined(name, 0, "the file is empty")
        return
    if kind == HTML:
        yield from _read_html(path, name, max_record_bytes)
    elif kind == TEXT:
        yield from _read_text(path, name, max_record_bytes)
    elif kind == LINES:
        yield from _read_json_lines(piece, text_field, html_field, max_record_bytes)
    elif kind == TABLE:
        yield from _read_table(path, name, text_field, html_field, max_record_bytes)
    elif kind == PARQUET:
        yield from _read_parquet(piece, text_field, html_field, max_record_bytes)
    elif kind == WARC:
        for item in read_warc(path, name, max_record_bytes, piece.start, piece.stop, piece.number):
            if isinstance(item, Quarantined):
                yield item
            else:
                where = f"{name}:{item.number}"
                yield Page(where, name, item.number, item.html, item.text, item.url, item.time, item.encoding)
    else:
        raise ChatloomError(f"{path}: the file's name does not tell its format; known are {_known()}")


def lines(
    stream: BinaryIO, max_bytes: int, left: int | None = None, first: int = 1
) -> Iterator[tuple[int, bytes | None]]:
    """Lines split at "\\n" only, numbered from `first`, without their ends; None is a line longer than `max_bytes`.

    A line that is too long is read past in pieces and never held. `left`: bytes after which no further line begins.
    """
    number = first - 1
    while (left is None or left > 0) and (line := stream.readline(max_bytes + 2)):
        number += 1
        read = len(line)
        whole = line.endswith(b"\n")
        content: bytes | None = line[:-1] if whole else line
        if content is not None and len(content) > max_bytes:
            content = None
            while not whole:
                rest = stream.readline(1 << 20)
                read += len(rest)
                whole = rest.endswith(b"\n") or not rest
        if left is not None:
            left -= read
        yield number, content[:-1] if content is not None and content.endswith(b"\r") else content


def _read_html(path: Path, name: str, max_bytes: int) -> Iterator[Page | Quarantined]:
    try:
        with open_stream(path) as stream:
            data = stream.read(max_bytes + 1)
    except OSError as error:
        yield Quarantined(name, 0, f"damaged file: {error}")
        return
    if len(data) > max_bytes:
        yield Quarantined(name, 0, f"page longer than {max_bytes:,} bytes")
    else:
        yield Page(name, name, html=data)


def _read_text(path: Path, name: str, max_bytes: int) -> Iterator[Page | Quarantined]:
    """One text; a long one is cut at empty lines into pieces of about PIECE_CHARACTERS."""
    pieces = 0
    piece: list[str] = []
    length = 0

    def finished() -> Page:
        return Page(name if not pieces else f"{name}#{pieces}", name, pieces, text="\n".join(piece))

    for _, line in _decoded_lines(Slice(path, name), max_bytes):
        if isinstance(line, Quarantined):
            yield line
            continue
        if length >= PIECE_CHARACTERS and (not line.strip() or length >= 2 * PIECE_CHARACTERS):
            yield finished()
            pieces, piece, length = pieces + 1, [], 0
        piece.append(line)
        length += len(line) + 1
    if any(line.strip() for line in piece):
        yield finished()


def _decoded_lines(piece: Slice, max_bytes: int) -> Iterator[tuple[int, str | Quarantined]]:
    """Lines as text in the encoding of the file's beginning; neither UTF-8 nor GB18030 has "\\n" inside a character."""
    name, number = piece.name, piece.number - 1
    try:
        with open_stream(piece.path) as stream:
            beginning = stream.peek(1 << 16)
            if beginning.startswith((b"\xff\xfe", b"\xfe\xff")):
                yield 0, Quarantined(name, 0, "UTF-16 text; save the file as UTF-8")
                return
            try:
                encoding = detect_text_encoding(beginning, complete=False)
            except Undecodable:
                encoding = "utf-8"  # a single bad line may stand among good ones
            if piece.start:
                stream.seek(piece.start)
            left = None if piece.stop is None else piece.stop - piece.start
            for number, line in lines(stream, max_bytes, left, first=piece.number):
                if line is None:
                    yield number, Quarantined(name, number, f"line longer than {max_bytes:,} bytes")
                    continue
                if number == 1 and line.startswith(b"\xef\xbb\xbf"):
                    line = line[3:]
                try:
                    yield number, line.decode(encoding)
                except UnicodeDecodeError:
                    try:
                        yield number, decode_line(line)
                    except Undecodable as error:
                        yield number, Quarantined(name, number, f"undecodable line: {error}")
    except OSError as error:
        yield number, Quarantined(name, number, f"damaged file: {error}")


def _read_json_lines(piece: Slice, text_field: str, html_field: str, max_bytes: int) -> Iterator[Page | Quarantined]:
    name = piece.name
    for number, line in _decoded_lines(piece, max_bytes):
        if isinstance(line, Quarantined):
            yield line
        elif line.strip():
            try:
                record = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                yield Quarantined(name, number, f"invalid JSON: {error}")
                continue
            yield _page_of_record(record, name, number, text_field, html_field)


def _read_table(
    path: Path, name: str, text_field: str, html_field: str, max_bytes: int
) -> Iterator[Page | Quarantined]:
    """Rows of a CSV or TSV file with a header line (RFC 4180: a quoted field may hold line ends)."""
    problems: list[Quarantined] = []

    def decoded() -> Iterator[str]:
        for _, line in _decoded_lines(Slice(path, name), max_bytes):
            if isinstance(line, Quarantined):
                problems.append(line)
            else:
                yield line + "\n"

    csv.field_size_limit(max(max_bytes, csv.field_size_limit()))
    rows = csv.reader(decoded(), delimiter="\t" if ".tsv" in path.name.lower() else ",", strict=True)
    header: list[str] | None = None
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            yield Quarantined(name, rows.line_num, f"not a CSV row: {error}")
            return
        yield from problems
        problems.clear()
        if row is None:
            return
        if header is None:
            header = row
            if text_field not in header and html_field not in header:
                found = ", ".join(header[:12])
                yield Quarantined(name, 1, f"no column {text_field!r} or {html_field!r}; found {found}")
                return
        elif len(row) != len(header):
            if row:
                yield Quarantined(name, rows.line_num, f"{len(row)} fields; the header has {len(header)}")
        else:
            yield _page_of_record(dict(zip(header, row)), name, rows.line_num, text_field, html_field)


def _read_parquet(piece: Slice, text_field: str, html_field: str, max_bytes: int) -> Iterator[Page | Quarantined]:
    path, name, number = piece.path, piece.name, piece.number - 1
    try:
        with pq.ParquetFile(path) as file:
            groups = range(piece.start, file.metadata.num_row_groups if piece.stop is None else piece.stop)
            names = file.schema_arrow.names
            if text_field not in names and html_field not in names:
                yield Quarantined(name, 0, f"no column {text_field!r} or {html_field!r}; found {', '.join(names)}")
                return
            wanted = [n for n in names if n in {text_field, html_field, "id", "url", "time", "date", "title"}]
            for batch in file.iter_batches(batch_size=64, columns=wanted, row_groups=list(groups)):
                for row in batch.to_pylist():
                    number += 1
                    content = row.get(text_field) or row.get(html_field) or ""
                    if isinstance(content, str | bytes) and len(content) > max_bytes:
                        yield Quarantined(name, number, f"record longer than {max_bytes:,} bytes")
                    else:
                        yield _page_of_record(row, name, number, text_field, html_field)
    except (pa.ArrowException, OSError) as error:
        yield Quarantined(name, number, f"damaged Parquet file: {error}")


def _page_of_record(record: Any, name: str, number: int, text_field: str, html_field: str) -> Page | Quarantined:
    """A page from a mapping with `text_field` or `html_field`; `id url time title` are kept when they are there."""
    if not isinstance(record, dict):
        return Quarantined(name, number, f"expected a JSON object, found {type(record).__name__}")
    text, html = record.get(text_field), record.get(html_field)
    content = text if text is not None else html
    if content is None:
        found = ", ".join(map(str, list(record)[:12])) or "no fields"
        return Quarantined(name, number, f"no field {text_field!r} or {html_field!r}; found {found}")
    if isinstance(content, bytes) and text is not None:
        try:
            content = decode_text(content)
        except Undecodable as error:
            return Quarantined(name, number, f"undecodable text: {error}")
    if not isinstance(content, str | bytes):
        return Quarantined(name, number, f"field {text_field!r} holds {type(content).__name__}, expected text")
    try:
        html_bytes = content.encode() if isinstance(content, str) else content
    except UnicodeEncodeError:
        return Quarantined(name, number, "text holds half of a surrogate pair")
    own_id = record.get("id")
    time = record.get("time", record.get("date"))
    title = record.get("title")
    return Page(
        id=str(own_id) if isinstance(own_id, str | int) and own_id != "" else f"{name}:{number}",
        source=name,
        number=number,
        html=html_bytes if text is None else None,
        text=content if text is not None and isinstance(content, str) else None,
        url=record["url"] if isinstance(record.get("url"), str) else None,
        time=None if time is None else str(time),
        metadata={"title": title} if isinstance(title, str) and title else {},
    )


def _known() -> str:
    return ", ".join(SUFFIXES) + " (text formats also .gz or .zst, .warc also .gz)"
