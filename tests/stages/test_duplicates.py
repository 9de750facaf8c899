"""The stage `duplicates`: the same bytes from every engine and after every end, and columns that say what is true."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import pyarrow.parquet as pq
import pytest
import yaml
from crawl_copies import CHATLOOM, FOOTER, count_receipts, crawl, killed_after, tables

from chatloom import recipe
from chatloom.artifact import Artifact
from chatloom.corpus.columns import read_labelled
from chatloom.corpus.duplicates.search import CopySettings, search
from chatloom.corpus.engine.local import InProcess
from chatloom.corpus.engine.steps import Lost, Receipt, Work
from chatloom.corpus.record import Document, document_files
from chatloom.corpus.split import side_of, sides_of_clusters
from chatloom.stages.duplicates import DuplicatesSettings, plan_searches

SHARE = 0.3
SEARCHES = {"passages": "lines", "substring": 60, "books": {"min_shingles": 500}, "held_out_share": SHARE, "ranges": 2}


def pages(folder: Path, documents: list[Document]) -> Path:
    """The documents as a file of JSON lines."""
    path = folder / "pages.jsonl"
    rows = [{"id": d.id, "text": d.text.strip() or "empty", "url": d.url} for d in documents]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def texts(path: Path, out: Path, shard_megabytes: float = 0.03) -> Artifact:
    """The artifact of documents, in shards of so many characters."""
    settings = {"engine": {"workers": 1}, "shards": {"shard_megabytes": shard_megabytes}}
    return recipe.run_stage("documents", settings, {"pages": [path]}, out / "documents", quiet=True)


def copies(documents: Artifact, out: Path, **settings: Any) -> Artifact:
    """The stage with some settings, all searches on."""
    given = {**SEARCHES, "engine": {"workers": 2}, **settings}
    return recipe.run_stage("duplicates", given, {"documents": documents}, out, quiet=True)


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("crawl")
    return texts(pages(folder, crawl()), folder)


@pytest.fixture(scope="module")
def made(documents: Artifact) -> Artifact:
    """What the stage makes undisturbed."""
    return copies(documents, documents.path.parent / "copies")


def rows(documents: Artifact, made: Artifact) -> dict[str, dict[str, Any]]:
    """Labels of each document, by id; that they fit the documents is checked on the way."""
    found = {}
    for shard in document_files(documents.path):
        columns = [file.parent / shard.name for file in sorted(made.path.glob("*/about.json"))]
        for batch in read_labelled(shard, columns):
            found |= {document.id: {**document.labels, "text": document.text} for document in batch}
    return found


def test_the_columns_say_what_the_search_finds(documents: Artifact, made: Artifact, tmp_path: Path) -> None:
    listed = [Document(d.id, d.text.strip() or "empty", url=d.url) for d in crawl()]
    table, groups = search([lambda: listed], tmp_path / "work", CopySettings(), parts=3)
    kinds: dict[str, tuple[str, float]] = {}
    for row in table.to_pylist():
        kinds.setdefault(row["id"], (row["kind"], row["similarity"]))
    cluster = {name: (key, len(ids)) for key, ids in groups for name in ids}
    sides = dict(sides_of_clusters(groups, SHARE, 0))
    labels = rows(documents, made)
    assert sorted(labels) == sorted(document.id for document in listed)
    for name, row in labels.items():
        assert (row["duplicate_kind"], row["similarity"]) == kinds.get(name, (None, None))
        assert (row["cluster"], row["cluster_size"]) == cluster.get(name, (None, 1))
        assert row["split"] == sides.get(name, side_of(name, SHARE, 0))
    counted = [kind for kind, _ in kinds.values()]
    assert made.metrics["copies"] == {kind: counted.count(kind) for kind in ("exact", "near", "url")}
    assert min(made.metrics["copies"].values()) > 0
    assert made.metrics["clusters"] == len(groups)
    assert made.metrics["documents"] == len(labels) == sum(made.metrics["split"].values())


def test_lines_that_stood_earlier_are_spans_and_the_first_one_stays(documents: Artifact, made: Artifact) -> None:
    footer = FOOTER.strip()
    labels = rows(documents, made)
    having = [row for row in labels.values() if footer in row["text"] and row["duplicate_kind"] is None]
    assert len(having) > 4
    for number, row in enumerate(having):
        spans = row["repeated_lines"]
        cut = [row["text"][start:end].strip() for start, end in zip(spans[::2], spans[1::2])]
        assert cut == ([] if number == 0 else [footer])
        assert row["repeated_lines_share"] == pytest.approx((sum(spans[1::2]) - sum(spans[::2])) / len(row["text"]))
    copied = [row for row in labels.values() if row["duplicate_kind"] is not None]
    assert copied
    assert all(row["repeated_lines"] == row["repeated_substrings"] == [] for row in copied)
    assert made.metrics["repeated_lines"]["repeated"] == (len(having) - 1) * len(footer)


def test_an_excerpt_goes_for_its_book_and_both_are_on_one_side(documents: Artifact, made: Artifact) -> None:
    labels = rows(documents, made)
    book, excerpt = labels["book"], labels["excerpt"]
    assert (excerpt["book"], excerpt["book_copy_of"], excerpt["book_share"]) == ("excerpt", "book", 1.0)
    assert (book["book"], book["book_copy_of"]) == ("book", None)
    assert book["split"] == excerpt["split"]
    assert excerpt["repeated_substrings"] == book["repeated_substrings"] == []
    assert all(row["book"] is None for name, row in labels.items() if name not in ("book", "excerpt"))
    assert made.metrics["book_copies"] == 1


def test_every_number_of_ranges_and_workers_gives_the_same_bytes(
    documents: Artifact, made: Artifact, tmp_path: Path
) -> None:
    for settings in ({"ranges": 1, "engine": {"workers": 1}}, {"ranges": 3, "memory_megabytes": 1}):
        again = copies(documents, tmp_path / f"{settings['ranges']}", **settings)
        assert tables(again.path) == tables(made.path)
        assert again.fingerprint == made.fingerprint


def test_other_shards_hold_the_same_rows(documents: Artifact, made: Artifact, tmp_path: Path) -> None:
    other = texts(pages(tmp_path, crawl()), tmp_path, shard_megabytes=0.012)
    assert len(document_files(other.path)) > len(document_files(documents.path)) > 2
    assert rows(other, copies(other, tmp_path / "copies")) == rows(documents, made)


def test_ray_writes_the_same_bytes(documents: Artifact, made: Artifact, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    engine = {"name": "ray", "address": "local", "workers": 2}
    assert tables(copies(documents, tmp_path / "copies", engine=engine).path) == tables(made.path)


class Counting(InProcess):
    """An engine here that counts what it is given."""

    def __init__(self) -> None:
        self.given: list[str] = []

    def map(self, work: Iterable[Work]) -> Iterator[Receipt | Lost]:
        for item in work:
            self.given.append(item.task.key)
            yield from super().map([item])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_killed_anywhere_and_run_again_it_goes_on_and_writes_the_same_bytes(
    documents: Artifact, made: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    parsed = DuplicatesSettings.parse(SEARCHES)
    searches = plan_searches(parsed, document_files(documents.path), tmp_path, tmp_path, 0)
    n_tasks = sum(len(step.tasks) for step in [*searches.steps, *(step for step, _ in searches.columns.values())])
    settings = {"documents": {"path": str(documents.path)}, **SEARCHES}
    file, out = tmp_path / "copies.yaml", tmp_path / "copies"
    file.write_text(yaml.safe_dump({**settings, "engine": {"workers": 2}}), encoding="utf-8")
    command = [*CHATLOOM, "duplicates", str(file), "--out", str(out), "--quiet"]
    done = killed_after(int(share * n_tasks), command, tmp_path / "copies.partial")
    rest = Counting()
    monkeypatch.setattr("chatloom.corpus.engine.running.make_engine", lambda _, here: rest)
    again = copies(documents, out)
    assert len(rest.given) <= n_tasks - done  # what its children had begun, they may have ended
    assert tables(again.path) == tables(made.path)
    assert again.metrics == made.metrics
    assert again.manifest["attempts"] == 2


def test_cut_off_between_the_columns_and_the_end_it_searches_for_nothing_again(
    documents: Artifact, made: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("chatloom.stages.duplicates.write_json", cut_off)
        with pytest.raises(recipe.Stopped):
            copies(documents, tmp_path / "copies")
    assert not (tmp_path / "copies.partial" / "scratch").exists()
    again = Counting()
    monkeypatch.setattr("chatloom.corpus.engine.running.make_engine", lambda _, here: again)
    assert tables(copies(documents, tmp_path / "copies").path) == tables(made.path)
    assert again.given == []


def test_nothing_but_the_columns_stays(made: Artifact) -> None:
    names = {file.relative_to(made.path).parts[0] for file in made.path.rglob("*") if file.is_file()}
    folders = {"duplicates", "books", "lines", "substrings"}
    assert names == {"artifact.json", "page.html", *folders}
    files = list(made.path.glob("*/*.parquet"))
    assert count_receipts(made.path) == len(files)
    assert {file.parent.name for file in files} == folders
    assert {pq.read_schema(file).names[0] for file in files} == {"id"}
