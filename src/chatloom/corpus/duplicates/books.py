"""The book rule: a book goes when 90 % of its content is in another one that stays (LLaMA, Touvron et al. 2023, 2.1).

Content shared is containment |A n B| / |A| of the sets of shingles, not Jaccard: an excerpt is in its book whatever
their sizes. A book may lie in many pieces, cut wherever: its set is that of all pieces with the same book id.

    write_samples     (a shard)              (shingle, book) of one shingle in SCALE (Irber et al. 2022), by their hash
    write_counts      (a range of shingles)  (a, b, samples in both) and (book, book, samples)
    write_sums        (a range of books)     the same, summed: (a, b, samples in both), and apart (book, samples)
    write_candidates  (a range of books)     pairs that may reach the share
    write_contained   (a range of books)     those that do, compared by all shingles (sets.py)
    decide            (once)                 which books go, and for which: about 900 bytes a pair
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chatloom.corpus.duplicates.external_sort import MEMORY, external_sort, merge, open_runs
from chatloom.corpus.duplicates.grouping import candidate_pairs
from chatloom.corpus.duplicates.minhash import intersection
from chatloom.corpus.duplicates.near import MOST_COMPARED
from chatloom.corpus.duplicates.places import names
from chatloom.corpus.duplicates.runs import Run, RunWriter
from chatloom.corpus.duplicates.sets import Sets
from chatloom.corpus.duplicates.shingling import Shingles, shingle_rows
from chatloom.corpus.ranged import partition
from chatloom.corpus.text.units import U64

SAMPLES, COUNTS, PAIRS, SIZES, CANDIDATES, WANTED, CONTAINED = (
    "book samples", "book counts", "book pairs", "book sizes", "book candidates", "books wanted", "contained",
)  # fmt: skip
SCALE = 64  # a novel of 500 kB gives about 1,400 samples: a share of 0.9 is estimated to within 0.008
SHARE = 0.9
DOUBT = 4.0  # standard errors below the share at which a pair is still compared
PAIRS_AT_ONCE = 256


def write_samples(
    pieces: Iterable[tuple[str, str]], path: Path, *, scale: int = SCALE, memory_bytes: int = MEMORY
) -> int:
    """Run of (shingle, book) of (book id, text of a piece); returns the number of records."""
    limit = np.uint64((1 << 64) // scale - 1)

    def chunks() -> Iterator[U64]:
        for book, text in pieces:
            found = shingle_rows([text]).values
            found = np.unique(found[found <= limit])
            yield np.stack([found, np.repeat(names([book]), len(found))], axis=1)

    columns = ("shingle", "book")
    return external_sort(chunks(), path, SAMPLES, columns, _about(scale), unique=True, memory_bytes=memory_bytes)


def write_counts(
    paths: Sequence[Path], path: Path, *, scale: int = SCALE, part: int = 0, parts: int = 1,
    most_compared: int = MOST_COMPARED, memory_bytes: int = MEMORY,
) -> int:  # fmt: skip
    """Run of (a, b, samples that both have), and (a, a, samples of a), of one range of shingles.

    A shingle that more than `most_compared` books have counts between the first of them and each other only.
    """
    low, high = (bound // scale for bound in partition(part, parts))  # samples fill that part of the hashes
    runs = open_runs(paths, SAMPLES, _about(scale), (low, high))

    def pairs() -> Iterator[U64]:
        blocks = merge(runs, low, high, unique=True, memory_bytes=memory_bytes)
        for block in blocks:
            yield block[:, [1, 1]]
        again = merge(runs, low, high, unique=True, memory_bytes=memory_bytes)
        yield from candidate_pairs(again, most_compared)

    scratch = path.with_name(path.name + ".pairs")
    try:
        external_sort(pairs(), scratch, COUNTS, ("a", "b"), runs[0].about, memory_bytes=memory_bytes)
        with RunWriter(path, COUNTS, ("a", "b", "count"), runs[0].about) as writer:
            for counted in _counted(merge(open_runs([scratch], COUNTS), memory_bytes=memory_bytes)):
                writer.append(counted)
    finally:
        scratch.unlink(missing_ok=True)
    return writer.count


def write_sums(
    paths: Sequence[Path], pairs: Path, sizes: Path, *, part: int = 0, parts: int = 1, memory_bytes: int = MEMORY
) -> int:
    """Of one range of books the runs of (a, b, samples in both), a < b, and of (book, samples); returns the pairs."""
    within = partition(part, parts)
    runs = open_runs(paths, COUNTS, within=within)
    about = runs[0].about
    with (
        RunWriter(pairs, PAIRS, ("a", "b", "count"), about) as shared,
        RunWriter(sizes, SIZES, ("book", "samples"), about) as own,
    ):
        for block in _summed(merge(runs, *within, memory_bytes=memory_bytes)):
            same = block[:, 0] == block[:, 1]
            shared.append(block[~same])
            own.append(block[same][:, 1:])
    return shared.count


def write_candidates(
    pairs: Path, sizes: Path, path: Path, wanted: Path, *, share: float = SHARE, min_shingles: int = 0,
    memory_bytes: int = MEMORY,
) -> int:  # fmt: skip
    """Run of the pairs (a, b) that may reach `share`, and of the books in them; returns the pairs.

    `pairs` are those of one range, `sizes` is the run of all books. Books of which the samples tell fewer than
    `min_shingles` shingles take no part.
    """
    (run,) = open_runs([pairs], PAIRS)
    known = Run(sizes, SIZES, run.about)
    scale = _scale(run.about)
    with RunWriter(path, CANDIDATES, ("a", "b")) as writer:
        for block in merge([run], memory_bytes=memory_bytes):
            numbers = known.of(np.unique(block[:, :2]))
            smaller = np.minimum(*(numbers[np.searchsorted(numbers[:, 0], block[:, i]), 1] for i in (0, 1)))
            needed = share - DOUBT * np.sqrt(share * (1 - share) / smaller.astype(float))
            enough = block[:, 2] >= np.maximum(needed * smaller, 1)
            writer.append(block[enough & (smaller * np.uint64(scale) >= min_shingles), :2])
    members = (found.reshape(-1, 1) for found in merge(open_runs([path], CANDIDATES), memory_bytes=memory_bytes))
    external_sort(members, wanted, WANTED, ("book",), unique=True, memory_bytes=memory_bytes)
    return writer.count


def write_contained(
    candidates: Path, sets: Sets, path: Path, *, share: float = SHARE, memory_bytes: int = MEMORY
) -> dict[str, int]:
    """Run of (a, b, shingles in both, shingles of a, of b) where a share reaches `share`; returns the counts."""
    compared = 0
    with RunWriter(path, CONTAINED, ("a", "b", "common", "size_a", "size_b")) as writer:
        for block in merge(open_runs([candidates], CANDIDATES), memory_bytes=memory_bytes):
            for start in range(0, len(block), PAIRS_AT_ONCE):
                some = block[start : start + PAIRS_AT_ONCE]
                overlaps = list(sets.compare(some, _overlap, memory_bytes=memory_bytes))
                shared = np.array(overlaps, np.uint64).reshape(-1, 3)
                enough = shared[:, 0] >= share * np.minimum(shared[:, 1], shared[:, 2])
                writer.append(np.concatenate([some, shared], axis=1)[enough])
                compared += len(some)
    return {"pairs": compared, "contained": writer.count}


@dataclass(frozen=True, slots=True)
class BookCopy:
    """Book `book` goes: `share` of its shingles are in `target`; `kept` is the one that stays at the chain's end."""

    book: str
    target: str
    kept: str
    share: float


def decide(paths: Sequence[Path], books: Iterable[tuple[str, int]], *, share: float = SHARE) -> list[BookCopy]:
    """Which books go, from the runs of `write_contained` and (book id, priority) of all books; by book id.

    A book goes for one that contains it. Of two that contain each other the first by (priority, id) stays; of others
    the one that has more stays, whatever their priorities. The smallest are decided first, and none goes for one that
    is gone, so that every chain ends at a book that stays.
    """
    edges = [record for run in open_runs(paths, CONTAINED) for block in merge([run]) for record in block.tolist()]
    sizes = {name: size for a, b, _, size_a, size_b in edges for name, size in ((a, size_a), (b, size_b))}
    ranks: dict[int, tuple[int, str]] = {}
    for book, priority in books:
        name = int(names([book])[0])
        if name in sizes:
            ranks[name] = min(ranks.get(name, (priority, book)), (priority, book))
    targets: dict[int, list[tuple[float, int]]] = {}  # book -> (share of it in the other, the other)
    for a, b, common, size_a, size_b in edges:
        mutual = common >= share * size_a and common >= share * size_b
        for one, other in ((a, b), (b, a)):
            if common >= share * sizes[one] and not (mutual and ranks[one] < ranks[other]):
                targets.setdefault(one, []).append((common / sizes[one], other))
    gone: dict[int, tuple[float, int]] = {}
    last_first = sorted(targets, key=ranks.__getitem__, reverse=True)
    for one in sorted(last_first, key=sizes.__getitem__):
        staying = [(value, other) for value, other in targets[one] if other not in gone]
        if staying:
            gone[one] = min(staying, key=lambda item: (-item[0], ranks[item[1]]))
    found = []
    for one, (value, other) in gone.items():
        kept = other
        while kept in gone:
            kept = gone[kept][1]
        found.append(BookCopy(ranks[one][1], ranks[other][1], ranks[kept][1], value))
    return sorted(found, key=lambda copy: copy.book)


def _about(scale: int) -> str:
    return f"one shingle in {scale}"


def _scale(about: str) -> int:
    return int(about.rsplit(" ", 1)[1])


def _overlap(one: Shingles, other: Shingles) -> tuple[int, int, int]:
    """Common shingles, shingles of the one, of the other."""
    return intersection(one, other), len(one), len(other)


def _counted(blocks: Iterable[U64]) -> Iterator[U64]:
    """(columns, how often) of sorted records that repeat."""
    for block in _whole_groups(blocks, lambda records: records):
        keep = np.ones(len(block), bool)
        keep[1:] = (block[1:] != block[:-1]).any(axis=1)
        first = np.flatnonzero(keep)
        counts = np.diff(np.concatenate([first, [len(block)]])).astype(np.uint64)
        yield np.concatenate([block[first], counts[:, None]], axis=1)


def _summed(blocks: Iterable[U64]) -> Iterator[U64]:
    """(a, b, sum of the counts) of sorted records (a, b, count)."""
    for block in _whole_groups(blocks, lambda records: records[:, :2]):
        keep = np.ones(len(block), bool)
        keep[1:] = (block[1:, :2] != block[:-1, :2]).any(axis=1)
        first = np.flatnonzero(keep)
        yield np.concatenate([block[first, :2], np.add.reduceat(block[:, 2], first)[:, None]], axis=1)


def _whole_groups(blocks: Iterable[U64], key: Callable[[U64], U64]) -> Iterator[U64]:
    """The same records, no group of equal keys parted."""
    held: U64 | None = None
    for block in blocks:
        records = block if held is None else np.concatenate([held, block])
        last = np.flatnonzero((key(records) != key(records)[-1]).any(axis=1))
        stop = int(last[-1]) + 1 if len(last) else 0
        if stop:
            yield records[:stop]
        held = records[stop:]
    if held is not None and len(held):
        yield held
