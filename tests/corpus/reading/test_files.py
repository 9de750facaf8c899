"""Every record of a file is read or set aside with file, line and reason; nothing is lost, nothing stops the run."""

from __future__ import annotations

import gzip
import io
import json
import os
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from chatloom.corpus.reading.compression import open_stream
from chatloom.corpus.reading.files import Page, format_of, lines, list_files, read_file
from chatloom.corpus.record import Quarantined
from chatloom.errors import ChatloomError


def read(path: Path, **options: object) -> tuple[list[Page], list[Quarantined]]:
    records = list(read_file(path, path.name, **options))  # type: ignore[arg-type]
    return [r for r in records if isinstance(r, Page)], [r for r in records if isinstance(r, Quarantined)]


def test_json_lines_are_read_plain_and_compressed(tmp_path: Path) -> None:
    data = "".join(
        json.dumps({"id": f"d{i}", "text": f"文本 {i}\u2028x", "title": "t"}) + "\n" for i in range(3)
    ).encode()
    (tmp_path / "a.jsonl").write_bytes(data)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(data[:50]) + gzip.compress(data[50:]))  # two members
    frames = zstandard.ZstdCompressor().compress(data[:50]) + zstandard.ZstdCompressor().compress(data[50:])
    (tmp_path / "c.jsonl.zst").write_bytes(frames)
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst"):
        pages, bad = read(tmp_path / name)
        assert [page.text for page in pages] == ["文本 0\u2028x", "文本 1\u2028x", "文本 2\u2028x"]
        assert [page.id for page in pages] == ["d0", "d1", "d2"]
        assert pages[1].number == 2
        assert pages[0].metadata == {"title": "t"}
        assert bad == []


def test_bad_json_lines_are_set_aside_with_their_line_and_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"text": "good"}\n' b"{broken\n" b'["no object"]\n' b'{"content": "wrong field"}\n' b'{"text": 5}\n'
        b'\xff\xfe bytes \x81\n' b"\n" b'{"text": null, "html": "<p>x"}\n' b'{"text": "\\ud800"}\n' b'{"text": "last"}'
    )  # fmt: skip
    pages, bad = read(path)
    assert [(page.text, page.html) for page in pages] == [("good", None), (None, b"<p>x"), ("last", None)]
    assert [(b.file, b.line) for b in bad] == [("a.jsonl", line) for line in (2, 3, 4, 5, 6, 9)]
    for record, words in zip(
        bad, ["invalid JSON", "expected a JSON object, found list", "no field 'text' or 'html'; found content",
              "holds int, expected text", "undecodable line", "invalid JSON"], strict=True,
    ):  # fmt: skip
        assert words in record.reason


def test_a_line_of_100_mb_is_set_aside_without_being_held(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with open(path, "wb") as file:
        file.write(b'{"text": "before"}\n{"text": "')
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n{"text": "after"}\n')
    tracemalloc.start()
    pages, bad = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [page.text for page in pages] == ["before", "after"]
    assert [(b.line, b.reason) for b in bad] == [(2, "line longer than 20,000,000 bytes")]
    assert peak < 50_000_000


def test_lines_split_at_newline_only_and_at_any_cap() -> None:
    data = "a\u2028b\x85c\rd\r\n\n文\n".encode() + b"x" * 11 + b"\n" + b"y" * 10 + b"\nend"
    found = list(lines(io.BytesIO(data), 10_000))
    assert [line for _, line in found] == [
        "a\u2028b\x85c\rd".encode(),
        b"",
        "文".encode(),
        b"x" * 11,
        b"y" * 10,
        b"end",
    ]
    assert [line for _, line in lines(io.BytesIO(data), 10)][3:] == [None, b"y" * 10, b"end"]
    assert list(lines(io.BytesIO(b"z" * 11), 10)) == [(1, None)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030"])
def test_chinese_text_is_read_in_its_encoding(tmp_path: Path, encoding: str) -> None:
    text = "第一行，汉字与 ASCII。\n㐀𠀀 四字节的字\n\n第二段。"
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(text.encode(encoding)))
    for name in ("a.txt", "b.txt.gz"):
        pages, bad = read(tmp_path / name)
        assert [page.text for page in pages] == [text]
        assert bad == []


def test_a_bad_line_of_a_text_is_set_aside_and_the_rest_stays(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("héllo\n".encode() + b"caf\xe9 latin\n" + b"end\n")
    pages, bad = read(tmp_path / "a.txt")
    assert pages[0].text == "héllo\nend"
    assert [b.line for b in bad] == [2]


def test_a_long_text_is_cut_at_empty_lines_without_losing_any(tmp_path: Path) -> None:
    paragraphs = [f"paragraph {i} " + "word " * 2000 for i in range(60)]
    (tmp_path / "book.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")
    pages, _ = read(tmp_path / "book.txt")
    assert [page.id for page in pages] == ["book.txt", "book.txt#1", "book.txt#2"]
    assert "".join(str(page.text) for page in pages).split() == " ".join(paragraphs).split()


def test_parquet_rows_are_read_and_bad_ones_set_aside(tmp_path: Path) -> None:
    table = pa.table({"content": ["a", None, "c"], "id": ["1", "2", "3"]})
    pq.write_table(table, tmp_path / "a.parquet")
    pages, bad = read(tmp_path / "a.parquet", text_field="content")
    assert [(page.id, page.text) for page in pages] == [("1", "a"), ("3", "c")]
    assert [b.line for b in bad] == [2]
    pages, bad = read(tmp_path / "a.parquet")
    assert pages == []
    assert "no column 'text' or 'html'; found content, id" in bad[0].reason


@pytest.mark.parametrize("name", ["a.html", "a.txt", "a.jsonl", "a.jsonl.gz", "a.parquet", "a.warc", "a.warc.gz"])
def test_an_empty_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert read(tmp_path / name) == ([], [Quarantined(name, 0, "the file is empty")])


@pytest.mark.parametrize(
    "name", ["a.jsonl.gz", "a.jsonl.zst", "a.txt.gz", "a.html.gz", "a.parquet", "a.warc", "a.warc.gz"]
)
def test_what_is_not_what_its_name_says_is_set_aside(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x1f\x8b not what the name says" * 20)
    pages, bad = read(tmp_path / name)
    assert pages == []
    assert len(bad) == 1


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_of_a_file_that_is_cut_off_what_is_there_is_read_and_the_cut_is_counted(tmp_path: Path, suffix: str) -> None:
    rows = b"".join(b'{"text": "row %d"}\n' % i for i in range(20_000))
    whole = gzip.compress(rows) if suffix == "gz" else zstandard.ZstdCompressor(level=19).compress(rows)
    (tmp_path / f"whole.jsonl.{suffix}").write_bytes(whole)
    assert len(read(tmp_path / f"whole.jsonl.{suffix}")[0]) == 20_000
    for cut in (len(whole) // 2, len(whole) - 1):
        (tmp_path / f"cut.jsonl.{suffix}").write_bytes(whole[:cut])
        pages, bad = read(tmp_path / f"cut.jsonl.{suffix}")
        assert len(pages) > (5000 if suffix == "gz" else -1)
        assert [page.text for page in pages] == [f"row {i}" for i in range(len(pages))]
        assert "cut off" in bad[-1].reason


def test_a_page_longer_than_the_cap_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_bytes(b"<p>" + b"x" * 5000)
    pages, bad = read(tmp_path / "a.html", max_record_bytes=1000)
    assert pages == []
    assert bad == [Quarantined("a.html", 0, "page longer than 1,000 bytes")]


def test_missing_and_unknown_sources_are_errors_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ChatloomError, match="no such file or folder"):
        list_files([tmp_path / "none"])
    (tmp_path / "a.xyz").touch()
    with pytest.raises(ChatloomError, match="does not tell its format"):
        list_files([tmp_path / "a.xyz"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ChatloomError, match="no file of a known format"):
        list_files([tmp_path / "empty"])


def test_folders_are_listed_in_a_fixed_order_by_relative_names(tmp_path: Path) -> None:
    for name in ("in/b.html", "in/a/z.txt", "in/skip.bin", "one.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [name for _, name in list_files([tmp_path / "in", tmp_path / "one.jsonl"])]
    assert found == ["in/a/z.txt", "in/b.html", "one.jsonl"]
    assert format_of(Path("x.parquet.gz")) is None
    assert format_of(Path("x.warc.gz")) == "warc"
    assert format_of(Path("v1.2.JSONL")) == "lines"


def test_shared_pretraining_files_are_read_whole(shared_data: Path) -> None:
    counts = {"en_children_stories.jsonl.gz": 328, "zh_oiwiki.jsonl.gz": 413, "en_web_wiki_sample.jsonl.gz": 294}
    for name, count in counts.items():
        pages, bad = read(shared_data / "pretrain" / name)
        assert (len(pages), bad) == (count, [])


def test_streams_are_closed(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"x"))
    with open_stream(tmp_path / "a.txt.gz") as stream:
        assert stream.read() == b"x"
    assert stream.closed


def test_a_link_that_leads_nowhere_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}', encoding="utf-8")
    (tmp_path / "up").symlink_to(tmp_path)
    assert [path.name for path, _ in list_files([tmp_path])] == ["a.jsonl"]
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "gone.jsonl")
    with pytest.raises(ChatloomError, match=r"b\.jsonl: a link that leads nowhere"):
        list_files([tmp_path])


def test_a_folder_that_may_not_be_read_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}', encoding="utf-8")
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ChatloomError, match=r"closed: this folder of a source cannot be read"):
        list_files([tmp_path])


def test_a_name_in_bytes_that_are_no_text_is_written_as_text(tmp_path: Path) -> None:
    try:
        with open(os.fsencode(tmp_path) + b"/caf\xe9 \xe9\xa1\xb5.html", "wb") as file:
            file.write(b"<p>x")
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    ((path, name),) = list_files([tmp_path])
    assert name == f"{tmp_path.name}/caf\\xe9 \u9875.html"
    assert [page.id for page in read(path)[0]] != []
