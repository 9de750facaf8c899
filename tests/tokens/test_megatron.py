"""Promises of Megatron-LM's files: the bytes that its format asks for, and the same tokens back."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatloom.tokens.megatron import export_megatron, read_megatron
from chatloom.tokens.store import TokenStore, TokenStoreError
from chatloom.tokens.store_writer import TokenWriter


class Sized:
    """A vocabulary that is nothing but a size."""

    sha256 = "ab"

    def __init__(self, size: int) -> None:
        self.size = size


def store(folder: Path, documents: list[list[int]], size: int = 300) -> TokenStore:
    with TokenWriter(folder, Sized(size)) as writer:  # type: ignore[arg-type]
        for number, ids in enumerate(documents):
            writer.add(f"d{number}", "s", ids)
    return TokenStore(folder)


def test_the_bytes_are_those_of_the_format(tmp_path: Path) -> None:
    export_megatron(store(tmp_path / "s", [[1, 258, 3], [4]]), tmp_path / "out")
    assert (tmp_path / "out.bin").read_bytes() == bytes.fromhex("0100 0201 0300 0400")
    assert (tmp_path / "out.idx").read_bytes() == bytes.fromhex(
        "4d4d494449445800 00"  # MMIDIDX
        "0100000000000000"  # version 1
        "08"  # uint16
        "0200000000000000"  # two sequences
        "0300000000000000"  # three places of documents
        "03000000 01000000"  # tokens of each
        "0000000000000000 0600000000000000"  # where each starts, in bytes
        "0000000000000000 0100000000000000 0200000000000000"  # documents begin at sequences 0 and 1; 2 in all
    )


def test_large_vocabularies_are_written_as_int32(tmp_path: Path) -> None:
    export_megatron(store(tmp_path / "s", [[70_000, 1], [2]], size=100_000), tmp_path / "out")
    assert (tmp_path / "out.bin").read_bytes() == struct.pack("<3i", 70_000, 1, 2)
    index = (tmp_path / "out.idx").read_bytes()
    assert index[17] == 4
    assert struct.unpack("<2q", index[42:58]) == (0, 8)
    assert [ids.tolist() for ids in read_megatron(tmp_path / "out")] == [[70_000, 1], [2]]


@settings(max_examples=25, deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(0, 299), min_size=1, max_size=9), min_size=1, max_size=9),
    size=st.sampled_from([300, 70_000]),
)
def test_what_was_exported_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], size: int
) -> None:
    folder = tmp_path_factory.mktemp("megatron")
    export_megatron(store(folder / "s", documents, size), folder / "deeper" / "out")
    for name in ("out", "out.bin", "out.idx"):
        assert [ids.tolist() for ids in read_megatron(folder / "deeper" / name)] == documents


def write_index(prefix: Path, code: int, dtype: str, lengths: list[int], first: list[int]) -> None:
    ids = np.arange(sum(lengths)).astype(dtype)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]) * ids.itemsize
    prefix.with_suffix(".bin").write_bytes(ids.tobytes())
    prefix.with_suffix(".idx").write_bytes(
        b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, len(lengths), len(first)) + np.array(lengths, "<i4").tobytes()
        + starts.astype("<i8").tobytes() + np.array(first, "<i8").tobytes()
    )  # fmt: skip


@pytest.mark.parametrize(("code", "dtype"), [(1, "u1"), (2, "i1"), (3, "<i2"), (4, "<i4"), (5, "<i8"), (8, "<u2")])
def test_every_integer_type_is_read_and_sequences_of_a_document_are_joined(
    code: int, dtype: str, tmp_path: Path
) -> None:
    write_index(tmp_path / "a", code, dtype, [2, 1, 0, 3], [0, 2, 2, 4])
    assert [ids.tolist() for ids in read_megatron(tmp_path / "a")] == [[0, 1, 2], [], [3, 4, 5]]


def test_files_that_are_damaged_or_of_another_format_are_refused(tmp_path: Path) -> None:
    def refuse(message: str) -> None:
        with pytest.raises(TokenStoreError, match=message):
            list(read_megatron(tmp_path / "a"))

    refuse("no such file")
    write_index(tmp_path / "a", 4, "<i4", [2, 1], [0, 1, 2])
    good = (tmp_path / "a.idx").read_bytes()
    for content, message in (
        (b"", "not an index"),
        (b"TNTIDX" + good[6:], "not an index"),
        (good[:9] + struct.pack("<Q", 2) + good[17:], "version 2"),
        (good[:17] + b"\x07" + good[18:], "ids of type 7"),
        (good + b"\0\0", "sequence modes"),
        (good[:-8] + struct.pack("<q", 3), "does not have"),
        (good[:34] + struct.pack("<2i", 2, 9) + good[42:], "does not have"),
        (good[:42] + struct.pack("<2q", -4, 8) + good[58:], "does not have"),
    ):
        (tmp_path / "a.idx").write_bytes(content)
        refuse(message)
    (tmp_path / "a.idx").write_bytes(good)
    (tmp_path / "a.bin").write_bytes(b"")
    refuse("does not have")


def test_a_loss_mask_is_not_lost_in_silence(tmp_path: Path) -> None:
    with TokenWriter(tmp_path, Sized(9), masked=True) as writer:  # type: ignore[arg-type]
        writer.add("a", "s", [1, 2], mask=[0, 1])
    with pytest.raises(TokenStoreError, match="has a loss mask, which this format cannot hold"):
        export_megatron(TokenStore(tmp_path), tmp_path / "out")
