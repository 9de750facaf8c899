"""Sentences are cut out of a document, each for a reason; the good ones around them stay."""

from __future__ import annotations

import gzip
import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labelling_help import labels, parts

from chatloom.corpus.labellers.sentences import KINDS, split_sentences
from chatloom.corpus.labellers.spans import without

ALL = list(KINDS.values())
GOOD = ["The committee met on Tuesday.", "Most of its members were in favour of it.", "Dr. Smith asked for more time."]
GOOD_ZH = ["委员会在星期二开会讨论了提案。", "大多数成员都表示赞成。", "他说：“我们还需要更多的时间。”"]


def kinds(text: str, language: str = "en", **settings: object) -> list[tuple[str, str]]:
    row = labels("sentences", text, language, **{"kinds": ALL, **settings})
    return [
        (KINDS[kind], part.strip())
        for kind, part in zip(row["sentences_cut_kinds"], parts(text, row["sentences_cut"]), strict=True)
    ]


@pytest.mark.parametrize(
    ("bad", "kind", "language"),
    [
        ("word " * 200 + "end.", "long", "en"),
        ("Well no.", "short", "en"),
        ("12 + 34 = 46.", "no_letters", "en"),
        ("All rights reserved by us in 2020.", "boilerplate", "en"),
        ("You can click here to read it.", "boilerplate", "en"),
        ("Most of its members were in favour of it.", "repeated", "en"),
        ("这一句话完全是用中文写的内容。", "other_script", "en"),
        ("很" * 400 + "长。", "long", "zh"),
        ("好。", "short", "zh"),
        ("１２３，４５６。", "no_letters", "zh"),
        ("本站内容未经授权不得转载。", "boilerplate", "zh"),
        ("点击这里查看所有的内容。", "boilerplate", "zh"),
        ("大多数成员都表示赞成。", "repeated", "zh"),
        ("This whole sentence is in English only.", "other_script", "zh"),
    ],
)
def test_each_rule_finds_its_sentence_and_only_that(bad: str, kind: str, language: str) -> None:
    good = GOOD_ZH if language == "zh" else GOOD
    text = "\n".join([*good, bad, good[0] + "x"])
    assert kinds(text, language, repeated_from=20) == [(kind, bad.strip())]


def test_a_sentence_inside_a_line_is_cut_without_a_double_space() -> None:
    text = f"{GOOD[0]} Click here to go on. {GOOD[1]}"
    row = labels("sentences", text)
    assert without(text, row["sentences_cut"]) == f"{GOOD[0]} {GOOD[1]}"
    text = f"{GOOD[0]}\nClick here to go on.\n{GOOD[1]}"
    assert without(text, labels("sentences", text)["sentences_cut"]) == f"{GOOD[0]}\n{GOOD[1]}"


def test_short_sentences_stay_unless_asked_for() -> None:
    assert labels("sentences", "No! He would not go there again.")["sentences_cut"] == []
    assert kinds("No! He would not go there again.") == [("short", "No!")]


def test_borders_of_length_are_inclusive() -> None:
    assert kinds("one two three four.", max_words=4) == []
    assert kinds("one two three four.", max_words=3) == [("long", "one two three four.")]
    assert kinds("一二三四。", "zh", max_characters=5) == []
    assert kinds("一二三四。", "zh", max_characters=4) == [("long", "一二三四。")]
    assert kinds("one two.", min_words=2) == []
    assert kinds("一二三。", "zh", min_characters=4) == []


def test_names_of_people_and_quotations_are_not_torn_apart() -> None:
    assert [GOOD[2]] == [GOOD[2][a:b] for a, b in split_sentences(GOOD[2], "en")]
    text = "".join(GOOD_ZH)
    assert [text[a:b] for a, b in split_sentences(text, "zh")] == GOOD_ZH


def test_chinese_with_code_and_names_is_not_foreign() -> None:
    assert kinds("调用 textwrap.dedent(text) 去掉每一行共有的缩进。", "zh") == []
    assert kinds("The Chinese word 你好 means hello to everybody.", "en") == []


@settings(max_examples=120, deadline=None)
@given(st.text(st.sampled_from("ab .!?\n的。！”“《》\"'()3 \t\u3000"), max_size=120), st.sampled_from(["en", "zh"]))
def test_sentences_are_the_text_but_for_white_space(text: str, language: str) -> None:
    spans = list(split_sentences(text, language))
    assert "".join("".join(text[a:b].split()) for a, b in spans) == "".join(text.split())
    assert all(text[a:b] == text[a:b].strip() and a < b for a, b in spans)
    assert all(b <= c for (_, b), (c, _) in pairwise(spans))


def test_little_of_good_books_is_cut(shared_data: Path) -> None:
    for name, language in (("en_novels_a", "en"), ("zh_modern_history", "zh"), ("zh_vernacular_novels", "zh")):
        with gzip.open(shared_data / "pretrain" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            texts = [json.loads(line)["text"] for line, _ in zip(file, range(25))]
        shares = [labels("sentences", text, language)["sentences_cut_share"] for text in texts]
        assert sum(shares) / len(shares) < 0.02, name


@pytest.mark.parametrize(("language", "line"), [("en", "The line of number {} is good."), ("zh", "这是第{}行的内容。")])
def test_in_a_long_text_of_many_paragraphs_every_sentence_is_where_it_says(language: str, line: str) -> None:
    lines = [line.format(number) for number in range(2000)]
    text = "\n\n".join(lines)
    assert [text[start:end] for start, end in split_sentences(text, language)] == lines
