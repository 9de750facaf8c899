"""What the columns of the stage `duplicates` say of a document, in words."""

from __future__ import annotations

from collections.abc import Iterable

_REPEATED = {"lines": "lines", "paragraphs": "paragraphs", "substrings": "stretches of characters"}
_MEANINGS = {
    "cluster": "name of the cluster of copies, none for a document alone",
    "cluster_size": "documents in the cluster",
    "duplicate_kind": "how it is a copy of an earlier document: exact or near by its text, or by its url",
    "similarity": "Jaccard similarity to the first of its cluster by text",
    "split": "side that all of a cluster are on",
    "book": "the book that it is or is a piece of",
    "book_copy_of": "the book that holds most of its own",
    "book_share": "share of its book that the other one holds",
    **{f"repeated_{what}": f"{words} that stood earlier in the corpus" for what, words in _REPEATED.items()},
    **{f"repeated_{what}_share": f"share of its characters in such {words}" for what, words in _REPEATED.items()},
}


def meanings_of(columns: Iterable[str]) -> dict[str, str]:
    """The meanings of some columns, by their names."""
    return {name: _MEANINGS[name] for name in columns}
