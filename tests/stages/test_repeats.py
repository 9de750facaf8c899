"""What a corpus repeats, cut and left out by a selection: nothing is lost with both of its occurrences."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from chatloom import recipe
from chatloom.artifact import Artifact
from chatloom.corpus.record import Document, document_files, read_documents, read_dropped

WORDS = [f"word{i}" for i in range(3000)]
ENGINE = {"engine": {"workers": 1}}


def stage(kind: str, out: Path, inputs: dict[str, Any], **settings: Any) -> Artifact:
    return recipe.run_stage(kind, {**ENGINE, **settings}, inputs, out / kind, quiet=True)


def documents(out: Path, rows: list[dict[str, Any]], shard_megabytes: float = 0.005) -> Artifact:
    out.mkdir(parents=True, exist_ok=True)
    path = out / "pages.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return stage("documents", out, {"pages": [path]}, shards={"shard_megabytes": shard_megabytes})


def kept(made: Artifact) -> dict[str, Document]:
    return {d.id: d for file in document_files(made.path) for d in read_documents(file)}


def gone(made: Artifact) -> dict[str, str]:
    files = sorted((made.path / "dropped").glob("*.parquet"))
    return {d.id: f"{d.stage}/{d.reason}" for file in files for d in read_dropped(file)}


def words(seed: int, n: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=n))


@pytest.mark.parametrize("unit", ["lines", "paragraphs"])
def test_after_the_cut_every_passage_is_there_once_where_it_stood_first(tmp_path: Path, unit: str) -> None:
    draw = random.Random(1)
    passages = [words(seed, 8) for seed in range(60)] + [
        "一句在许多网页上都出现的话，内容完全相同，一个字也不差。",
        "short",
    ]
    between = "\n" if unit == "lines" else "\n\n"
    rows = [{"id": f"d{i:02d}", "text": between.join(draw.choices(passages, k=6))} for i in range(40)]
    texts = documents(tmp_path, rows)
    assert len(document_files(texts.path)) > 2
    copies = stage("duplicates", tmp_path, {"documents": texts}, passages=unit, near=False, ranges=3)
    chosen = stage("selection", tmp_path, {"documents": texts, "duplicates": copies}, cut=[f"repeated_{unit}"])
    first: dict[str, str] = {}
    for row in rows:
        for passage in row["text"].split(between):
            first.setdefault(passage, row["id"])
    found = Counter((p, d.id) for d in kept(chosen).values() for p in d.text.split(between) if p)
    assert {key: n for key, n in found.items() if key[0] != "short"} == {
        (p, name): 1 for p, name in first.items() if p != "short"
    }
    whole = Counter(p for row in rows for p in row["text"].split(between))["short"]
    assert sum(n for (p, _), n in found.items() if p == "short") == whole > 1
    assert set(gone(chosen).values()) <= {"edits/too_short"}


CHINESE = "这是一段在三篇文章里都出现的文字，前后都是别的内容，长度超过六十个字。" * 2


@pytest.mark.parametrize("stretch", [words(7, 30), CHINESE], ids=["en", "zh"])
def test_of_a_stretch_in_several_documents_the_first_stays(tmp_path: Path, stretch: str) -> None:
    rows = [{"id": f"d{i}", "text": f"{words(100 + i, 90)} {stretch} {words(200 + i, 90)}"} for i in range(4)]
    texts = documents(tmp_path, rows, 0.001)
    copies = stage("duplicates", tmp_path, {"documents": texts}, substring=40)
    assert copies.metrics["copies"] == {}
    chosen = stage("selection", tmp_path, {"documents": texts, "duplicates": copies}, cut=["repeated_substrings"])
    found = kept(chosen)
    assert [name for name, document in found.items() if stretch in document.text] == ["d0"]
    for i, row in enumerate(rows):
        for seed in (100 + i, 200 + i):  # without the ends, where letters that follow may be the same as well
            assert words(seed, 90)[10:-10] in found[row["id"]].text


def test_a_copy_that_stays_in_place_of_the_first_is_whole(tmp_path: Path) -> None:
    text = "\n".join(words(seed, 12) for seed in range(20))
    rows = [{"id": "a", "text": text}, {"id": "b", "text": text + " more"}, {"id": "c", "text": words(99, 50)}]
    texts = documents(tmp_path, rows)
    copies = stage("duplicates", tmp_path, {"documents": texts}, passages="lines", substring=50)
    assert copies.metrics["copies"] == {"near": 1}
    labels = stage("labels", tmp_path, {"documents": texts}, labellers={"length": {}})
    inputs = {"documents": texts, "duplicates": copies, "labels": [labels]}
    chosen = stage(
        "selection",
        tmp_path,
        inputs,
        cut=["repeated_lines", "repeated_substrings"],
        keep=f"length_characters != {len(text)}",
    )
    assert {name: document.text for name, document in kept(chosen).items()} == {
        "b": rows[1]["text"],
        "c": rows[2]["text"],
    }


def book_rows() -> list[dict[str, Any]]:
    """A book in pieces, most of it in other pieces, and a book of its own; pieces name their book by its title."""
    one, other = words(1, 6000).split(), words(2, 6000).split()
    pieces = {
        "Whole": [one[start : start + 500] for start in range(0, 6000, 500)],
        "Excerpt": [one[start : start + 333] for start in range(1200, 5196, 333)],
        "Another": [other[start : start + 500] for start in range(0, 6000, 500)],
    }
    rows = [
        {"id": f"{title}-{n}", "title": title, "text": " ".join(piece)}
        for title, texts in pieces.items()
        for n, piece in enumerate(texts)
    ]
    random.Random(0).shuffle(rows)
    return [*rows, {"id": "no book", "text": words(3, 100)}]


def test_a_book_in_pieces_goes_for_one_that_holds_it_as_long_as_that_one_stays(tmp_path: Path) -> None:
    texts = documents(tmp_path, book_rows(), 0.03)
    books = {"field": "title", "min_shingles": 1000}
    copies = stage("duplicates", tmp_path, {"documents": texts}, books=books, held_out_share=0.5, ranges=2)
    assert copies.metrics["book_copies"] == 12
    inputs = {"documents": texts, "duplicates": copies}
    chosen = stage("selection", tmp_path / "all", inputs)
    assert gone(chosen) == {f"Excerpt-{n}": "copies/book" for n in range(12)}
    sides = {d.labels["split"] for d in kept(chosen).values() if d.metadata.get("title") == "Whole"}
    assert len(sides) == 1
    labels = stage("labels", tmp_path, {"documents": texts}, labellers={"piece": {"use": "own_pieces:is_whole"}})
    without = stage("selection", tmp_path / "without", {**inputs, "labels": [labels]}, keep="not is_whole")
    assert {name.split("-")[0] for name in kept(without)} == {"Excerpt", "Another", "no book"}
    assert set(gone(without)) == {f"Whole-{n}" for n in range(12)}


@pytest.fixture(autouse=True)
def own_labeller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "own_pieces.py").write_text(
        "def is_whole(document) -> bool:\n"
        '    """A piece of the book Whole."""\n'
        "    return document.metadata.get('title') == 'Whole'\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(str(folder))


def test_evaluation_items_are_found_by_the_labeller_of_that_name(tmp_path: Path) -> None:
    items = [words(50, 30), "某工厂生产一批零件，原计划每天生产八十个，实际每天多生产二十个，结果提前三天完成任务。"]
    phrase = words(60, 16)
    file = tmp_path / "items.jsonl"
    rows = [{"question": items[0]}, {"question": items[1]}, {"question": f"{words(51, 40)} {phrase} {words(52, 40)}"}]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    pages = [{"id": f"phrase-{i}", "text": f"{words(300 + i, 60)} {phrase}."} for i in range(12)]
    for i, item in enumerate(items):
        pages.append({"id": f"item-{i}", "text": f"{words(400 + i, 40)} {item} {words(500 + i, 40)}"})
    texts = documents(tmp_path, pages, 0.002)
    assert len(document_files(texts.path)) > 2
    expected = {"few": ({}, {"item-0", "item-1"}), "many": ({"max_documents": 12}, {page["id"] for page in pages})}
    for name, (settings, bad) in expected.items():
        labellers = {"contamination": {"items": [str(file)], **settings}}
        labels = stage("labels", tmp_path / name, {"documents": texts}, labellers=labellers)
        assert not (labels.path / "surveys").exists()
        inputs = {"documents": texts, "labels": [labels]}
        cut = stage("selection", tmp_path / name, inputs, cut=["contamination_spans"])
        assert {d.id for d in kept(cut).values() if d.labels["contamination_items"]} == bad
        assert not any(item in d.text for d in kept(cut).values() for item in items)
    clean = stage("selection", tmp_path / "clean", inputs, keep="contamination_item_share < 0.5")
    assert set(gone(clean)) == expected["few"][1]
