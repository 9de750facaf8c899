"""Promises of units: where words end, what is folded together, and that a unit's hash is its own wherever it stands."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatloom.corpus.text import units
from chatloom.corpus.text.units import batches, cut, folded, join, kinds, pieces


def spelled(*texts: str) -> list[list[str]]:
    found = cut(texts)
    return [[found.spelling(i) for i in range(a, b)] for a, b in zip(found.offsets, found.offsets[1:])]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, world!", ["Hello", ",", "world", "!"]),
        ("don't stop\tit\r\nnow", ["don", "'", "t", "stop", "it", "now"]),
        ("古之学者，必有师。", list("古之学者，必有师。")),
        ("用Python写3行代码", ["用", "Python", "写", "3", "行", "代", "码"]),
        ("カタカナとひらがな", list("カタカナとひらがな")),
        ("한국어 문장", ["한국어", "문장"]),
        ("ภาษา", list("ภาษา")),
        ("naïve cafe\u0301", ["naïve", "cafe\u0301"]),
        ("a\u200bb\u00a0c\u3000d", ["a", "b", "c", "d"]),
        ("x==y🙂", ["x", "=", "=", "y", "🙂"]),
        ("", []),
        (" \n ", []),
        ("\ud800", ["\ud800"]),
    ],
)
def test_units_are_words_and_single_characters_where_words_are_not_spaced(text: str, expected: list[str]) -> None:
    assert spelled(text) == [expected]


def test_texts_of_a_batch_do_not_run_into_each_other() -> None:
    assert spelled("one", "", "two three", "四") == [["one"], [], ["two", "three"], ["四"]]


def test_runs_of_letters_are_cut_at_the_longest_length() -> None:
    assert [len(unit) for unit in spelled("a" * 60)[0]] == [units.LONGEST, units.LONGEST, 60 - 2 * units.LONGEST]
    assert spelled("b" * units.LONGEST) == [["b" * units.LONGEST]]


def test_quotation_marks_dashes_and_full_width_forms_are_those_of_ascii() -> None:
    for plain, other in (('it\'s "x" a-b', "it’s “x” a–b"), ("a,b!(c)", "ａ，ｂ！（Ｃ）"), ("12", "１２")):
        assert cut([plain]).hashes.tolist() == cut([other]).hashes.tolist()
    assert len(set(cut(["， 、 。 . ; · …"]).hashes.tolist())) == 7


def test_case_and_digits_are_folded_and_no_other_letters() -> None:
    hashes = cut(["Word WORD word 12 34 1٢ words wor d dorw 123 ÉCOLE école ecole"]).hashes
    same = hashes[:3], hashes[3:6], hashes[11:13]
    assert all(len(set(group.tolist())) == 1 for group in same)
    assert len(set(hashes.tolist())) == len(hashes) - 2 - 2 - 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=40), max_size=6))
def test_hashes_do_not_depend_on_the_texts_before(texts: list[str]) -> None:
    together = cut(texts)
    for number, text in enumerate(texts):
        alone = cut([text]).hashes
        assert np.array_equal(together.hashes[together.offsets[number] : together.offsets[number + 1]], alone)
    forms: dict[int, str] = {}
    for i, value in enumerate(together.hashes.tolist()):
        form = "".join(chr(folded()[ord(c)]) for c in together.spelling(i))
        assert forms.setdefault(value, form) == form
    assert len(set(forms.values())) == len(forms)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=40), max_size=6))
def test_bytes_are_those_of_everything_that_is_not_space(texts: list[str]) -> None:
    space = kinds() == 0
    expected = [len("".join(c for c in text if not space[ord(c)]).encode("utf-8", "surrogatepass")) for text in texts]
    assert cut(texts).lengths().tolist() == expected


def test_a_word_has_one_hash_of_a_million() -> None:
    words = [f"{a}{b}{c}{d}" for a in "abcdefgh" for b in "abcdefgh" for c in "ijklmnop" for d in "stuvwxyz"]
    words += [w[::-1] for w in words] + [w + w for w in words]
    words = sorted(set(words))
    assert len(np.unique(cut([" ".join(words)]).hashes)) == len(words)


def test_bigrams_know_their_order() -> None:
    first, second = cut(["alpha beta"]).hashes
    pairs = join(np.array([first, second]), np.array([second, first]))
    assert pairs[0] != pairs[1]
    assert pairs[0] == join(np.array([first]), np.array([second]))[0]


def test_batches_hold_every_text_once_and_long_ones_alone() -> None:
    texts = ["x" * n for n in (10, 20, 500, 5, 5, 0, 90)]
    ranges = list(batches(texts, 100))
    assert [i for a, b in ranges for i in range(a, b)] == list(range(len(texts)))
    assert (2, 3) in ranges
    assert list(batches([], 10)) == []


def test_long_texts_are_cut_into_pieces_that_join_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "PIECE_CHARACTERS", 7)
    texts = ["", "short", "a text of some length", "1234567"]
    found, owners = pieces(texts)
    assert max(map(len, found)) == 7
    assert ["".join(t for t, o in zip(found, owners) if o == i) for i in range(4)] == texts


def test_every_code_point_has_a_kind_that_unicode_supports() -> None:
    kind = kinds()
    assert all(kind[ord(c)] == 1 for c in "azAZ09éßжअ한")
    assert all(kind[ord(c)] == 2 for c in ".,;!?$+。，「🙂一〇々あアｱก")
    assert all(kind[ord(c)] == 0 for c in " \t\n\r\x00\u2028\u3000\ufeff\u200d")
    assert re.match(r"\w", "한")
