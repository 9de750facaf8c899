"""A small crawl of every kind of file, in English and Chinese, with copies: the sources of the fault matrix."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ENGLISH = (
    "the of and to in a is that for it with as was on by this from they at but have which one when there their about "
    "garden river teacher window morning letter kitchen mountain station harbour market village evening winter journey"
)
CHINESE = (
    "我们他的是在有人这上来到时大地为子中你说生国年着就那和要她出也得里后自以会家可"
    "下而过天去能对小多然于心学么之都好看起发"
)
LINES, WARC, BOOK, TABLE, PAGES = "talks.jsonl", "crawl.warc.gz", "book.txt.gz", "table.parquet", "pages"


def english(rng: random.Random, words: int) -> str:
    """Sentences of eight to sixteen words."""
    text: list[str] = []
    while len(text) < words:
        sentence = rng.choices(ENGLISH.split(), k=rng.randint(8, 16))
        text += [sentence[0].capitalize(), *sentence[1:-1], sentence[-1] + "."]
    return " ".join(text)


def chinese(rng: random.Random, characters: int) -> str:
    """Clauses of six to twelve characters."""
    return "".join("".join(rng.choices(CHINESE, k=rng.randint(6, 12))) + "。" for _ in range(characters // 9))


def text(number: int, size: int = 120) -> str:
    """The text of a number, the same on every machine; every third is Chinese."""
    rng = random.Random(f"text {number}")
    return chinese(rng, 3 * size) if number % 3 == 2 else english(rng, size)


def html(number: int) -> str:
    """A page of three paragraphs."""
    body = "".join(f"<p>{text(3 * number + i, 60)}</p>" for i in range(3))
    return f"<html><head><title>page {number}</title></head><body><h1>Page {number}</h1>{body}</body></html>"


def response(number: int, body: bytes | None = None, *, stated: int | None = None) -> bytes:
    """One record of a crawl; `stated` is a length that is not true."""
    content = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + (body or html(number).encode())
    length = len(content) if stated is None else stated
    head = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-{number:012d}>\r\n"
        f"WARC-Date: 2026-01-01T00:00:00Z\r\nWARC-Target-URI: https://example.org/{number}\r\n"
        f"Content-Type: application/http; msgtype=response\r\nContent-Length: {length}\r\n\r\n"
    )
    return head.encode() + content + b"\r\n\r\n"


def warc(numbers: Sequence[int], pack: Callable[[bytes], bytes] = lambda data: data) -> bytes:
    """A WARC file of pages; `pack` packs each record."""
    return b"".join(pack(response(number)) for number in numbers)


def packed(data: bytes) -> bytes:
    """A gzip member without a time in it."""
    return gzip.compress(data, mtime=0)


def line(number: int, name: str | None = None) -> str:
    """One record as a line of JSON."""
    return json.dumps({"id": name or f"talk-{number}", "text": text(number)}, ensure_ascii=False) + "\n"


def write(folder: Path) -> Path:
    """All sources in a folder; returns it."""
    (folder / PAGES).mkdir(parents=True)
    for number in range(8):
        page = html(100 + number)
        if number == 5:
            page = page.replace("<head>", '<head><meta charset="gb18030">')
        (folder / PAGES / f"{number}.html").write_bytes(page.encode("gb18030" if number == 5 else "utf-8"))
    # Every fifth text is there twice, once with a word more: copies for the search, on both sides of a shard's end.
    rows = [line(1000 + number) for number in range(60)]
    rows += [line(1000 + number, f"copy-{number}") for number in range(0, 60, 10)]
    rows += [line(1000 + number, f"near-{number}").replace('."}', '. Word."}') for number in range(0, 60, 15)]
    (folder / LINES).write_text("".join(rows), encoding="utf-8")
    (folder / WARC).write_bytes(warc(range(200, 224), packed))
    (folder / BOOK).write_bytes(packed("\n\n".join(text(2000 + number, 200) for number in range(20)).encode()))
    columns = {"id": [f"row-{n}" for n in range(16)], "text": [text(3000 + n) for n in range(16)]}
    pq.write_table(pa.table(columns), folder / TABLE, row_group_size=4)
    return folder
