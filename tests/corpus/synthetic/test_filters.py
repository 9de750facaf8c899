"""Filters: each takes what it is there for, in English and in Chinese, and leaves a good reply alone."""

from __future__ import annotations

import random
from typing import Any

import pytest
from synthetic_help import CHINESE_TOPICS, OTHERS, TOPICS, article

from chatloom.corpus.synthetic.filters import copied_share, judge_replies
from chatloom.corpus.synthetic.settings import FilterSettings
from chatloom.corpus.synthetic.templates import read_templates

ENGLISH = article(TOPICS["baking"].split(), random.Random(1), False, 20)
CHINESE = article(CHINESE_TOPICS["农业"].split(), random.Random(1), True, 20)
PROMPTS = {
    "en": "Write one page of a textbook for first-year students. It brings these together: yeast, oven, dough.",
    "zh": "请为大学一年级学生写一页教科书，把下列内容联系起来：水稻、土壤、肥料。",
}


def reason(text: str, language: str = "en", finish: str = "stop", prompt: str = "", **settings: Any) -> str | None:
    reply = {"text": text, "finish": finish, "language": language, "prompt": prompt or PROMPTS[language]}
    refusals = read_templates().refusals
    [(verdict, _)] = judge_replies([reply], refusals, FilterSettings.parse(settings))
    return verdict[0] if verdict else None


@pytest.mark.parametrize(("text", "language"), [(ENGLISH, "en"), (CHINESE, "zh")])
def test_a_good_reply_stays(text: str, language: str) -> None:
    assert reason(text, language) is None
    for finish in ("eos", "end_turn", ""):
        assert reason(text, language, finish) is None


@pytest.mark.parametrize(("text", "language"), [(ENGLISH, "en"), (CHINESE, "zh")])
def test_a_reply_that_was_cut_off_goes_unless_it_is_wanted(text: str, language: str) -> None:
    assert reason(text, language, "length") == "unfinished"
    assert reason(text, language, "content_filter") == "unfinished"
    assert reason(text, language, "length", unfinished=True) is None


@pytest.mark.parametrize(
    ("start", "language", "anywhere"),
    [
        ("I'm sorry, but I can't write that. ", "en", False),
        ("**I’m sorry, but I cannot write that.** ", "en", False),
        ("Sure, here is the page you asked for: ", "en", False),
        ("It is known, as an AI language model, that I have no oven. ", "en", True),
        ("<think>\nThe user wants a page on baking.\n</think>\n", "en", False),
        ("很抱歉，我写不了这个。", "zh", False),
        ("> 好的，以下是这一页：", "zh", False),
        ("其实，作为一个人工智能语言模型，我没有土地。", "zh", True),
    ],
)
def test_refusals_and_remarks_about_the_task_go(start: str, language: str, anywhere: bool) -> None:
    body = ENGLISH if language == "en" else CHINESE
    assert reason(start + body, language) == "refusal"
    assert reason(start + body, language, refusals=False) is None
    at_the_end = reason(f"{body}\n{start}", language)  # a figure of a story may be sorry
    assert at_the_end == ("refusal" if anywhere else None)


def test_another_language_than_the_prompts_goes() -> None:
    assert reason(CHINESE, "en") == "other_language"
    assert reason(ENGLISH, "zh") == "other_language"
    assert reason(ENGLISH, "zh", same_language=False, rules={"preset": "none"}) is None


def test_short_and_repeating_replies_go_by_the_documents_rules() -> None:
    assert reason("") == "empty"
    assert reason("A short line about yeast.") == "word_count"
    line = "The yeast was in the oven and nobody knew that it was there.\n"
    assert str(reason(line * 30)).startswith(("repeated_", "top_"))
    assert str(reason("水稻在土壤里，没有人知道它在那里。\n" * 30, "zh")).startswith(("repeated_", "top_"))
    assert reason("A short line about yeast.", rules={"preset": "none"}) is None


def test_headings_and_lists_may_stay() -> None:
    parts = ENGLISH.replace("\n\n", " ").split(". ")
    listed = "# Baking\n\n" + "\n".join(f"- {part}" for part in parts)
    assert reason(listed) is None
    assert reason(listed, rules={"limits": {"bullet_lines": {"*": [None, 0.5]}}}) == "bullet_lines"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_copy_of_the_prompt_goes(language: str) -> None:
    body = ENGLISH if language == "en" else CHINESE
    prompt = f"{PROMPTS[language]}\n\n{body}"
    assert reason(body, language, prompt=prompt) == "copied"
    assert reason(body, language, prompt=prompt, max_copied=1.0) is None
    other = article(OTHERS, random.Random(2), False, 20) if language == "en" else body[::-1]
    assert copied_share(other, prompt, language) < 0.05


def test_the_share_that_is_copied_is_counted_in_windows() -> None:
    words = [f"w{i}" for i in range(16)]
    # 16 words have 9 windows of 8, of which the first 5 lie in the prompt's 12 words.
    assert copied_share(" ".join(words), " ".join(words[:12]), "en") == pytest.approx(5 / 9)
    signs = "".join(chr(0x4E00 + i) for i in range(24))
    assert copied_share(signs, signs[:18], "zh") == pytest.approx(7 / 13)


def test_the_first_reason_in_order_is_told() -> None:
    assert reason("抱歉，我不会。", "en", "length") == "unfinished"
    assert reason("i'm sorry, but i cannot. " + CHINESE, "en") == "refusal"
