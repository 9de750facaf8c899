"""Promises of marked texts: without gaps the pieces are the texts, long ones are short and say what they leave out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chatloom.corpus.report.marks import CUT, GAP, LONGEST, NEW, SAME, WHOLE, differences, edited_pieces
from chatloom.corpus.selection.edits import operations

TEXT = st.text("ab 中文。\n", max_size=60)


def put_together(pieces: list[list[str]], *kinds: str) -> str:
    return "".join(text for kind, text in pieces if kind in kinds)


@given(TEXT, TEXT)
def test_short_texts_are_given_whole_with_their_differences(one: str, other: str) -> None:
    pieces = differences(one, other)
    assert put_together(pieces, SAME, CUT) == one
    assert put_together(pieces, SAME, NEW) == other
    assert all(text and kind != GAP for kind, text in pieces)


def test_words_and_chinese_characters_are_compared_one_by_one() -> None:
    assert differences("今天天气很好", "今天天气不好") == [
        [SAME, "今天天气"], [CUT, "很"], [NEW, "不"], [SAME, "好"]
    ]  # fmt: skip
    assert differences("a big house", "a small house") == [
        [SAME, "a "], [CUT, "big "], [NEW, "small "], [SAME, "house"]
    ]  # fmt: skip


@given(st.text("ab中 \n", min_size=0, max_size=5000), st.integers(0, 5000), st.integers(0, 3000))
def test_long_pieces_are_shortened_and_the_gaps_count_every_character(text: str, start: int, size: int) -> None:
    start = min(start, len(text))
    end = min(start + size, len(text))
    steps = operations([(start, end)] if end > start else [], [])
    pieces = edited_pieces(text, steps, start)
    length = sum(int(piece) if kind == GAP else len(piece) for kind, piece in pieces if kind != NEW)
    assert length == len(text)
    assert sum(len(piece) for kind, piece in pieces if kind != GAP) <= WHOLE + LONGEST
    assert put_together(pieces, CUT) in text or any(kind == GAP for kind, _ in pieces)


def test_the_surroundings_of_an_edit_are_shown() -> None:
    text = "x" * 500 + "mail a@b.org now" + "y" * 500
    steps = operations([], [(505, 512, "<EMAIL>")])
    pieces = edited_pieces(text, steps, 505)
    assert [kind for kind, _ in pieces] == [GAP, SAME, CUT, NEW, SAME, GAP]
    assert pieces[0][1] == "445"
    assert pieces[1][1].endswith("mail ")
    assert [pieces[2][1], pieces[3][1]] == ["a@b.org", "<EMAIL>"]
    assert int(pieces[5][1]) == len(text) - 512 - len(pieces[4][1])
