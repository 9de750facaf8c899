"""Promises of the token store: what was written is read, every token is traceable, damage is noticed."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatloom.tokens import store_writer
from chatloom.tokens.store import TokenStore, TokenStoreError
from chatloom.tokens.store_writer import TokenWriter
from chatloom.tokens.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.train(["the reader reads the rows of the reader " * 4], 280, allow_smaller=True)


LABELS = {"split": pa.string(), "quality": pa.float64()}


def write(folder: Path, vocabulary: Vocabulary, documents: list[list[int]]) -> TokenStore:
    with TokenWriter(folder, vocabulary, labels=LABELS) as writer:
        for i, ids in enumerate(documents):
            writer.add(f"doc-{i}", "中文" if i % 2 else "pydoc", ids, {"split": "train", "quality": i / 2})
    return TokenStore(folder, vocabulary, verify=True)


@settings(max_examples=25, deadline=None)
@given(documents=st.lists(st.lists(st.integers(0, 260), min_size=1, max_size=9), min_size=1, max_size=9))
def test_every_document_is_read_as_it_was_written(
    vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]]
) -> None:
    store = write(tmp_path_factory.mktemp("store"), vocabulary, documents)
    assert [ids.tolist() for ids in store] == documents
    assert len(store) == len(documents)
    assert store.lengths.tolist() == [len(ids) for ids in documents]
    assert store.n_tokens == sum(map(len, documents))
    last = len(documents) - 1
    assert store.read(last, 1).tolist() == documents[last][1:]
    assert store.read(last, 0, 1).dtype == np.int64


def test_a_token_leads_back_to_its_document_and_labels(vocabulary: Vocabulary, tmp_path: Path) -> None:
    store = write(tmp_path, vocabulary, [[1, 2, 3], [4, 5], [6]])
    rows = store.describe([2, 1])
    assert rows[0] == {
        "id": "doc-2",
        "kind": "document",
        "source": "pydoc",
        "start": 5,
        "length": 1,
        "labels": {"split": "train", "quality": 1.0},
    }
    assert rows[1]["id"] == "doc-1"
    assert rows[1]["source"] == "中文"


def test_the_file_is_plain_little_endian_numbers(vocabulary: Vocabulary, tmp_path: Path) -> None:
    write(tmp_path, vocabulary, [[1, 256], [7]])
    assert (tmp_path / "tokens.bin").read_bytes() == b"\x01\x00\x00\x01\x07\x00"
    assert np.load(tmp_path / "tokens.idx.npy").tolist() == [0, 2, 3]
    header = json.loads((tmp_path / "tokens.json").read_text(encoding="utf-8"))
    assert header["dtype"] == "uint16"
    assert header["vocabulary_sha256"] == vocabulary.sha256


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    class Large:
        size, sha256 = 2**16 + 1, "ab"

    with TokenWriter(tmp_path, Large()) as writer:  # type: ignore[arg-type]
        writer.add("a", "s", [2**16])
    store = TokenStore(tmp_path)
    assert store.read(0).tolist() == [2**16]
    assert (tmp_path / "tokens.bin").stat().st_size == 4


def test_another_vocabulary_is_refused(vocabulary: Vocabulary, tmp_path: Path) -> None:
    write(tmp_path, vocabulary, [[1, 2]])
    other = Vocabulary.train(["another text, another text"], 270, allow_smaller=True)
    with pytest.raises(TokenStoreError, match="make the tokens again with this vocabulary"):
        TokenStore(tmp_path, other)


def test_a_cut_or_changed_or_missing_file_is_noticed(vocabulary: Vocabulary, tmp_path: Path) -> None:
    with pytest.raises(TokenStoreError, match="is not there"):
        TokenStore(tmp_path)
    write(tmp_path, vocabulary, [[1, 2], [3]])
    content = (tmp_path / "tokens.bin").read_bytes()
    (tmp_path / "tokens.bin").write_bytes(content[:-1])
    with pytest.raises(TokenStoreError, match=r"has 5 bytes; its header says 3 tokens, 6 bytes"):
        TokenStore(tmp_path, vocabulary)
    (tmp_path / "tokens.bin").write_bytes(content[:-1] + b"\x01")
    with pytest.raises(TokenStoreError, match="sha256 differs"):
        TokenStore(tmp_path, vocabulary, verify=True)
    (tmp_path / "tokens.bin").unlink()
    with pytest.raises(TokenStoreError, match=r"tokens\.bin is missing"):
        TokenStore(tmp_path)
    (tmp_path / "tokens.bin").write_bytes(content)
    np.save(tmp_path / "tokens.idx.npy", np.array([0, 1, 2], dtype="<u8"))
    with pytest.raises(TokenStoreError, match="does not describe 2 documents of 3 tokens"):
        TokenStore(tmp_path)
    (tmp_path / "tokens.idx.npy").write_bytes(b"no array")
    with pytest.raises(TokenStoreError, match="cannot be read"):
        TokenStore(tmp_path)
    (tmp_path / "tokens.json").write_text("[]", encoding="utf-8")
    with pytest.raises(TokenStoreError, match="header of format 2"):
        TokenStore(tmp_path)


def fail_half_way(writer: TokenWriter) -> None:
    with writer:
        writer.add("a", "s", [3])
        raise RuntimeError("stopped")


def test_a_writer_that_fails_leaves_no_store_not_even_the_old_one(vocabulary: Vocabulary, tmp_path: Path) -> None:
    write(tmp_path, vocabulary, [[1, 2]])
    writer = TokenWriter(tmp_path, vocabulary)
    with pytest.raises(RuntimeError, match="stopped"):
        fail_half_way(writer)
    with pytest.raises(TokenStoreError, match="is not there"):
        TokenStore(tmp_path)


def test_bad_documents_and_no_documents_are_refused(vocabulary: Vocabulary, tmp_path: Path) -> None:
    with pytest.raises(TokenStoreError, match="no document"), TokenWriter(tmp_path, vocabulary):
        pass
    with TokenWriter(tmp_path, vocabulary) as writer:
        with pytest.raises(TokenStoreError, match=r"'e' has ids of shape \[0\]"):
            writer.add("e", "s", [])
        with pytest.raises(TokenStoreError, match=rf"ids 1\.\.{vocabulary.size}"):
            writer.add("big", "s", [1, vocabulary.size])
        with pytest.raises(TokenStoreError, match=r"ids -1\.\.1"):
            writer.add("negative", "s", [-1, 1])
        writer.add("fine", "s", [1])
    store = TokenStore(tmp_path)
    assert [ids.tolist() for ids in store] == [[1]]
    with pytest.raises(IndexError):
        store.read(1)
    with pytest.raises(IndexError):
        store.read(0, 0, 2)


def test_documents_beyond_one_row_group_are_traced_and_read_as_a_table(
    vocabulary: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("store", "store_writer"):
        monkeypatch.setattr(f"chatloom.tokens.{module}.ROW_GROUP", 4)
    store = write(tmp_path, vocabulary, [[i + 1] * (i % 3 + 1) for i in range(11)])
    assert [row["id"] for row in store.describe([10, 3, 4, 3, 0])] == ["doc-10", "doc-3", "doc-4", "doc-3", "doc-0"]
    assert [row["start"] for row in store.describe(range(11))] == store.offsets[:-1].tolist()
    parts = list(store.tables(["length", "quality", "missing", "id"]))
    assert [part.num_rows for part in parts] == [4, 4, 3]
    assert pa.concat_tables(parts)["quality"].to_pylist() == [i / 2 for i in range(11)]
    assert parts[0].column_names == ["length", "quality", "missing", "id"]
    assert parts[0]["missing"].null_count == 4
    assert [part.num_rows for part in store.tables([])] == [4, 4, 3]
    assert np.load(tmp_path / "tokens.idx.npy").tolist() == store.offsets.tolist()
    with pytest.raises(IndexError):
        store.describe([11])


def test_the_offsets_file_is_what_numpy_itself_writes(vocabulary: Vocabulary, tmp_path: Path) -> None:
    store = write(tmp_path, vocabulary, [[1], [2, 3], [4]])
    np.save(tmp_path / "own.npy", store.offsets.astype("<u8"))
    assert (tmp_path / "tokens.idx.npy").read_bytes() == (tmp_path / "own.npy").read_bytes()


def test_a_loss_mask_says_which_tokens_are_targets(vocabulary: Vocabulary, tmp_path: Path) -> None:
    with TokenWriter(tmp_path, vocabulary, masked=True) as writer:
        writer.add("talk", "", [1, 2, 3, 4], kind="conversation", mask=[0, 0, 1.0, 1])
        writer.add("text", "", [5, 6])
        for bad in ([1, 1], [0, 0, 0.5], [2, 1, 1]):
            with pytest.raises(TokenStoreError, match="each 0 or 1"):
                writer.add("bad", "", [1, 2, 3], mask=bad)
    assert (tmp_path / "tokens.mask.bin").read_bytes() == bytes([0, 0, 1, 1, 1, 1])
    store = TokenStore(tmp_path, vocabulary, verify=True)
    assert store.has_mask
    assert store.weights(0, 1, 3).tolist() == [0, 1]
    assert store.weights(1).tolist() == [1, 1]
    assert store.weights(1).dtype == np.float32
    assert [row["kind"] for row in store.describe([0, 1])] == ["conversation", "document"]
    (tmp_path / "tokens.mask.bin").write_bytes(bytes(6))
    with pytest.raises(TokenStoreError, match="sha256 differs"):
        TokenStore(tmp_path, verify=True)
    (tmp_path / "tokens.mask.bin").unlink()
    with pytest.raises(TokenStoreError, match=r"mask\.bin is missing"):
        TokenStore(tmp_path)
    plain = write(tmp_path, vocabulary, [[1, 2]])
    assert not plain.has_mask
    assert plain.weights(0).tolist() == [1, 1]
    with TokenWriter(tmp_path / "other", vocabulary) as writer:
        with pytest.raises(TokenStoreError, match="masked=True"):
            writer.add("talk", "", [1, 2], mask=[0, 1])
        writer.add("a", "", [1])


def test_labels_are_declared_and_do_not_hide_a_documents_own_columns(vocabulary: Vocabulary, tmp_path: Path) -> None:
    with pytest.raises(TokenStoreError, match="a label cannot be called source"):
        TokenWriter(tmp_path, vocabulary, labels={"source": pa.string()})
    writer = TokenWriter(tmp_path, vocabulary, labels={"spans": pa.list_(pa.int64()), "n": pa.int32()})
    with pytest.raises(TokenStoreError, match="undeclared labels m"):
        writer.add("a", "", [1], {"m": 3})
    writer.add("a", "", [1], {"spans": [0, 4]})
    with pytest.raises(TokenStoreError, match="label `n` was declared as int32"), writer:
        writer.add("b", "", [1], {"n": "many"})
    with TokenWriter(tmp_path, vocabulary, labels={"spans": pa.list_(pa.int64())}) as writer:
        writer.add("a", "", [1], {"spans": [0, 4]})
    store = TokenStore(tmp_path)
    assert store.labels == ("spans",)
    assert store.describe([0])[0]["labels"] == {"spans": [0, 4]}


def test_writing_keeps_no_document_in_memory(vocabulary: Vocabulary, tmp_path: Path) -> None:
    def peak(documents: int) -> int:
        tracemalloc.start()
        with TokenWriter(tmp_path, vocabulary, labels=LABELS, masked=True) as writer:
            for i in range(documents):
                writer.add(f"{i}", "s", [1, 2, 3], {"quality": 0.5})
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    few, many = peak(2 * store_writer.ROW_GROUP), peak(5 * store_writer.ROW_GROUP)
    assert many < 1.1 * few
