"""C4's rules, line by line, in English and in Chinese."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labelling_help import labels, parts

from chatloom.corpus.labellers.spans import without

GOOD = "The committee met on Tuesday to discuss it."
GOOD_ZH = "委员会在星期二开会讨论了新的提案。"


def cut(text: str, language: str = "en", **settings: object) -> list[str]:
    spans: list[int] = labels("c4", text, language, **settings)["c4_cut"]
    return parts(text, spans)


@pytest.mark.parametrize(
    ("line", "language"),
    [
        ("Home page of the committee and its members", "en"),  # no terminal punctuation
        ("Read what the committee decided about this ...", "en"),
        ("Four words are few.", "en"),
        ("Please enable JavaScript to see all of this page.", "en"),
        ("You accept our Privacy Policy by reading this page.", "en"),
        ("This site uses cookies to count all of its readers.", "en"),
        ("One two three four " + "x" * 1001 + ".", "en"),
        ("首页 新闻 财经 体育 娱乐 科技", "zh"),
        ("好的，谢谢。", "zh"),
        ("您的浏览器不支持本页面的播放功能。", "zh"),
        ("继续浏览即表示您同意我们的隐私政策。", "zh"),
        ("京ICP备12345678号，本站版权所有。", "zh"),
    ],
)
def test_each_bad_line_is_cut_and_the_good_ones_around_it_stay(line: str, language: str) -> None:
    good = GOOD_ZH if language == "zh" else GOOD
    text = f"{good}\n{line}\n{good}"
    assert cut(text, language) == [line + "\n"]
    row = labels("c4", text, language)
    assert (row["c4_lines"], row["c4_lines_cut"], row["c4_sentences"]) == (3, 1, 2)
    assert without(text, row["c4_cut"]) == f"{good}\n{good}"


@pytest.mark.parametrize(
    ("line", "language"),
    [
        ('He said: "we will be there on Tuesday."', "en"),
        ("Who would have thought of that before?", "en"),
        ("他说：“我们星期二就会到那里。”", "zh"),
        ("谁会事先想到这一点呢？", "zh"),
        ("这件事情还没有结束……", "zh"),
        ("學而時習之，不亦說乎！", "zh"),
    ],
)
def test_good_lines_stay(line: str, language: str) -> None:
    assert cut(line, language) == []


def test_the_number_of_words_is_a_border() -> None:
    assert cut("These are five words here.") == []
    assert cut("These are five here.") != []
    assert cut("These are five here.", min_line_words=4) == []
    assert cut("一二三四五六七。", "zh") == []
    assert cut("一二三四五六。", "zh") != []


def test_documents_are_measured_not_judged() -> None:
    row = labels("c4", "function f() { return 1; }\nLorem ipsum dolor sit amet.\n占位文本")
    assert (row["c4_curly_brackets"], row["c4_lorem_ipsum"]) == (1, 2)
    assert row["c4_bad_words"] is None


def test_citation_marks_are_cut_inside_the_line() -> None:
    text = "It was so.[1][citation needed] And x[i] stays.[12] 是的。[来源请求]"
    row = labels("c4", text)
    assert without(text, row["c4_citations"]) == "It was so. And x[i] stays. 是的。"


@pytest.mark.parametrize(
    ("sentence", "language"),
    [("Sentence number {} is here for all to see. ", "en"), ("这里是第{}个完整的句子。", "zh")],
)
def test_three_sentences_that_come_again_are_cut_once_and_two_are_not(sentence: str, language: str) -> None:
    a, b, c, d, e = (sentence.format(n) for n in (1, 2, 3, 4, 5))
    text = (a + b + c + d + a + b + c + e).strip()
    row = labels("c4", text, language)
    assert without(text, row["c4_repeated"]).replace("  ", " ") == (a + b + c + d + e).strip()
    assert labels("c4", (a + b + c + a + b + d).strip(), language)["c4_repeated"] == []


def test_bad_words_are_whole_words_in_english_and_anywhere_in_chinese(tmp_path: Path) -> None:
    (tmp_path / "bad").write_text("ass\nbad thing\n坏话\n", encoding="utf-8")
    row = labels("c4", "An ass in the class did a BAD thing. 他总说坏话的人。", bad_words=[str(tmp_path / "bad")])
    assert row["c4_bad_words"] == 3


LINES = st.lists(st.text(st.sampled_from("ab .!?的。[]1"), max_size=30), max_size=8)


@settings(max_examples=100, deadline=None)
@given(LINES, st.sampled_from(["en", "zh"]))
def test_what_stays_after_cutting_is_not_cut_again(lines: list[str], language: str) -> None:
    text = "\n".join(lines)
    row = labels("c4", text, language)
    left = without(text, row["c4_cut"])
    again = labels("c4", left, language)
    assert again["c4_cut"] == []
    assert again["c4_sentences"] == row["c4_sentences"]
    assert again["c4_lines"] == row["c4_lines"] - row["c4_lines_cut"]
