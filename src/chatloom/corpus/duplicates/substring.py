"""Repeated substrings of a text that fits into memory, exactly, by its suffix array (extra `substring`).

A stretch of a text is repeated when it lies in a window of `min_characters` characters that occurs earlier: in an
earlier text, or before it in the same one. The first occurrence stays (Lee et al. 2022, arXiv 2107.06499, section 4.1,
with characters for tokens). Across shards `windows.py` finds the same without holding any text.

Memory: about 17 bytes for each byte of UTF-8 (measured on 35 MB); less than 2^31 bytes at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from chatloom.corpus.text.units import I64
from chatloom.errors import ChatloomError

SEPARATOR = b"\xff"  # occurs in no UTF-8
LIMIT = (1 << 31) - 1
PIECE = 1 << 22  # suffixes looked at at once


def repeated_spans(texts: Sequence[str], min_characters: int) -> list[list[int]]:
    """For each text the spans [start, end, ...] in characters that repeat what stood earlier, in the texts' order.

    Raises ChatloomError when pydivsufsort is not installed or the texts have 2^31 bytes or more.
    """
    if min_characters < 1:
        raise ValueError(f"min_characters is {min_characters}; expected at least 1")
    try:
        from pydivsufsort import divsufsort, kasai
    except ImportError:
        raise ChatloomError(
            "substrings: pydivsufsort is not installed; run: pip install 'chatloom[substring]'"
        ) from None
    parts = [text.encode("utf-8", "surrogatepass") for text in texts]
    data = np.frombuffer(bytearray(SEPARATOR).join([*parts, b""]), np.uint8)  # writable, as divsufsort wants it
    del parts
    if len(data) > LIMIT:
        raise ChatloomError(
            f"substrings: {len(data):,} bytes of text at once, more than {LIMIT:,}; give smaller shards, or use windows"
        )
    if not len(data):
        return [[] for _ in texts]
    lengths = np.array([len(text) for text in texts], np.int64)
    needed = _needed(data, lengths, min_characters)
    order = divsufsort(data)
    shared = kasai(data, order)  # bytes that suffixes which are neighbours in the order have in common
    # Neighbours are of one class where their first `min_characters` characters are equal.
    alike = np.empty(len(data), bool)
    for start in range(0, len(data), PIECE):
        part = slice(start, start + PIECE)
        np.greater_equal(shared[part], needed[order[part]], out=alike[part])
    del needed, shared
    later = _later(order, alike)
    del order, alike
    # From bytes to characters; a separator counts as one.
    starts = np.searchsorted(np.flatnonzero((data & 0xC0) != 0x80), np.sort(later))
    return spans_of_windows(starts, lengths, min_characters)


def _needed(data: NDArray[np.uint8], lengths: I64, window: int) -> NDArray[np.int32]:
    """For each byte: bytes of the window of characters that begins there, LIMIT where none does."""
    needed = np.full(len(data), LIMIT, np.int32)
    first = 0  # byte
    ends = np.flatnonzero(data == SEPARATOR[0])
    for end, length in zip(ends.tolist(), lengths.tolist()):
        if length >= window:
            begins = np.flatnonzero((data[first : end + 1] & 0xC0) != 0x80) + first  # with the separator behind it
            needed[begins[: length - window + 1]] = begins[window:] - begins[: length - window + 1]
        first = end + 1
    return needed


def _later(order: NDArray[np.int32], alike: NDArray[np.bool_]) -> I64:
    """Suffixes that begin like one further to the front of the text."""
    inside = np.zeros(len(order), bool)
    inside[:-1] |= alike[:-1]
    inside[1:] |= alike[:-1]
    places = np.flatnonzero(inside)
    if not len(places):
        return places.astype(np.int64)
    first_of_class = np.flatnonzero(np.concatenate([[True], ~alike[places[1:] - 1] | (np.diff(places) > 1)]))
    members = order[places]
    lowest = np.minimum.reduceat(members, first_of_class)
    sizes = np.diff(np.concatenate([first_of_class, [len(places)]]))
    return members[members != np.repeat(lowest, sizes)].astype(np.int64)


def spans_of_windows(starts: I64, lengths: I64, window: int) -> list[list[int]]:
    """Spans in each text that windows beginning at `starts` cover; a start counts all texts and one character between.

    `starts` are sorted; `lengths` [texts] are in characters.
    """
    begins = np.concatenate([[0], np.cumsum(lengths + 1)])
    spans: list[list[int]] = [[] for _ in lengths]
    if not len(starts):
        return spans
    breaks = np.flatnonzero(np.diff(starts) > window) + 1
    first = starts[np.concatenate([[0], breaks])]
    last = starts[np.concatenate([breaks - 1, [len(starts) - 1]])] + window
    owners = np.searchsorted(begins, first, side="right") - 1
    for owner, start, end in zip(owners.tolist(), first.tolist(), last.tolist()):
        spans[owner] += [start - int(begins[owner]), end - int(begins[owner])]
    return spans
