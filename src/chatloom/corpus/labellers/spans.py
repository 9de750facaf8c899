"""Spans of a text as labels hold them: [start, end, start, end, ...], sorted, not overlapping, not empty."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow as pa

KIND_OF_SPAN = pa.list_(pa.int8())  # beside spans: one small number for each, which the labeller's KINDS explains


def flatten(spans: Iterable[tuple[int, int]]) -> list[int]:
    """One list of all spans; those that overlap or touch become one, empty ones go."""
    merged: list[int] = []
    for start, end in sorted(spans):
        if start >= end:
            continue
        if merged and start <= merged[-1]:
            merged[-1] = max(merged[-1], end)
        else:
            merged += (start, end)
    return merged


def pairs(spans: Sequence[int]) -> list[tuple[int, int]]:
    """(start, end) of each span."""
    return list(zip(spans[::2], spans[1::2], strict=True))


def apart(spans: Iterable[tuple[int, int, int]]) -> tuple[list[int], list[int]]:
    """Spans with kinds -> spans and their kinds; of two that overlap the earlier, then the longer, then the kind of
    the lower number stays."""
    kept: list[int] = []
    kinds: list[int] = []
    for start, end, kind in sorted(spans, key=lambda span: (span[0], -span[1], span[2])):
        if start < end and (not kept or start >= kept[-1]):
            kept += (start, end)
            kinds.append(kind)
    return kept, kinds


def replaced(text: str, spans: Sequence[int], replacements: Sequence[str]) -> str:
    """The text with each span replaced by its entry in `replacements`."""
    parts: list[str] = []
    at = 0
    for (start, end), replacement in zip(pairs(spans), replacements, strict=True):
        parts += (text[at:start], replacement)
        at = end
    return "".join([*parts, text[at:]])


def without(text: str, spans: Sequence[int]) -> str:
    """The text with the spans cut out."""
    return replaced(text, spans, [""] * (len(spans) // 2))
