"""Reading raw files into shards: nothing lost, nothing doubled, whatever the parts, engines, kills and ids."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from chatloom.corpus import documents, workers
from chatloom.corpus.engine.choice import ShardSettings
from chatloom.corpus.engine.local import InProcess, LocalPool
from chatloom.corpus.engine.steps import Engine
from chatloom.corpus.gathering import cut, finish, part_bytes, step_of
from chatloom.corpus.reading.files import list_files
from chatloom.corpus.reading.parts import parts_of
from chatloom.corpus.record import Document, document_files, read_documents, read_dropped
from chatloom.corpus.settings import ExtractionSettings, ReadingSettings
from chatloom.errors import ChatloomError

BLOCKS = ExtractionSettings(extractor="blocks", seconds_per_page=5.0)


def gather(
    source: Path,
    folder: Path,
    engine: Engine | None = None,
    *,
    part_megabytes: float = 64.0,
    shard_megabytes: float = 32.0,
    limit: int | None = None,
) -> dict[str, object]:
    shards = ShardSettings(part_megabytes=part_megabytes, shard_megabytes=shard_megabytes)
    runner, files = engine or InProcess(), list_files([source])
    if limit is None:
        parts = cut("documents", folder / "cuts", files, ReadingSettings(), int(part_megabytes * 1e6), runner)
        shutil.rmtree(folder / "cuts", ignore_errors=True)
    else:
        parts = parts_of(files, sys.maxsize)
    step = step_of("documents", folder, parts, ReadingSettings(), BLOCKS, shards, limit)
    return finish("documents", folder, step.run(runner), ReadingSettings())


def texts(folder: Path) -> list[Document]:
    return [document for file in document_files(folder) for document in read_documents(file)]


@pytest.fixture
def crawl(tmp_path: Path) -> Path:
    folder = tmp_path / "crawl"
    folder.mkdir()
    lines = [
        {"id": f"doc-{i}", "text": f"Line number {i}. " * (1 + i % 7), "url": f"https://a.org/{i}"} for i in range(300)
    ]
    rows = [json.dumps(line) for line in lines]
    rows[17] = '{"id": "doc-17", "words": "no text here"}'
    (folder / "big.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    with gzip.open(folder / "packed.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"html": f"<p>Page {i} 第{i}页</p>", "id": f"page-{i}"}) + "\n" for i in range(40))
    (folder / "one.html").write_text("<html><title>One</title><body><p>A page.</p></body></html>", encoding="utf-8")
    (folder / "none.html").write_text("<html><body></body></html>", encoding="utf-8")
    (folder / "table.csv").write_text('id,text\n1,"a, quoted\nfield"\n2,plain\n3\n', encoding="utf-8")
    return folder


def test_every_record_is_a_document_or_dropped_or_in_quarantine(crawl: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    metrics = gather(crawl, out)
    assert metrics["records"] == 300 + 40 + 2 + 3
    assert metrics["documents"] == len(texts(out)) == 299 + 40 + 1 + 2
    assert metrics["quarantined"] == 2
    lines = (out / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    assert [(json.loads(line)["file"], json.loads(line)["line"]) for line in lines] == [
        ("crawl/big.jsonl", 18),
        ("crawl/table.csv", 5),
    ]
    dropped = [item for file in sorted((out / "dropped").glob("*.parquet")) for item in read_dropped(file)]
    assert [(item.id, item.reason) for item in dropped] == [("crawl/none.html", "empty")]
    assert metrics["dropped"] == {"empty": 1}
    by_id = {document.id: document for document in texts(out)}
    assert by_id["1"].text == "a, quoted\nfield"
    assert by_id["page-3"].text == "Page 3 第3页"
    assert by_id["crawl/one.html"].metadata["title"] == "One"


@pytest.mark.parametrize(("part", "shard"), [(0.002, 0.001), (0.01, 32.0), (64.0, 0.0005)])
def test_the_documents_and_their_order_do_not_depend_on_parts_and_shards(
    crawl: Path, tmp_path: Path, part: float, shard: float
) -> None:
    gather(crawl, tmp_path / "whole")
    metrics = gather(crawl, tmp_path / "cut", part_megabytes=part, shard_megabytes=shard)
    assert int(str(metrics["shards"])) > 1
    assert texts(tmp_path / "cut") == texts(tmp_path / "whole")


def test_little_is_cut_into_several_parts_and_much_into_parts_of_the_size_asked_for(tmp_path: Path) -> None:
    files = [(tmp_path / f"{number}.txt", f"{number}.txt") for number in range(40)]
    settings = ShardSettings(part_megabytes=3.0)
    parts = {}
    for size in (10_000, 300_000, 2_000_000):
        for path, _ in files:
            path.write_bytes(b"x" * size)
        parts[size] = len(parts_of(files, part_bytes(files, settings)))
    assert parts == {10_000: 1, 300_000: 14, 2_000_000: 40}  # 400 kB; 12 MB by 1 MB; 80 MB by 3 MB


def test_processes_write_the_same_bytes_as_this_one(crawl: Path, tmp_path: Path) -> None:
    gather(crawl, tmp_path / "here", part_megabytes=0.005)
    gather(crawl, tmp_path / "there", LocalPool(2), part_megabytes=0.005)
    here, there = document_files(tmp_path / "here"), document_files(tmp_path / "there")
    assert [file.name for file in here] == [file.name for file in there]
    assert [file.read_bytes() for file in here] == [file.read_bytes() for file in there]


def test_a_page_that_hangs_its_parser_is_dropped_alone(tmp_path: Path) -> None:
    folder = tmp_path / "crawl"
    folder.mkdir()
    (folder / "a.html").write_text("<p>first</p>", encoding="utf-8")
    (folder / "b.html").write_text("<div>" * 60_000, encoding="utf-8")
    (folder / "c.html").write_text("<p>last</p>", encoding="utf-8")
    settings = ExtractionSettings(extractor="resiliparse-main", seconds_per_page=1.0)
    parts = parts_of(list_files([folder]))
    step = step_of("documents", tmp_path / "out", parts, ReadingSettings(), settings, ShardSettings())
    metrics = finish("documents", tmp_path / "out", step.run(InProcess()), ReadingSettings())
    assert [document.text for document in texts(tmp_path / "out")] == ["first", "last"]
    assert metrics["dropped"] == {"failed": 1}


@pytest.mark.parametrize("change", ["content", "time", "gone"])
def test_a_file_that_changes_between_cutting_and_reading_stops_the_step(
    crawl: Path, tmp_path: Path, change: str
) -> None:
    file = crawl / "big.jsonl"
    parts = parts_of(list_files([crawl]))
    step = step_of("documents", tmp_path / "out", parts, ReadingSettings(), BLOCKS, ShardSettings())
    if change == "content":
        file.write_bytes(file.read_bytes() + b'{"text": "one more"}\n')
    elif change == "time":
        os.utime(file, ns=(0, 0))
    else:
        file.unlink()
    with pytest.raises((ChatloomError, FileNotFoundError), match=r"big.jsonl"):
        step.run(InProcess())
    assert not list((tmp_path / "out" / "receipts").glob("*"))


def test_what_was_read_of_another_state_of_a_file_is_read_again(crawl: Path, tmp_path: Path) -> None:
    file = crawl / "big.jsonl"
    before = file.read_bytes()
    file.write_bytes(before.replace(b"Line", b"LINE"))
    gather(crawl, tmp_path / "out", part_megabytes=0.01)
    file.write_bytes(before)
    gather(crawl, tmp_path / "out", part_megabytes=0.01)
    gather(crawl, tmp_path / "whole", part_megabytes=0.01)
    assert texts(tmp_path / "out") == texts(tmp_path / "whole")


def test_a_crawl_in_many_parts_gives_the_documents_of_one(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "web" / "sample-0000.warc.gz"
    whole = gather(source, tmp_path / "whole")
    cut_up = gather(source, tmp_path / "cut", LocalPool(2), part_megabytes=0.03)
    assert texts(tmp_path / "cut") == texts(tmp_path / "whole")
    assert {**cut_up, "shards": 1} == whole
    assert int(str(cut_up["shards"])) > 3


def test_ids_that_repeat_are_told_apart_and_nothing_else_changes(tmp_path: Path) -> None:
    folder = tmp_path / "crawl"
    folder.mkdir()
    for name in "ab":
        rows = [{"id": str(i % 3), "text": f"{name}{i}"} for i in range(4)] + [{"id": "0#2", "text": f"{name}x"}]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    metrics = gather(folder, tmp_path / "out", shard_megabytes=1e-6)
    found = texts(tmp_path / "out")
    assert len({document.id for document in found}) == len(found) == 10
    assert metrics["ids_renamed"] == 6
    assert [document.text for document in found] == ["a0", "a1", "a2", "a3", "ax", "b0", "b1", "b2", "b3", "bx"]
    assert [document.id for document in found[:5]] == ["0", "1", "2", "0#3", "0#2"]


def test_a_limit_takes_the_first_records(crawl: Path, tmp_path: Path) -> None:
    metrics = gather(crawl, tmp_path / "out", part_megabytes=0.001, limit=20)
    assert metrics["records"] == 20
    assert [document.id for document in texts(tmp_path / "out")][:3] == ["doc-0", "doc-1", "doc-2"]


def test_sources_that_are_mostly_unreadable_stop_the_stage(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("broken\n" * 30 + '{"text": "good"}\n', encoding="utf-8")
    with pytest.raises(ChatloomError, match=r"30 of 31 records could not be read.*max_quarantined_share"):
        gather(path, tmp_path / "out")


def test_sources_without_a_document_stop_the_stage_and_say_why(tmp_path: Path) -> None:
    path = tmp_path / "x.html"
    path.write_text("<html></html>", encoding="utf-8")
    with pytest.raises(ChatloomError, match=r"none of 1 records became a document: 1 dropped \(empty\)"):
        gather(path, tmp_path / "out")


def test_one_process_extracts_for_all_shards(crawl: Path, tmp_path: Path) -> None:
    started = []
    original = workers._Child.__init__

    def counted(self: workers._Child, setup: tuple[str, object, int]) -> None:
        started.append(setup[0])
        original(self, setup)

    documents._child.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers._Child, "__init__", counted)
        metrics = gather(crawl, tmp_path / "out", part_megabytes=0.0001)
    assert metrics["documents"]
    assert len(list((tmp_path / "out" / "receipts").iterdir())) > 2
    assert started == ["chatloom.corpus.documents:page_to_document"]
