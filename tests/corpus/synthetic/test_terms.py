"""Topic terms: those that were put in come out, spelt as they stand, whole, in any script."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic_help import CHINESE_TOPICS, TOPICS, seed_documents

from chatloom.corpus.synthetic.terms import topic_terms


def terms_of(topics: dict[str, str], top: int = 8) -> dict[str, list[str]]:
    found = [(topic, doc.text) for topic, doc in seed_documents() if topic in topics and doc.labels["split"] == "train"]
    names = list(topics)
    labels = np.array([names.index(topic) for topic, _ in found])
    terms = topic_terms([text for _, text in found], labels, len(names), top)
    return {name: [term.text for term in own] for name, own in zip(names, terms)}


@pytest.mark.parametrize("topics", [TOPICS, CHINESE_TOPICS], ids=["en", "zh"])
def test_terms_are_the_words_that_only_the_topic_has(topics: dict[str, str]) -> None:
    for topic, terms in terms_of(topics).items():
        own = set(topics[topic].split())
        assert len(terms) == 8
        assert sum(term in own for term in terms) >= 7, (topic, terms)


def test_a_phrase_stands_for_its_parts_where_they_come_together() -> None:
    one = [f"The neural network of page {i} is a neural network that learns things of kind {i}." for i in range(9)]
    two = [f"The garden of house {i} has roses and the garden is open to all who come by day {i}." for i in range(9)]
    [first, second] = topic_terms([*one, *two], np.array([0] * 9 + [1] * 9), 2, 5)
    texts = [term.text for term in first]
    assert "neural network" in texts
    assert not {"neural", "network"} & set(texts)
    assert "garden" in [term.text for term in second]


def test_fragments_of_a_chinese_word_are_no_terms() -> None:
    forms = ["我们看见{}在那里。", "有人说{}很好！", "昨天{}来了，", "请把{}给他。", "为什么{}不见了？"]

    def texts(word: str, first: int) -> list[str]:
        others = ["".join(chr(0x4E00 + (first + i * 977 + j * 91) % 9000) for j in range(90)) for i in range(12)]
        return [others[i] + "。" + "".join(form.format(word) for form in forms[i % 5 :]) for i in range(12)]

    [first, second] = topic_terms([*texts("计算机", 0), *texts("大熊猫", 1)], np.array([0] * 12 + [1] * 12), 2, 3)
    assert [term.text for term in first] == ["计算机"]
    assert [term.text for term in second] == ["大熊猫"]


def test_the_usual_spelling_is_shown() -> None:
    verbs = ["launched", "watched", "built", "tested", "moved", "repaired", "sold", "bought"]
    texts = [f"NASA {verb} it and NASA {other} it." for verb, other in zip(verbs, verbs[::-1])] + ["nasa is a name"] * 2
    texts += [f"A cake in oven {i} is brown." for i in range(10)]
    [first, _] = topic_terms(texts, np.array([0] * 10 + [1] * 10), 2, 3)
    [term] = [term for term in first if term.text.lower() == "nasa"]
    assert (term.text, term.n_texts) == ("NASA", 10)


def test_words_that_every_cluster_has_name_none() -> None:
    for terms in terms_of(TOPICS, top=20).values():
        assert not {"captain", "breakfast", "the", "painted", "neighbour"} & set(terms[:10])


def test_a_cluster_without_anything_of_its_own_has_no_terms() -> None:
    assert topic_terms(["to be or not to be"] * 6, np.array([0, 0, 0, 1, 1, 1]), 2, 5) == [[], []]
