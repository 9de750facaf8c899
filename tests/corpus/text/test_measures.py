"""The fast measures are the plain ones, to the last bit, alone and among other texts."""

from __future__ import annotations

import gzip
import json
import re
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_rules import measures

from chatloom.corpus.text import characters
from chatloom.corpus.text.language import HAN, HANGUL, KANA
from chatloom.corpus.text.measures import Texts
from chatloom.corpus.text.repetition import repeats
from chatloom.corpus.text.rules import measure_texts

LANGUAGES = st.sampled_from(["en", "zh", "ja", "und"])
# Of few characters, so that lines, words and n-grams repeat; with everything that has a rule of its own.
SMALL = st.text(st.sampled_from("ab the和的一二三。，.#…-*•3 \n\n\u3000\u2028İÃ©锟斤拷\ufffd烫'!_²½"), max_size=300)
ANY = st.text(st.characters(), max_size=120)


def same(text: str, language: str) -> None:
    found = measure_texts([text], [language])
    assert {name: float(values[0]) for name, values in found.items()} == measures(text, language)


@settings(max_examples=150, deadline=None)
@given(st.one_of(SMALL, ANY), LANGUAGES)
def test_every_measure_equals_the_plain_one(text: str, language: str) -> None:
    same(text, language)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.one_of(SMALL, ANY), LANGUAGES), max_size=12))
def test_what_is_measured_of_a_text_does_not_depend_on_its_neighbours(rows: list[tuple[str, str]]) -> None:
    together = measure_texts([text for text, _ in rows], [language for _, language in rows])
    for at, (text, language) in enumerate(rows):
        assert {name: float(values[at]) for name, values in together.items()} == measures(text, language)


@pytest.mark.parametrize(
    "name", ["en_novels_a", "en_web_wiki_sample", "en_peps", "zh_modern_history", "zh_oiwiki", "zh_poetry"]
)
def test_measures_of_real_texts_equal_the_plain_ones(shared_data: Path, name: str) -> None:
    with gzip.open(shared_data / "pretrain" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"][:6000] for line, _ in zip(file, range(12))]
    language = name[:2]
    together = measure_texts(texts, [language] * len(texts))
    for at, text in enumerate(texts):
        plain = measures(text, language)
        assert {rule: float(values[at]) for rule, values in together.items()} == plain


@pytest.mark.parametrize(
    "text",
    ["", " ", "\n", "\n\n", "a", "的", "a\n\nb", "\u3000", "a\u3000b", "\ud800 lone", "x" * 5000, "的" * 5000,
     "a " * 3000,     "the", "(the)", "the.the", "...the...", " the\n", "THE Be", "a...\n....b", "a\n \t\n\x0b\nb",
     "\x1c\x85\u2028"],
)  # fmt: skip
def test_borders(text: str) -> None:
    for language in ("en", "zh"):
        same(text, language)


def test_no_texts_have_no_values() -> None:
    assert {len(values) for values in measure_texts([], []).values()} == {0}


def test_texts_are_not_compared_with_each_other() -> None:
    sentence = "one two three four five six seven eight nine ten eleven twelve "
    texts = Texts([sentence, sentence, sentence * 2], by_characters=False)
    assert texts.repeated_ngram_share(5).tolist() == [0, 0, 0.5]


def test_ngrams_must_grow_by_no_more_than_their_width() -> None:
    codes = np.array([1, 2, 1, 2, 1, 2], np.uint64)
    with pytest.raises(ValueError, match="do not follow"):
        repeats(codes, np.array([6]), 2).longer(5)


def test_every_character_has_the_flags_that_python_says() -> None:
    table = characters.classes()
    flags = table.flags[table.of]
    letter, alnum = re.compile(r"[^\W\d_]"), re.compile(r"[^\W_]")
    borders = ((0, 0x3400), (0x4DB0, 0x4E20), (0x9FF0, 0xAC10), (0xD790, 0x11200), (0x1F300, 0x1F400), (0x2FFF0,
               0x30010),
               (0x323A0, 0x323C0), (0x3FFFF, 0x40001), (0xE0100, 0xE0101), (sys.maxunicode,
                sys.maxunicode + 1))  # fmt: skip
    for point in (point for begin, end in borders for point in range(begin, end)):
        char = chr(point)
        found = int(flags[point])
        assert bool(found & characters.SPACE) == char.isspace()
        assert bool(found & characters.LETTER) == bool(letter.match(char))
        assert bool(found & characters.ALPHANUMERIC) == bool(alnum.match(char))
        assert bool(found & characters.MARK) == (unicodedata.category(char)[0] in "PS")
        assert bool(found & characters.DIGIT) == char.isdigit()
        assert bool(found & characters.HAN) == bool(HAN.match(char))
        assert bool(found & characters.KANA) == bool(KANA.match(char))
        assert bool(found & characters.HANGUL) == bool(HANGUL.match(char))


def test_no_character_beyond_the_tables_end_would_have_a_flag() -> None:
    beyond = "".join(map(chr, range(characters.LAST_WITH_FLAGS, sys.maxunicode + 1)))
    assert not re.search(r"[\s\w]", beyond)
    assert not any(char.isdigit() or unicodedata.category(char)[0] in "PS" for char in beyond[::97])
