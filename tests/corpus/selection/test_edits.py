"""Edits: what is cut is gone, what is redacted does not stay anywhere, nothing else changes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatloom.corpus.selection.edits import edited, operations, pairs, redactions, united


def test_united_joins_what_touches_and_keeps_the_rest() -> None:
    assert united([[(0, 3), (8, 9)], [(2, 5), (5, 6)], []]) == [(0, 6), (8, 9)]


@given(st.text(alphabet="abc\n", max_size=40), st.lists(st.integers(0, 40), max_size=8))
def test_cutting_removes_exactly_the_spans(text: str, bounds: list[int]) -> None:
    flat = sorted({min(bound, len(text)) for bound in bounds})
    spans = pairs(flat[: len(flat) // 2 * 2])
    gone = {place for start, end in spans for place in range(start, end)}
    kept = "".join(c for place, c in enumerate(text) if place not in gone)
    assert edited(text, operations(spans)).replace("\n", "") == kept.replace("\n", "")


def test_a_redaction_inside_a_cut_goes_with_it_and_one_that_straddles_leaves_nothing_behind() -> None:
    text = "write to a@b.org today, or call"
    assert edited(text, operations([(6, 17)], [(9, 16, "<email>")])) == "write today, or call"
    assert "b.org" not in edited(text, operations([(0, 12)], [(9, 16, "<email>")]))
    assert edited(text, operations([], [(9, 16, "<email>")])) == "write to <email> today, or call"


def test_where_whole_paragraphs_go_one_empty_line_stays() -> None:
    text = "first\n\nsecond\n\nthird\n"
    assert edited(text, operations([(7, 13)])) == "first\n\nthird"


def test_redactions_take_the_kinds_that_have_a_placeholder() -> None:
    assert redactions([0, 2, 5, 9], [1, 8], {8: "<key>"}) == [(5, 9, "<key>")]
    with pytest.raises(ValueError, match="2 spans and 1 kinds"):
        redactions([0, 2, 5, 9], [1], {})


@pytest.mark.parametrize("flat", [[1], [3, 1], [0, 5, 4, 6]])
def test_spans_out_of_order_are_refused(flat: list[int]) -> None:
    with pytest.raises(ValueError, match="rising order"):
        pairs(flat)
