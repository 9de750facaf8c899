"""What the report of a selection counts is what a plain count of all documents gives, whatever the shards."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import selecting

from chatloom.corpus.record import Document
from chatloom.corpus.selection.choice import Case, SelectionSettings
from chatloom.corpus.settings import LanguageSettings, RuleSettings

TYPES = {
    "language": pa.string(),
    "language_confidence": pa.float64(),
    "rule_word_count": pa.float64(),
    "quality": pa.float64(),
    "odd": pa.float64(),
    "lines": pa.int64(),
    "clean": pa.bool_(),
    "topic": pa.string(),
    "waste": pa.list_(pa.int64()),
    "waste_kinds": pa.list_(pa.int8()),
    "order": pa.list_(pa.int32()),
    "personal_data": pa.list_(pa.int64()),
    "personal_data_kinds": pa.list_(pa.int8()),
    "cluster": pa.string(),
    "cluster_size": pa.int64(),
    "duplicate_kind": pa.string(),
    "similarity": pa.float64(),
}
NAMES = {"waste_kinds": {"1": "advert", "2": "menu"}, "personal_data_kinds": {"1": "email", "7": "chinese_mobile"}}
SOURCES = ("a.jsonl", "b/two.jsonl", "b/three.jsonl")
SETTINGS = SelectionSettings(
    language=LanguageSettings(keep=("en", "zh"), min_confidence=0.2),
    rules=RuleSettings(preset="none", limits={"word_count": {"*": (20, None), "zh": (30, 180)}}),
    keep="default(quality, 1) > 0.2 and (lines < 90\n or clean)",
    cases=(Case(when=f"source == '{SOURCES[1]}'", keep="clean", weight="lines / 64"),),
    prefer="default(quality, 0)",
    cut=("waste",),
    redact={"email": "<EMAIL>"},
    min_characters=40,
    held_out_share=0.3,
)
QUALITY, LINES = "default(quality, 1) > 0.2", "lines < 90 or clean"
Rule = tuple[str, str]


def make(seed: int, count: int = 400) -> list[Document]:
    """Documents with labels of every type, some of them absent, some in clusters of copies."""
    rng = random.Random(seed)
    documents = []
    for number in range(count):
        language = rng.choice(["en", "en", "en", "zh", "zh", "de", "fr", None])
        words = "一二三四五六七八九十" if language == "zh" else "ab cd ef gh "
        text = "".join(rng.choices(words, k=rng.randint(30, 200)))
        cut = sorted(rng.sample(range(len(text) + 1), 4)) if rng.random() < 0.4 else []
        found = sorted(rng.sample(range(len(text) + 1), 4)) if rng.random() < 0.3 else []
        labels: dict[str, Any] = {
            "language": language,
            "language_confidence": rng.random(),
            "rule_word_count": rng.choice([None, *(float(rng.randint(0, 250)) for _ in range(9))]),
            "quality": rng.choice([None, rng.random(), rng.random(), rng.random()]),
            "odd": rng.choice([None, math.nan, math.inf, -1e300, 0.0, rng.gauss(0, 1)]),
            "lines": rng.randint(0, 99),
            "clean": rng.choice([True, False, None]),
            "topic": rng.choice(["news", "新闻", "", f"rare {number}"]),
            "waste": cut,
            "waste_kinds": [rng.choice([1, 2]) for _ in range(len(cut) // 2)],
            "order": list(range(rng.randint(0, 5))),
            "personal_data": found,
            "personal_data_kinds": [rng.choice([1, 7]) for _ in range(len(found) // 2)],
            "cluster": None,
            "cluster_size": 1,
            "duplicate_kind": None,
            "similarity": None,
        }
        documents.append(Document(f"d{number:04d}", text, rng.choice(SOURCES), labels=labels))
    rng.shuffle(documents)
    start = 0
    while start < count // 2:
        size = rng.randint(2, 6)
        for place, document in enumerate(members := documents[start : start + size]):
            kind = rng.choice(["exact", "near", "url"]) if place else None
            similarity = rng.random() if kind == "near" else None
            assert isinstance(document.labels, dict)
            document.labels.update(cluster=members[0].id, cluster_size=size, duplicate_kind=kind, similarity=similarity)
        start += size
    rng.shuffle(documents)
    return documents


def cut_into(documents: Sequence[Document], *places: int) -> list[list[Document]]:
    bounds = [0, *places, len(documents)]
    return [list(documents[one:other]) for one, other in itertools.pairwise(bounds)]


def edited(document: Document) -> tuple[str, dict[str, list[int]]]:
    """The text as a plain loop over its characters edits it, and what edits it: name -> lengths of the places."""
    labels: dict[str, Any] = dict(document.labels)
    gone: set[int] = set()
    by: dict[str, list[int]] = {}
    for place, kind in enumerate(labels["waste_kinds"]):
        start, end = labels["waste"][2 * place : 2 * place + 2]
        gone |= set(range(start, end))
        by.setdefault(f"waste: {NAMES['waste_kinds'][str(kind)]}", []).append(end - start)
    new: dict[int, str] = {}
    for place, kind in enumerate(labels["personal_data_kinds"]):
        start, end = labels["personal_data"][2 * place : 2 * place + 2]
        if kind == 1:
            by.setdefault("redact: email", []).append(end - start)
            if not gone & set(range(start, end)) or start == end:
                new[start] = "<EMAIL>"
            gone |= set(range(start, end))
    text = "".join(new.get(i, "") + ("" if i in gone else c) for i, c in enumerate([*document.text, ""]))
    return text, by


def objections(document: Document, stays_of: dict[str, str]) -> list[Rule]:
    """Everything that speaks against a document, in order."""
    labels: dict[str, Any] = dict(document.labels)
    found = objections_before_copies(document)
    stays = stays_of.get(labels["cluster"] or "")
    if stays is not None and stays != document.id:
        found.append(("copies", labels["duplicate_kind"] or "duplicate"))
    if len(edited(document)[0]) < SETTINGS.min_characters:
        found.append(("edits", "too_short"))
    return found


def objections_before_copies(document: Document) -> list[Rule]:
    labels: dict[str, Any] = dict(document.labels)
    found: list[Rule] = []
    if labels["language"] not in ("en", "zh"):
        found.append(("language", "other_language"))
    if labels["language_confidence"] < 0.2:
        found.append(("language", "uncertain_language"))
    words = labels["rule_word_count"]
    low, high = (30, 180) if labels["language"] == "zh" else (20, math.inf)
    if words is not None and not low <= words <= high:
        found.append(("rules", "word_count"))
    if document.source == SOURCES[1]:
        if not labels["clean"]:
            found.append(("keep", "clean"))
        if labels["lines"] == 0:
            found.append(("keep", "weight"))
    else:
        if labels["quality"] is not None and not labels["quality"] > 0.2:
            found.append(("keep", QUALITY))
        if not (labels["lines"] < 90 or labels["clean"]):
            found.append(("keep", LINES))
    return found


def chosen_copies(documents: Sequence[Document]) -> dict[str, str]:
    best: dict[str, tuple[float, str]] = {}
    for document in documents:
        cluster = document.labels["cluster"]
        if cluster is not None and not objections_before_copies(document):
            rank = (-float(document.labels["quality"] or 0), document.id)
            best[str(cluster)] = min(best.get(str(cluster), rank), rank)
    return {cluster: name for cluster, (_, name) in best.items()}


@pytest.fixture(scope="module", params=[0, 1])
def case(request: Any, tmp_path_factory: Any) -> tuple[list[Document], selecting.Selected, dict[str, list[Rule]]]:
    documents = make(request.param)
    made = selecting.select(
        tmp_path_factory.mktemp("selection"), cut_into(documents, 150, 151), SETTINGS, TYPES, names=NAMES
    )
    stays_of = chosen_copies(documents)
    return documents, made, {document.id: objections(document, stays_of) for document in documents}


def test_each_document_goes_by_the_first_rule_that_says_no(case: Any) -> None:
    documents, made, said = case
    assert made.gone == {name: "/".join(rules[0]) for name, rules in said.items() if rules}
    assert sorted(made.kept) == sorted(name for name, rules in said.items() if not rules)
    assert {d.id: made.kept[d.id].text for d in documents if d.id in made.kept} == {
        d.id: edited(d)[0] for d in documents if not said[d.id]
    }
    assert {rule for rules in said.values() for rule in rules} >= {
        ("language", "other_language"), ("language", "uncertain_language"), ("rules", "word_count"), ("keep", "clean"),
        ("keep", QUALITY), ("keep", LINES), ("copies", "near"), ("edits", "too_short"),
    }  # fmt: skip


def test_amounts_by_rule_language_and_source_are_those_of_a_plain_count(case: Any) -> None:
    documents, made, said = case
    removed: Counter[tuple[Any, ...]] = Counter()
    for document in documents:
        if rules := said[document.id]:
            for by, value in (("language", document.labels["language"] or "unknown"), ("source", document.source)):
                removed[*rules[0], by, value, "documents"] += 1
                removed[*rules[0], by, value, "characters"] += len(document.text)
    found = {
        (row["step"], row["rule"], by, value, unit): n
        for row in made.figures()["rules"]
        for by in ("language", "source")
        for value, amounts in row[f"by_{by}"].items()
        for unit, n in amounts.items()
    }
    assert found == dict(removed)


def test_overlap_is_that_of_a_plain_count(case: Any) -> None:
    _, made, said = case
    figures = made.figures()
    rules = [tuple(rule) for rule in figures["overlap"]["rules"]]
    assert sorted(rules) == sorted({rule for found in said.values() for rule in found})
    expected = [[sum(one in found and other in found for found in said.values()) for other in rules] for one in rules]
    assert figures["overlap"]["documents"] == expected
    assert any(n for i, row in enumerate(expected) for j, n in enumerate(row) if i != j)
    for row in figures["rules"]:
        rule = (row["step"], row["rule"])
        assert row["objects"]["documents"] == sum(rule in found for found in said.values())
        assert row["alone"]["documents"] == sum([rule] == found for found in said.values())


def test_shares_and_weights_are_those_of_a_plain_count(case: Any) -> None:
    documents, made, said = case
    for by, name_of in (("language", lambda d: d.labels["language"] or "unknown"), ("source", lambda d: d.source)):
        shares = {row["name"]: row for row in made.figures()["shares"][f"by_{by}"]}
        assert set(shares) == {name_of(document) for document in documents}
        for name, row in shares.items():
            mine = [document for document in documents if name_of(document) == name]
            stay = [document for document in mine if not said[document.id]]
            weights = [d.labels["lines"] / 64 if d.source == SOURCES[1] else 1 for d in stay]
            lengths = [len(edited(document)[0]) for document in stay]
            assert row["before"] == {"documents": len(mine), "characters": sum(len(d.text) for d in mine)}
            assert row["after"] == {"documents": len(stay), "characters": sum(lengths)}
            assert row["weighted"] == {
                "documents": sum(weights),
                "characters": sum(weight * length for weight, length in zip(weights, lengths)),
            }
    sides = Counter(str(document.labels["split"]) for document in made.kept.values())
    found: Counter[str] = Counter()
    for row in made.figures()["splits"]:
        found[row["side"]] += row["documents"]
    assert found == sides
    assert set(sides) == {"train", "held_out"}


def test_edits_are_those_of_a_plain_count(case: Any) -> None:
    documents, made, said = case
    stay = [document for document in documents if not said[document.id]]
    changed = [document for document in stay if edited(document)[1]]
    places: Counter[tuple[str, str]] = Counter()
    for document in changed:
        for name, lengths in edited(document)[1].items():
            places[name, "documents"] += 1
            places[name, "places"] += len(lengths)
            places[name, "characters"] += sum(lengths)
    figures = made.figures()["edits"]
    assert figures["documents"] == len(changed)
    assert figures["characters_before"] == sum(len(document.text) for document in changed)
    assert figures["characters_after"] == sum(len(edited(document)[0]) for document in changed)
    assert {
        (row["name"], unit): row[unit] for row in figures["editors"] for unit in ("documents", "places", "characters")
    } == dict(places)
    assert {name for name, _ in places} == {"waste: advert", "waste: menu", "redact: email"}
    texts = {document.id: document.text for document in stay}
    for row in figures["editors"]:
        assert len(row["examples"]) == min(20, row["documents"])
        for example in row["examples"]:
            pieces = [text for kind, text in example["pieces"] if kind in ("same", "cut")]
            assert all(piece in texts[example["id"]] for piece in pieces)


def test_values_and_numbers_of_labels_of_every_type_are_those_of_a_plain_count(case: Any) -> None:
    documents, made, said = case
    labels = {label["name"]: label for label in made.figures()["labels"]}
    assert list(labels) == list(TYPES)
    for name, label in labels.items():
        values: list[Any] = [document.labels[name] for document in documents]
        stays = [not said[document.id] for document in documents]
        if label["kind"] in ("number", "spans", "list"):
            if label["kind"] != "number":
                values = [len(value) // (2 if label["kind"] == "spans" else 1) for value in values]
            finite = [value for value in values if value is not None and math.isfinite(value)]
            assert label["values"] == len(finite)
            assert label["absent"] == values.count(None)
            assert label["not_finite"] == len(values) - values.count(None) - len(finite)
            assert sum(sum(group["all"]) for group in label["groups"]) == len(finite)
            assert sum(sum(group["stays"]) for group in label["groups"]) == sum(
                stay for value, stay in zip(values, stays) if value in finite
            )
            assert min(group["lowest"] for group in label["groups"]) == min(finite)
        elif label["kind"] == "kinds":
            spoken = NAMES[name]
            expected = Counter(spoken[str(kind)] for value in values for kind in value)
            assert {row["value"]: row["all"] for row in label["most_frequent"]} == expected
        elif name != "cluster":
            text = {True: "yes", False: "no"} if label["kind"] == "condition" else {}
            counted = Counter(text.get(value, value) for value in values if value is not None)
            kept = Counter(text.get(v, v) for v, stay in zip(values, stays) if v is not None and stay)
            for row in label["most_frequent"]:
                assert (row["all"], row["stays"]) == (counted[row["value"]], kept[row["value"]])
            assert label["values"] == sum(counted.values())
            assert label["absent"] == values.count(None)


def test_copies_are_those_of_a_plain_count(case: Any) -> None:
    documents, made, said = case
    sizes = Counter(d.labels["cluster_size"] for d in documents if d.labels["cluster"] is not None)
    stay = Counter(d.labels["cluster_size"] for d in documents if d.labels["cluster"] is not None and not said[d.id])
    figures = made.figures()["copies"]
    assert [(row["size"], row["documents"], row["stay"], row["clusters"]) for row in figures["sizes"]] == [
        (size, n, stay[size], n // size)
        for size, n in sorted(sizes.items())  # type: ignore[operator, call-overload]
    ]
    largest = max(sizes)  # type: ignore[type-var]
    assert figures["largest"][0]["size"] == largest
    assert len(figures["largest"]) == 10
    by_id = {document.id: document for document in documents}
    for pair in figures["pairs"]["near"]:
        assert by_id[pair["copy"]["id"]].labels["duplicate_kind"] == "near"
        assert by_id[pair["copy"]["id"]].labels["cluster"] == by_id[pair["first"]["id"]].labels["cluster"]


def test_the_examples_of_a_rule_are_documents_it_removed_and_twenty_where_there_are_so_many(case: Any) -> None:
    _, made, said = case
    gone = Counter(rules[0] for rules in said.values() if rules)
    examples = made.figures()["examples"]
    assert set(examples) == {"/".join(rule) for rule in gone}
    for rule, n in gone.items():
        drawn = examples["/".join(rule)]
        assert len(drawn) == min(20, n)
        assert all(said[entry["id"]][0] == rule for entry in drawn)
    assert max(gone.values()) > 20


def test_figures_do_not_depend_on_shards_ranges_and_order(tmp_path: Path) -> None:
    documents = make(2, 200)
    one = selecting.select(tmp_path / "1", [documents], SETTINGS, TYPES, names=NAMES, ranges=1)
    mixed = random.Random(5).sample(documents, len(documents))
    for name, shards in (("2", cut_into(documents, 3, 4, 4, 120)), ("3", cut_into(mixed, 77))):
        many = selecting.select(tmp_path / name, shards, SETTINGS, TYPES, names=NAMES, ranges=3)
        assert many.figures() == one.figures()


def test_another_seed_draws_other_examples_and_counts_the_same(tmp_path: Path) -> None:
    documents = make(3, 200)
    one, other = (
        selecting.select(tmp_path / str(seed), [documents], SETTINGS, TYPES, names=NAMES, seed=seed).figures()
        for seed in (0, 1)
    )
    assert one["overlap"] == other["overlap"]
    drawn = [[entry["id"] for entry in figures["examples"]["language/other_language"]] for figures in (one, other)]
    assert drawn[0] != drawn[1]


def test_tokens_are_counted_by_the_vocabulary_before_and_after(tmp_path: Path) -> None:
    from chatloom.tokens.vocabulary import Vocabulary

    documents = make(4, 120)
    vocabulary = Vocabulary.train([document.text for document in documents], 300)
    vocabulary.save(tmp_path / "vocabulary")
    made = selecting.select(
        tmp_path, cut_into(documents, 50), SETTINGS, TYPES, names=NAMES, vocabulary=tmp_path / "vocabulary"
    )
    figures = made.figures(tokens=True)

    def tokens(texts: Sequence[str]) -> int:
        return sum(len(vocabulary.encode(text)) for text in texts)

    shares = figures["shares"]["by_source"]
    assert sum(row["before"]["tokens"] for row in shares) == tokens([document.text for document in documents])
    assert sum(row["after"]["tokens"] for row in shares) == tokens([document.text for document in made.kept.values()])
    rules = {(row["step"], row["rule"]): row["removed"]["tokens"] for row in figures["rules"]}
    gone = [d.text for d in documents if made.gone.get(d.id) == "language/other_language"]
    assert rules["language", "other_language"] == tokens(gone)


def test_sources_that_are_single_documents_are_counted_by_their_folders(tmp_path: Path) -> None:
    pages = [Document(f"{i}", "x", f"site/{i}.html") for i in range(5)]
    books = [Document(f"book {i}", "x", "site/books.jsonl") for i in range(2)]
    figures = selecting.select(
        tmp_path, [pages, [*books, Document("a", "x", "alone")]], SelectionSettings(), {}
    ).figures()
    found = {row["name"]: row["before"]["documents"] for row in figures["shares"]["by_source"]}
    assert found == {"site/*": 5, "site/books.jsonl": 2, "*": 1}


def test_no_documents_and_no_labels_make_empty_figures(tmp_path: Path) -> None:
    figures = selecting.select(tmp_path / "1", [[]], SelectionSettings(), TYPES).figures()
    assert figures["rules"] == []
    assert figures["overlap"] == {"rules": [], "documents": []}
    assert {label["values"] for label in figures["labels"]} == {0}
    figures = selecting.select(tmp_path / "2", [[Document("a", "x")], []], SelectionSettings(), {}).figures()
    assert figures["labels"] == []
    assert figures["shares"]["by_language"][0]["name"] == "unknown"


def test_books_that_go_for_another_are_a_rule_of_their_own(tmp_path: Path) -> None:
    types = {name: pa.string() for name in ("book", "book_copy_of", "cluster", "duplicate_kind")}
    types["book_share"] = pa.float64()
    blank = dict.fromkeys(types)
    whole = Document("whole", "x" * 50, labels={**blank, "book": "whole", "cluster": "whole"})
    part = Document("part", "x" * 20, labels={**blank, "book": "part", "book_copy_of": "whole", "book_share": 1.0,
                    "cluster": "whole", "duplicate_kind": "near"})  # fmt: skip
    made = selecting.select(tmp_path, [[whole], [part]], SelectionSettings(), types)
    assert made.gone == {"part": "copies/book"}
    assert made.figures()["overlap"] == {
        "rules": [["copies", "book"], ["copies", "near"]], "documents": [[1, 1], [1, 1]]
    }  # fmt: skip
