"""A passage of a document: whole sentences from one of its paragraphs on, as long as a prompt has room for."""

from __future__ import annotations

import re

from chatloom.corpus.text.measures import CHARACTER_LANGUAGES

PARAGRAPH = re.compile(r"\n\s*\n|\n")
SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*(?=\s|$)|[。！？…]+[”’」』）]*")
CHARACTERS_A_WORD = 6  # with the space behind it
CHINESE_CHARACTERS_A_WORD = 2


def room_for(words: int, language: str) -> int:
    """Characters of so many words."""
    return words * (CHINESE_CHARACTERS_A_WORD if language in CHARACTER_LANGUAGES else CHARACTERS_A_WORD)


def passage_of(text: str, room: int, at: float) -> str:
    """At most `room` characters from the beginning of a paragraph on; `at`, from 0 to 1, says which.

    The end is that of a sentence where the second half of the room has one, else that of a word.
    """
    text = text.strip()
    if len(text) <= room:
        return text
    starts = [0, *(found.end() for found in PARAGRAPH.finditer(text))]
    # Behind the last start with enough text after it a passage would be a scrap.
    starts = [start for start in starts if len(text) - start >= room // 2] or [0]
    start = starts[min(int(at * len(starts)), len(starts) - 1)]
    piece = text[start : start + room + 1]
    if len(piece) <= room:
        return piece.strip()
    ends = [found.end() for found in SENTENCE_END.finditer(piece) if room // 2 <= found.end() <= room]
    if ends:
        return piece[: ends[-1]].strip()
    space = piece.rfind(" ", room // 2, room + 1)
    return piece[: space if space > 0 else room].strip()
