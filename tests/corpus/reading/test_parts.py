"""Parts of raw files: together they give every record of the files once, in order, with its own number."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatloom.corpus.reading.files import Page, list_files, read_file, read_slice
from chatloom.corpus.reading.parts import Part, find_cuts, has_cuts, parts_of, slices_of
from chatloom.corpus.record import Quarantined


def records(files: list[tuple[Path, str]], part_bytes: int) -> list[Page | Quarantined]:
    parts = parts_with_cuts(files, part_bytes)
    return list(
        itertools.chain.from_iterable(read_slice(piece) for part in parts for piece in slices_of(part.values()))
    )


def parts_with_cuts(files: list[tuple[Path, str]], part_bytes: int) -> list[Part]:
    cuts = {path: find_cuts(path, part_bytes, 1_000_000) for path, _ in files if has_cuts(path, part_bytes)}
    return parts_of(files, part_bytes, cuts)


def whole(files: list[tuple[Path, str]]) -> list[Page | Quarantined]:
    return list(itertools.chain.from_iterable(read_file(path, name) for path, name in files))


@given(
    texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=30), min_size=1, max_size=30),
    part_bytes=st.integers(1, 400),
    last_line_ends=st.booleans(),
)
def test_lines_cut_anywhere_are_the_lines_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], part_bytes: int, last_line_ends: bool
) -> None:
    path = tmp_path_factory.mktemp("parts") / "x.jsonl"
    rows = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    rows.insert(len(rows) // 2, "not json")
    path.write_bytes("\n".join(rows).encode() + (b"\n" if last_line_ends else b""))
    files = [(path, "x.jsonl")]
    assert records(files, part_bytes) == whole(files)
    assert len(whole(files)) == len(texts) + 1


def test_a_big_line_file_is_cut_into_parts_of_about_the_size_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"text": "a" * 100}) + "\n" for _ in range(1000)), encoding="utf-8")
    parts = parts_with_cuts([(path, "x.jsonl")], 10_000)
    assert len(parts) >= 10
    assert sum(part.bytes for part in parts) == path.stat().st_size
    assert all(part.bytes <= 10_000 + 200 for part in parts)


def test_parquet_is_cut_between_row_groups_and_rows_keep_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": [f"row {i} " * 50 for i in range(90)]}), path, row_group_size=10)
    files = [(path, "x.parquet")]
    assert len(parts_of(files, 2500)) >= 4
    got = records(files, 2500)
    assert got == whole(files)
    assert [page.number for page in got if isinstance(page, Page)] == list(range(1, 91))


def test_a_bad_line_of_a_later_part_is_named_by_its_line_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    rows = [json.dumps({"text": "a" * 50}) for _ in range(40)]
    rows[33] = "{broken"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    bad = [item for item in records([(path, "x.jsonl")], 300) if isinstance(item, Quarantined)]
    assert [(item.file, item.line) for item in bad] == [("x.jsonl", 34)]


def test_small_files_share_a_part_and_packed_ones_stay_whole(tmp_path: Path) -> None:
    import gzip

    for number in range(20):
        (tmp_path / f"{number:02d}.txt").write_text("word " * 20, encoding="utf-8")
    with gzip.open(tmp_path / "z.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": "b" * 100 + str(i)}) + "\n" for i in range(2000))
    files = list_files([tmp_path])
    parts = parts_with_cuts(files, 1000)
    assert len(parts) < 6
    assert records(files, 1000) == whole(files)


def test_gb18030_lines_are_read_alike_in_every_part(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(
        "".join(json.dumps({"text": "中文的一句话，" * 9}, ensure_ascii=False) + "\n" for _ in range(50)).encode(
            "gb18030"
        )
    )
    got = records([(path, "x.jsonl")], 500)
    assert len(got) == 50
    assert all(isinstance(page, Page) and page.text == "中文的一句话，" * 9 for page in got)
