"""Copies: of documents (exact.py, near.py), of passages (passages.py, substring.py), of books, of evaluation sets.

Everything is a pure function over shards and over sorted files of fixed-size records (runs.py), cut by ranges of hash
values: what is in memory at once depends on a setting, not on the corpus.
"""

from __future__ import annotations

from chatloom.corpus.duplicates.exact import normalised, text_hash
from chatloom.corpus.duplicates.in_memory import (
    BANDS,
    PERMUTATIONS,
    ROWS,
    Duplicate,
    UnionFind,
    band_keys,
    near_duplicates,
    signature,
)
from chatloom.corpus.duplicates.minhash import Banding, jaccard
from chatloom.corpus.duplicates.shingling import Shingles, shingles

__all__ = [
    "BANDS",
    "PERMUTATIONS",
    "ROWS",
    "Banding",
    "Duplicate",
    "Shingles",
    "UnionFind",
    "band_keys",
    "jaccard",
    "near_duplicates",
    "normalised",
    "shingles",
    "signature",
    "text_hash",
]
