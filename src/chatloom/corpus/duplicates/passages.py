"""Lines and paragraphs that stood earlier in the corpus: by shard and row, then by place in the document; out of core.

    write_passages   (a shard)          (hash, place of the document), 16 bytes for each different passage of a document
    write_seen       (a range of hashes)  (place, hash) of every passage but the first
    seen_in_shard    (a shard)          (row, spans) of the passages seen earlier, from the texts once more

What CCNet (Wenzek et al. 2019) and dolma call paragraphs are lines here; a paragraph ends at an empty line. A hash has
64 bits: of n different passages one is taken for another with a chance of n / 2^64.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import xxhash

from chatloom.corpus.duplicates.external_sort import MEMORY, external_sort, merge, open_runs
from chatloom.corpus.duplicates.grouping import later_members
from chatloom.corpus.duplicates.places import ROW_BITS, place, rows_within
from chatloom.corpus.duplicates.runs import Run
from chatloom.corpus.ranged import partition
from chatloom.corpus.text import characters
from chatloom.corpus.text.units import U64

Unit = Literal["line", "paragraph"]
PASSAGES, SEEN = "passages", "seen"
ENDS = {"line": re.compile(r"\n"), "paragraph": re.compile(r"\n(?:[^\S\n]*\n)+")}
UNSPACED = re.compile("|".join(characters.PATTERNS[flag].rstrip("+") for flag in (characters.HAN, characters.KANA)))
TEXTS_AT_ONCE = 1 << 12


def passages(text: str, unit: Unit, min_characters: int = 1) -> Iterator[tuple[int, int, int]]:
    """(start, end, hash) of each passage with its line ends; lower case and white space as in `exact.normalised`.

    Passages of fewer than `min_characters` after that are left out (Han and kana count twice: a word has two of them
    where it has four letters); so are empty ones.
    """
    start = 0
    ends = [match.end() for match in ENDS[unit].finditer(text)]
    for end in [*ends, len(text)]:
        content = " ".join(text[start:end].lower().split())
        if content and (len(content) >= min_characters or _counts_twice(content, min_characters)):
            yield start, end, xxhash.xxh3_64_intdigest(content.encode("utf-8", "surrogatepass"))
        start = end


def _counts_twice(content: str, min_characters: int) -> bool:
    """Whether a passage is long enough because of its Han and kana."""
    return 2 * len(content) >= min_characters and len(content) + len(UNSPACED.findall(content)) >= min_characters


def write_passages(
    shard: int, texts: Iterable[tuple[int, str]], path: Path, *, unit: Unit, min_characters: int = 1,
    memory_bytes: int = MEMORY,
) -> int:  # fmt: skip
    """Run of (hash, place) of the passages of (row, text); returns the number of records."""

    def chunks() -> Iterator[U64]:
        held: list[U64] = []
        for row, text in texts:
            keys = np.unique(np.fromiter((key for *_, key in passages(text, unit, min_characters)), np.uint64))
            held.append(np.stack([keys, np.full(len(keys), place(shard, row), np.uint64)], axis=1))
            if len(held) >= TEXTS_AT_ONCE:
                yield np.concatenate(held)
                held = []
        yield from held

    about = f"{unit}, at least {min_characters} characters"
    return external_sort(chunks(), path, PASSAGES, ("hash", "place"), about, memory_bytes=memory_bytes)


def write_seen(paths: Sequence[Path], path: Path, *, part: int = 0, parts: int = 1, memory_bytes: int = MEMORY) -> int:
    """Run of (place, hash) of the passages of one range of hashes that an earlier document has; returns how many."""
    within = partition(part, parts)
    runs = open_runs(paths, PASSAGES, within=within)
    found = later_members(merge(runs, *within, memory_bytes=memory_bytes), 1)
    columns = ("place", "hash")
    return external_sort((records[:, ::-1] for records in found), path, SEEN, columns, runs[0].about,
                         memory_bytes=memory_bytes)  # fmt: skip


def seen_in_shard(
    shard: int, texts: Iterable[tuple[int, str]], seen_paths: Sequence[Path], *, unit: Unit, min_characters: int = 1
) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """(row, spans of passages that stood earlier in the corpus or the document) of each (row, text), rows ascending.

    Raises RunError when the runs were made with another unit or length.
    """
    about = f"{unit}, at least {min_characters} characters"
    keys = Rows(open_runs(seen_paths, SEEN, about, rows_within(shard)), shard)
    for row, text in texts:
        seen = set(keys.of(row).tolist())
        spans = []
        for start, end, key in passages(text, unit, min_characters):
            if key in seen:
                spans.append((start, end))
            seen.add(key)
        yield row, spans


class Rows:
    """Second columns of the records of one shard's rows, read a range of rows at a time, rows ascending.

    The runs are opened for the shard's places (`rows_within`).
    """

    AT_ONCE = 1 << 10  # rows

    def __init__(self, runs: Sequence[Run], shard: int) -> None:
        self._runs, self._shard = runs, shard
        self._low = self._high = 0
        self._records: U64 = np.empty((0, 2), np.uint64)

    def of(self, row: int) -> U64:
        if not self._low <= row < self._high:
            self._low, self._high = row, min(row + self.AT_ONCE, 1 << ROW_BITS)
            within = rows_within(self._shard, self._low, self._high)
            self._records = np.concatenate([np.empty((0, 2), np.uint64), *merge(self._runs, *within)])
        wanted = np.uint64(place(self._shard, row))
        start, stop = (np.searchsorted(self._records[:, 0], wanted, side=side) for side in ("left", "right"))
        return self._records[start:stop, 1]


def joined(spans: Iterable[tuple[int, int]]) -> list[int]:
    """Spans as a label holds them, [start, end, start, end, ...]: sorted, touching and overlapping ones made one."""
    flat: list[int] = []
    for start, end in sorted(spans):
        if flat and start <= flat[-1]:
            flat[-1] = max(flat[-1], end)
        elif end > start:
            flat += [start, end]
    return flat
