"""Rules measure what they say, keep good texts of both languages, and catch garbage."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatloom.corpus.extraction.extract import extract
from chatloom.corpus.settings import PRESETS, RuleSettings, rule_limits
from chatloom.corpus.text import rules
from chatloom.corpus.text.language import detect_language
from chatloom.corpus.text.measures import Texts, repeated_share
from chatloom.corpus.text.rules import RULES, judge, measure_texts
from chatloom.settings import SettingsError


def value(name: str, text: str, language: str = "en") -> float:
    return measured(text, language)[name]


def measured(text: str, language: str) -> dict[str, float]:
    return {name: float(values[0]) for name, values in measure_texts([text], [language]).items()}


def objections(text: str, language: str, settings: RuleSettings) -> dict[str, str]:
    """What each rule says against a text."""
    limits = rule_limits(settings)
    said = {name: judge(number, language, limits[name]) for name, number in measured(text, language).items()}
    return {name: verdict for name, verdict in said.items() if verdict is not None}


@pytest.mark.parametrize(
    ("name", "language", "text", "expected"),
    [
        ("word_count", "en", "one two\nthree", 3),
        ("word_count", "zh", "一二三，用 list.sort() 排序", 8),
        ("mean_word_length", "en", "ab cdef", 3),
        ("mean_word_length", "zh", "一二三四，五六。", 3),
        ("symbol_share", "en", "## title and so on ... ……", 2 / 7 + 1 / 7),
        ("alphabetic_share", "en", "a 1 b2 --", 0.5),
        ("alphabetic_share", "zh", "一二，。", 0.5),
        ("stop_words", "en", "The end of the road, with (and) The", 4),
        ("stop_words", "zh", "他的书在这里的", 4),
        ("bullet_lines", "en", "- a\n• b\nc\n\n* d", 0.75),
        ("ellipsis_lines", "en", "a...\nb…\nc\nd", 0.5),
        ("ellipsis_lines", "zh", "一……\n二。。。\n三\n四", 0.5),
        ("terminal_punctuation", "en", "a.\nb\nc!\nd", 0.5),
        ("terminal_punctuation", "zh", "一。\n二\n三！\n四", 0.5),
        ("terminal_punctuation", "en", "one line only", 1),
        ("punctuation_share", "en", "a, b", 1 / 3),
        ("digit_share", "en", "a1 2b", 0.5),
        ("broken_share", "en", "caf\ufffd x", 0.2),
        ("broken_share", "zh", "锟斤拷一二三四五六七", 0.1),
        ("repeated_lines", "en", "the same line\n}\n}\nthe same line\nanother line", 1 / 3),
        ("repeated_line_characters", "en", "ab\nab\ncdef", 0.25),
        ("repeated_paragraphs", "en", "a\nb\n\na\nb\n\nc\n\nd", 0.25),
        ("repeated_paragraph_characters", "en", "aa\n\naa\n\nbbbb", 0.25),
        ("top_2gram", "en", "a b x a b y a b", 6 / 8),
        ("top_2gram", "en", "a b c d", 0),
        ("top_2gram", "zh", "一二三四一二三四五", 8 / 9),
        ("repeated_5grams", "en", "a b c d e x a b c d e", 5 / 11),
        ("repeated_5grams", "en", "a a a a a a a", 6 / 7),
        ("repeated_5grams", "zh", "一二三四五六七八九十" * 2, 0.5),
        ("repeated_5grams", "en", "a b", 0),
    ],
)
def test_each_rule_measures_what_it_says(name: str, language: str, text: str, expected: float) -> None:
    assert value(name, text, language) == pytest.approx(expected)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_stands_an_empty_text_and_names_its_source(name: str) -> None:
    for language in ("en", "zh", "und"):
        assert 0 <= value(name, "", language) <= 1
        assert 0 <= value(name, " \n\n ", language) <= 1
    assert RULES[name].source
    assert RULES[name].about


def test_repeated_ngrams_agree_with_a_plain_count() -> None:
    words = ("to be or not to be that is the question whether to be or not to be is the question " * 3).split()
    for n in (2, 3, 5, 8):
        seen, covered = set(), [False] * len(words)
        for start in range(len(words) - n + 1):
            gram = tuple(words[start : start + n])
            if gram in seen:
                covered[start : start + n] = [True] * n
            seen.add(gram)
        plain = sum(len(word) for word, mark in zip(words, covered, strict=True) if mark) / sum(map(len, words))
        texts = Texts([" ".join(words)], by_characters=False)
        assert texts.repeated_ngram_share(n)[0] == pytest.approx(plain)


def test_shares_do_not_depend_on_which_length_was_asked_first() -> None:
    text = "one two three four five six seven eight nine ten " * 2
    forwards, backwards = Texts([text], by_characters=False), Texts([text], by_characters=False)
    up = [forwards.repeated_ngram_share(n)[0] for n in range(2, 12)]
    assert up == [backwards.repeated_ngram_share(n)[0] for n in range(11, 1, -1)][::-1]
    assert Texts(["a b c d e f"], by_characters=False).repeated_ngram_share(3)[0] == 0
    assert repeated_share([], by_characters=True) == 0


def test_limits_are_inclusive_and_japanese_takes_the_chinese_ones() -> None:
    limits = {"*": (2.0, 5.0), "zh": (3.0, None)}
    assert judge(2.0, "en", limits) is None
    assert judge(5.0, "en", limits) is None
    assert judge(1.9, "en", limits) == "1.9 is below 2"
    assert judge(6.0, "de", limits) == "6 is above 5"
    assert judge(6.0, "zh", limits) is None
    assert judge(2.5, "ja", limits) == "2.5 is below 3"


GOOD = {
    "en": "The committee met on Tuesday to discuss the new proposal. Most of the members were in favour of it, but "
    "two of them asked for more time to read the report that had been sent to them with the invitation. In the end "
    "it was decided to meet again next week, and to have the report explained by its authors.",
    "zh": "委员会在星期二开会讨论了新的提案。大多数成员都表示赞成，"
    "但是有两位成员希望有更多的时间来阅读随邀请一起寄来的报告。"
    "最后大家决定下个星期再次开会，并且请报告的作者亲自来说明其中的内容，这样每个人都能在投票之前把问题弄清楚。",
}
GARBAGE = {
    "word_count": "Click here.",
    "digit_share": " ".join(f"The price of item is 4{n}913-2201-8{n}55 and that 99{n}100." for n in range(9)),
    "stop_words": "buy cheap shoes online best deals discount luxury watches handbags outlet store free shipping "
    * 1
    + "nike adidas gucci prada rolex omega casio puma reebok fila vans converse lacoste armani versace dior chanel "
    "hermes burberry fendi valentino balenciaga givenchy celine loewe coach tory michael kors kate spade marc jacobs.",
    "repeated_lines": "\n".join(["Home and about us", "Contact the team", "All of our products"] * 12),
    "alphabetic_share": "the of 12 -- 33 && 4/5 || 77 == 8 ++ 9 ## " * 12,
    "ellipsis_lines": "\n".join(f"Read the story of town number {n} and what happened to it ..." for n in range(12)),
    "bullet_lines": "\n".join(f"- the {a} of {b}." for a in "abcdefg" for b in ("Rome", "Paris", "Oslo")),
    "broken_share": GOOD["en"] + " caf\ufffd" * 20,
    "repeated_10grams": (GOOD["en"] + " ") * 3,
}
GARBAGE_ZH = {
    "word_count": "点击这里",
    "punctuation_share": "最新电影在线观看高清下载免费 " * 1 + " ".join(
        f"{a}{b}下载地址大全手机版官方网站" for a in "甲乙丙丁戊己" for b in "子丑寅卯辰"),
    "repeated_10grams": GOOD["zh"] * 3,
    "broken_share": GOOD["zh"] + "锟斤拷" * 20,
}  # fmt: skip


def reasons(text: str, preset: str = "web") -> dict[str, str]:
    return objections(text, detect_language(text).code, RuleSettings.parse({"preset": preset}))


@pytest.mark.parametrize("language", GOOD)
@pytest.mark.parametrize("preset", PRESETS)
def test_good_prose_stays(language: str, preset: str) -> None:
    assert reasons(GOOD[language], preset) == {}


@pytest.mark.parametrize(("rule", "text"), [*GARBAGE.items(), *GARBAGE_ZH.items()])
def test_garbage_goes_and_the_reason_names_the_rule(rule: str, text: str) -> None:
    assert rule in reasons(text)
    assert reasons(text, "none") == {}


def test_documentation_survives_where_web_rules_would_drop_it(pages: Path) -> None:
    page, constants = (extract((pages / f"{name}.html").read_bytes(), "blocks").text for name in ("threading", "errno"))
    assert reasons(page, "documentation") == {}
    assert reasons(page, "web")
    assert reasons(constants, "documentation")  # a list of constants has no prose


def test_own_limits_replace_the_preset_s_and_mistakes_are_named() -> None:
    own = {"word_count": {"zh": [5, None]}, "digit_share": {"*": [None, 0.9]}}
    limits = rule_limits(RuleSettings.parse({"preset": "documentation", "limits": own}))
    assert limits["word_count"] == {"*": (20, None), "zh": (5, None)}
    assert limits["digit_share"] == {"*": (None, 0.9)}
    assert limits["symbol_share"] == RULES["symbol_share"].limits
    with pytest.raises(SettingsError, match="did you mean `word_count`"):
        RuleSettings.parse({"limits": {"word_cuont": {"*": [1, None]}}})
    with pytest.raises(SettingsError, match="lowest 5 is above highest 1"):
        RuleSettings.parse({"limits": {"word_count": {"*": [5, 1]}}})
    assert {name for preset in PRESETS.values() for name in preset} <= set(RULES)


def samples(path: Path, count: int) -> Iterator[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [line for line in file if line.strip()]
    yield from (json.loads(line)["text"] for line in rows[:: max(1, len(rows) // count)])


@pytest.mark.parametrize(
    ("name", "preset", "most_dropped"),
    [
        ("en_novels_a", "web", 0.02), ("en_peps", "web", 0.06), ("zh_vernacular_novels", "web", 0.02),
        ("zh_classical", "web", 0.05), ("zh_modern_history", "web", 0.05), ("zh_oiwiki", "web", 0.12),
        ("en_children_stories", "curated", 0.05), ("zh_poetry", "curated", 0.05), ("zh_oiwiki", "curated", 0.02),
    ],
)  # fmt: skip
def test_good_books_and_pages_stay(shared_data: Path, name: str, preset: str, most_dropped: float) -> None:
    texts = list(samples(shared_data / "pretrain" / f"{name}.jsonl.gz", 60))
    dropped = sum(bool(reasons(text, preset)) for text in texts)
    assert dropped / len(texts) <= most_dropped


def test_shuffled_scrambled_and_cut_texts_of_real_pages_go(shared_data: Path) -> None:
    texts = [text for text in samples(shared_data / "pretrain" / "en_web_wiki_sample.jsonl.gz", 40) if len(text) > 500]
    for text in texts[:20]:
        for garbage in (text[:120] + "\n", (text[:80] + "\n") * 30, " ".join(str(ord(char)) for char in text[:600])):
            assert objections(garbage, "en", RuleSettings()), garbage[:100]


def test_a_huge_text_takes_seconds_not_hours() -> None:
    text = "All work and no play makes Jack a dull boy.\n" * 50_000
    started = time.perf_counter()
    assert all(number >= 0 for number in measured(text, "en").values())
    assert time.perf_counter() - started < 30


def test_no_rule_s_name_changed_without_notice() -> None:
    # Names are columns of labels and keys of recipes.
    assert list(RULES)[:4] == ["word_count", "mean_word_length", "symbol_share", "alphabetic_share"]
    assert len(RULES) == 24
    assert all(rule.version >= 1 for rule in RULES.values())
    assert rules.FEW_LINES == 4
