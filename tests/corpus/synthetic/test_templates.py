"""Templates: those that come along are complete in both languages; a file with a mistake is refused in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from chatloom.corpus.synthetic.costs import prompt_tokens, reply_tokens
from chatloom.corpus.synthetic.settings import AskSettings, ClusterSettings
from chatloom.corpus.synthetic.templates import PLACE, filled, read_templates
from chatloom.corpus.text.language import detect_language
from chatloom.errors import ChatloomError


def test_templates_that_come_along_are_in_english_and_chinese_alike() -> None:
    templates = read_templates()
    assert templates.languages == ("en", "zh")
    for name, template in templates.templates.items():
        assert set(template.texts) == {"en", "zh"}, name
        assert set(PLACE.findall(template.texts["en"])) == set(PLACE.findall(template.texts["zh"])), name
        for language, text in template.texts.items():
            assert detect_language(text).code == language
    for name, choices in templates.choices.items():
        assert len(choices["en"]) == len(choices["zh"]), name
    for phrases in (templates.refusals["en"], templates.refusals["zh"]):
        assert all(phrase == phrase.lower() for phrase in (*phrases.beginning, *phrases.anywhere))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("templates: {}", "no template is given"),
        ("templates: {page: {en: Write something.}}", "has neither {terms} nor {passage}"),
        ("templates: {page: {en: 'On {terms} for {audience}.'}}", r"{audience} has no choices in that language; give"),
        (
            "templates: {page: {en: 'On {terms} for {audiense}.'}}\nchoices: {audience: {en: [all]}}",
            r"did you mean {audience}\?",
        ),
        ("templates: {page: {en: 'On {term}.'}}", "has neither"),
        ("templates: {page: {weight: 0, en: 'On {terms}.'}}", "weight 0 must be above 0"),
        ("templates: {Page one: {en: 'On {terms}.'}}", "a name has small letters"),
        ("templates: {page: {weight: 2}}", "has no text"),
        ("templates: {page: {en: 'On {terms}.'}}\nchoice: {}", "choice: Extra inputs are not permitted"),
        ("templates: {page: {en: [1]}}", "templates.page.en: Input should be a valid string"),
        ("[1, 2]", "expected a mapping"),
    ],
)
def test_a_file_with_a_mistake_is_refused_with_its_place(text: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ChatloomError, match=told) as error:
        read_templates(file)
    assert str(file) in str(error.value)


def test_a_file_of_ones_own_takes_the_place_of_those_that_come_along(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("templates: {quiz: {weight: 2, zh: '就{terms}出一道题。'}}", encoding="utf-8")
    found = read_templates(file)
    assert found.languages == ("zh",)
    assert found.templates["quiz"].weight == 2
    assert found.refusals == {}


def test_a_choice_of_templates_keeps_these_alone() -> None:
    chosen = read_templates().chosen(["story", "rewrite"], ["zh"])
    assert set(chosen.templates) == {"story", "rewrite"}
    assert chosen.languages == ("zh",)
    with pytest.raises(ChatloomError, match="there is no template `storie`; there are `textbook`"):
        read_templates().chosen(["storie"], [])
    with pytest.raises(ChatloomError, match="no template has a text in `fr`; there are `en`, `zh`"):
        read_templates().chosen([], ["fr"])


def test_what_is_filled_in_is_not_filled_again() -> None:
    assert filled("{passage} and {terms}", {"passage": "{terms}", "terms": "x"}) == "{terms} and x"


def test_a_plan_counts_passages_where_templates_show_them() -> None:
    templates, clusters = read_templates(), ClusterSettings(passage_words=100)
    assert prompt_tokens(templates.chosen(["story"], []), clusters) == 170
    assert prompt_tokens(templates.chosen(["rewrite"], []), clusters) == 170 + 1.5 * 100
    assert prompt_tokens(templates.chosen(["story", "rewrite"], []), clusters) == 170 + 0.5 * 1.5 * 100
    assert reply_tokens(AskSettings(max_tokens=600)) == 300
