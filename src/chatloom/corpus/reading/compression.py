"""Compressed files as streams that give every byte up to the damage, and then say that there is damage.

The standard readers give nothing of a block in which a file ends too early (gzip), or take the end for the file's
(zstd); a cut-off download would lose records without a word.
"""

from __future__ import annotations

import bisect
import contextlib
import io
import itertools
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

SUFFIXES = (".gz", ".zst")
PIECE = 4096  # bytes of input at once: what is unpacked from them is lost if they are damaged


class Damaged(OSError):
    """A compressed file that is cut off or whose content is not what its name says."""


class _Unpacker(io.RawIOBase):
    """Concatenated gzip members or zstd frames, unpacked; raises Damaged behind the last byte that is good."""

    def __init__(self, raw: BinaryIO, suffix: str) -> None:
        self._raw, self._is_gzip = raw, suffix == ".gz"
        self._unpacker: Any = None
        self._input = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            if not self._unpack():
                return 0
        part = self._output[: len(buffer)]
        buffer[: len(part)] = part
        self._output = self._output[len(part) :]
        return len(part)

    def skip_piece(self) -> int | None:
        """Unpack one more piece and drop it: its size in bytes, None at a proper end."""
        return len(self._output) if self._unpack() else None

    def _unpack(self) -> bool:
        """Unpack one more piece; False at a proper end."""
        data = self._input or self._raw.read(PIECE)
        self._input = b""
        if self._unpacker is None:
            data = data.lstrip(b"\0") if self._is_gzip else data  # zero padding is allowed behind a gzip member
            if not data:
                return False
            self._unpacker = (
                zlib.decompressobj(wbits=31) if self._is_gzip else zstandard.ZstdDecompressor().decompressobj()
            )
        elif not data:
            raise Damaged("the compressed file is cut off")
        try:
            self._output = memoryview(self._unpacker.decompress(data))
        except (zlib.error, zstandard.ZstdError) as error:
            raise Damaged(f"the compressed file is damaged: {error}") from None
        if self._unpacker.eof:
            self._input, self._unpacker = self._unpacker.unused_data, None
        return True


@contextlib.contextmanager
def open_stream(path: Path) -> Iterator[io.BufferedReader]:
    """A file's bytes, unpacked by its name's ending (`.gz`, `.zst`). Reading may raise Damaged."""
    with contextlib.ExitStack() as stack:
        file: Any = stack.enter_context(open(path, "rb"))
        suffix = path.suffix.lower()
        if suffix in SUFFIXES:
            file = stack.enter_context(io.BufferedReader(_Unpacker(file, suffix), 1 << 16))
        yield file


def unpacked_bytes(files: Sequence[Path], *, samples: int = 8) -> float:
    """Size of files once unpacked: of plain ones exactly, of packed ones estimated from the beginnings of a few.

    Raises OSError for a file that cannot be read; one that is damaged counts by what comes before the damage.
    """
    total = float(sum(file.stat().st_size for file in files if file.suffix.lower() not in SUFFIXES))
    for suffix in SUFFIXES:
        chosen = [file for file in files if file.suffix.lower() == suffix]
        ends = list(itertools.accumulate(file.stat().st_size for file in chosen))
        if not ends or not ends[-1]:
            continue
        # Places at equal distances in all of the bytes, so that a large file counts for more than a small one.
        places = [bisect.bisect_right(ends, ends[-1] * (2 * i + 1) // (2 * samples)) for i in range(samples)]
        ratios = {place: _expansion(chosen[place]) for place in set(places)}
        total += ends[-1] * sum(ratios[place] for place in places) / samples
    return total


def _expansion(path: Path, packed_limit: int = 1 << 20, unpacked_limit: int = 1 << 23) -> float:
    """Unpacked bytes for each packed byte in a file's beginning; 1 where nothing can be unpacked."""
    packed = unpacked = 0
    with open(path, "rb") as file, contextlib.suppress(Damaged):
        stream = _Unpacker(file, path.suffix.lower())
        while file.tell() < packed_limit and unpacked < unpacked_limit and (size := stream.skip_piece()) is not None:
            if size:  # zstd holds a block back until it is whole, so input counts once output has come of it
                packed, unpacked = file.tell(), unpacked + size
    return unpacked / packed if packed else 1.0
