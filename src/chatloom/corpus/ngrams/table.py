"""A table of 64-bit n-gram hashes: sorted, memory-mapped, found in about two memory reads a key.

The hashes are spread evenly, so their first bits tell where in the sorted array to look: `index[b]` is the place of the
first key whose first bits are at least b, with one to two keys for each b. Two of a billion n-grams share a hash with
probability 0.03; an n-gram that is not in the table is taken for one that is with probability 1e-10 (n / 2^64).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chatloom.corpus.text.units import I64, U64
from chatloom.errors import ChatloomError

LAST = np.uint64(2**64 - 1)  # ends every table, so that a search needs no test for the end


class KeyTable:
    """Sorted keys (all different, then LAST) and their index; values of a key stand at its place in other arrays."""

    def __init__(self, keys: U64, index: NDArray[Any]) -> None:
        self.keys = keys
        self.index = index
        self._shift = np.uint64(64 - (len(index) - 1).bit_length())

    @classmethod
    def of(cls, keys: U64) -> KeyTable:
        """Index sorted keys, without LAST at their end."""
        return cls.over(np.concatenate([keys, [LAST]]))

    @classmethod
    def over(cls, keys: U64) -> KeyTable:
        """Index sorted keys that end in LAST, without copying them."""
        count = len(keys) - 1
        bits = index_bits(count)
        index = np.zeros(1 << bits, np.uint32 if count < 2**32 else np.uint64)
        for first in range(0, len(index), 1 << 16):
            edges = np.arange(first, min(first + (1 << 16), len(index)), dtype=np.uint64) << np.uint64(64 - bits)
            index[first : first + len(edges)] = np.searchsorted(keys, edges)
        return cls(keys, index)

    def __len__(self) -> int:
        return len(self.keys) - 1

    def find(self, wanted: U64) -> tuple[NDArray[np.bool_], I64]:
        """Whether each key is in the table, and its place (of no meaning where it is not)."""
        place = self.index[(wanted >> self._shift).view(np.int64)].astype(np.int64)
        at = self.keys[place]
        behind = np.flatnonzero(at < wanted)
        while len(behind):
            further = place[behind] + 1
            place[behind] = further
            at_further = self.keys[further]
            at[behind] = at_further
            behind = behind[at_further < wanted[behind]]
        return at == wanted, place


def index_bits(count: int) -> int:
    """First bits of a key that the index of `count` keys tells apart."""
    return max(1, (max(count, 2) - 1).bit_length() - 1)


def save_array(path: Path, values: NDArray[Any]) -> None:
    """Write an array as .npy; little-endian, readable by every NumPy."""
    np.save(path, values.astype(values.dtype.newbyteorder("<"), copy=False), allow_pickle=False)


def load_array(path: Path, dtype: type[np.generic], count: int | None = None) -> NDArray[Any]:
    """A memory-mapped array; raises ChatloomError when the file is missing, damaged, or not of this type and size."""
    try:
        values: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise ChatloomError(f"{path}: no such file; this part of the model is missing, train it again") from None
    except (OSError, ValueError, EOFError) as error:
        raise ChatloomError(f"{path}: not a readable .npy file ({error}); train the model again") from None
    if values.ndim != 1 or values.dtype != dtype or (count is not None and len(values) != count):
        expected = f"{np.dtype(dtype)} [{'any' if count is None else count}]"
        raise ChatloomError(f"{path}: holds {values.dtype} {list(values.shape)}, expected {expected}")
    return np.asarray(values)
