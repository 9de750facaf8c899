"""From pages to the documents that stay, in the four stages that `corpus` stands for: nothing is lost, nothing depends
on where the work runs, every failure is a sentence."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import random
import re
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from chatloom import corpus, recipe
from chatloom.artifact import Artifact
from chatloom.corpus.record import Document, Dropped, document_files, read_documents, read_dropped
from chatloom.errors import ChatloomError
from chatloom.recipe.reading import from_values

DOCUMENTATION = {
    "documents": {"extraction": {"extractor": "blocks"}},
    "selection": {"rules": {"preset": "documentation"}, "language": {"keep": ["en", "zh"]}},
}
NOUNS = [
    "river", "train", "bread", "glass", "winter", "map", "song", "stone", "paper", "bee", "house", "road", "field",
    "child", "teacher", "window", "letter",
]  # fmt: skip
VERBS = ["finds", "carries", "breaks", "follows", "paints", "remembers", "measures", "opens", "hides", "sells"]
ENTRY = "corpus"


def text(topic: str, sentences: int = 25) -> str:
    """Prose without meaning that no rule objects to, different for each topic."""
    pick = random.Random(topic).choice
    noun, verb = (lambda: pick(NOUNS)), (lambda: pick(VERBS))
    lines = [f"The {noun()} of the {noun()} {verb()} a {noun()} and {verb()} the {noun()}." for _ in range(sentences)]
    return f"This is about {topic}. " + " ".join(lines)


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def run(pages: Path, out: Path, *, workers: int = 1, seed: int = 0, **groups: Any) -> dict[str, Artifact]:
    """The four artifacts by the kind of their stage."""
    entry = {"stage": "corpus", "pages": {"path": str(pages)}, "engine": {"workers": workers}, **groups}
    made = recipe.run(from_values({"seed": seed, "stages": {ENTRY: entry}}), out, quiet=True)
    return {name.removeprefix(f"{ENTRY}."): artifact for name, artifact in made.items()}


def kept(made: Mapping[str, Artifact]) -> list[Document]:
    return [document for file in document_files(made["selection"].path) for document in read_documents(file)]


def gone(folder: Path) -> list[Dropped]:
    return [page for file in sorted((folder / "dropped").glob("*.parquet")) for page in read_dropped(file)]


@pytest.fixture(scope="module")
def chapter(pages: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """What becomes of some of the demo's pages."""
    return run(pages, tmp_path_factory.mktemp("chapter"), workers=2, seed=1, **DOCUMENTATION)


def test_every_page_ends_as_a_document_or_dropped_with_a_reason(pages: Path, chapter: dict[str, Artifact]) -> None:
    documents, dropped = kept(chapter), gone(chapter["selection"].path)
    names = {f"pages/{path.name}" for path in pages.iterdir()}
    assert {d.id for d in documents} | {d.id for d in dropped} == names
    assert len(documents) + len(dropped) == len(names)
    assert {d.id: (d.stage, d.reason) for d in dropped} == {
        "pages/errno.html": ("rules", "alphabetic_share"),
        "pages/posixpath.html": ("copies", "near"),
    }
    copy = next(d for d in dropped if d.id == "pages/posixpath.html")
    assert copy.detail.startswith("copy of pages/os.path.html, cluster ")
    assert copy.text.startswith("posixpath\n\nCommon operations on Posix pathnames.")
    textwrap = next(d for d in documents if d.id == "pages/textwrap.html")
    assert textwrap.text.startswith("textwrap\n\nText wrapping and filling.")
    assert textwrap.metadata["title"] == "Python: textwrap"
    assert textwrap.labels["language"] == "en"
    assert {d.labels["split"] for d in documents} == {"train", "held_out"}
    assert next(d for d in documents if d.id == "pages/os.path.html").labels["cluster_size"] == 2
    assert (chapter["documents"].path / "quarantine.jsonl").read_text(encoding="utf-8") == ""


def test_the_funnel_adds_up(chapter: dict[str, Artifact]) -> None:
    funnel = json.loads((chapter["selection"].path / "funnel.json").read_text(encoding="utf-8"))
    documents, steps = kept(chapter), funnel["steps"]
    assert [step["step"] for step in steps] == ["extraction", "language", "rules", "keep", "copies", "edits"]
    for step, following in itertools.pairwise(steps):
        assert step["documents_out"] == following["documents_in"]
        assert step["characters_out"] == following["characters_in"]
    for step in steps:
        assert step["documents_in"] - step["documents_out"] == sum(r["documents"] for r in step["removed"].values())
    assert steps[0]["documents_in"] == funnel["records"] - funnel["quarantined"]
    assert steps[-1]["documents_out"] == funnel["documents"] == len(documents)
    assert steps[-1]["characters_out"] == funnel["characters"] == sum(len(d.text) for d in documents)
    assert funnel["by_language"] == {"en": {"documents": len(documents), "characters": funnel["characters"]}}
    assert sum(split["documents"] for split in funnel["splits"].values()) == len(documents)


def test_the_bytes_do_not_depend_on_the_number_of_workers(
    pages: Path, chapter: dict[str, Artifact], tmp_path: Path
) -> None:
    alone = run(pages, tmp_path, workers=1, seed=1, **DOCUMENTATION)
    for kind, artifact in chapter.items():
        files = {name: entry for name, entry in artifact.manifest["files"].items() if _of_the_work(name)}
        assert files
        assert files == {name: e for name, e in alone[kind].manifest["files"].items() if _of_the_work(name)}, kind


def _of_the_work(name: str) -> bool:
    """Whether a file holds results, not the time that it took."""
    return "receipts/" not in name and name != "page.html"


def test_another_seed_changes_the_split_only(pages: Path, chapter: dict[str, Artifact], tmp_path: Path) -> None:
    one, two = kept(chapter), kept(run(pages, tmp_path, seed=2, **DOCUMENTATION))
    assert [d.text for d in one] == [d.text for d in two]
    assert [d.labels["split"] for d in one] != [d.labels["split"] for d in two]


def test_languages_are_kept_by_list_and_both_are_counted(tmp_path: Path) -> None:
    chinese = "委员会在星期二开会讨论了新的提案。大多数成员都表示赞成，但是有两位成员希望有更多的时间来阅读报告。" * 2
    german = "Der Ausschuss trat am Dienstag zusammen, um über den Vorschlag zu beraten, und vertagte sich. " * 2
    source = write_rows(tmp_path / "r.jsonl", [{"text": text("maps")}, {"text": chinese}, {"text": german}])
    metrics = run(source, tmp_path / "out", selection={"language": {"keep": ["en", "zh"]}})["selection"].metrics
    assert set(metrics["by_language"]) == {"en", "zh"}
    assert metrics["steps"][1]["removed"]["other_language"]["by_language"]["de"]["documents"] == 1


def test_no_document_left_names_what_took_them(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [{"text": "Too short."}] * 3 + [{"text": ""}])
    with pytest.raises(ChatloomError, match=r"no document stays: 1 by extraction/empty; 3 by rules/word_count; loosen"):
        run(source, tmp_path / "out", selection={"rules": {"preset": "curated"}})


def test_a_single_document_is_enough(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [{"text": text("maps")}])
    metrics = run(source, tmp_path / "out", selection={"rules": {"preset": "web"}})["selection"].metrics
    assert (metrics["documents"], list(metrics["splits"])) == (1, ["train"])


def test_a_missing_source_and_no_source_are_named_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ChatloomError, match="no such file"):
        run(tmp_path / "none.jsonl", tmp_path / "out")
    with pytest.raises(ChatloomError, match="holds no file; give `pages"):
        recipe.run_stage("corpus", {}, {}, tmp_path / "out", quiet=True)
    assert not (tmp_path / "out" / "corpus.documents").exists()


def test_a_full_disk_is_a_clear_sentence_and_the_run_goes_on_once_there_is_room(tmp_path: Path) -> None:
    rng = random.Random(0)
    rows = [{"id": str(n), "text": " ".join(str(rng.random()) for _ in range(2000))} for n in range(40)]
    source, out = write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "out"
    code = (
        "import sys; from pathlib import Path; from chatloom import recipe\n"
        f"recipe.run_stage('documents', {{'engine': {{'workers': 1}}}}, {{'pages': [{str(source)!r}]}}, "
        f"Path({str(out)!r}), quiet=True)"
    )

    def little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    full = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, preexec_fn=little_room, check=False,
        env=os.environ.copy(),
    )  # fmt: skip
    assert full.returncode
    assert re.search(r"stage `out`: out: \d of \d shards could not be done, first 0000\d:", full.stderr)
    assert "File too large; what is done is kept: run the same command again once the cause is gone" in full.stderr
    assert not out.exists()
    assert subprocess.run([sys.executable, "-c", code], check=False, env=os.environ.copy()).returncode == 0
    assert len([d for file in document_files(out) for d in read_documents(file)]) == 40


def test_all_kinds_of_sources_come_together(tmp_path: Path, shared_data: Path) -> None:
    sources = [shared_data / "web" / "sample-0000.warc.gz", shared_data / "pretrain" / "en_children_stories.jsonl.gz"]
    (tmp_path / "note.txt.gz").write_bytes(gzip.compress(text("glass").encode()))
    pages = [*sources, tmp_path / "note.txt.gz"]
    settings = {"documents": {"shards": {"part_megabytes": 0.5}}, "selection": {"rules": {"preset": "curated"}}}
    chosen = recipe.run_stage("corpus", settings, {"pages": pages}, tmp_path / "out", quiet=True)
    assert chosen.metrics["records"] == 22 + 328 + 1
    assert chosen.metrics["quarantined"] == 0
    assert chosen.metrics["documents"] > 300


def test_torch_is_never_loaded_by_the_corpus() -> None:
    room = Path(corpus.__file__).parent
    outside = {"on_ray.py", "on_beam.py", "pydoc_child.py", "__init__.py"}  # of other packages, or no module
    files = [path.relative_to(room.parent) for path in room.rglob("*.py") if path.name not in outside]
    imports = "; ".join(f"import chatloom.{'.'.join(path.with_suffix('').parts)}" for path in files)
    code = f"{imports}; import sys; sys.exit('torch' in sys.modules)"
    assert len(files) > 50
    assert subprocess.run([sys.executable, "-c", code], env=os.environ.copy(), check=False).returncode == 0
