"""Edits that selection makes to a document: spans cut out, personal data replaced; all in places of the old text."""

from __future__ import annotations

import heapq
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence

EMPTY_LINES = re.compile(r"\n[ \t]*\n(?:[ \t]*\n)+")


def pairs(spans: Sequence[int] | None) -> list[tuple[int, int]]:
    """[start, end, start, end, ...] as pairs. Raises ValueError unless they are sorted, inside each other's order."""
    flat = list(spans or ())
    if len(flat) % 2 or any(a > b for a, b in itertools.pairwise(flat)):
        raise ValueError(f"spans are {flat[:8]}; expected [start, end, start, end, ...] in rising order")
    return list(zip(flat[::2], flat[1::2]))


def united(spans: Iterable[Sequence[tuple[int, int]]]) -> list[tuple[int, int]]:
    """Several sorted lists of spans as one, touching and overlapping ones joined."""
    joined: list[tuple[int, int]] = []
    for start, end in heapq.merge(*spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        elif end > start:
            joined.append((start, end))
    return joined


def operations(
    cuts: Sequence[tuple[int, int]], replacements: Sequence[tuple[int, int, str]] = ()
) -> list[tuple[int, int, str]]:
    """What is done to a text, as (start, end, what stands there then), sorted and not overlapping.

    `cuts` and `replacements` are sorted, in places of the old text. A replacement that touches a cut goes with it: what
    was personal must not stay. Of replacements that overlap the first stands for all.
    """
    cuts = united([cuts])
    inside = [r for r in replacements if not any(start < r[1] and r[0] < end for start, end in cuts)]
    touching = [(r[0], r[1]) for r in replacements if any(start < r[1] and r[0] < end for start, end in cuts)]
    steps: list[tuple[int, int, str]] = []
    for start, end, new in sorted([(*cut, "") for cut in united([cuts, sorted(touching)])] + inside):
        if steps and start < steps[-1][1]:
            steps[-1] = (steps[-1][0], max(end, steps[-1][1]), steps[-1][2])
        else:
            steps.append((start, end, new))
    return steps


def edited(text: str, steps: Sequence[tuple[int, int, str]]) -> str:
    """The text with `operations` done. Where something was cut out, at most one empty line stays behind."""
    parts: list[str] = []
    place = 0
    for start, end, new in steps:
        parts += [text[place:start], new]
        place = end
    parts.append(text[place:])
    result = "".join(parts)
    return EMPTY_LINES.sub("\n\n", result).strip("\n") if any(not new for _, _, new in steps) else result


def redactions(
    spans: Sequence[int] | None, kinds: Sequence[int] | None, placeholders: Mapping[int, str]
) -> list[tuple[int, int, str]]:
    """Replacements for found personal data: each span of a kind that has a placeholder."""
    found = pairs(spans)
    numbers = list(kinds or ())
    if len(found) != len(numbers):
        raise ValueError(f"{len(found)} spans and {len(numbers)} kinds; expected as many of each")
    return [(start, end, placeholders[kind]) for (start, end), kind in zip(found, numbers) if kind in placeholders]
