"""WARC files -> web pages: the HTML and plain-text responses of a crawl (ISO 28500), past broken records.

A record that is damaged or too long is set aside with its byte offset, and reading goes on at the next record that
can be found: at the next gzip member, or at the next `WARC/1.` line of an uncompressed file. Where a file can be read
in parts is told by `warc_cuts`.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fastwarc.warc import ArchiveIterator, WarcRecordType

from chatloom.corpus.reading.decoding import Undecodable, decode_text
from chatloom.corpus.record import Quarantined
from chatloom.errors import ChatloomError

GZIP_MEMBER = b"\x1f\x8b\x08"
RECORD_START = b"WARC/1."
PIECE, UNPACKED_PIECE = 1 << 14, 1 << 20  # bytes that are read and unpacked at once
HEAD = 1 << 16  # bytes in which a record's header ends
HTML_TYPES = ("text/html", "application/xhtml+xml")


@dataclass(frozen=True, slots=True)
class Response:
    """One page of a crawl; `number` counts the file's records of every type from 1."""

    number: int
    html: bytes | None
    text: str | None
    url: str | None
    time: str | None
    encoding: str | None


@dataclass(frozen=True, slots=True)
class _Found:
    """What reading came upon: a record of any type, or damage behind the one at `position`.

    `restarted`: reading was begun anew at exactly this record, behind damage.
    """

    position: int
    number: int
    items: list[Response | Quarantined]
    is_record: bool = True
    restarted: bool = False


def read_warc(
    path: Path, name: str, max_record_bytes: int, start: int = 0, stop: int | None = None, number: int = 1
) -> Iterator[Response | Quarantined]:
    """Successful HTML and plain-text responses in order; other types of record are passed over by design.

    A part of a file is read from the record at byte `start`, the `number`-th of the file, to that at `stop`; both are
    what `warc_cuts` found. Raises ChatloomError where the file has no such records: it has changed.
    """
    with open(path, "rb") as file:
        reached = None
        for found in _read(file, name, max_record_bytes, start, number):
            if reached is None and start and (found.position != start or not found.is_record):
                break
            reached = found.position
            if stop is not None and reached >= stop:
                break
            yield from found.items
        if (start and reached is None) or (stop is not None and reached != stop):
            raise ChatloomError(
                f"{path}: no record begins where one began when the file was cut into parts (bytes {start} and "
                f"{stop}); the file has changed: let it be, and run the same command again"
            )


def _read(file: BinaryIO, name: str, max_record_bytes: int, begin: int, number: int) -> Iterator[_Found]:
    """All records from byte `begin` on, where the `number`-th begins."""
    file.seek(0)
    marker = GZIP_MEMBER if file.read(3) == GZIP_MEMBER else RECORD_START
    size = os.fstat(file.fileno()).st_size
    start, in_damage = begin, False
    number -= 1
    while start < size:
        file.seek(start)
        last, length, is_first, items = start, 0, start != begin, list[Response | Quarantined]()
        try:
            for record in ArchiveIterator(file, record_types=WarcRecordType.any_type, parse_http=False):
                last, length = record.stream_pos, record.content_length
                if marker == RECORD_START and last + length > size:
                    raise ValueError(f"its stated length of {length:,} bytes passes the file's end")
                number += 1
                in_damage = False
                items = list(_page(record, name, number, max_record_bytes))
                yield _Found(last, number, items, restarted=is_first and last == start)
                is_first = False
            ends_whole = _gzip_ends_whole if marker == GZIP_MEMBER else _plain_ends_whole
            if not ends_whole(file, last, length, size) and not any(isinstance(i, Quarantined) for i in items):
                reason = f"WARC file is cut off behind byte {last}"
                yield _Found(last, number + 1, [Quarantined(name, number + 1, reason)], is_record=False)
            return
        except (OSError, ValueError) as error:
            # Bytes that only look like a record's start fail too; one damaged stretch is counted once.
            if not in_damage:
                number += 1
                in_damage = True
                reason = f"broken WARC record after byte {last}: {error}"
                yield _Found(last, number, [Quarantined(name, number, reason)], is_record=False)
            start = _find(file, marker, last + 1, size)


def warc_cuts(path: Path, part_bytes: int, max_record_bytes: int) -> Iterator[tuple[int, int]]:
    """Where a file may be cut into parts of at least `part_bytes`: byte and number of the first record behind a cut.

    The file is walked record by record from its beginning, so that what only looks like a record's beginning, inside
    of another record, is never taken for one. A packed record must be one gzip member by itself, whole and of the
    stated length; a file that is packed as one stream has no cut. Behind damage the walk goes on with the record at
    which reading from the last cut goes on.
    """
    with open(path, "rb", buffering=1 << 20) as file, open(path, "rb") as again:
        end_of_record = _gzip_record_end if file.read(3) == GZIP_MEMBER else _plain_record_end
        size = os.fstat(file.fileno()).st_size
        position, number, last_cut, last_number = 0, 1, 0, 1
        behind_damage: Iterator[_Found] | None = None
        while position < size:
            end = end_of_record(file, position)
            if end is None:
                if behind_damage is None:
                    found = _read(again, "", max_record_bytes, last_cut, last_number)
                    behind_damage = (record for record in found if record.restarted)
                record = next((record for record in behind_damage if record.position > position), None)
                if record is None:
                    return
                position, number = record.position, record.number
                continue
            if position - last_cut >= part_bytes:
                yield position, number
                last_cut, last_number, behind_damage = position, number, None
            position, number = end, number + 1


def _gzip_record_end(file: BinaryIO, start: int) -> int | None:
    """Where the gzip member at `start` ends; None unless it holds one record, whole, and nothing else."""
    file.seek(start)
    unpacker = zlib.decompressobj(wbits=31)
    head, length = b"", 0
    try:
        while not unpacker.eof:
            data = unpacker.unconsumed_tail or file.read(PIECE)
            if not data:
                return None
            unpacked = unpacker.decompress(data, UNPACKED_PIECE)
            length += len(unpacked)
            if len(head) < HEAD:
                head += unpacked
    except zlib.error:
        return None
    return file.tell() - len(unpacker.unused_data) if length == _stated_length(head) else None


def _plain_record_end(file: BinaryIO, start: int) -> int | None:
    """Where the record at `start` ends; None unless two line ends stand behind its stated length."""
    file.seek(start)
    length = _stated_length(file.read(HEAD))
    if length is None:
        return None
    file.seek(start + length - 4)
    return start + length if file.read(4) == b"\r\n\r\n" else None


def _stated_length(beginning: bytes) -> int | None:
    """Bytes of the record that begins so, its two line ends included; None where no record does."""
    header = beginning.find(b"\r\n\r\n")
    if header < 0 or not beginning.startswith(RECORD_START):
        return None
    try:
        kinds = WarcRecordType.any_type
        record = next(iter(ArchiveIterator(io.BytesIO(beginning), record_types=kinds, parse_http=False)), None)
    except (OSError, ValueError):
        return None
    return None if record is None or record.stream_pos else header + 4 + record.content_length + 4


def _page(record: Any, name: str, number: int, max_record_bytes: int) -> Iterator[Response | Quarantined]:
    if record.record_type != WarcRecordType.response:
        return
    stated, where = record.content_length, f"at byte {record.stream_pos}"
    if stated > max_record_bytes:
        yield Quarantined(name, number, f"WARC record {where} is longer than {max_record_bytes:,} bytes")
        return
    record.freeze()
    if record.content_length != stated:
        found = f"{record.content_length:,} of {stated:,} bytes"
        yield Quarantined(name, number, f"WARC record {where} is cut off: {found}")
        return
    try:
        record.parse_http(auto_decode="all")
        kind = (record.http_content_type or "").lower()
        if record.http_headers is None or record.http_headers.status_code != 200:
            return
        if kind not in HTML_TYPES and kind != "text/plain":
            return
        body = record.reader.read(max_record_bytes + 1)
    except (OSError, ValueError) as error:
        yield Quarantined(name, number, f"broken HTTP response in WARC record {where}: {error}")
        return
    if len(body) > max_record_bytes:
        yield Quarantined(name, number, f"WARC record {where} unpacks to more than {max_record_bytes:,} bytes")
        return
    url = (record.headers.get("WARC-Target-URI") or "").strip("<>") or None
    time = record.record_date.isoformat() if record.record_date else None
    if kind in HTML_TYPES:
        yield Response(number, body, None, url, time, record.http_charset)
        return
    try:
        yield Response(number, None, decode_text(body), url, time, None)
    except Undecodable as error:
        yield Quarantined(name, number, f"undecodable text in WARC record {where}: {error}")


def _plain_ends_whole(file: BinaryIO, start: int, length: int, size: int) -> bool:
    """Whether the last record, at `start` with `length` bytes of content, is complete and ends the file."""
    file.seek(start)
    head = file.read(1 << 16)
    end = start + head.find(b"\r\n\r\n") + 4 + length
    file.seek(end)
    return end <= size and not file.read(1 << 16).strip()


def _gzip_ends_whole(file: BinaryIO, start: int, length: int, size: int) -> bool:  # noqa: ARG001
    """Whether every gzip member from `start` on (from 0, when all records share one member) is complete."""
    file.seek(start)
    if file.read(3) != GZIP_MEMBER:
        start = 0
    file.seek(start)
    unpacker, pending, whole = zlib.decompressobj(wbits=31), b"", False
    while data := pending or file.read(1 << 20):
        try:
            unpacker.decompress(data)
        except zlib.error:
            return False
        pending = b""
        if unpacker.eof:
            pending = unpacker.unused_data.lstrip(b"\0")  # zero padding is allowed behind a member
            unpacker = zlib.decompressobj(wbits=31)
            whole = not pending
        else:
            whole = False
    return whole


def _find(file: BinaryIO, marker: bytes, start: int, size: int) -> int:
    """Offset of the next `marker` at or behind `start`; `size` when there is none."""
    window = 1 << 20
    while start < size:
        file.seek(start)
        data = file.read(window + len(marker))
        found = data.find(marker)
        if found >= 0:
            return start + found
        start += window
    return size
