"""Evaluation sets as files -> an index of their n-grams, in which a document's n-grams are looked up by the million.

`.jsonl` / `.ndjson` (`.gz`, `.zst`): an item a line, its texts are the fields named (or all strings in it, however
deep); other files: an item a line of plain text. Texts of an item are searched one by one, not as one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from chatloom.corpus.duplicates.shingling import ASIAN_SHARE, Ragged, asian_and_letters, located_units, windows
from chatloom.corpus.reading.compression import SUFFIXES as COMPRESSED
from chatloom.corpus.reading.compression import Damaged, open_stream
from chatloom.corpus.text import characters
from chatloom.corpus.text.units import I64, U64, batches
from chatloom.errors import ChatloomError

LINES = (".jsonl", ".ndjson")
TABLE_BITS_PER_GRAM = 16


@dataclass(frozen=True, slots=True)
class Item:
    """One question, problem or sentence of an evaluation set: "file:line" and its texts."""

    name: str
    texts: tuple[str, ...]


def read_items(files: Sequence[Path], fields: Sequence[str] = ()) -> Iterator[Item]:
    """Items of evaluation files in order. Raises ChatloomError for a missing or damaged file, a line that is not JSON,
    and a file in which no item has a text (naming the fields found)."""
    for path in files:
        found, seen = 0, set[str]()
        try:
            with open_stream(path) as stream:
                for number, line in enumerate(stream, 1):
                    record = _record(path, number, line)
                    if isinstance(record, dict):
                        seen |= record.keys()
                        values = [record[name] for name in fields if name in record] if fields else [record]
                    else:
                        values = [record]
                    texts = tuple(text for value in values for text in _strings(value) if text.strip())
                    if texts:
                        found += 1
                        yield Item(f"{path.name}:{number}", texts)
        except FileNotFoundError:
            raise ChatloomError(f"{path}: no such file; name files of evaluation items") from None
        except Damaged as error:
            raise ChatloomError(f"{path}: {error}") from None
        if not found:
            wanted = ", ".join(fields) or "any"
            raise ChatloomError(f"{path}: no item has a text in the fields wanted ({wanted}); found {sorted(seen)}")


def _record(path: Path, number: int, line: bytes) -> Any:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    try:
        if suffixes and suffixes[-1] in LINES:
            return orjson.loads(line) if line.strip() else ""
        return line.decode("utf-8")
    except ValueError as error:
        expected = "expected an item in UTF-8 (JSON lines: one object a line)"
        raise ChatloomError(f"{path}:{number}: {error}; {expected}") from None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Units of an n-gram: of texts by words, of mostly Asian texts, and of texts shorter than these."""

    words: int = 13
    asian: int = 20
    short: int = 8

    def of(self, text: str, n_units: int) -> int | None:
        """Which n-grams a text is searched by; None where it is too short to be told from a phrase."""
        asian, letters = asian_and_letters(characters.code_points(text))
        size = self.asian if asian > ASIAN_SHARE * letters else self.words
        if n_units >= size:
            return size
        # Eight characters are no evidence: of short Asian texts the whole text is the n-gram, from 12 characters on.
        shortest = self.short if size == self.words else -(-self.asian * 3 // 5)
        return shortest if n_units >= shortest else None


class Index:
    """N-grams of all items, found by binary search behind a table of bits that turns most lookups away."""

    def __init__(self, items: Sequence[Item], sizes: Sizes, max_items: int) -> None:
        self.items = [item.name for item in items]
        grams, owners, kinds = _grams_of(items, sizes)
        self.sizes: list[int] = np.unique(kinds).tolist()
        distinct, places, first = [np.zeros(0, np.uint64)], np.zeros(len(grams), np.int64), 0
        self._bounds: dict[int, tuple[int, int]] = {}
        for size in self.sizes:
            of_size = kinds == size
            some, place = np.unique(grams[of_size], return_inverse=True)
            places[of_size] = place + first
            self._bounds[size] = (first, first + len(some))
            distinct.append(some)
            first += len(some)
        self.grams: U64 = np.concatenate(distinct)
        pairs = np.unique(places * max(len(items), 1) + owners)  # an item that repeats an n-gram has it once
        gram_of, item_of = np.divmod(pairs, max(len(items), 1))
        rare = np.bincount(gram_of, minlength=len(self.grams))[gram_of] <= max_items
        self.gram_of, self.item_of = gram_of[rare], item_of[rare]  # one row for each (n-gram, item), by n-gram
        self.offsets = np.searchsorted(self.gram_of, np.arange(len(self.grams) + 1))
        self.n_grams: I64 = np.bincount(self.item_of, minlength=len(items))  # of each item
        long = [self._bounds[size] for size in self.sizes if size in (sizes.words, sizes.asian)]
        is_long = np.zeros(len(self.gram_of), bool)
        for low, high in long:
            is_long |= (self.gram_of >= low) & (self.gram_of < high)
        self.is_short: NDArray[np.bool_] = np.bincount(self.item_of[is_long], minlength=len(items)) == 0
        self._tables = {size: self._table(size) for size in self.sizes}

    def _table(self, size: int) -> tuple[U64, int, NDArray[np.bool_], np.uint64]:
        first, last = self._bounds[size]
        grams = self.grams[first:last]
        bits = max(10, (len(grams) * TABLE_BITS_PER_GRAM).bit_length())
        shift = np.uint64(64 - bits)
        table = np.zeros(1 << bits, bool)
        table[grams >> shift] = True
        return grams, first, table, shift

    def find(self, units: Ragged, size: int) -> tuple[I64, I64, I64]:
        """Windows of `size` units that are n-grams of items: (row, unit where it begins, n-gram), by row and unit."""
        grams, first, table, shift = self._tables[size]
        found = windows(units, size, short=False)
        maybe = np.flatnonzero(table[found.values >> shift])
        places = np.searchsorted(grams, found.values[maybe])
        places[places == len(grams)] = 0
        hit = grams[places] == found.values[maybe] if len(grams) else np.zeros(len(maybe), bool)
        maybe, places = maybe[hit], places[hit]
        rows = np.searchsorted(found.offsets, maybe, side="right") - 1
        return rows, maybe - found.offsets[rows] + units.offsets[rows], places + first


def _grams_of(items: Sequence[Item], sizes: Sizes) -> tuple[U64, I64, I64]:
    """(hash, item, size) of every n-gram of every item."""
    texts = [text for item in items for text in item.texts]
    owners = np.repeat(np.arange(len(items)), [len(item.texts) for item in items])
    grams, of_items, of_sizes = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for first, last in batches(texts):
        units = located_units(texts[first:last]).units
        wanted = [sizes.of(text, int(n)) or 0 for text, n in zip(texts[first:last], units.lengths())]
        chosen = list(units)
        for size in sorted(set(wanted) - {0}):
            rows = [row for row, n in enumerate(wanted) if n == size]
            some = [chosen[row] for row in rows]
            lengths = np.array([len(row) for row in some])
            found = windows(Ragged(np.concatenate(some), np.concatenate([[0], np.cumsum(lengths)])), size, short=False)
            grams.append(found.values)
            of_items.append(np.repeat(owners[first:last][rows], found.lengths()))
            of_sizes.append(np.full(len(found.values), size))
    return np.concatenate(grams), np.concatenate(of_items), np.concatenate(of_sizes)
