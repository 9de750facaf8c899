"""Columns beside documents: they belong to these documents, and what was measured later is what holds."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from chatloom.corpus.columns import ColumnWriter, read_labelled
from chatloom.corpus.record import Document, write_documents
from chatloom.errors import ChatloomError

DOCUMENTS = [Document(f"d{i}", f"text {i}", labels={"split": "train", "source_year": i}) for i in range(600)]


def shard(folder: Path) -> Path:
    path = folder / "00000.parquet"
    write_documents(path, DOCUMENTS, {"split": pa.string(), "source_year": pa.int64()})
    return path


def column(folder: Path, name: str, label: str, values: list[object], documents: list[Document]) -> Path:
    path = folder / name / "00000.parquet"
    with ColumnWriter(path, {label: pa.string()}) as writer:
        writer.add(documents, [{label: value} for value in values])
    return path


def test_a_column_takes_the_place_of_a_documents_own_label(tmp_path: Path) -> None:
    sides = ["held_out" if i % 3 else None for i in range(600)]
    file = column(tmp_path, "copies", "split", sides, DOCUMENTS)
    found = [document for batch in read_labelled(shard(tmp_path), [file]) for document in batch]
    assert [document.id for document in found] == [document.id for document in DOCUMENTS]
    assert [document.labels for document in found] == [{"split": s, "source_year": i} for i, s in enumerate(sides)]


def test_one_label_of_two_columns_and_columns_of_other_documents_are_refused(tmp_path: Path) -> None:
    same = ["train"] * 600
    files = [column(tmp_path, name, "split", same, DOCUMENTS) for name in ("one", "two")]
    with pytest.raises(ChatloomError, match="label 'split' is there twice"):
        list(read_labelled(shard(tmp_path), files))
    turned = column(tmp_path, "three", "split", same, DOCUMENTS[::-1])
    with pytest.raises(ChatloomError, match="has another document in its place"):
        list(read_labelled(shard(tmp_path), [turned]))
    short = column(tmp_path, "four", "split", same[1:], DOCUMENTS[:-1])
    with pytest.raises(ChatloomError, match="it ends before it"):
        list(read_labelled(shard(tmp_path), [short]))
