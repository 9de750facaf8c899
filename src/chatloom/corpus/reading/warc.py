"""WARC files -> web pages: the HTML and plain-text responses of a crawl (ISO 28500), past broken records.

A record that is damaged or too long is set aside with its byte offset, and reading goes on at the next record that
can be found: at the next gzip member, or at the next `WARC/1.` line of an uncompressed file.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fastwarc.warc import ArchiveIterator, WarcRecordType

from chatloom.corpus.reading.decoding import Undecodable, decode_text
from chatloom.corpus.record import Quarantined

GZIP_MEMBER = b"\x1f\x8b\x08"
RECORD_START = b"WARC/1."
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


def read_warc(path: Path, name: str, max_record_bytes: int) -> Iterator[Response | Quarantined]:
    """Successful HTML and plain-text responses in order; other types of record are passed over by design."""
    with open(path, "rb") as file:
        marker = GZIP_MEMBER if file.read(3) == GZIP_MEMBER else RECORD_START
        size = os.fstat(file.fileno()).st_size
        number, start, in_damage = 0, 0, False
        while start < size:
            file.seek(start)
            last, length, items = start, 0, list[Response | Quarantined]()
            try:
                for record in ArchiveIterator(file, record_types=WarcRecordType.any_type, parse_http=False):
                    last, length = record.stream_pos, record.content_length
                    if marker == RECORD_START and last + length > size:
                        raise ValueError(f"its stated length of {length:,} bytes passes the file's end")
                    number += 1
                    in_damage = False
                    items = list(_page(record, name, number, max_record_bytes))
                    yield from items
                ends_whole = _gzip_ends_whole if marker == GZIP_MEMBER else _plain_ends_whole
                if not ends_whole(file, last, length, size) and not any(isinstance(i, Quarantined) for i in items):
                    yield Quarantined(name, number + 1, f"WARC file is cut off behind byte {last}")
                return
            except (OSError, ValueError) as error:
                # Bytes that only look like a record's start fail too; one damaged stretch is counted once.
                if not in_damage:
                    number += 1
                    in_damage = True
                    yield Quarantined(name, number, f"broken WARC record after byte {last}: {error}")
                start = _find(file, marker, last + 1, size)


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
