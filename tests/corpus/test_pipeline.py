"""From files to documents: nothing is lost, nothing depends on the number of workers, every failure is a sentence."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chatloom.corpus.pipeline import LABELS, clean
from chatloom.corpus.record import read_documents, read_dropped
from chatloom.corpus.settings import CorpusSettings
from chatloom.errors import ChatloomError

TOPICS = ["rivers", "trains", "bread", "glass", "winter", "maps", "music", "stone", "paper", "honey"]
NOUNS = [
    "river",
    "train",
    "bread",
    "glass",
    "winter",
    "map",
    "song",
    "stone",
    "paper",
    "bee",
    "house",
    "road",
    "field",
    "child",
    "teacher",
    "window",
    "table",
    "letter",
]
VERBS = [
    "finds",
    "carries",
    "breaks",
    "follows",
    "paints",
    "remembers",
    "measures",
    "opens",
    "leaves",
    "mends",
    "counts",
    "hides",
    "sells",
    "brings",
]
OUTPUTS = ("documents.parquet", "dropped.parquet", "quarantine.jsonl", "funnel.json")


def text(topic: str, sentences: int = 25) -> str:
    """Prose without meaning that no rule objects to, different for each topic."""
    pick = random.Random(topic).choice
    noun, verb = (lambda: pick(NOUNS)), (lambda: pick(VERBS))
    lines = [f"The {noun()} of the {noun()} {verb()} a {noun()} and {verb()} the {noun()}." for _ in range(sentences)]
    return f"This is about {topic}. " + " ".join(lines)


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def run(sources: list[Path], folder: Path, workers: int = 1, **settings: Any) -> dict[str, Any]:
    settings.setdefault("rules", {"preset": "curated"})
    return clean(CorpusSettings.parse(settings), sources, folder, workers=workers)


def test_every_page_ends_as_a_document_or_dropped_with_a_reason(pages: Path, cleaned: Path) -> None:
    documents, dropped = (
        list(read_documents(cleaned / "documents.parquet")),
        list(read_dropped(cleaned / "dropped.parquet")),
    )
    names = {f"pages/{path.name}" for path in pages.iterdir()}
    assert {d.id for d in documents} | {d.id for d in dropped} == names
    assert len(documents) + len(dropped) == len(names)
    assert {d.id: (d.stage, d.reason) for d in dropped} == {
        "pages/errno.html": ("rules", "alphabetic_share"),
        "pages/posixpath.html": ("near_duplicates", "duplicate"),
    }
    copy = next(d for d in dropped if d.id == "pages/posixpath.html")
    assert "copy of pages/os.path.html" in copy.detail
    assert "normcase(s)" in copy.text
    textwrap = next(d for d in documents if d.id == "pages/textwrap.html")
    assert textwrap.text.startswith("textwrap\n\nText wrapping and filling.")
    assert textwrap.metadata["title"] == "Python: textwrap"
    assert set(textwrap.labels) == set(LABELS)
    assert textwrap.labels["language"] == "en"
    assert {d.labels["split"] for d in documents} == {"train", "held_out"}
    assert next(d for d in documents if d.id == "pages/os.path.html").labels["cluster_size"] == 2
    assert (cleaned / "quarantine.jsonl").read_text(encoding="utf-8") == ""
    assert not (cleaned / "passed.tmp").exists()


def test_the_funnel_adds_up(cleaned: Path) -> None:
    funnel = json.loads((cleaned / "funnel.json").read_text(encoding="utf-8"))
    documents = list(read_documents(cleaned / "documents.parquet"))
    steps = funnel["steps"]
    assert [step["step"] for step in steps] == [
        "extraction",
        "language",
        "rules",
        "exact_duplicates",
        "near_duplicates",
    ]
    for step, following in itertools.pairwise(steps):
        assert step["documents_out"] == following["documents_in"]
        assert step["characters_out"] == following["characters_in"]
    for step in steps:
        gone = sum(rule["documents"] for rule in step["removed"].values())
        assert step["documents_in"] - step["documents_out"] == gone
    assert steps[0]["documents_in"] == funnel["records"] - funnel["quarantined"]
    assert steps[-1]["documents_out"] == funnel["documents"] == len(documents)
    assert steps[-1]["characters_out"] == funnel["characters"] == sum(len(d.text) for d in documents)
    assert funnel["by_language"] == {"en": {"documents": len(documents), "characters": funnel["characters"]}}
    assert sum(split["documents"] for split in funnel["splits"].values()) == len(documents)


def test_the_bytes_do_not_depend_on_the_number_of_workers(
    pages: Path, cleaned: Path, demo_settings: CorpusSettings, tmp_path: Path
) -> None:
    clean(demo_settings, [pages], tmp_path, workers=1, seed=1)
    for name in OUTPUTS:
        assert (tmp_path / name).read_bytes() == (cleaned / name).read_bytes(), name


def test_another_seed_changes_the_split_only(
    pages: Path, demo_settings: CorpusSettings, cleaned: Path, tmp_path: Path
) -> None:
    clean(demo_settings, [pages], tmp_path, workers=2, seed=2)
    one, two = (list(read_documents(folder / "documents.parquet")) for folder in (cleaned, tmp_path))
    assert [d.text for d in one] == [d.text for d in two]
    assert [d.labels["split"] for d in one] != [d.labels["split"] for d in two]


def test_copies_go_and_the_first_by_id_stays(tmp_path: Path) -> None:
    rows = [{"id": f"{topic}-{copy}", "text": text(topic) + ("" if copy else " One more remark at the end.")}
            for topic in TOPICS for copy in (1, 0)]  # fmt: skip
    rows.append({"id": "a-first", "text": text("rivers").upper()})
    source = write_rows(tmp_path / "rows.jsonl", rows)
    metrics = run([source], tmp_path / "out")
    kept = [d.id for d in read_documents(tmp_path / "out" / "documents.parquet")]
    assert kept == [f"{topic}-0" for topic in TOPICS[1:]] + ["a-first"]
    assert metrics["steps"][3]["removed"]["duplicate"]["documents"] == 1
    assert metrics["steps"][4]["removed"]["duplicate"]["documents"] == 10
    everything = run([source], tmp_path / "all", duplicates={"exact": False, "near": False})
    assert everything["documents"] == 21


def test_equal_ids_are_told_apart(tmp_path: Path) -> None:
    rows = [{"id": "same", "text": text(topic)} for topic in TOPICS[:3]]
    run([write_rows(tmp_path / "rows.jsonl", rows)], tmp_path / "out")
    assert [d.id for d in read_documents(tmp_path / "out" / "documents.parquet")] == ["same", "same#2", "same#3"]


def test_languages_are_kept_by_list_and_both_are_counted(tmp_path: Path) -> None:
    chinese = "委员会在星期二开会讨论了新的提案。大多数成员都表示赞成，但是有两位成员希望有更多的时间来阅读报告。" * 2
    german = "Der Ausschuss trat am Dienstag zusammen, um über den Vorschlag zu beraten, und vertagte sich. " * 2
    rows = [{"text": text("maps")}, {"text": chinese}, {"text": german}]
    metrics = run([write_rows(tmp_path / "r.jsonl", rows)], tmp_path / "out", language={"keep": ["en", "zh"]},
                  rules={"preset": "none"})  # fmt: skip
    assert set(metrics["by_language"]) == {"en", "zh"}
    assert metrics["steps"][1]["removed"]["other_language"]["by_language"]["de"]["documents"] == 1


def test_bad_records_are_listed_and_do_not_stop_the_run(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    write_rows(source, [{"id": topic, "text": text(topic)} for topic in TOPICS])
    with open(source, "ab") as file:
        file.write(b'{broken\n{"words": 1}\n\xff\xff\xff\n')
    (tmp_path / "empty.txt").touch()
    (tmp_path / "page.html").write_bytes(b"<p>caf\xe9 \x81\x8d bytes of no encoding at all</p>")
    metrics = run([source, tmp_path / "empty.txt", tmp_path / "page.html"], tmp_path / "out")
    listed = [
        json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [(entry["file"], entry["line"]) for entry in listed] == [
        ("rows.jsonl", 11), ("rows.jsonl", 12), ("rows.jsonl", 13), ("empty.txt", 0), ("page.html", 0),
    ]  # fmt: skip
    assert metrics["quarantined"] == 5
    assert metrics["documents"] == 10


def test_mostly_unreadable_sources_stop_the_run_with_the_reasons(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    rows = [json.dumps({"text": text("maps")})] * 50 + ["{broken"] * 50
    source.write_text("\n".join(rows), encoding="utf-8")
    with pytest.raises(ChatloomError, match=r"50 of 100 records could not be read.*50 x invalid JSON"):
        run([source], tmp_path / "out")
    assert run([source], tmp_path / "out", reading={"max_quarantined_share": 0.6})["quarantined"] == 50


def test_a_wrong_column_name_stops_the_run_and_says_what_was_found(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [{"content": text("maps")}] * 30)
    with pytest.raises(ChatloomError, match="found content"):
        run([source], tmp_path / "out")
    assert run([source], tmp_path / "out", reading={"text_field": "content"})["documents"] == 1


def test_no_document_left_names_what_took_them(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [{"text": "Too short."}] * 3 + [{"text": ""}])
    with pytest.raises(ChatloomError, match=r"none of 4 records.*1 by extraction/empty; 3 by rules/word_count"):
        run([source], tmp_path / "out")
    assert len(list(read_dropped(tmp_path / "out" / "dropped.parquet"))) == 4
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ChatloomError, match="the file is empty"):
        run([tmp_path / "empty.txt"], tmp_path / "out")


def test_a_single_document_is_enough(tmp_path: Path) -> None:
    metrics = run([write_rows(tmp_path / "rows.jsonl", [{"text": text("maps")}])], tmp_path / "out")
    assert metrics["documents"] == 1
    assert list(metrics["splits"]) == ["train"]


def test_a_missing_source_and_no_source_are_named_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ChatloomError, match="no such file"):
        run([tmp_path / "none.jsonl"], tmp_path / "out")
    with pytest.raises(ChatloomError, match="no source was given"):
        run([], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pages_too_long_broken_or_without_text_are_dropped_and_kept(tmp_path: Path) -> None:
    folder = tmp_path / "web"
    folder.mkdir()
    (folder / "a.html").write_text(f"<p>{text('maps')}</p>", encoding="utf-8")
    (folder / "b.html").write_text("<p>" + "long page " * 20_000, encoding="utf-8")
    (folder / "c.html").write_text("<script>only()</script>", encoding="utf-8")
    (folder / "d.html").write_bytes(b"<div <<p><table></b>" + text("bread").encode() + b"<td></div></p")
    metrics = run([folder], tmp_path / "out", extraction={"extractor": "blocks", "max_page_bytes": 100_000})
    dropped = {d.id: d for d in read_dropped(tmp_path / "out" / "dropped.parquet")}
    assert {name: d.reason for name, d in dropped.items()} == {"web/b.html": "page_bytes", "web/c.html": "empty"}
    assert dropped["web/b.html"].text.startswith("<p>long page")
    assert dropped["web/c.html"].text == "<script>only()</script>"
    assert metrics["documents"] == 2


def test_a_page_that_takes_too_long_is_dropped_alone(tmp_path: Path) -> None:
    folder = tmp_path / "web"
    folder.mkdir()
    (folder / "a.html").write_text(f"<p>{text('maps')}</p>", encoding="utf-8")
    # resiliparse's main-content search is quadratic in the depth of nesting: this page takes it minutes.
    (folder / "b.html").write_text("<div>" * 100_000 + "deep", encoding="utf-8")
    (folder / "c.html").write_text(f"<p>{text('bread')}</p>", encoding="utf-8")
    metrics = run([folder], tmp_path / "out", extraction={"extractor": "resiliparse-main", "seconds_per_page": 2.0})
    assert metrics["documents"] == 2
    assert metrics["steps"][0]["removed"] == {
        "failed": {
            "documents": 1,
            "characters": 500_004,
            "by_language": {"unknown": {"documents": 1, "characters": 500_004}},
        }
    }
    assert metrics["worker_restarts"] >= 1


def test_limit_reads_a_part_only(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [{"text": text(topic)} for topic in TOPICS])
    assert run([source], tmp_path / "out", limit=3)["records"] == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full to play a full disk")
@pytest.mark.parametrize("name", ["documents.parquet", "dropped.parquet", "quarantine.jsonl"])
def test_a_full_disk_is_a_clear_sentence(tmp_path: Path, name: str) -> None:
    rows: list[Any] = [{"text": text(topic)} for topic in TOPICS] + [{"text": "short"}, {"no": 1}]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to("/dev/full")
    with pytest.raises(ChatloomError, match=r"disk that holds .* is full"):
        run([source], tmp_path / "out")


def test_all_kinds_of_sources_come_together(tmp_path: Path, shared_data: Path) -> None:
    sources = [shared_data / "web" / "sample-0000.warc.gz", shared_data / "pretrain" / "en_children_stories.jsonl.gz"]
    (tmp_path / "note.txt.gz").write_bytes(gzip.compress(text("glass").encode()))
    metrics = run([*sources, tmp_path / "note.txt.gz"], tmp_path / "out", workers=2)
    assert metrics["records"] == 22 + 328 + 1
    assert metrics["quarantined"] == 0
    assert metrics["documents"] > 300


def test_torch_is_never_loaded_by_the_corpus() -> None:
    modules = [path.stem for path in Path(sys.modules["chatloom.corpus.pipeline"].__file__ or "").parent.glob("*.py")]
    imports = "; ".join(f"import chatloom.corpus.{name}" for name in modules if name != "__init__")
    code = f"{imports}; import sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ.copy(), check=False).returncode == 0
