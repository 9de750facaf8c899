"""The fault matrix, surroundings: labellers of one's own, locale, clock, closed streams, broken pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench import ASIDE, IDENTICAL, STOP, Bench

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

ENGINE = {"workers": 2, "seconds": 6}
HEAD = "import os, signal, time\n\n\ndef own(document) -> int:\n    '''Of our own.'''\n"
TAIL = "    return len(document.text)\n"


def own(bench: Bench, body: str, name: str = "own") -> dict[str, Any]:
    """Settings of a stage with a labeller of this body, for one document; the labels it gives else are known."""
    folder = bench.folder / "own"
    folder.mkdir(exist_ok=True)
    happened = str(bench.folder / "fault.0")
    text = (
        HEAD + f"    if document.id == 'talk-1007':\n        open({happened!r}, 'w').close()\n        {body}\n" + TAIL
    )
    (folder / "own_labeller.py").write_text(text, encoding="utf-8")
    labellers = {"language": {}, "length": {}, "rules": {}, name: {"use": "own_labeller:own"}}
    return {"labellers": labellers, "engine": ENGINE, "seconds_per_document": 2.0}


@pytest.mark.parametrize(
    ("what", "body", "words"),
    [
        ("raises an error", "raise ValueError('no, thanks')", "ValueError: no, thanks"),
        ("hangs", "time.sleep(1000)", "took longer than 2 s"),
        ("kills its process (-9)", "os.kill(os.getpid(), signal.SIGKILL)", "killed by signal 9"),
        ("ends its process", "os._exit(3)", "ended with status 3"),
        ("calls sys.exit", "raise SystemExit(0)", "ended with status 0"),
        ("takes all memory", "bytearray(64 << 30)", "more memory"),
        ("recurses without end", "own(document)", "nests too deeply"),
        ("returns text instead of a number", "return 'many'", "gives own = 'many', declared is int64"),
        ("returns a number too big for its column", "return 1 << 70", "declared is int64"),
    ],
)
def test_labeller_of_ones_own(bench: Bench, what: str, body: str, words: str) -> None:
    bench.row(f"labeller of one's own that {what}, for one document", "labels", ASIDE)
    made = bench.done(bench.run("labels", **own(bench, body)), "labels")
    bench.happened(1)
    for name in ("language", "length", "rules"):
        columns = {file.name: rows_of(file) for file in sorted((made.path / name).glob("*.parquet"))}
        expected = {file.name: rows_of(file) for file in sorted((bench.whole / "labels" / name).glob("*.parquet"))}
        assert without(columns) == without(expected)
    own_rows = [row for file in (made.path / "own").glob("*.parquet") for row in rows_of(file)]
    assert [row["id"] for row in own_rows if row["own"] is None] == ["talk-1007"]
    lines = [json.loads(line) for line in (made.path / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["file"].rpartition("/")[2] for line in lines] == ["talks.jsonl"]
    assert "document talk-1007" in lines[0]["reason"]
    assert words in lines[0]["reason"], lines[0]["reason"]
    assert made.metrics["quarantined"] == 1
    bench.set_aside(f"labels of 1 document, `{lines[0]['reason'][:80]}`")


def rows_of(file: Path) -> list[dict[str, Any]]:
    """Rows of a column file."""
    import pyarrow.parquet as pq

    return pq.read_table(file).to_pylist()


def without(columns: dict[str, list[dict[str, Any]]]) -> dict[str, list[str]]:
    """All rows but that of the poisoned document, comparable (a number that is none is equal to itself)."""
    return {name: [repr(row) for row in rows if row["id"] != "talk-1007"] for name, rows in columns.items()}


def test_labeller_that_always_fails(bench: Bench) -> None:
    bench.row("labeller of one's own that fails for every document", "labels", STOP)
    how = own(bench, "pass")
    file = bench.folder / "own" / "own_labeller.py"
    file.write_text(
        file.read_text(encoding="utf-8").replace("    return len", "    raise KeyError('x')\n    return len"), "utf-8"
    )
    ended = bench.run("labels", **how)
    bench.happened(1)
    bench.stopped(ended, "labels", "119 of 119 documents could not be labelled", "KeyError")


@pytest.mark.parametrize(
    ("what", "text", "words"),
    [
        ("cannot be imported", "import no_such_module\n", "no_such_module"),
        ("has a mistake in its syntax", "def own(document) -> int\n", "own_labeller"),
        ("does not say what it returns", "def own(document):\n    return 1\n", "say with"),
        ("ends the process when it is imported", "import sys\nsys.exit(0)\n", "own_labeller"),
    ],
)
def test_labeller_module(bench: Bench, what: str, text: str, words: str) -> None:
    bench.row(f"labeller of one's own that {what}", "labels", STOP)
    how = own(bench, "pass")
    (bench.folder / "own" / "own_labeller.py").write_text(text, encoding="utf-8")
    ended = bench.run("labels", **how)
    bench.prove(ended.code, "it cannot be used")
    bench.stopped(ended, "labels", words, code=ended.code)


@pytest.mark.parametrize("stage", ["documents", "tokenizer"])
def test_locale(bench: Bench, stage: str) -> None:
    bench.row("locale C, Python's UTF-8 mode off", stage, IDENTICAL)
    plain = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    told = python("import locale; print(locale.getpreferredencoding(False))", plain)
    bench.prove("UTF-8" not in told.upper(), "files are not UTF-8 by default")
    bench.identical(bench.run(stage, environment=plain), stage)


@pytest.mark.parametrize("stage", ["documents", "selection"])
def test_clock_set_back(bench: Bench, stage: str) -> None:
    bench.row("clock set back by a day in the middle of the run", stage, IDENTICAL)
    ended = bench.run(stage, fault=bench.fault("driver", "clock 86400", number=8))
    bench.happened(1)
    bench.identical(ended, stage)


@pytest.mark.parametrize("stage", ["duplicates"])
def test_other_time_zone_and_hash_seed(bench: Bench, stage: str) -> None:
    bench.row("other time zone, hash seed and number of workers", stage, IDENTICAL)
    other = {"TZ": "Pacific/Kiritimati", "PYTHONHASHSEED": "12345"}
    assert python("import time; print(time.localtime().tm_gmtoff, hash('x'))", other) != python(
        "import time; print(time.localtime().tm_gmtoff, hash('x'))", {"PYTHONHASHSEED": "1"}
    )
    bench.prove(True, "time zone and hashes are others")
    bench.identical(bench.run(stage, environment=other, engine={"workers": 1}), stage)


def python(code: str, environment: dict[str, str], before: Callable[[], None] | None = None) -> str:
    """What a line of Python prints."""
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        check=True,
        preexec_fn=before,
    )
    return ended.stdout.decode("utf-8")


@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
def test_closed_stream(bench: Bench, name: str) -> None:
    bench.row(f"{name} closed before the start", "documents", IDENTICAL)
    note = bench.folder / "note"

    def close() -> None:
        os.close(("stdin", "stdout", "stderr").index(name))

    python(f"import pathlib, sys; pathlib.Path({str(note)!r}).write_text(str(sys.{name}))", {}, close)
    bench.prove(note.read_text(encoding="utf-8") == "None", "it is closed")
    bench.identical(bench.run("documents", before=close), "documents")


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_full_stream(bench: Bench, name: str) -> None:
    bench.row(f"disk full behind {name}", "documents", IDENTICAL)
    with open("/dev/full", "w", encoding="utf-8") as full:
        bench.prove(fails(full), "nothing can be written there")
        ended = bench.run("documents", streams={name: full})
    if name == "stdout":  # the result cannot be told, so the command does not end as if it had been
        assert ended.code == 1
        assert "standard output cannot be written to" in ended.sentence
        assert "Traceback" not in ended.err
        ended = replace(ended, code=0)
    bench.identical(ended, "documents")


def fails(stream: Any) -> bool:
    """Whether writing fails."""
    try:
        os.write(stream.fileno(), b"x")
    except OSError:
        return True
    return False


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_broken_pipe(bench: Bench, name: str) -> None:
    bench.row(f"reader of {name} gone (broken pipe)", "labels", IDENTICAL)
    reading, writing = os.pipe()
    os.close(reading)
    ended = bench.run("labels", streams={name: writing})
    with pytest.raises(BrokenPipeError):
        os.write(writing, b"x")
    os.close(writing)
    bench.prove(True, "nobody reads the pipe")
    bench.identical(ended, "labels")


def test_terminal_goes_away(bench: Bench) -> None:
    bench.row("terminal goes away (SIGHUP)", "labels", IDENTICAL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, in children too
    ended = bench.run("labels", fault=bench.fault("driver", "signal SIGHUP", number=12))
    bench.happened(1)
    assert ended.code == -signal.SIGHUP
    bench.again("labels")
