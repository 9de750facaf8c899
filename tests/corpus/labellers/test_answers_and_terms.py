"""Votes become ranks and grades; terms are found whole where words are spaced, and anywhere where they are not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labelling_help import labels, parts

from chatloom.corpus.labellers.question_answer import grade
from chatloom.corpus.labellers.terms import Terms
from chatloom.errors import ChatloomError


def answer(**metadata: Any) -> dict[str, Any]:
    row = labels("question_answer", "text", metadata=metadata)
    return {name.removeprefix("question_answer_"): value for name, value in row.items() if value is not None}


def test_an_answer_has_score_rank_and_grade() -> None:
    found = answer(score=12, accepted=True, answer_scores=[3, 12, 30, 12])
    assert found == {"score": 12, "best": 30, "answers": 4, "rank": 2, "accepted": True, "grade": 5}


def test_a_thread_has_an_order_and_the_grade_of_its_best_answer() -> None:
    found = answer(score=40, answers=[{"score": 3}, {"score": 12, "accepted": True}, {"score": 3}, {}])
    assert found == {"score": 40, "best": 12, "answers": 4, "order": [1, 0, 2], "accepted": True, "grade": 5}
    assert answer(answers=[5, 7])["order"] == [1, 0]


def test_what_is_no_number_counts_as_not_there() -> None:
    assert answer() == {}
    assert answer(score="many", accepted="yes", answer_scores="none") == {}
    assert answer(score=True) == {}
    assert answer(score="-3") == {"score": -3, "grade": -1}
    assert answer(score=4.0) == {"score": 4, "grade": 2}
    assert answer(score=4.5) == {}


@pytest.mark.parametrize(("votes", "value"), [(-1, -1), (0, 0), (1, 1), (2, 2), (3, 2), (7, 3), (1023, 10)])
def test_grades_are_the_published_ones(votes: int, value: int) -> None:
    assert grade(votes, False) == value
    assert grade(votes, True) == (value if votes < 0 else value + 1)


def test_other_keys_can_be_named() -> None:
    assert labels("question_answer", "", metadata={"ups": 9}, score="ups")["question_answer_score"] == 9


@given(st.lists(st.integers(-50, 500), min_size=1, max_size=9))
def test_ranks_go_by_votes(scores: list[int]) -> None:
    ranks = [answer(score=score, answer_scores=scores)["rank"] for score in scores]
    assert [scores[i] for i in sorted(range(len(scores)), key=lambda i: ranks[i])] == sorted(scores, reverse=True)
    assert min(ranks) == 1


@pytest.fixture
def lists(tmp_path: Path) -> dict[str, list[str]]:
    (tmp_path / "en").write_text("# words\nfoo\nbad thing\nX-ray\n", encoding="utf-8")
    (tmp_path / "zh").write_text("坏\n坏东西\n", encoding="utf-8")
    return {"en": [str(tmp_path / "en")], "zh": [str(tmp_path / "zh")]}


def test_english_terms_are_whole_words_and_chinese_ones_are_not(lists: dict[str, list[str]]) -> None:
    text = "Foo, food, a FOO_x and a bad thing; x-ray坏东西foo大坏蛋"
    row = labels("sensitive", text, lists=lists)
    assert parts(text, row["sensitive_spans"]) == ["Foo", "bad thing", "x-ray", "坏东西", "foo", "坏"]
    assert (row["sensitive"], row["sensitive_en"], row["sensitive_zh"], row["sensitive_distinct"]) == (6, 4, 2, 5)
    assert row["sensitive_share"] == pytest.approx((3 + 9 + 5 + 3 + 3 + 1) / len(text))


def test_without_a_list_it_does_not_run(tmp_path: Path) -> None:
    with pytest.raises(ChatloomError, match="none comes with chatloom"):
        labels("sensitive", "text")
    with pytest.raises(ChatloomError, match="no such file"):
        labels("sensitive", "text", lists={"en": [str(tmp_path / "missing")]})


ALPHABET = "ab c的是-"


@settings(max_examples=200, deadline=None)
@given(st.sets(st.text(ALPHABET, min_size=1, max_size=4).map(lambda t: " ".join(t.split())).filter(bool), max_size=6),
       st.text(ALPHABET, max_size=40))  # fmt: skip
def test_terms_found_are_those_of_a_plain_search(terms: set[str], text: str) -> None:
    found, at = [], 0
    ordered = sorted(terms, key=len, reverse=True)
    while at < len(text):
        for term in ordered:
            if text.startswith(term, at):
                free = re.search("[的是]", term) is not None
                before, after = text[at - 1 : at] if at else "", text[at + len(term) : at + len(term) + 1]
                open_start = not (before.isalpha() and term[0].isalpha()) or {before, term[0]} & {"的", "是"}
                open_end = free or not after.isalpha() or after in "的是"
                if open_start and open_end:
                    found.append((at, at + len(term), term))
                    at += len(term) - 1
                    break
        at += 1
    assert Terms(terms).find(text) == found


def test_places_stay_right_where_lower_case_is_longer() -> None:
    text = "İİİ Foo"
    assert [text[a:b] for a, b, _ in Terms(["foo"]).find(text)] == ["Foo"]
