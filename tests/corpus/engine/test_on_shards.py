"""One run done by several processes, `--shard i/N`: the same bytes, whoever comes late, never, or is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from chatloom import artifact
from chatloom.corpus.engine import crew
from chatloom.corpus.engine.choice import EngineSettings, make_engine
from chatloom.corpus.engine.crew import Part
from chatloom.corpus.engine.on_shards import LEADING, Leader
from chatloom.errors import ChatloomError

# The product's own patience is a minute; nothing else is changed.
MEMBER = """
import sys
from chatloom.cli import main
from chatloom.corpus.engine import crew, on_shards
crew.BEAT_SECONDS, crew.PATIENCE_SECONDS, on_shards.START_SECONDS = 0.2, {patience}, {start}
sys.exit(main(sys.argv[1:]))
"""


def a_run(folder: Path) -> None:
    """A recipe over 16 files that every task of the crew can see."""
    pages = folder / "pages"
    pages.mkdir(parents=True)
    for number in range(16):
        rows = [{"id": f"{number}-{i}", "text": f"Page {number} says {i} things. " * (i + 3)} for i in range(20)]
        rows[0]["text"] = "The same on every page, and nothing else. " * 4
        (pages / f"{number:02d}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    entry = {
        "stage": "corpus",
        "pages": {"path": "pages"},
        "documents": {"shards": {"part_megabytes": 0.01}},
        "labels": {"labellers": {"length": {}, "language": {}, "c4": {}}},
        "duplicates": {"ranges": 3},
        "engine": {"workers": 1},
    }
    (folder / "small.yaml").write_text(yaml.safe_dump({"name": "small", "stages": {"corpus": entry}}), encoding="utf-8")


@contextmanager
def member(
    folder: Path, shard: str, *more: str, patience: float = 30.0, start: float = 20.0
) -> Iterator[subprocess.Popen[str]]:
    """One process of a crew."""
    code = MEMBER.format(patience=patience, start=start)
    process = subprocess.Popen(
        [sys.executable, "-c", code, "run", "small.yaml", "--shard", shard, *more],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ends(process: subprocess.Popen[str], code: int = 0) -> str:
    """What a process said until it ended."""
    out, _ = process.communicate(timeout=240)
    assert process.returncode == code, out
    return out


def content(folder: Path) -> dict[str, bytes]:
    """All that a run made but times."""
    run = folder / "runs" / "small"
    made = [path.parent for path in sorted(run.glob("*/artifact.json"))]
    assert len(made) == 4
    files = {}
    for path in made:
        loaded = artifact.load(path, verify=True)
        for name in loaded.manifest["files"]:
            if "receipts/" not in name and name != "page.html":
                files[f"{path.name}/{name}"] = (path / name).read_bytes()
        files[f"{path.name} metrics"] = json.dumps(
            {name: value for name, value in loaded.metrics.items() if name != "seconds"}, sort_keys=True
        ).encode()
        files[f"{path.name} fingerprint"] = loaded.fingerprint.encode()
    return files


def receipts(folder: Path) -> int:
    return len(list((folder / "runs" / "small").glob("*/receipts/*.json")))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process makes."""
    folder = tmp_path_factory.mktemp("whole")
    a_run(folder)
    with member(folder, "0/1") as alone:
        ends(alone)
    return content(folder)


def test_three_processes_write_what_one_does(tmp_path: Path, whole: dict[str, bytes]) -> None:
    a_run(tmp_path)
    with member(tmp_path, "1/3") as first, member(tmp_path, "0/3") as leader, member(tmp_path, "2/3") as second:
        ends(leader)
        done = [int(ends(other).rpartition(":")[2].split()[0]) for other in (first, second)]
    assert content(tmp_path) == whole
    assert min(done) >= 4  # a third of the parts of the first step alone
    assert not list((tmp_path / "runs" / "small").glob("**/tmp"))


def test_what_a_member_that_never_starts_would_do_is_done_by_the_leader(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    a_run(tmp_path)
    with member(tmp_path, "0/3", start=0.0) as leader:
        said = ends(leader)
    assert content(tmp_path) == whole
    assert said.count("is not heard of") == 2


def test_a_member_that_is_killed_loses_nothing(tmp_path: Path, whole: dict[str, bytes]) -> None:
    a_run(tmp_path)
    with member(tmp_path, "1/2") as other, member(tmp_path, "0/2", patience=2.0) as leader:
        while receipts(tmp_path) < 10:
            assert leader.poll() is None
            time.sleep(0.01)
        other.kill()
        said = ends(leader)
    assert content(tmp_path) == whole
    assert "shard 1/2 is not heard of" in said


def test_a_leader_that_is_killed_is_missed_and_the_same_commands_go_on(tmp_path: Path, whole: dict[str, bytes]) -> None:
    a_run(tmp_path)
    with member(tmp_path, "1/2", patience=2.0) as other, member(tmp_path, "0/2") as leader:
        while receipts(tmp_path) < 10:
            assert leader.poll() is None
            time.sleep(0.01)
        leader.kill()
        assert "shard 0/2 has not been heard of for 2 s" in ends(other, 1)
    with member(tmp_path, "1/2") as other, member(tmp_path, "0/2") as leader:
        ends(leader)
        ends(other)
    assert content(tmp_path) == whole


def test_a_member_that_was_asleep_while_its_part_was_done_puts_nothing_in_place(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    a_run(tmp_path)
    with member(tmp_path, "1/2") as other, member(tmp_path, "0/2", patience=1.0) as leader:
        while receipts(tmp_path) < 10:
            assert leader.poll() is None
            time.sleep(0.01)
        other.send_signal(signal.SIGSTOP)  # its children go on, as a machine's processes do whose network is gone
        said = ends(leader)
        other.send_signal(signal.SIGCONT)
        ends(other)
    assert "shard 1/2 is not heard of" in said
    assert content(tmp_path) == whole


def test_members_say_why_the_leader_failed(tmp_path: Path) -> None:
    a_run(tmp_path)
    with member(tmp_path, "1/2", "--set", "corpus.selection.keep=nothing > 3") as other:
        with member(tmp_path, "0/2", "--set", "corpus.selection.keep=nothing > 3") as leader:
            ends(leader, 1)
        assert "there is no label `nothing`" in ends(other, 1)


def test_another_recipe_or_number_of_shards_is_refused(tmp_path: Path) -> None:
    a_run(tmp_path)
    with member(tmp_path, "0/2", start=1000.0), member(tmp_path, "1/2", "--set", "seed=3") as other:
        assert "recipe is" in ends(other, 1)
        with member(tmp_path, "1/3") as third:
            assert "number of shards is 3 here and 2 at shard 0" in ends(third, 1)


def test_a_member_of_a_run_that_is_done_has_nothing_to_do(tmp_path: Path) -> None:
    a_run(tmp_path)
    with member(tmp_path, "0/1") as alone:
        ends(alone)
    with member(tmp_path, "1/2") as other:
        assert "all of it is done" in ends(other)


def test_two_leaders_of_one_run_are_refused(tmp_path: Path) -> None:
    with Leader(tmp_path / "run", Part(0, 2), {}):
        with pytest.raises(ChatloomError, match="another process"), Leader(tmp_path / "run", Part(0, 2), {}):
            pass
        with pytest.raises(ChatloomError, match="gives out work itself"):
            make_engine(EngineSettings(name="ray"))
    assert LEADING.get() is None
    assert crew.get(tmp_path / "run" / crew.FOLDER / crew.END)["failed"] is None


@pytest.mark.parametrize("text", ["3", "2/2", "-1/2", "a/b", "1/0", "", "1/2/3", "²/3"])
def test_a_part_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ChatloomError, match="expected i/N"):
        Part.parse(text)


def test_a_half_written_beat_is_never_seen(tmp_path: Path) -> None:
    with crew.Beat(tmp_path, "run", 1) as beat:
        hearing = crew.Hearing(tmp_path)
        for number in range(300):
            beat.tell(number)
            assert hearing.batch(1, "run") == number
            assert hearing.batch(1, "another") is None
    assert os.listdir(tmp_path) == ["1.beat"]
