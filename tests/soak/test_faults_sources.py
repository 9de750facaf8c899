"""The fault matrix, sources: bombs, damage, strange bytes, and files that change or go while they are read."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import small_crawl
import zstandard
from bench import ASIDE, IDENTICAL, STOP, Bench
from small_crawl import english, html, packed, response, text

from chatloom.artifact import Artifact
from chatloom.corpus.record import Document, document_files, read_documents, read_dropped

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

PAGES = "chatloom.corpus.documents:page_to_document"
TASKS = "chatloom.corpus.engine.local:work_here"
LINES = "".join(small_crawl.line(5000 + number, f"more-{number}") for number in range(40))
MEGABYTE = 1 << 20


@pytest.fixture
def sources(bench: Bench) -> Path:
    """A copy of the sources, to which a test adds."""
    folder = bench.folder / "sources"
    shutil.copytree(bench.whole / "sources", folder)
    return folder


def documents_of(made: Artifact) -> dict[str, Document]:
    """Documents by id."""
    return {d.id: d for file in document_files(made.path) for d in read_documents(file)}


def dropped_of(made: Artifact) -> dict[str, str]:
    """Reason and detail of dropped pages by id."""
    files = sorted((made.path / "dropped").glob("*.parquet"))
    return {d.id: f"{d.reason}: {d.detail}" for file in files for d in read_dropped(file)}


def quarantined(made: Artifact) -> dict[str, list[str]]:
    """Reasons by file."""
    found: dict[str, list[str]] = {}
    for line in (made.path / "quarantine.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        found.setdefault(record["file"].partition("/")[2], []).append(record["reason"])
    return found


def read_with(bench: Bench, sources: Path, new: set[str] = frozenset(), **how: Any) -> Artifact:  # type: ignore[assignment]
    """The documents of changed sources; all of the undisturbed run are there as they were, and `new` ones."""
    made = bench.done(bench.run("documents", inputs={"pages": sources}, **how), "documents")
    before = documents_of(Artifact(bench.whole / "documents", {}))
    after = documents_of(made)
    assert set(after) - set(before) == new
    assert {name: after[name] for name in before} == before
    metrics = made.metrics
    reasons = sum(len(items) for items in quarantined(made).values())
    assert metrics["documents"] == len(after)
    assert metrics["quarantined"] == reasons
    assert metrics["records"] == len(after) + reasons + len(dropped_of(made))
    return made


def test_page_that_hangs_the_parser(bench: Bench, sources: Path) -> None:
    bench.row("page that hangs its parser (50,000 nested elements)", "documents", ASIDE)
    (sources / "pages" / "poison.html").write_text("<div>" * 50_000 + "<p>" + text(1) + "</p>", encoding="utf-8")
    extraction = {"extractor": "resiliparse-main", "seconds_per_page": 3}
    undisturbed = Bench(bench.whole, bench.folder / "undisturbed", lambda name, value: None)
    plain = undisturbed.done(undisturbed.run("documents", extraction=extraction), "documents")
    made = bench.done(bench.run("documents", inputs={"pages": sources}, extraction=extraction), "documents")
    reason = dropped_of(made)["sources/pages/poison.html"]
    bench.prove("took longer than 3 s" in reason, "it hung until its deadline")
    assert documents_of(made) == documents_of(plain)
    assert made.metrics["dropped"] == {"failed": 1}
    bench.set_aside(f"1 page dropped, `{reason.partition(' (')[0]}`")


@pytest.mark.parametrize(
    ("what", "do", "words"),
    [
        ("kills its parser (SIGSEGV)", "signal SIGSEGV", "killed by signal 11"),
        ("takes all memory", "memory", "more memory"),
        ("stops its parser (SIGSTOP)", "signal SIGSTOP", "took longer than 4 s"),
    ],
)
def test_page_that_takes_its_process_with_it(bench: Bench, sources: Path, what: str, do: str, words: str) -> None:
    bench.row(f"page that {what}", "documents", ASIDE)
    (sources / "pages" / "poison.html").write_text(html(1), encoding="utf-8")
    fault = bench.fault("page", do, at=PAGES, match="poison", ever=True, times=9)
    extraction = {"extractor": "resiliparse", "seconds_per_page": 4 if "STOP" in do else 60}
    made = read_with(bench, sources, fault=fault, extraction=extraction)
    assert bench.happened() >= (1 if do == "memory" else 2)  # what ends its process is tried again, alone
    reason = dropped_of(made)["sources/pages/poison.html"]
    assert words in reason, reason
    bench.set_aside(f"1 page dropped, `{reason.partition(' (')[0]}`")


@pytest.mark.parametrize("extractor", ["blocks", "trafilatura"])
def test_deep_page(bench: Bench, sources: Path, extractor: str) -> None:
    bench.row(f"page of 20,000 nested elements, extractor {extractor}", "documents", ASIDE)
    page = "<html><body>" + "<div><span>" * 10_000 + f"<p>{text(1)}</p>"
    (sources / "pages" / "deep.html").write_text(page, encoding="utf-8")
    extraction = {"extractor": extractor, "seconds_per_page": 5}
    undisturbed = Bench(bench.whole, bench.folder / "undisturbed", lambda name, value: None)
    plain = documents_of(undisturbed.done(undisturbed.run("documents", extraction=extraction), "documents"))
    made = bench.done(bench.run("documents", inputs={"pages": sources}, extraction=extraction), "documents")
    deep = "sources/pages/deep.html"
    found = documents_of(made)
    bench.prove(page.count("<div>") == 10_000, "the page is that deep")
    assert (deep in found) != (deep in dropped_of(made))
    taken = found.pop(deep, None)
    assert found == plain
    assert taken is None or taken.text.strip() == text(1)
    bench.set_aside(
        "nothing (read whole)" if taken else f"1 page dropped, `{dropped_of(made)[deep].partition(' (')[0]}`"
    )


def zeros(megabytes: int) -> Iterator[bytes]:
    """Nothing, much of it."""
    for _ in range(megabytes):
        yield bytes(MEGABYTE)


@pytest.mark.parametrize("name", ["bomb.html.gz", "bomb.jsonl.gz", "bomb.jsonl.zst", "bomb.warc.gz"])
def test_compression_bomb(bench: Bench, sources: Path, name: str) -> None:
    bench.row(f"compression bomb, 600 MB in {name}", "documents", ASIDE)
    packer: Callable[[Path], Any] = gzip.open
    if name.endswith(".zst"):
        packer = zstandard.open
    with packer(sources / name, "wb") as file:
        if "warc" in name:
            head, _, _ = response(1, b"x", stated=600 * MEGABYTE).partition(b"HTTP/1.1")
            file.write(head + b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n")
        for piece in zeros(600):
            file.write(piece)
    bench.prove((sources / name).stat().st_size < 3 * MEGABYTE, "it is small on disk")
    made = read_with(bench, sources)
    assert list(quarantined(made)) == [name]
    peak = made.manifest["peak_memory_bytes"] / 1e9
    assert peak < 1.2, f"{peak:.2f} GB for a bomb"
    bench.set_aside(f"`{quarantined(made)[name][0]}`, {peak:.1f} GB of memory at most")


def test_gzip_cut_off(bench: Bench, sources: Path) -> None:
    bench.row("gzip file cut off", "documents", ASIDE)
    data = packed(LINES.encode())
    (sources / "more.jsonl.gz").write_bytes(data[: len(data) // 2])
    readable = good_lines(bench, sources, "more.jsonl.gz", "cut off")
    bench.prove(0 < len(readable) < 40, "some lines stand before the damage")


def test_zstd_corrupted(bench: Bench, sources: Path) -> None:
    bench.row("zstd file corrupted in its middle", "documents", ASIDE)
    compressor = zstandard.ZstdCompressor(write_checksum=True)
    frames = [
        compressor.compress(LINES[: len(LINES) // 2].encode()),
        compressor.compress(LINES[len(LINES) // 2 :].encode()),
    ]
    broken = bytearray(frames[1])
    broken[len(broken) // 2 : len(broken) // 2 + 40] = bytes(40)
    (sources / "more.jsonl.zst").write_bytes(frames[0] + bytes(broken))
    readable = good_lines(bench, sources, "more.jsonl.zst", "damaged")
    bench.prove(0 < len(readable) < 40, "some lines stand before the damage")


def good_lines(bench: Bench, sources: Path, name: str, reason: str) -> set[str]:
    """Ids of LINES that were read from a damaged file: the first ones, each whole, then the damage with its reason."""
    made = bench.done(bench.run("documents", inputs={"pages": sources}), "documents")
    before = documents_of(Artifact(bench.whole / "documents", {}))
    found = documents_of(made)
    new = {item: found[item].text for item in set(found) - set(before)}
    whole = {record["id"]: record["text"] for record in map(json.loads, LINES.splitlines())}
    assert {item: found[item] for item in before} == before
    assert new == {f"more-{number}": whole[f"more-{number}"] for number in range(len(new))}
    assert len(quarantined(made)[name]) <= 2  # the damage, and the line that it cut
    assert any(reason in item for item in quarantined(made)[name])
    bench.set_aside(f"`{quarantined(made)[name][-1]}` after {len(new)} of 40 records")
    return set(new)


@pytest.mark.parametrize("where", ["footer", "page of a column"])
def test_parquet_damaged(bench: Bench, sources: Path, where: str) -> None:
    bench.row(f"Parquet file with a damaged {where}", "documents", ASIDE)
    data = bytearray((sources / "table.parquet").read_bytes())
    place = len(data) - 60 if where == "footer" else 200
    data[place : place + 40] = bytes(byte ^ 0x55 for byte in data[place : place + 40])
    (sources / "more.parquet").write_bytes(data)
    bench.prove(data != (sources / "table.parquet").read_bytes(), "its bytes are others")
    made = read_with(bench, sources)
    reason = quarantined(made)["more.parquet"]
    assert len(reason) == 1
    assert "damaged Parquet file" in reason[0]
    bench.set_aside(f"`{reason[0][:70]}`")


def test_warc_cut_off(bench: Bench, sources: Path) -> None:
    bench.row("WARC record cut off at the file's end", "documents", ASIDE)
    (sources / "more.warc").write_bytes(small_crawl.warc([901, 902, 903])[:-400])
    made = read_with(bench, sources, {"sources/more.warc:1", "sources/more.warc:2"})
    bench.prove(len(quarantined(made)["more.warc"]) == 1, "one record is not whole")
    bench.set_aside(f"`{quarantined(made)['more.warc'][0]}`")


@pytest.mark.parametrize("stated", [10, 100_000])
def test_warc_of_wrong_length(bench: Bench, sources: Path, stated: int) -> None:
    bench.row(f"WARC record that says {stated:,} bytes and is not", "documents", ASIDE)
    records = [response(901), response(902, stated=stated), response(903), response(904)]
    (sources / "more.warc").write_bytes(b"".join(records))
    made = bench.done(bench.run("documents", inputs={"pages": sources}), "documents")
    bench.prove(len(response(902)) not in range(stated - 300, stated + 300), "the length is wrong")
    before, found = documents_of(Artifact(bench.whole / "documents", {})), documents_of(made)
    urls = {found[name].url for name in set(found) - set(before)}
    assert {name: found[name] for name in before} == before
    # What the wrong length swallows cannot be told from content; what stands outside of it is read.
    assert {"https://example.org/901"} <= urls
    assert len(quarantined(made)["more.warc"]) >= 1
    if stated < 1000:
        assert {"https://example.org/903", "https://example.org/904"} <= urls
    bench.set_aside(f"`{quarantined(made)['more.warc'][0]}`")


def test_mixed_encodings(bench: Bench, sources: Path) -> None:
    bench.row("lines in UTF-8, GB18030, Latin-1 and cut characters in one file", "documents", ASIDE)
    chinese = text(2)
    lines = [
        small_crawl.line(901, "utf-8").encode(),
        json.dumps({"id": "gb18030", "text": chinese}, ensure_ascii=False).encode("gb18030") + b"\n",
        json.dumps({"id": "latin-1", "text": "d\xe9j\xe0 vu na\xefve caf\xe9 " * 9}, ensure_ascii=False).encode(
            "latin-1"
        )
        + b"\n",
        small_crawl.line(902, "cut").encode().replace("。".encode(), b"\xe3\x80", 1).replace(b". ", b".\xff ", 1),
        small_crawl.line(903, "last").encode(),
    ]
    (sources / "more.jsonl").write_bytes(b"".join(lines))
    made = read_with(bench, sources, {"utf-8", "gb18030", "last"})
    assert documents_of(made)["gb18030"].text == chinese
    bench.prove(len(quarantined(made)["more.jsonl"]) == 2, "two lines fit no encoding")
    bench.set_aside("2 lines, `undecodable line`")


def test_strange_characters(bench: Bench, sources: Path) -> None:
    bench.row("NUL bytes, control characters, lone surrogates, broken JSON", "documents", ASIDE)
    strange = ["a\x00b", "\x1b[31mred", "\ufeffmark", "\u202eturned", "\U0010ffff"]
    lines = [json.dumps({"id": f"odd-{n}", "text": f"{text(901 + n)} {item}"}) for n, item in enumerate(strange)]
    lines += ['{"id": "half", "text": "\\ud800"}', '{"id": "open", "text": "', "[1, 2]", '{"id": "none"}', "\x00" * 50]
    lines += ['{"id": "deep", "text": ' + "[" * 100_000 + "]" * 100_000 + "}"]
    (sources / "more.jsonl").write_text("\n".join(lines), encoding="utf-8")
    made = read_with(bench, sources, {f"odd-{n}" for n in range(len(strange))})
    bench.prove(len(quarantined(made)["more.jsonl"]) == 6, "six lines are no records")
    assert "ab" in documents_of(made)["odd-0"].text
    bench.set_aside("6 lines, each with its reason")


def test_giant_line(bench: Bench, sources: Path) -> None:
    bench.row("line of 60 MB (20 MB allowed)", "documents", ASIDE)
    with open(sources / "more.jsonl", "w", encoding="utf-8") as file:
        file.write(small_crawl.line(901, "before"))
        file.write('{"id": "giant", "text": "' + "word " * (12 * MEGABYTE) + '"}\n')
        file.write(small_crawl.line(902, "behind"))
    bench.prove((sources / "more.jsonl").stat().st_size > 60e6, "it is that long")
    made = read_with(bench, sources, {"before", "behind"}, shards={"part_megabytes": 64, "shard_megabytes": 0.02})
    bench.set_aside(f"`{quarantined(made)['more.jsonl'][0]}`")


def test_empty_files_and_marks(bench: Bench, sources: Path) -> None:
    bench.row("empty files, a byte-order mark, UTF-16", "documents", ASIDE)
    for name in ("empty.jsonl", "empty.html", "empty.parquet", "empty.warc.gz", "empty.txt.gz"):
        (sources / name).write_bytes(b"")
    (sources / "mark.jsonl").write_bytes(b"\xef\xbb\xbf" + small_crawl.line(901, "marked").encode())
    (sources / "wide.txt").write_bytes(text(902).encode("utf-16"))
    made = read_with(bench, sources, {"marked"})
    bench.prove(set(quarantined(made)) >= {"empty.jsonl", "wide.txt"}, "they were noticed")
    assert len(quarantined(made)) == 6
    bench.set_aside("6 files, `the file is empty`, `UTF-16 text`")


def test_equal_ids(bench: Bench, sources: Path) -> None:
    bench.row("ids that occur again, in other files too", "documents", ASIDE)
    lines = [small_crawl.line(901 + n, "talk-1000") for n in range(3)] + [small_crawl.line(911, "row-3")]
    (sources / "zz.jsonl").write_text("".join(lines), encoding="utf-8")
    new = {"talk-1000#2", "talk-1000#3", "talk-1000#4"}
    made = bench.done(bench.run("documents", inputs={"pages": sources}), "documents")
    before, found = documents_of(Artifact(bench.whole / "documents", {})), documents_of(made)
    assert set(found) - set(before) == {*new, "row-3#2"}
    assert sorted(d.text for d in found.values()) == sorted(
        [*(d.text for d in before.values()), *(text(901 + n) for n in range(3)), text(911)]
    )
    bench.prove(made.metrics["ids_renamed"] == 4, "four ids were taken")
    bench.set_aside("nothing: 4 documents got a number behind their id")


@pytest.mark.parametrize("do", ["append", "halve"])
def test_source_changes_while_it_is_read(bench: Bench, sources: Path, do: str) -> None:
    told = {"append": "source grows while it is read", "halve": "source shrinks while it is read"}
    bench.row(told[do], "documents", STOP)
    fault = bench.fault("worker", f"{do} {sources / 'talks.jsonl'}", at=TASKS, number=2)
    inputs = {"pages": sources}
    ended = bench.run("documents", inputs=inputs, fault=fault)
    bench.happened(1)
    bench.stopped(ended, "documents", "changed while", "run again|run the same command|--start-over")
    fresh = Bench(bench.whole, bench.folder / "fresh", lambda name, value: None)
    expected = fresh.done(fresh.run("documents", inputs=inputs), "documents")
    bench.identical(bench.run("documents", "--start-over", inputs=inputs), "documents", expected.path, again=True)


def test_source_goes_between_two_attempts(bench: Bench, sources: Path) -> None:
    bench.row("source removed between a kill and the next attempt", "documents", STOP)
    inputs = {"pages": sources}
    bench.run("documents", inputs=inputs, fault=bench.fault("driver", "power-cut", number=30))
    bench.happened(1)
    shutil.move(sources / "talks.jsonl", bench.folder / "talks.jsonl")
    bench.stopped(bench.run("documents", inputs=inputs), "documents", "other settings", "--start-over", code=2)
    shutil.move(bench.folder / "talks.jsonl", sources / "talks.jsonl")
    bench.again("documents", inputs=inputs)


def test_source_goes_while_it_is_read(bench: Bench, sources: Path) -> None:
    bench.row("source removed while the stage runs", "documents", STOP)
    inputs, file = {"pages": sources}, sources / "table.parquet"
    ended = bench.run("documents", inputs=inputs, fault=bench.fault("worker", f"move {file}", at=TASKS, number=0))
    bench.happened(1)
    bench.stopped(ended, "documents", "table.parquet", "run the same command")
    file.with_suffix(".away").rename(file)
    bench.again("documents", inputs=inputs)


def test_time_of_change_set_back(bench: Bench, sources: Path) -> None:
    bench.row("clock set back: sources get older times between two attempts", "documents", IDENTICAL)
    inputs = {"pages": sources}
    bench.run("documents", inputs=inputs, fault=bench.fault("driver", "power-cut", number=30))
    bench.happened(1)
    for file in sources.rglob("*"):
        os.utime(file, (1e9, 1e9))
    bench.again("documents", inputs=inputs)


def test_links_in_circles(bench: Bench, sources: Path) -> None:
    bench.row("links to the folders above, and a pipe, among the sources", "documents", IDENTICAL)
    (sources / "pages" / "up").symlink_to(sources)
    os.mkfifo(sources / "pipe.jsonl")
    bench.prove((sources / "pages" / "up" / "pages" / "up" / "talks.jsonl").exists(), "the folder holds itself")
    bench.identical(bench.run("documents", inputs={"pages": sources}), "documents", bench.whole / "documents")


@pytest.mark.parametrize("target", ["gone.jsonl", "talks.jsonl"])
def test_link_to_nowhere(bench: Bench, sources: Path, target: str) -> None:
    bench.row(f"link to {'itself' if target == 'talks.jsonl' else 'a file that is gone'}", "documents", STOP)
    shutil.move(sources / "talks.jsonl", bench.folder / "talks.jsonl")
    (sources / "talks.jsonl").symlink_to(sources / target)
    bench.prove(not (sources / "talks.jsonl").exists(), "the file is gone")
    inputs = {"pages": sources}
    bench.stopped(bench.run("documents", inputs=inputs), "documents", "talks.jsonl", "leads nowhere")


def test_names_in_odd_bytes(bench: Bench, sources: Path) -> None:
    bench.row("file names in bytes that are no text, with line ends and quotes", "documents", ASIDE)
    odd = os.fsencode(sources / "pages") + b"/\xff\xfe caf\xe9.html"
    with open(odd, "wb") as file:
        file.write(html(901).encode())
    (sources / "pages" / "new\nline \"'$(x) 页.html").write_text(html(902), encoding="utf-8")
    bench.prove(os.path.exists(odd), "the file is there")
    made = bench.done(bench.run("documents", inputs={"pages": sources}), "documents")
    before, found = documents_of(Artifact(bench.whole / "documents", {})), documents_of(made)
    new = sorted(set(found) - set(before))
    assert len(new) == 2
    assert {name: found[name] for name in before} == before
    bench.set_aside(f"nothing: both pages are read, as {' and '.join(map(ascii, new))}")


def test_no_memory_of_a_big_source(bench: Bench, sources: Path) -> None:
    bench.row("text file of 80 MB without an empty line", "documents", ASIDE)
    import random

    with open(sources / "long.txt", "w", encoding="utf-8") as file:
        piece = english(random.Random(0), 20_000) + "\n"
        while file.tell() < 80e6:
            file.write(piece)
    bench.prove((sources / "long.txt").stat().st_size > 80e6, "it is that long")
    made = bench.done(bench.run("documents", inputs={"pages": sources}), "documents")
    peak = made.manifest["peak_memory_bytes"]
    assert peak < 1.2e9, f"{peak / 1e9:.2f} GB"
    before, found = documents_of(Artifact(bench.whole / "documents", {})), documents_of(made)
    pieces = [found[name].text for name in found if name not in before]
    assert sum(len(item.split()) for item in pieces) == sum(1 for _ in words_of(sources / "long.txt"))
    bench.set_aside(f"nothing: {len(pieces)} pieces, every word, {peak / 1e9:.1f} GB of memory at most")


def words_of(file: Path) -> Iterator[str]:
    """Words of a file."""
    with open(file, encoding="utf-8") as lines:
        for line in lines:
            yield from line.split()
