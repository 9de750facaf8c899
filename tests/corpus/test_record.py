"""Documents and dropped pages come back from Parquet as they were written."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chatloom.corpus import record
from chatloom.corpus.record import (
    Document,
    DocumentWriter,
    Dropped,
    DroppedWriter,
    read_documents,
    read_dropped,
    write_documents,
)
from chatloom.errors import ChatloomError

LABELS = {"language": pa.string(), "score": pa.float64(), "n": pa.int64(), "good": pa.bool_()}
DOCUMENTS = [
    Document("a", "text\u2028with\x85odd ends\n中文", "s", "http://x", "2024-01-01", {"title": "标题"},
             {"language": "zh", "score": 0.5, "n": 3, "good": True}),
    Document("b", "", labels={"language": "en", "score": None, "n": None, "good": None}),
]  # fmt: skip


def test_documents_come_back_as_written(tmp_path: Path) -> None:
    assert write_documents(tmp_path / "d.parquet", DOCUMENTS, LABELS) == 2
    assert list(read_documents(tmp_path / "d.parquet")) == DOCUMENTS
    assert pq.read_schema(tmp_path / "d.parquet").field("label_n").type == pa.int64()


def test_a_file_is_written_in_row_groups_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "ROW_GROUP_CHARACTERS", 1000)
    documents = (Document(f"{i:03}", "x" * 300, labels=DOCUMENTS[0].labels) for i in range(40))
    write_documents(tmp_path / "d.parquet", documents, LABELS)
    assert pq.ParquetFile(tmp_path / "d.parquet").num_row_groups == 10
    assert [d.id for d in read_documents(tmp_path / "d.parquet")] == [f"{i:03}" for i in range(40)]


def test_no_documents_still_make_a_readable_file(tmp_path: Path) -> None:
    write_documents(tmp_path / "d.parquet", [], LABELS)
    assert list(read_documents(tmp_path / "d.parquet")) == []


def test_an_undeclared_label_is_refused(tmp_path: Path) -> None:
    with DocumentWriter(tmp_path / "d.parquet", LABELS) as writer, pytest.raises(ValueError, match="undeclared"):
        writer.add(Document("a", "t", labels={"mood": "good"}))


def test_dropped_pages_come_back_with_their_reason(tmp_path: Path) -> None:
    dropped = Dropped("a", "rules", "word_count", "3 is below 50", "a b c", "en", "s", None)
    with DroppedWriter(tmp_path / "x.parquet") as writer:
        writer.add(dropped)
    assert list(read_dropped(tmp_path / "x.parquet")) == [dropped]


def test_what_is_no_file_of_documents_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ChatloomError, match="no such file"):
        next(read_documents(tmp_path / "none.parquet"))
    (tmp_path / "junk.parquet").write_bytes(b"junk")
    with pytest.raises(ChatloomError, match="not a readable Parquet"):
        next(read_documents(tmp_path / "junk.parquet"))
    pq.write_table(pa.table({"words": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(ChatloomError, match=r"no column id, text.*found \['words'\]"):
        next(read_documents(tmp_path / "other.parquet"))


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.999])
def test_a_flipped_bit_is_found_when_the_file_is_read(tmp_path: Path, share: float) -> None:
    path = tmp_path / "d.parquet"
    write_documents(path, [Document(str(i), f"{i} " * 50) for i in range(200)], {})
    data = bytearray(path.read_bytes())
    data[int(share * (len(data) - 1))] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(ChatloomError, match=r"d\.parquet: not a readable Parquet file, or a damaged one"):
        list(read_documents(path))
