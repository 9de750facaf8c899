"""Prompts: filled in the cluster's language, the same for the same seed, the first ones whatever their number."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from chatloom.corpus.synthetic.passages import passage_of, room_for
from chatloom.corpus.synthetic.prompts import Cluster, Composer, Seed, sample_seed
from chatloom.corpus.synthetic.templates import Templates, read_templates
from chatloom.corpus.text.language import detect_language

ENGLISH = Cluster("en-000", "en", 90, ("yeast", "oven", "dough", "flour", "crust"), (Seed("d1", "Bread is old."),))
CHINESE = Cluster("zh-000", "zh", 10, ("土壤", "水稻", "肥料"), (Seed("d2", "水稻需要很多水。"),))


def composer(*clusters: Cluster, templates: Templates | None = None, **values: Any) -> Composer:
    settings = {"terms": 3, "balance": 0.5, "seed": 1, **values}
    return Composer(clusters, templates or read_templates(), **settings)


def test_a_prompt_is_in_its_clusters_language_and_says_what_it_is_made_of() -> None:
    made_by = composer(ENGLISH, CHINESE)
    made = [made_by.compose(number) for number in range(200)]
    assert {prompt.language for prompt in made} == {"en", "zh"}
    assert {prompt.template for prompt in made} == set(read_templates().templates)
    for prompt in made:
        cluster = ENGLISH if prompt.language == "en" else CHINESE
        assert detect_language(prompt.text).code == prompt.language
        assert "{" not in prompt.text
        if prompt.template == "rewrite":
            assert (prompt.terms, prompt.seeds) == ((), cluster.seeds)
            assert cluster.seeds[0].passage in prompt.text
        else:
            assert prompt.seeds == ()
            assert len(prompt.terms) == 3
            assert ("、" if prompt.language == "zh" else ", ").join(prompt.terms) in prompt.text


def test_a_prompt_depends_on_its_number_and_the_seed_alone() -> None:
    one, same, other_seed = composer(ENGLISH, CHINESE), composer(CHINESE, ENGLISH), composer(ENGLISH, CHINESE, seed=2)
    backwards = {number: same.compose(number) for number in reversed(range(50))}
    assert [one.compose(number) for number in range(50)] == [backwards[n] for n in range(50)]
    other = [other_seed.compose(number).text for number in range(50)]
    assert sum(text == backwards[number].text for number, text in enumerate(other)) < 10


@pytest.mark.parametrize(("balance", "expected"), [(0.0, 0.5), (0.5, 0.75), (1.0, 0.9)])
def test_balance_is_the_power_of_a_clusters_size(balance: float, expected: float) -> None:
    made_by = composer(ENGLISH, CHINESE, balance=balance)
    made = Counter(made_by.compose(number).cluster for number in range(4000))
    assert made["en-000"] / 4000 == pytest.approx(expected, abs=0.03)


def test_weights_of_templates_are_how_often_they_come() -> None:
    values = {"templates": {"a": {"weight": 3, "en": "A {terms}"}, "b": {"en": "B {terms}"}}}
    made = composer(ENGLISH, templates=Templates.model_validate(values))
    found = Counter(made.compose(number).template for number in range(4000))
    assert found["a"] / 4000 == pytest.approx(0.75, abs=0.03)


def test_a_cluster_that_fills_no_template_is_left_out() -> None:
    bare, other = Cluster("en-001", "en", 50, ()), Cluster("fr-000", "fr", 50, ("pain",))
    assert [cluster.name for cluster, _ in composer(ENGLISH, bare, other).clusters] == ["en-000"]
    with pytest.raises(ValueError, match="no cluster has terms or passages"):
        composer(bare, other).compose(0)
    only_passage = Cluster("en-002", "en", 50, (), (Seed("d", "A passage."),))
    made_by = composer(only_passage)
    assert {made_by.compose(number).template for number in range(20)} == {"rewrite"}


def test_seeds_of_replies_differ_and_stay() -> None:
    found = {sample_seed(0, number, sample) for number in range(300) for sample in range(3)}
    assert len(found) == 900
    assert all(0 <= seed < 2**31 for seed in found)
    assert sample_seed(0, 7, 1) == sample_seed(0, 7, 1) != sample_seed(1, 7, 1)


def test_a_passage_begins_with_a_paragraph_and_ends_with_a_sentence() -> None:
    paragraphs = [
        f"Paragraph {i} begins here. It has a second sentence, and a third one follows. The end." for i in range(20)
    ]
    text = "\n\n".join(paragraphs)
    for at in (0.0, 0.3, 0.99):
        passage = passage_of(text, 200, at)
        assert passage.startswith("Paragraph ")
        assert passage.endswith(".")
        assert 100 <= len(passage) <= 200
    assert passage_of(text, 200, 0.0) != passage_of(text, 200, 0.9)


def test_a_chinese_passage_ends_with_a_sentence_too() -> None:
    text = "\n".join(f"第{i}段从这里开始，说的是水稻。它还有第二句话！后面又有一句？完了。" for i in range(30))
    passage = passage_of(text, 60, 0.5)
    assert passage.startswith("第")
    assert passage[-1] in "。！？"
    assert len(passage) <= 60


def test_a_passage_without_sentences_ends_between_words_and_a_short_text_is_whole() -> None:
    assert passage_of("  all of it ", 100, 0.5) == "all of it"
    words = passage_of("word " * 100, 52, 0.0)
    assert set(words.split()) == {"word"}
    assert passage_of("x" * 500, 50, 0.0) == "x" * 50
    assert (room_for(10, "en"), room_for(10, "zh")) == (60, 20)
