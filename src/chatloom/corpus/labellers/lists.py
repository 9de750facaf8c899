"""Word and domain lists that users bring: one entry a line, `#` begins a comment, UTF-8, read once an instance."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import xxhash

from chatloom.errors import ChatloomError


def entries(path: Path) -> Iterator[str]:
    """Entries of a list in lower case. Raises ChatloomError for a missing file, one without entries or not UTF-8."""
    if not path.is_file():
        raise ChatloomError(f"{path}: no such file; expected a list with one entry a line")
    n = 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            for line in file:
                entry = line.partition("#")[0].strip().lower()
                if entry:
                    n += 1
                    yield entry
    except UnicodeDecodeError as error:
        raise ChatloomError(f"{path}: not UTF-8 text ({error}); save the list as UTF-8") from None
    if not n:
        raise ChatloomError(f"{path}: the list is empty; give a file with one entry a line, or leave it out")


class HashedSet:
    """Which strings are in a list of millions, in 8 bytes an entry: 64-bit hashes, sorted.

    A string that is not in a list of n is taken for one that is with probability n / 2^64.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        self._hashes = np.unique(_hashes(strings))

    def __len__(self) -> int:
        return len(self._hashes)

    def contains(self, strings: Sequence[str]) -> list[bool]:
        """For each string, whether it is in the list."""
        if not len(self._hashes):
            return [False] * len(strings)
        wanted = _hashes(strings)
        at = np.searchsorted(self._hashes, wanted)
        found: list[bool] = (self._hashes[np.minimum(at, len(self._hashes) - 1)] == wanted).tolist()
        return found


def _hashes(strings: Iterable[str]) -> np.ndarray:
    return np.fromiter((xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")) for text in strings), np.uint64)
