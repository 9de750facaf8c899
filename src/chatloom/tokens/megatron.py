"""Token stores in the format of Megatron-LM's indexed datasets (`.bin` + `.idx`), written and read.

    .bin    the ids of all sequences
    .idx    9 bytes  magic "MMIDIDX" and two zero bytes       all numbers little-endian
            uint64   version, 1
            uint8    type of an id: 1 uint8, 2 int8, 3 int16, 4 int32, 5 int64, 8 uint16 (6 and 7 are floats)
            uint64   number of sequences
            uint64   length of the document index
            int32    [sequences] ids of each sequence
            int64    [sequences] where it starts in .bin, in bytes
            int64    [documents + 1] the first sequence of each document, and the number of sequences

(Megatron Core developer guide, `core.datasets`: Data Pipeline.) A document of ours is one sequence. Labels and loss
masks have no place in this format.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from chatloom.tokens.store import TokenStore, TokenStoreError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_HEADER = struct.Struct("<QBQQ")  # after the magic
_CHUNK = 1 << 22  # tokens copied at a time


def export_megatron(store: TokenStore, prefix: str | Path) -> None:
    """Write `PREFIX.bin` and `PREFIX.idx`: uint16 ids as they are, uint32 ones as int32.

    Raises TokenStoreError for a store with a loss mask, which would be lost, or a document of 2**31 tokens.
    """
    if store.has_mask:
        raise TokenStoreError(
            f"{store.folder}: has a loss mask, which this format cannot hold; export a store whose tokens are all "
            "targets (stage `tokens` with `conversation_loss: all`)"
        )
    lengths = store.lengths
    if lengths.max() >= 2**31:
        raise TokenStoreError(f"{store.folder}: a document has {lengths.max()} tokens; this format holds up to 2**31-1")
    code = 8 if store.dtype.itemsize == 2 else 4
    dtype = np.dtype(TYPES[code])
    binary, index = _paths(prefix)
    binary.parent.mkdir(parents=True, exist_ok=True)
    with binary.open("wb") as file:
        source = np.memmap(store.folder / f"{store.name}.bin", dtype=store.dtype, mode="r")
        for first in range(0, store.n_tokens, _CHUNK):
            file.write(source[first : first + _CHUNK].astype(dtype).tobytes())
    with index.open("wb") as file:
        file.write(MAGIC + _HEADER.pack(VERSION, code, len(store), len(store) + 1))
        file.write(lengths.astype("<i4").tobytes())
        file.write((store.offsets[:-1] * dtype.itemsize).astype("<i8").tobytes())
        file.write(np.arange(len(store) + 1, dtype="<i8").tobytes())


def read_megatron(prefix: str | Path) -> Iterator[np.ndarray]:
    """Ids of each document, int64 [n], its sequences joined; one without a token is an empty array.

    Raises TokenStoreError when a file is missing, is not of this format or this version, or the two contradict.
    """
    binary, path = _paths(prefix)
    for file in (binary, path):
        if not file.is_file():
            raise TokenStoreError(f"{file}: no such file; expected {path.name} beside {binary.name}")
    content = np.memmap(path, dtype=np.uint8, mode="r") if path.stat().st_size else np.zeros(0, dtype=np.uint8)
    begin = len(MAGIC) + _HEADER.size
    if len(content) < begin or content[: len(MAGIC)].tobytes() != MAGIC:
        raise TokenStoreError(f"{path}: not an index of Megatron-LM (it begins with {MAGIC!r})")
    version, code, sequences, documents = _HEADER.unpack(content[len(MAGIC) : begin].tobytes())
    if version != VERSION or code not in TYPES:
        raise TokenStoreError(f"{path}: version {version}, ids of type {code}; expected 1, and one of {sorted(TYPES)}")
    expected = begin + 12 * sequences + 8 * documents
    if len(content) != expected:
        raise TokenStoreError(
            f"{path}: has {len(content)} bytes; {sequences} sequences and {documents} places of documents take "
            f"{expected} (indexes with sequence modes, for several sorts of data, are not read)"
        )
    parts = np.split(content[begin:], [4 * sequences, 12 * sequences])
    lengths, starts, first = (part.view(kind) for part, kind in zip(parts, ("<i4", "<i8", "<i8"), strict=True))
    dtype = np.dtype(TYPES[code])
    ids = np.memmap(binary, dtype=np.uint8, mode="r") if binary.stat().st_size else np.zeros(0, dtype=np.uint8)
    ends = starts + lengths.astype(np.int64) * dtype.itemsize
    inside = (lengths >= 0).all() and (starts >= 0).all() and (ends <= len(ids)).all()
    ordered = documents >= 1 and first[0] == 0 and first[-1] == sequences and (np.diff(first) >= 0).all()
    if not (inside and ordered):
        raise TokenStoreError(
            f"{path}: names places that {binary.name} ({len(ids)} bytes) does not have; copy both anew"
        )
    for a, b in zip(first[:-1].tolist(), first[1:].tolist(), strict=True):
        found = [ids[starts[i] : ends[i]].view(dtype).astype(np.int64) for i in range(a, b)]
        yield np.concatenate(found) if found else np.zeros(0, dtype=np.int64)


def _paths(prefix: str | Path) -> tuple[Path, Path]:
    """The two files; the name of either is taken for their common one."""
    text = str(prefix)
    stem = text[:-4] if text.endswith((".bin", ".idx")) else text
    return Path(f"{stem}.bin"), Path(f"{stem}.idx")
