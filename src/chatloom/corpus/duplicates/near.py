"""Near copies, out of core: signatures -> band keys -> sort by ranges of keys -> pairs -> exact comparison -> edges.

    write_bands    (a shard)        (key, name) of every band of every document, 16 bytes each
    write_pairs    (a range of keys)  pairs of names that share a key
    write_sets     (a shard, sets.py) shingles of the documents in pairs, read again
    write_edges    (a range of names) the pairs whose exact Jaccard similarity reaches the threshold

Edges go to clusters.py. Nothing depends on the number of shards, their order, or the number of ranges.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from chatloom.corpus.duplicates.external_sort import MEMORY, external_sort, merge, open_runs
from chatloom.corpus.duplicates.grouping import candidate_pairs
from chatloom.corpus.duplicates.minhash import Banding, band_keys, jaccard, signatures
from chatloom.corpus.duplicates.places import names
from chatloom.corpus.duplicates.runs import RunWriter
from chatloom.corpus.duplicates.sets import Sets
from chatloom.corpus.duplicates.shingling import shingle_rows
from chatloom.corpus.ranged import partition
from chatloom.corpus.text.units import U64, batches

BANDS, PAIRS, WANTED, EDGES = "bands", "pairs", "wanted", "edges"
BANDING = Banding(20, 5)  # the chapter's choice: docs/duplicates.md has the table
MOST_COMPARED = 64
TEXTS_AT_ONCE = 1 << 18  # characters
PAIRS_AT_ONCE = 1 << 15


def band_records(ids: Sequence[str], texts: Sequence[str], banding: Banding = BANDING) -> U64:
    """Records (key, name) [documents with shingles x bands, 2] of texts, as they come."""
    named = names(ids)
    found = [np.empty((0, 2), np.uint64)]
    for first, last in batches(texts, TEXTS_AT_ONCE):
        shingles = shingle_rows(texts[first:last])
        filled = shingles.lengths() > 0  # an empty text is like no other
        keys = band_keys(signatures(shingles, banding), banding)[filled]
        owners = np.repeat(named[first:last][filled], banding.bands)
        found.append(np.stack([keys.ravel(), owners], axis=1))
    return np.concatenate(found)


def write_bands(
    documents: Iterable[tuple[str, str]], path: Path, banding: Banding = BANDING, *, memory_bytes: int = MEMORY
) -> int:
    """Run of the band records of (id, text); returns the number of records. 16 x bands bytes a document."""

    def chunks() -> Iterator[U64]:
        ids: list[str] = []
        texts: list[str] = []
        size = 0
        for name, text in documents:
            ids.append(name)
            texts.append(text)
            size += len(text)
            if size >= TEXTS_AT_ONCE:
                yield band_records(ids, texts, banding)
                ids, texts, size = [], [], 0
        yield band_records(ids, texts, banding)

    return external_sort(chunks(), path, BANDS, ("key", "name"), banding.about(), memory_bytes=memory_bytes)


def write_pairs(
    band_paths: Sequence[Path], pairs_path: Path, wanted_path: Path, *, part: int = 0, parts: int = 1,
    most_compared: int = MOST_COMPARED, memory_bytes: int = MEMORY,
) -> int:  # fmt: skip
    """Runs of the pairs (a, b), a < b, that share a key of this range, and of the names in them; returns the pairs.

    The same pair may come out of several ranges; who reads them all counts it once.
    """
    within = partition(part, parts)
    runs = open_runs(band_paths, BANDS, within=within)
    blocks = merge(runs, *within, unique=True, memory_bytes=memory_bytes)
    count = external_sort(
        candidate_pairs(blocks, most_compared), pairs_path, PAIRS, ("a", "b"), runs[0].about, unique=True,
        memory_bytes=memory_bytes,
    )  # fmt: skip
    members = (pairs.reshape(-1, 1) for pairs in merge(open_runs([pairs_path], PAIRS), memory_bytes=memory_bytes))
    external_sort(members, wanted_path, WANTED, ("name",), unique=True, memory_bytes=memory_bytes)
    return count


def write_edges(
    pair_paths: Sequence[Path], sets: Sets, path: Path, *, threshold: float, part: int = 0, parts: int = 1,
    memory_bytes: int = MEMORY,
) -> dict[str, int]:  # fmt: skip
    """Run of the pairs of this range of names whose Jaccard similarity is at least the threshold.

    Returns the counts: pairs compared, edges found.
    """
    within = partition(part, parts)
    runs = open_runs(pair_paths, PAIRS, within=within)
    compared = 0
    with RunWriter(path, EDGES, ("a", "b")) as writer:
        for block in merge(runs, *within, unique=True, memory_bytes=memory_bytes // 2):
            for start in range(0, len(block), PAIRS_AT_ONCE):
                pairs = block[start : start + PAIRS_AT_ONCE]
                values = np.fromiter(sets.compare(pairs, jaccard, memory_bytes=memory_bytes), np.float64, len(pairs))
                writer.append(pairs[values >= threshold])
                compared += len(pairs)
    return {"pairs": compared, "edges": writer.count}
