"""Promises of the token store: what was written is read, every token is traceable, damage is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatloom.tokens.store import TokenStore, TokenStoreError, TokenWriter
from chatloom.tokens.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.train(["the reader reads the rows of the reader " * 4], 280, allow_smaller=True)


def write(folder: Path, vocabulary: Vocabulary, documents: list[list[int]]) -> TokenStore:
    with TokenWriter(folder, vocabulary) as writer:
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
        "source": "pydoc",
        "start": 5,
        "n": 1,
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
    with pytest.raises(TokenStoreError, match="header of format 1"):
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
