"""The corpus chapter as artifacts: what did not change is not made again, and what is made is exact."""

from __future__ import annotations

import gzip
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from chatloom import recipe
from chatloom.artifact import Artifact
from chatloom.corpus.record import document_files, read_documents, read_dropped
from chatloom.errors import ChatloomError
from chatloom.recipe.reading import from_values

ENGLISH = "The cat sat on the mat, and the dog that was with it had to go out to the garden of the house. "
CHINESE = "从前有一个人，他在山里住了很久，后来他回到城里，说起他所看到的事情，大家都很高兴。"
LABELLERS: dict[str, Any] = {"language": {}, "length": {}}


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    path = tmp_path / "pages.jsonl"
    rows = [{"id": f"en-{i}", "text": ENGLISH * (1 + i)} for i in range(6)] + [
        {"id": f"zh-{i}", "text": CHINESE * (2 + i)} for i in range(6)
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def make(kind: str, out: Path, inputs: dict[str, Any], **settings: Any) -> Artifact:
    return recipe.run_stage(kind, {"engine": {"workers": 1}, **settings}, inputs, out / kind, quiet=True)


def documents(pages: Path, out: Path) -> Artifact:
    return make("documents", out, {"pages": [pages]}, shards={"shard_megabytes": 0.001})


def columns(artifact: Artifact, labeller: str) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((artifact.path / labeller).glob("*.parquet"))}


def test_a_labeller_that_changed_is_the_only_one_made_again(pages: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    texts = documents(pages, out)
    assert len(document_files(texts.path)) > 2
    first = make("labels", out, {"documents": texts}, labellers=LABELLERS)
    assert first.metrics["labelled"] == ["language", "length"]
    before = columns(first, "language")
    more = make("labels", out, {"documents": texts}, labellers={**LABELLERS, "rules": {}})
    assert more.metrics["taken_over"] == ["language", "length"]
    assert more.metrics["labelled"] == ["rules"]
    assert columns(more, "language") == before


def test_columns_of_other_documents_are_never_taken_over(pages: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    make("labels", out, {"documents": documents(pages, out)}, labellers=LABELLERS)
    pages.write_text(pages.read_text(encoding="utf-8").replace("The cat", "A cat"), encoding="utf-8")
    again = make("labels", out, {"documents": documents(pages, out)}, labellers=LABELLERS)
    assert again.metrics["taken_over"] == []


def test_big_files_that_cannot_be_cut_are_named_by_the_plan(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": str(random.Random(i).random())}) + "\n" for i in range(500))
    for megabytes, named in ((1.0, []), (0.0005, ["a.jsonl.gz (0 MB) cannot be cut: one process reads it"])):
        stage = {"stage": "documents", "pages": {"path": str(tmp_path / "a.jsonl.gz")}}
        values = {"name": "x", "stages": {"pages": {**stage, "shards": {"part_megabytes": megabytes}}}}
        warnings = recipe.plan(from_values(values), tmp_path / "out", measure=False).warnings
        assert len(warnings) == len(named)
        assert all(text in warning for text, warning in zip(named, warnings))


def test_another_threshold_makes_only_the_selection_again(pages: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    lengths = [len(json.loads(line)["text"].strip()) for line in pages.read_text(encoding="utf-8").splitlines()]
    for limit in (200, 300):
        expected = sum(length > limit for length in lengths)
        texts = documents(pages, out)
        labels = make("labels", out, {"documents": texts}, labellers=LABELLERS)
        chosen = make("selection", out, {"documents": texts, "labels": labels}, keep=f"length_characters > {limit}")
        if limit == 200:
            made = texts.manifest["finished"], labels.manifest["finished"]
        else:
            assert (texts.manifest["finished"], labels.manifest["finished"]) == made
        found = [d for file in document_files(chosen.path) for d in read_documents(file)]
        assert len(found) == chosen.metrics["documents"] == expected
        gone = [d for file in sorted((chosen.path / "dropped").glob("*.parquet")) for d in read_dropped(file)]
        assert len(gone) == 12 - expected


def test_of_copies_one_stays_and_a_cluster_is_on_one_side_of_the_split(tmp_path: Path) -> None:
    words = [f"word{number}" for number in range(13)]
    rng = random.Random(0)
    rows = []
    for number in range(30):
        text = " ".join(rng.choice(words) + str(rng.randrange(50)) for _ in range(120))
        rows += [{"id": f"a{number}", "text": text}, {"id": f"b{number}", "text": text + " and one more"}]
        rows += [{"id": f"c{number}", "text": text.upper()}] if number < 5 else []
    path = tmp_path / "pages.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    out = tmp_path / "run"
    texts = documents(path, out)
    copies = recipe.run_stage(
        "duplicates",
        {"held_out_share": 0.3, "engine": {"workers": 1}},
        {"documents": texts},
        out / "copies",
        quiet=True,
    )
    assert copies.metrics["copies"] == {"exact": 5, "near": 30}
    kept_all = make("selection", out / "all", {"documents": texts, "duplicates": copies}, copies="all")
    sides: dict[str, set[object]] = {}
    for file in document_files(kept_all.path):
        for document in read_documents(file):
            sides.setdefault(document.id[1:], set()).add(document.labels["split"])
    assert len(sides) == 30
    assert all(len(side) == 1 for side in sides.values())
    assert {side for found in sides.values() for side in found} == {"train", "held_out"}
    one = make("selection", out / "one", {"documents": texts, "duplicates": copies})
    assert sorted(d.id for file in document_files(one.path) for d in read_documents(file)) == sorted(
        f"a{number}" for number in range(30)
    )


def test_a_labeller_of_the_users_own_is_made_again_when_its_file_changes(
    pages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(str(folder))
    out = tmp_path / "run"
    texts = documents(pages, out)
    own = {"vowels": {"use": "own_vowels:vowels"}}
    values = []
    for letters in ("aeiou", "aeiout"):
        (folder / "own_vowels.py").write_text(
            "def vowels(document) -> int:\n"
            f'    """How many vowels."""\n    return sum(document.text.count(c) for c in "{letters}")\n',
            encoding="utf-8",
        )
        sys.modules.pop("own_vowels", None)
        labels = make("labels", out, {"documents": texts}, labellers={**LABELLERS, **own})
        assert labels.metrics["labelled"] == (["language", "length", "vowels"] if not values else ["vowels"])
        values.append(columns(labels, "vowels"))
    assert values[0] != values[1]


def test_a_document_that_kills_its_labeller_loses_its_labels_only(
    pages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "own_killer.py").write_text(
        "import os, signal\n"
        "def size(document) -> int:\n"
        '    """Dies of one document."""\n'
        "    if document.id == 'zh-3':\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return len(document.text)\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(str(folder))
    out = tmp_path / "run"
    texts = documents(pages, out)
    labels = make("labels", out, {"documents": texts}, labellers={"size": {"use": "own_killer:size"}})
    assert labels.metrics["quarantined"] == 1
    assert "document zh-3: labelling its process was killed" in (labels.path / "quarantine.jsonl").read_text("utf-8")
    chosen = make("selection", out, {"documents": texts, "labels": labels}, keep="size > 0")
    assert chosen.metrics["documents"] == 11


@pytest.mark.parametrize("wrong", ["'many'", "1 << 70", "[1]"])
def test_a_label_of_the_wrong_type_costs_that_document_only(
    pages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    name = f"own_wrong_{abs(hash(wrong))}"
    body = f"def size(document) -> int:\n    return {wrong} if document.id == 'zh-3' else len(document.text)\n"
    (folder / f"{name}.py").write_text(body, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(str(folder))
    texts = documents(pages, tmp_path / "run")
    labels = make("labels", tmp_path / "run", {"documents": texts}, labellers={"size": {"use": f"{name}:size"}})
    (reason,) = [json.loads(line)["reason"] for line in (labels.path / "quarantine.jsonl").open(encoding="utf-8")]
    assert reason.startswith("document zh-3: labelling ValueError: labeller `size` gives size = ")
    assert labels.metrics["quarantined"] == 1


def test_labels_that_were_made_before_an_interruption_go_on_being_counted(
    pages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    body = "def size(document) -> int:\n    return len(document.text) // (document.id != 'zh-3')\n"
    (folder / "own_divider.py").write_text(body, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(str(folder))
    texts = documents(pages, tmp_path / "run")
    how: dict[str, Any] = {"labellers": {"length": {}, "size": {"use": "own_divider:size"}}}

    def stop(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("chatloom.stages.labels.gather_quarantine", stop)  # all columns are there, the manifest is not
        with pytest.raises(recipe.Stopped):
            make("labels", tmp_path / "run", {"documents": texts}, **how)
    labels = make("labels", tmp_path / "run", {"documents": texts}, **how)
    assert labels.metrics["labelled"] == ["length", "size"]
    assert labels.metrics["taken_over"] == []
    assert labels.metrics["quarantined"] == 1


@pytest.mark.parametrize(
    ("labellers", "match"),
    [
        ({"langauge": {}}, "did you mean `language`"),
        ({"rules": {}}, "needs the label `language`, but no labeller makes it"),
        ({"language": {"speed": 1}}, "speed"),
        ({"perplexity": {"model": "lm"}}, "model `lm` is not among this stage's `models`"),
    ],
)
def test_labellers_that_cannot_work_are_refused_with_the_cure(
    pages: Path, tmp_path: Path, labellers: dict[str, Any], match: str
) -> None:
    texts = documents(pages, tmp_path / "run")
    with pytest.raises(ChatloomError, match=match):
        make("labels", tmp_path / "run", {"documents": texts}, labellers=labellers)
