"""Crawls are read past broken records, and what is broken is counted."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from chatloom.corpus.reading.files import Page, read_file
from chatloom.corpus.record import Quarantined


def record(url: str, body: bytes, kind: str = "response", content_type: str = "text/html; charset=utf-8") -> bytes:
    http = b"HTTP/1.1 200 OK\r\nContent-Type: " + content_type.encode() + b"\r\n\r\n" + body
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{abs(hash(url)):032x}>\r\n"
        f"WARC-Date: 2024-04-25T16:24:44Z\r\nWARC-Target-URI: {url}\r\n"
        f"Content-Type: application/http; msgtype={kind}\r\nContent-Length: {len(http)}\r\n\r\n"
    )
    return head.encode() + http + b"\r\n\r\n"


RECORDS = [record(f"http://x/{i}", f"<p>page {i}</p>".encode()) for i in range(8)]


def read(path: Path, data: bytes, **options: int) -> tuple[list[str], list[Quarantined]]:
    path.write_bytes(data)
    found = list(read_file(path, path.name, **options))  # type: ignore[arg-type]
    urls = [str(page.url) for page in found if isinstance(page, Page)]
    return [url.rsplit("/", 1)[1] for url in urls], [bad for bad in found if isinstance(bad, Quarantined)]


@pytest.mark.parametrize("packed", ["plain", "a member a record", "one member"])
def test_all_pages_are_read(tmp_path: Path, packed: str) -> None:
    data = b"".join(RECORDS)
    if packed == "plain":
        found, bad = read(tmp_path / "a.warc", data)
    elif packed == "one member":
        found, bad = read(tmp_path / "a.warc.gz", gzip.compress(data))
    else:
        found, bad = read(tmp_path / "a.warc.gz", b"".join(map(gzip.compress, RECORDS)))
    assert found == [str(i) for i in range(8)]
    assert bad == []


def test_only_successful_pages_and_texts_count(tmp_path: Path) -> None:
    data = (
        record("http://x/0", b"<p>zero</p>") + record("http://x/1", b"q", kind="request")
        + record("http://x/2", b"%PDF", content_type="application/pdf")
        + record("http://x/3", b"<p>gone</p>").replace(b"200 OK", b"404 NO")
        + record("http://x/4", "纯文本".encode("gb18030"), content_type="text/plain")
    )  # fmt: skip
    found, bad = read(tmp_path / "a.warc", data)
    assert (found, bad) == (["0", "4"], [])
    pages = list(read_file(tmp_path / "a.warc", "a.warc"))
    assert isinstance(pages[1], Page)
    assert pages[1].text == "纯文本"
    assert pages[1].time == "2024-04-25T16:24:44+00:00"
    assert isinstance(pages[0], Page)
    assert pages[0].declared_encoding == "utf-8"


BROKEN = {
    "no header": lambda r: r.replace(b"WARC/1.0", b"XXXXXXXX", 1),
    "length is no number": lambda r: r.replace(b"Content-Length: ", b"Content-Length: x", 1),
    "length too long": lambda r: r.replace(b"Content-Length: ", b"Content-Length: 999999", 1),
    "length too short": lambda r: r.replace(b"Content-Length: ", b"Content-Length: 1\r\nX-Was: ", 1),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_record_costs_only_itself(tmp_path: Path, how: str) -> None:
    data = [*RECORDS[:3], BROKEN[how](RECORDS[3]), *RECORDS[4:]]
    found, bad = read(tmp_path / "a.warc", b"".join(data))
    assert set(found) >= {"0", "1", "2", "4", "5", "6", "7"}
    assert len(bad) == 1
    assert "byte" in bad[0].reason


def test_a_damaged_gzip_member_costs_only_its_record(tmp_path: Path) -> None:
    members = [bytearray(gzip.compress(data)) for data in RECORDS]
    members[3][20:60] = b"\0" * 40
    found, bad = read(tmp_path / "a.warc.gz", b"".join(members))
    assert found == ["0", "1", "2", "4", "5", "6", "7"]
    assert len(bad) == 1


@pytest.mark.parametrize("suffix", ["warc", "warc.gz"])
def test_a_file_that_is_cut_off_says_so_wherever_the_cut_is(tmp_path: Path, suffix: str) -> None:
    pack = gzip.compress if suffix == "warc.gz" else bytes
    data = b"".join(pack(data) for data in RECORDS)
    last = len(data) - len(pack(RECORDS[-1]))
    for cut in (last + 15, last + len(pack(RECORDS[-1])) // 2, len(data) - 30):
        found, bad = read(tmp_path / f"a.{suffix}", data[:cut])
        assert found[:7] == [str(i) for i in range(7)]
        assert len(found) + len(bad) == 8, cut


def test_what_is_no_warc_is_one_bad_record(tmp_path: Path) -> None:
    found, bad = read(tmp_path / "a.warc", b"hello\n" * 10_000)
    assert (found, len(bad)) == ([], 1)


def test_a_record_longer_than_the_cap_is_passed_over(tmp_path: Path) -> None:
    data = RECORDS[0] + record("http://x/big", b"<p>" + b"x" * 10_000) + RECORDS[1]
    found, bad = read(tmp_path / "a.warc", data, max_record_bytes=5000)
    assert found == ["0", "1"]
    assert "longer than 5,000 bytes" in bad[0].reason


def test_the_shared_crawl_is_read_whole(shared_data: Path) -> None:
    path = shared_data / "web" / "sample-0000.warc.gz"
    found = list(read_file(path, path.name))
    assert len(found) == 22
    assert all(isinstance(page, Page) for page in found)
