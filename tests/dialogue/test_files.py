from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from chatloom.dialogue.files import BadRecord, RawRecord, read_records
from chatloom.dialogue.record import DialogueError

ROWS = [{"a": "一\u2028x\u0085y", "b": "2"}, {"a": "line\nbreak", "b": ""}, {"a": "é", "b": "z" * 50}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode("utf-8")


def write(folder: Path, name: str, data: bytes = LINES) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def columns(path: Path, **options: object) -> list[object]:
    return [r.columns if isinstance(r, RawRecord) else str(r) for r in read_records(path, **options)]  # type: ignore[arg-type]


def test_every_container_gives_the_same_records(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl")
    write(tmp_path, "b.jsonl", b"\xef\xbb\xbf" + LINES.rstrip(b"\n"))
    write(tmp_path, "c.jsonl.gz", gzip.compress(LINES[:30]) + gzip.compress(LINES[30:]))
    packer = zstandard.ZstdCompressor()
    write(tmp_path, "d.jsonl.zst", packer.compress(LINES[:30]) + packer.compress(LINES[30:]))
    write(tmp_path, "e.json", json.dumps(ROWS, indent=1).encode())
    write(tmp_path, "f.json", LINES)
    write(tmp_path, "g.csv", 'a,b\r\n"一\u2028x\u0085y",2\r\n"line\nbreak",\r\né,{}\r\n'.format("z" * 50).encode())
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "h.parquet")
    for path in sorted(tmp_path.iterdir()):
        assert columns(path) == ROWS, path.name


def test_lines_are_counted_as_an_editor_counts_them(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", b'{"a": 1}\n\n  \n{"a": 2}\n')
    assert [record.line for record in read_records(path)] == [1, 4]
    path = write(tmp_path, "a.csv", b'a\n"x\ny"\nz\n')
    assert [record.line for record in read_records(path)] == [2, 4]


def test_a_bad_line_is_set_aside_and_the_rest_is_read(tmp_path: Path) -> None:
    data = b'{"a": 1}\n{"a": \xff}\n{"a": 1\n[1]\n{"a": "\\ud800"}\n{"a": NaN}\n{"a": 3}\n'
    records = list(read_records(write(tmp_path, "a.jsonl", data)))
    assert [r.line for r in records if isinstance(r, RawRecord)] == [1, 7]
    bad = [r for r in records if isinstance(r, BadRecord)]
    assert [r.line for r in bad] == [2, 3, 4, 5, 6]
    assert "not utf-8" in bad[0].reason
    assert "not JSON" in bad[1].reason
    assert "list; expected an object" in bad[2].reason
    assert str(bad[0]).startswith(f"{tmp_path / 'a.jsonl'}:2: ")


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    data = b'{"a": 1}\n' + b'{"a": "' + b"x" * 5_000_000 + b'"}\n' + b'{"a": 2}\n'
    records = list(read_records(write(tmp_path, "a.jsonl", data), max_record_bytes=1000))
    assert [record.line for record in records] == [1, 2, 3]
    assert isinstance(records[1], BadRecord)
    assert "5,000,010 bytes; at most 1,000" in records[1].reason


def test_a_line_of_exactly_the_limit_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", b'{"a": 1}\n{"a": 2}')
    assert columns(path, max_record_bytes=8) == [{"a": 1}, {"a": 2}]
    assert "at most 7" in str(columns(path, max_record_bytes=7)[0])


def test_gb18030_is_read_when_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"a": "中文"}\n'.encode("gb18030"))
    assert columns(path, encoding="gb18030") == [{"a": "中文"}]
    assert "not utf-8" in str(columns(path)[0])


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.jsonl", b"", "empty"),
        ("a.txt", b"x", "expected one of .jsonl"),
        ("a", b"x", "no suffix"),
        ("a.jsonl.gz", b"not gzip", "broken or cut off"),
        ("a.jsonl.gz", gzip.compress(LINES * 99)[:-20], "broken or cut off"),
        ("a.jsonl.zst", b"not zstd", "broken or cut off"),
        ("a.jsonl.zst", zstandard.ZstdCompressor().compress(LINES * 99)[:-5], "broken or cut off"),
        ("a.json", b'[{"a": 1}', "not a JSON list"),
        ("a.csv", b'a,b\n"never closed', "broken CSV"),
        ("a.parquet", b"PAR1 nonsense PAR1", "Parquet"),
        ("a.parquet.gz", b"x", "unpack"),
    ],
)
def test_a_broken_file_ends_in_a_sentence_that_names_it(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    path = write(tmp_path, name, data)
    with pytest.raises(DialogueError, match=words) as error:
        list(read_records(path))
    assert str(path) in str(error.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DialogueError, match="missing"):
        list(read_records(tmp_path / "none.jsonl"))
    with pytest.raises(DialogueError, match="folder"):
        list(read_records(tmp_path))


def test_a_csv_row_with_another_number_of_fields_is_set_aside(tmp_path: Path) -> None:
    records = list(read_records(write(tmp_path, "a.csv", b"a,b\n1,2\n3\n\n4,5\n")))
    assert [type(r) for r in records] == [RawRecord, BadRecord, RawRecord]
    assert "1 fields; the header has 2" in str(records[1])
