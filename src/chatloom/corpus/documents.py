"""First step of the chapter: a part of the raw files -> shards of documents. Nothing is judged here.

What becomes of a record: a document; or `dropped` with its reason, where a page has no text, is too long, or kills or
holds up its parser; or `quarantine`, where it cannot be read at all. HTML is worked on in a child process that can be
killed (workers.py), plain texts here.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chatloom.corpus.extraction.extract import Extracted, Unreadable, extract, tidy
from chatloom.corpus.reading.decoding import Undecodable, decode_html
from chatloom.corpus.reading.files import Page, read_slice
from chatloom.corpus.reading.parts import check_unchanged, slices_of
from chatloom.corpus.record import SHARDS, Document, DocumentWriter, Dropped, DroppedWriter, Quarantined
from chatloom.corpus.settings import ExtractionSettings, ReadingSettings
from chatloom.corpus.workers import Failure, Workers

DROPPED, QUARANTINE = "dropped", "quarantine"
EXTRACTION = "extraction"
SHARD_CHARACTERS = 32_000_000
AT_ONCE = 256
Outcome = Document | Dropped | Quarantined


def write_documents(arguments: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """The task: read `slices`, write `shards/KEY-NNN.parquet`, `dropped/KEY.parquet`, `quarantine/KEY.jsonl`.

    `arguments`: key, slices, reading, extraction (settings as JSON), shard_characters, limit (of records, or None).
    Returns the counts. Raises ChatloomError where a file changed while it was read.
    """
    reading = ReadingSettings.parse(arguments["reading"], where="reading")
    extraction = ExtractionSettings.parse(arguments["extraction"], where="extraction")
    key, limit = arguments["key"], arguments.get("shard_characters", SHARD_CHARACTERS)
    for name in (SHARDS, DROPPED, QUARANTINE):
        (folder / name).mkdir()
    counts = {"records": 0, "documents": 0, "characters": 0, "dropped": 0, "quarantined": 0}
    records: Iterator[Page | Quarantined] = itertools.chain.from_iterable(
        read_slice(
            piece,
            text_field=reading.text_field,
            html_field=reading.html_field,
            max_record_bytes=reading.max_record_bytes,
        )
        for piece in slices_of(arguments["slices"])
    )
    records = itertools.islice(records, arguments.get("limit"))
    shards = _Shards(folder / SHARDS, key, limit)
    with (
        shards,
        DroppedWriter(folder / DROPPED / f"{key}.parquet") as dropped,
        open(folder / QUARANTINE / f"{key}.jsonl", "w", encoding="utf-8", newline="\n") as quarantine,
    ):
        for outcome in _outcomes(records, extraction):
            counts["records"] += 1
            if isinstance(outcome, Document):
                shards.add(outcome)
                counts["documents"] += 1
                counts["characters"] += len(outcome.text)
            elif isinstance(outcome, Dropped):
                dropped.add(outcome)
                counts["dropped"] += 1
                counts[f"dropped:{outcome.reason}"] = counts.get(f"dropped:{outcome.reason}", 0) + 1
            else:
                quarantine.write(json.dumps(asdict(outcome), ensure_ascii=False) + "\n")
                counts["quarantined"] += 1
    check_unchanged(arguments["slices"])
    counts["shards"] = shards.number
    for name, kind in ((SHARDS, "documents"), (DROPPED, "dropped"), (QUARANTINE, "quarantined")):
        _remove_empty(folder / name, counts[kind])
    return counts


def page_to_document(page: Page, settings: ExtractionSettings) -> Outcome:
    """What becomes of one raw page; only bytes in no known encoding are quarantined."""
    try:
        extracted = text_of(page, settings)
    except Undecodable as error:
        return Quarantined(page.source, page.number, f"page {page.id}: {error}")
    if isinstance(extracted, Dropped):
        return extracted
    if not extracted.text:
        return dropped_raw(page, "empty", "no text was found on the page")
    metadata: dict[str, Any] = {**page.metadata}
    metadata |= {"title": extracted.title} if extracted.title else {}
    metadata |= {"language_hint": extracted.language_hint} if extracted.language_hint else {}
    return Document(page.id, extracted.text, page.source, page.url or extracted.url or None, page.time, metadata)


def dropped_raw(page: Page, reason: str, detail: str) -> Dropped:
    """A page dropped before it had a text: its HTML is kept in the text's place where it can be decoded."""
    text = page.text or ""
    if page.html is not None:
        try:
            text = decode_html(page.html, page.declared_encoding)
            detail += " (kept as HTML)" if text else ""
        except Undecodable as error:
            detail += f" (not kept: {error})"
    return Dropped(page.id, EXTRACTION, reason, detail, text, "", page.source, page.url)


def text_of(page: Page, settings: ExtractionSettings) -> Extracted | Dropped:
    """Text of a page; raises Undecodable for bytes in no known encoding."""
    if page.html is None:
        return Extracted(tidy(page.text or ""), str(page.metadata.get("title", "")))
    if len(page.html) > settings.max_page_bytes:
        limit = f"more than {settings.max_page_bytes:,} allowed"
        return dropped_raw(page, "page_bytes", f"{len(page.html):,} bytes of HTML, {limit}")
    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # it reports every odd page, we count them
    try:
        return extract(page.html, settings.extractor, page.declared_encoding)
    except Unreadable as error:
        return dropped_raw(page, "unreadable", str(error))


def _outcomes(records: Iterable[Page | Quarantined], settings: ExtractionSettings) -> Iterator[Outcome]:
    """One outcome a record, in the order of reading; a page whose parser failed is dropped with the reason."""
    child = _child(json.dumps(settings.everything(), sort_keys=True))
    source = iter(records)
    while batch := list(itertools.islice(source, AT_ONCE)):
        pages = [record for record in batch if isinstance(record, Page) and record.html is not None]
        done = child.map((page, len(page.html or b"")) for page in pages)
        for record in batch:
            if isinstance(record, Quarantined):
                yield record
            elif record.html is None:
                yield page_to_document(record, settings)
            else:
                outcome = next(done)
                yield dropped_raw(record, "failed", outcome.reason) if isinstance(outcome, Failure) else outcome


@functools.lru_cache(maxsize=1)  # the next shard of this process uses it again: to start one takes as long as 50 pages
def _child(settings: str) -> Workers:
    """The child process that extracts; it starts with its first page and ends with this process."""
    parsed = ExtractionSettings.parse(json.loads(settings), where="extraction")
    workers = Workers("chatloom.corpus.documents:page_to_document", parsed, 1, parsed.seconds_per_page)
    atexit.register(workers.stop)
    return workers


class _Shards:
    """Documents into files of about equal size: a new one once the last holds `limit` characters."""

    def __init__(self, folder: Path, key: str, limit: int) -> None:
        self.number = 0
        self._folder, self._key, self._limit = folder, key, limit
        self._writer: DocumentWriter | None = None
        self._characters = 0

    def add(self, document: Document) -> None:
        if self._writer is None:
            self._writer = DocumentWriter(self._folder / f"{self._key}-{self.number:03d}.parquet", {})
            self._writer.__enter__()
            self.number, self._characters = self.number + 1, 0
        self._writer.add(document)
        self._characters += len(document.text)
        if self._characters >= self._limit:
            self._close(None)

    def _close(self, kind: type[BaseException] | None) -> None:
        if self._writer is not None:
            self._writer.__exit__(kind, None, None)
            self._writer = None

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        self._close(kind)


def _remove_empty(folder: Path, count: int) -> None:
    """A part without a dropped or quarantined record leaves no empty file of them behind."""
    if not count:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
