"""Promises of the stage `selection` about its report: same bytes wherever it runs, kept through kills, exact."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chatloom import recipe
from chatloom.artifact import Artifact
from chatloom.corpus.record import Document, document_files, read_documents
from chatloom.stages import selection as stage
from chatloom.tokens.vocabulary import Vocabulary

REPORTS = ("report.json", "report.html", "funnel.json")
LABELLERS: dict[str, Any] = {"language": {}, "length": {}, "personal_data": {}}
SETTINGS: dict[str, Any] = {
    "language": {"keep": ["en", "zh"]},
    "keep": "length_lines < 4 and length_characters > 20",
    "redact": {"email": "<EMAIL>"},
}


def write_pages(path: Path, n: int = 60) -> None:
    """English, Chinese and German texts, copies of some, addresses in some."""
    rng = random.Random(0)
    rows = []
    for number in range(n):
        words = (
            ["the", "and", "with", "house", "garden", "that", "went", "have"]
            if number % 3
            else list("的一是在不了有和人这中大")
        )
        text = (" " if number % 3 else "").join(rng.choices(words, k=rng.randint(20, 60)))
        text = text if number % 7 else "Der Hund und die Katze sind nicht im Garten, sondern im Haus, sagte er. " * 2
        text += f" mail a{number}@example.org now" if number % 5 == 0 else ""
        text += "\nmore lines\n and more\n and more" if number % 11 == 0 else ""
        rows += [{"id": f"d{number}", "text": text}] + ([{"id": f"e{number}", "text": text}] if number % 4 == 0 else [])
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def make(kind: str, out: Path, inputs: dict[str, Any], **settings: Any) -> Artifact:
    return recipe.run_stage(kind, {"engine": {"workers": 1}, **settings}, inputs, out / kind, quiet=True)


def inputs_of(out: Path, megabytes: float) -> dict[str, Artifact]:
    """Documents in shards of a size, their labels, their copies."""
    pages = out / "pages.jsonl"
    pages.parent.mkdir(parents=True, exist_ok=True)
    write_pages(pages)
    texts = make("documents", out, {"pages": [pages]}, shards={"shard_megabytes": megabytes})
    return {
        "documents": texts,
        "labels": make("labels", out, {"documents": texts}, labellers=LABELLERS),
        "duplicates": make("duplicates", out, {"documents": texts}, held_out_share=0.2),
    }


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    return inputs_of(tmp_path_factory.mktemp("inputs"), 0.002)


def reports(artifact: Artifact) -> dict[str, bytes]:
    return {name: (artifact.path / name).read_bytes() for name in REPORTS}


def test_the_report_is_the_same_with_more_workers_and_other_shards(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    one = make("selection", tmp_path / "one", inputs, **SETTINGS)
    two = make("selection", tmp_path / "two", inputs, **{**SETTINGS, "engine": {"workers": 2}})
    other = inputs_of(tmp_path / "other", 1.0)
    whole = make("selection", tmp_path / "whole", other, **SETTINGS)
    assert len(document_files(inputs["documents"].path)) > 3
    assert len(document_files(other["documents"].path)) == 1
    assert reports(one) == reports(two) == reports(whole)
    figures = json.loads((one.path / "report.json").read_text("utf-8"))
    assert {row["step"] for row in figures["rules"]} == {"language", "keep", "copies"}
    assert figures["edits"]["editors"][0]["name"] == "redact: email"
    assert figures["funnel"] == json.loads((one.path / "funnel.json").read_text("utf-8"))
    assert sum(row["removed"]["documents"] for row in figures["rules"]) == one.metrics["dropped"]


@pytest.mark.parametrize("where", ["render_selection_page", "write_json", "shutil"])
def test_cut_off_at_its_end_the_stage_selects_nothing_again_and_the_report_is_the_same(
    inputs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    expected = make("selection", tmp_path / "whole", inputs, **SETTINGS)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, where, killed if where != "shutil" else SimpleNamespace(rmtree=killed))
        with pytest.raises(KeyboardInterrupt):
            make("selection", tmp_path / "cut", inputs, **SETTINGS)
    partial = tmp_path / "cut" / "selection.partial"
    before = {file: file.stat().st_mtime_ns for file in partial.glob("shards/*")}
    assert before
    made = make("selection", tmp_path / "cut", inputs, **SETTINGS)
    assert reports(made) == reports(expected)
    assert {partial / "shards" / file.name: file.stat().st_mtime_ns for file in made.path.glob("shards/*")} == before
    assert not (made.path / "scratch").exists()


def test_a_vocabulary_counts_the_tokens_of_what_stays(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    texts: list[Document] = [d for f in document_files(inputs["documents"].path) for d in read_documents(f)]
    vocabulary = make_vocabulary(tmp_path, inputs)
    made = make("selection", tmp_path, {**inputs, "vocabulary": vocabulary}, **SETTINGS)
    kept = [document for file in document_files(made.path) for document in read_documents(file)]
    count = Vocabulary.load(vocabulary.path)
    shares = json.loads((made.path / "report.json").read_text("utf-8"))["shares"]["by_language"]
    for part, documents in (("before", texts), ("after", kept)):
        expected = sum(len(count.encode(document.text)) for document in documents)
        assert sum(row[part]["tokens"] for row in shares) == expected
    assert "tokens that stay" in (made.path / "report.html").read_text("utf-8")


def make_vocabulary(folder: Path, inputs: dict[str, Artifact]) -> Artifact:
    settings = {"vocab_size": 280, "allow_smaller": True}
    return recipe.run_stage("tokenizer", settings, {"documents": inputs["documents"]}, folder / "words", quiet=True)
