"""Texts with what was done to them marked: pieces [kind, text], short enough to be looked at.

Kinds: `same`, `cut` (was there, or is in the first text only), `new` (is there now, or in the second text only), `gap`
(so many characters are left out here).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence

SAME, CUT, NEW, GAP = "same", "cut", "new", "gap"
AROUND = 60  # characters shown on each side of a change
LONGEST = 240  # characters shown of one cut or new piece
WHOLE = 1200  # characters shown of all pieces
# Han, kana and hangul one by one, words with the white space behind them, all else one by one.
UNIT = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003ffff]|[^\W\d_]+\s*|\d+\s*|\s+|.\s*", re.S)
Piece = list[str]


def edited_pieces(text: str, steps: Sequence[tuple[int, int, str]], at: int) -> list[Piece]:
    """The text around place `at` with the operations `steps` (start, end, what stands there then) marked."""
    place = start = max(0, at - AROUND)
    pieces: list[Piece] = [[GAP, str(start)]]
    for first, last, new in steps:
        if last <= start:
            continue
        first = max(first, place)  # the window may begin inside of a cut
        if first - start > WHOLE:
            break
        pieces += [[SAME, text[place:first]], [CUT, text[first:last]], [NEW, new]]
        place = last
    tail = text[place : place + AROUND]
    return shortened([*pieces, [SAME, tail], [GAP, str(len(text) - place - len(tail))]])


def differences(one: str, other: str) -> list[Piece]:
    """How a text became another, by words and Asian characters (longest matching blocks, Ratcliff and Obershelp)."""
    return shortened(list(_differences(UNIT.findall(one), UNIT.findall(other))))


def _differences(one: Sequence[str], other: Sequence[str]) -> Iterator[Piece]:
    shorter = min(len(one), len(other))
    head = next((i for i in range(shorter) if one[i] != other[i]), shorter)
    tail = next((i for i in range(shorter - head) if one[-1 - i] != other[-1 - i]), shorter - head)
    yield [SAME, "".join(one[:head])]
    middle, changed = one[head : len(one) - tail], other[head : len(other) - tail]
    for _, i, j, k, m in difflib.SequenceMatcher(None, middle, changed, autojunk=False).get_opcodes():
        if middle[i:j] == changed[k:m]:
            yield [SAME, "".join(middle[i:j])]
        else:
            yield from ([CUT, "".join(middle[i:j])], [NEW, "".join(changed[k:m])])
    yield [SAME, "".join(one[len(one) - tail :])]


def shortened(pieces: Sequence[Piece]) -> list[Piece]:
    """The same without long equal stretches, long changes and all beyond WHOLE characters; gaps count what is gone."""
    merged = _merged(pieces)
    texts = [number for number, (kind, _) in enumerate(merged) if kind != GAP]
    short: list[Piece] = []
    shown = 0
    for number, (kind, text) in enumerate(merged):
        if kind == GAP:
            short.append([GAP, text])
            continue
        if shown >= WHOLE:
            left = sum(int(rest) if kind == GAP else len(rest) for kind, rest in merged[number:])
            short.append([GAP, str(left)])
            break
        first, last = _ends(kind, alone=len(texts) == 1, first=number == texts[0], last=number == texts[-1])
        if len(text) > first + last + AROUND:
            begin, end = text[:first], text[len(text) - last :]
            short += [[kind, begin], [GAP, str(len(text) - first - last)], [kind, end]]
            shown += first + last
        else:
            short.append([kind, text])
            shown += len(text)
    return _merged(short)


def _ends(kind: str, *, alone: bool, first: bool, last: bool) -> tuple[int, int]:
    """How many characters of a piece's beginning and end are shown when it is too long."""
    if kind != SAME:
        return LONGEST // 2, LONGEST // 2
    if alone:
        return WHOLE // 2, 0
    return 0 if first else AROUND, 0 if last else AROUND


def _merged(pieces: Sequence[Piece]) -> list[Piece]:
    """Neighbours of one kind put together, empty ones left out."""
    merged: list[Piece] = []
    for kind, text in pieces:
        if not text or (kind == GAP and text == "0"):
            continue
        if merged and merged[-1][0] == kind:
            merged[-1][1] = str(int(merged[-1][1]) + int(text)) if kind == GAP else merged[-1][1] + text
        else:
            merged.append([kind, text])
    return merged
