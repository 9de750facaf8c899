"""Promises of `chatloom.artifact`: a folder is an artifact or it is not, whatever happened while it was made."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from chatloom import artifact
from chatloom.artifact import Artifact, ArtifactError, Draft, Identity

IDENTITY = Identity("documents", "write", 1, {"text": "a", "nested": {"n": 1}}, 0)


def make(target: Path, identity: Identity = IDENTITY, text: str = "hello") -> Artifact:
    draft = artifact.begin(target, identity)
    assert isinstance(draft, Draft)
    (draft.path / "sub").mkdir(exist_ok=True)
    (draft.path / "sub" / "text.txt").write_text(text, encoding="utf-8")
    return draft.commit({"n": 1})


def test_an_artifact_says_what_it_is_and_what_it_holds(tmp_path: Path) -> None:
    made = make(tmp_path / "x")
    found = artifact.load(tmp_path / "x", "documents", verify=True)
    assert found.manifest == made.manifest
    assert found.fingerprint == IDENTITY.fingerprint
    assert found.metrics == {"n": 1}
    assert list(found.manifest["files"]) == ["sub/text.txt"]
    assert found.file("sub/text.txt").read_text(encoding="utf-8") == "hello"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["x"]


def test_a_folder_under_way_does_not_exist_for_readers(tmp_path: Path) -> None:
    artifact.begin(tmp_path / "x", IDENTITY)
    assert not artifact.exists(tmp_path / "x")
    with pytest.raises(ArtifactError, match=r"not finished|half done|being made|no artifact"):
        artifact.load(tmp_path / "x")


def test_the_same_settings_are_not_made_twice(tmp_path: Path) -> None:
    make(tmp_path / "x")
    assert isinstance(artifact.begin(tmp_path / "x", IDENTITY), Artifact)


@pytest.mark.parametrize(
    "other",
    [
        replace(IDENTITY, settings={"text": "b"}),
        replace(IDENTITY, seed=1),
        replace(IDENTITY, stage_version=2),
        replace(IDENTITY, parents={"documents": "0123"}),
        replace(IDENTITY, data={"pages.0/a.html": "beef"}),
    ],
)
def test_whatever_decides_the_result_decides_the_fingerprint(other: Identity) -> None:
    assert other.fingerprint != IDENTITY.fingerprint


def test_an_older_artifact_is_moved_aside_and_never_overwritten(tmp_path: Path) -> None:
    old = make(tmp_path / "x", text="old")
    make(tmp_path / "x", replace(IDENTITY, seed=1), text="new")
    aside = artifact.load(tmp_path / f"x@{old.fingerprint[:8]}", verify=True)
    assert aside.file("sub/text.txt").read_text(encoding="utf-8") == "old"
    assert artifact.load(tmp_path / "x").file("sub/text.txt").read_text(encoding="utf-8") == "new"


def test_a_half_done_folder_with_other_settings_is_refused_with_the_difference(tmp_path: Path) -> None:
    artifact.begin(tmp_path / "x", IDENTITY)
    other = replace(IDENTITY, settings={"text": "a", "nested": {"n": 2}})
    with pytest.raises(ArtifactError, match=r"settings\.nested\.n: 1 -> 2") as caught:
        artifact.begin(tmp_path / "x", other)
    assert "--start-over" in str(caught.value)
    draft = artifact.begin(tmp_path / "x", other, start_over=True)
    assert isinstance(draft, Draft)
    assert not draft.resumed


def test_a_half_done_folder_with_the_same_settings_goes_on(tmp_path: Path) -> None:
    first = artifact.begin(tmp_path / "x", IDENTITY)
    assert isinstance(first, Draft)
    (first.path / "a").write_text("kept", encoding="utf-8")
    again = artifact.begin(tmp_path / "x", IDENTITY)
    assert isinstance(again, Draft)
    assert again.resumed
    assert (again.path / "a").read_text(encoding="utf-8") == "kept"


def test_a_folder_without_a_draft_is_not_taken_for_a_half_done_one(tmp_path: Path) -> None:
    (tmp_path / "x.partial").mkdir()
    (tmp_path / "x.partial" / "stranger").write_text("?", encoding="utf-8")
    draft = artifact.begin(tmp_path / "x", IDENTITY)
    assert isinstance(draft, Draft)
    assert [item.name for item in draft.path.iterdir()] == [artifact.DRAFT]


# The child runs a commit and is killed at the N-th of the calls that change what is on disk.
CHILD = """
import os, signal, sys
from pathlib import Path
from chatloom import artifact
from chatloom.artifact import Identity
target, at = Path(sys.argv[1]), int(sys.argv[2])
calls = 0
def counted(real):
    def call(*arguments, **named):
        global calls
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        calls += 1
        return real(*arguments, **named)
    return call
draft = artifact.begin(target, Identity("documents", "write", 1, {"text": "b"}, 0))
(draft.path / "text.txt").write_text("new", encoding="utf-8")
for name in ("rename", "replace", "fsync", "unlink"):
    setattr(os, name, counted(getattr(os, name)))
draft.commit({})
print(calls)
"""


def _commit_in_child(target: Path, at: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CHILD, str(target), str(at)], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_kill_at_any_moment_of_a_commit_is_finished_by_the_next_start(tmp_path: Path) -> None:
    old = make(tmp_path / "count" / "x", text="old")
    n_calls = int(_commit_in_child(tmp_path / "count" / "x", -1).stdout)
    assert n_calls >= 6
    new = Identity("documents", "write", 1, {"text": "b"}, 0)
    finished_by_begin = 0
    for at in range(n_calls):
        target = tmp_path / str(at) / "x"
        make(target, text="old")
        assert _commit_in_child(target, at).returncode == -signal.SIGKILL
        state = artifact.begin(target, new)
        if isinstance(state, Artifact):
            finished_by_begin += 1
        else:
            assert (state.path / "text.txt").read_text(encoding="utf-8") == "new"
            state = state.commit({})
        assert artifact.load(target, verify=True).fingerprint == new.fingerprint
        kept = artifact.load(target.with_name(f"x@{old.fingerprint[:8]}"), verify=True)
        assert kept.file("sub/text.txt").read_text(encoding="utf-8") == "old"
        assert not artifact.partial_of(target).exists()
    assert finished_by_begin >= 2  # between manifest and rename, and between the two renames


def test_a_cut_off_commit_of_other_settings_is_not_mixed_into_a_new_one(tmp_path: Path) -> None:
    draft = artifact.begin(tmp_path / "x", IDENTITY)
    assert isinstance(draft, Draft)
    artifact.write_json(
        draft.path / artifact.MANIFEST,
        {**IDENTITY.values(), "format": 1, "fingerprint": "0", "files": {}, "metrics": {}},
    )
    (draft.path / artifact.DRAFT).unlink()
    with pytest.raises(ArtifactError, match="seed: 0 -> 1"):
        artifact.begin(tmp_path / "x", replace(IDENTITY, seed=1))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda x: (x / "sub/text.txt").unlink(), "is missing"),
        (lambda x: (x / "sub/text.txt").write_text("hell"), "4 bytes, the manifest says 5"),
        (lambda x: (x / "sub/text.txt").write_text("hellO"), "content differs"),
        (lambda x: (x / "artifact.json").write_text("{"), "not a valid manifest"),
        (lambda x: (x / "artifact.json").write_text("[]"), "not a valid manifest"),
        (lambda x: (x / "artifact.json").write_text('{"format": 1}'), "lacks fi"),
        (lambda x: (x / "artifact.json").unlink(), "no artifact here"),
    ],
)
def test_damage_is_found_and_named(tmp_path: Path, damage: object, message: str) -> None:
    make(tmp_path / "x")
    damage(tmp_path / "x")  # type: ignore[operator]
    with pytest.raises(ArtifactError, match=message):
        artifact.load(tmp_path / "x", verify=True)


def test_an_artifact_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "x")
    file = tmp_path / "x" / artifact.MANIFEST
    values = json.loads(file.read_text(encoding="utf-8"))
    artifact.write_json(file, {**values, "format": artifact.FORMAT + 1})
    with pytest.raises(ArtifactError, match="newer chatloom"):
        artifact.load(tmp_path / "x")


def test_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    make(tmp_path / "x")
    with pytest.raises(ArtifactError, match="is a documents artifact, expected model or reward-model"):
        artifact.load(tmp_path / "x", "model", "reward-model")


def test_a_missing_file_of_an_artifact_is_named_with_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no `other.txt`; it holds sub/text.txt"):
        make(tmp_path / "x").file("other.txt")


def test_a_lock_stops_a_second_writer_and_ends_with_its_process(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom chatloom import artifact\n"
        "with artifact.locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "x")], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        with (
            pytest.raises(ArtifactError, match=rf"another process \(pid {child.pid} on "),
            artifact.locked(tmp_path / "x"),
        ):
            pass
    finally:
        child.kill()
        child.wait()
    with artifact.locked(tmp_path / "x"):  # a killed process holds nothing
        assert os.path.exists(tmp_path / ".x.lock")


def test_content_hashes_do_not_depend_on_where_a_folder_lies(tmp_path: Path) -> None:
    for name in ("a", "b/c"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "f").write_text("x", encoding="utf-8")
        (tmp_path / name / "e").write_text("y", encoding="utf-8")
    first = artifact.sha256_tree(tmp_path / "a")
    assert first == artifact.sha256_tree(tmp_path / "b/c")
    (tmp_path / "a" / "e").rename(tmp_path / "a" / "g")
    assert artifact.sha256_tree(tmp_path / "a") != first
