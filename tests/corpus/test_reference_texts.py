"""Promises of reference texts: each text once, on one side, in its language; what cannot be read is told."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from chatloom.artifact import Artifact
from chatloom.corpus.columns import ABOUT, ColumnWriter
from chatloom.corpus.record import Document, write_documents
from chatloom.corpus.reference_texts import ReferenceText, Sample, TextSource, source_of
from chatloom.corpus.split import HELD_OUT, TRAIN, split_value
from chatloom.errors import ChatloomError
from chatloom.stage import Context

ENGLISH, CHINESE = "A short English text about weaving and looms.", "一段关于织布机的中文。"


def lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" if not isinstance(r, str) else r + "\n" for r in records), "utf-8")
    return path


def context(tmp_path: Path, **inputs: object) -> Context:
    return Context(None, inputs, tmp_path, 3, "model", "ngram-model")


def test_labels_of_documents_decide_language_and_side(tmp_path: Path) -> None:
    documents = [
        Document("a", ENGLISH, labels={"language": "xx", "split": "held_out"}),
        Document("b", CHINESE, labels={"language": "zh", "split": "train"}),
        Document("c", "", labels={"language": "en", "split": "train"}),
    ]
    write_documents(tmp_path / "shards" / "0.parquet", documents, {"language": pa.string(), "split": pa.string()})
    artifact = Artifact(tmp_path, {"kind": "documents", "fingerprint": "f"})
    found = list(source_of(context(tmp_path, reference=[artifact]), "reference", held_out_share=1 - 1e-9))
    assert found == [ReferenceText("a", ENGLISH, "xx", HELD_OUT), ReferenceText("b", CHINESE, "zh", TRAIN)]


def test_columns_beside_shards_are_read_for_the_documents_they_were_made_of(tmp_path: Path) -> None:
    both = []
    for name, language in (("one", "aa"), ("two", "bb")):
        folder, labels = tmp_path / name, tmp_path / f"{name}-labels"
        (folder / "shards").mkdir(parents=True)
        documents = [Document(f"{name}{i}", ENGLISH) for i in range(3)]
        write_documents(folder / "shards" / "0.parquet", documents, {})
        with ColumnWriter(labels / "language" / "0.parquet", {"language": pa.string()}) as writer:
            writer.add(documents, [{"language": language}] * 3)
        (labels / "language" / ABOUT).write_text("{}", "utf-8")
        both.append(
            (
                Artifact(folder, {"kind": "documents", "fingerprint": name}),
                Artifact(labels, {"kind": "labels", "fingerprint": name + "l", "parents": {"documents": name}}),
            )
        )
    given = context(tmp_path, reference=[d for d, _ in both], labels=[labels for _, labels in both])
    assert [text.language for text in source_of(given, "reference")] == ["aa"] * 3 + ["bb"] * 3
    without = context(tmp_path, reference=[both[0][0]])
    assert [text.language for text in source_of(without, "reference")] == ["en"] * 3


def test_shards_of_a_selection_carry_their_labels_themselves(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    columns = {"language": pa.string(), "split": pa.string()}
    documents = [
        Document(str(i), ENGLISH, labels={"language": "xx", "split": side}) for i, side in enumerate((TRAIN, HELD_OUT))
    ]
    write_documents(tmp_path / "shards" / "0.parquet", documents, columns)
    artifact = Artifact(tmp_path, {"kind": "selection", "fingerprint": "s"})
    found = list(source_of(context(tmp_path, reference=[artifact]), "reference"))
    assert [(text.language, text.side) for text in found] == [("xx", TRAIN), ("xx", HELD_OUT)]


def test_files_are_for_training_unless_a_share_is_held_out(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", *({"id": str(i), "text": ENGLISH} for i in range(200)))
    assert {text.side for text in TextSource(files=[file])} == {TRAIN}
    sides = {text.id: text.side for text in TextSource(files=[file], held_out_share=0.3, seed=5)}
    assert {key for key, side in sides.items() if side == HELD_OUT} == {k for k in sides if split_value(k, 5) < 0.3}
    assert 30 < list(sides.values()).count(HELD_OUT) < 90


def test_a_given_language_is_that_of_all_texts(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", {"text": ENGLISH}, {"text": CHINESE})
    assert [text.language for text in TextSource(files=[file])] == ["en", "zh"]
    assert [text.language for text in TextSource(files=[file], language="cs")] == ["cs", "cs"]


def test_bad_records_are_told_and_too_many_refused(tmp_path: Path) -> None:
    good = [{"text": ENGLISH}] * 100
    source = TextSource(files=[lines(tmp_path / "a.jsonl", *good, "{broken")])
    assert len(list(source)) == 100
    assert [(item.file, item.line) for item in source.bad] == [("a.jsonl", 101)]
    with pytest.raises(ChatloomError, match=r"b\.jsonl: 20 of 120 records cannot be read; the first: line 101"):
        list(TextSource(files=[lines(tmp_path / "b.jsonl", *good, *["{broken"] * 20)]))
    with pytest.raises(ChatloomError, match="cannot be read"):
        list(TextSource(files=[lines(tmp_path / "c.jsonl", "{broken")]))


def test_html_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("<p>text</p>", "utf-8")
    with pytest.raises(ChatloomError, match="run the stage `documents`"):
        list(TextSource(files=[tmp_path / "a.html"]))


def test_a_sample_does_not_depend_on_the_order_of_texts() -> None:
    texts = [ReferenceText(f"id{i}", f"text {i}", "en" if i % 3 else "zh", TRAIN) for i in range(90)]
    forwards, backwards = Sample(10, 1), Sample(10, 1)
    for text in texts:
        forwards.add(text)
    for text in texts[::-1]:
        backwards.add(text)
    assert forwards.texts("en") == backwards.texts("en")
    assert len(forwards.texts("en")) == len(forwards.texts("zh")) == 10
    assert forwards.languages() == ["en", "zh"]
    other = Sample(10, 2)
    for text in texts:
        other.add(text)
    assert other.texts("en") != forwards.texts("en")
