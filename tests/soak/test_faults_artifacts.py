"""The fault matrix, what lies on disk between two commands: shards, columns, receipts, manifests, models, locks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from bench import COMMAND, IDENTICAL, INPUTS, STOP, Bench, wait_until

from chatloom import artifact

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]


@pytest.fixture
def copied(bench: Bench) -> Path:
    """A copy of everything that the undisturbed run made, to be damaged."""
    folder = bench.folder / "copied"
    shutil.copytree(bench.whole, folder)
    return folder


def inputs_from(folder: Path, stage: str) -> dict[str, Any]:
    """The stage's inputs in a copy."""
    given = INPUTS[stage]
    return {k: [folder / i for i in v] if isinstance(v, list) else folder / v for k, v in given.items()}


def flip(file: Path, place: float) -> None:
    """Change one bit of a file at a share of its length; its size stays."""
    data = bytearray(file.read_bytes())
    data[int(place * (len(data) - 1))] ^= 0x10
    file.write_bytes(data)


def largest(folder: Path, pattern: str) -> Path:
    """The largest file of a pattern."""
    return max(sorted(folder.glob(pattern)), key=lambda file: file.stat().st_size)


PLACES = 6
# Of a stage: the input that is damaged, and its file.
READ = {
    "labels": ("documents", "shards/*.parquet"),
    "duplicates": ("documents", "shards/*.parquet"),
    "selection": ("labels", "language/*.parquet"),
    "tokenizer": ("selection", "shards/*.parquet"),
    "tokens": ("selection", "shards/*.parquet"),
}


@pytest.mark.parametrize("stage", READ)
def test_shard_flipped(bench: Bench, copied: Path, stage: str) -> None:
    name, pattern = READ[stage]
    bench.row(f"one bit of the input `{name}` flipped, at 6 places one by one", stage, STOP)
    file = largest(copied / name, pattern)
    sound = file.read_bytes()
    told = set()
    for number in range(PLACES):
        once = Bench(bench.whole, bench.folder / str(number), lambda key, value: None)
        flip(file, (number + 0.5) / PLACES)
        ended = once.run(stage, inputs=inputs_from(copied, stage))
        # A bit that no reader looks at (padding, a name of the writer) may change nothing.
        if ended.code == 0:
            once.identical(ended, stage)
        else:
            once.stopped(ended, stage, f"{file.name}", "damaged|not a readable", "make|again")
            told.add(number)
        file.write_bytes(sound)
    bench.prove(len(told) >= 4, "most bits are looked at")
    bench.looked_at.add(STOP)
    bench.note("outcome", f"{len(told)} times stopped, names the file; {PLACES - len(told)} bits change nothing")


@pytest.mark.parametrize("stage", ["labels", "selection", "tokens"])
def test_shard_removed(bench: Bench, copied: Path, stage: str) -> None:
    name, pattern = READ[stage]
    bench.row(f"a file of the input `{name}` removed after it was made", stage, STOP)
    file = largest(copied / name, pattern)
    file.unlink()
    bench.prove(not file.exists(), "it is gone")
    bench.stopped(bench.run(stage, inputs=inputs_from(copied, stage)), stage, file.name, "missing", "make", code=2)
    shutil.copyfile(bench.whole / file.relative_to(copied), file)
    bench.again(stage, inputs=inputs_from(copied, stage))


@pytest.mark.parametrize("stage", ["labels"])
def test_shard_cut(bench: Bench, copied: Path, stage: str) -> None:
    name, pattern = READ[stage]
    bench.row(f"a file of the input `{name}` cut to half", stage, STOP)
    file = largest(copied / name, pattern)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    bench.prove(file.stat().st_size < (bench.whole / file.relative_to(copied)).stat().st_size, "it is shorter")
    bench.stopped(bench.run(stage, inputs=inputs_from(copied, stage)), stage, file.name, "manifest says", code=2)


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_manifest_of_input(bench: Bench, copied: Path, damage: str) -> None:
    bench.row(f"input's artifact.json {damage}", "labels", STOP)
    file = copied / "documents" / artifact.MANIFEST
    whole = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"\xff\x00{" + whole)
    bench.prove(not artifact.exists(copied / "documents"), "it is no artifact any more")
    ended = bench.run("labels", inputs=inputs_from(copied, "labels"))
    bench.stopped(ended, "labels", "documents", "not a valid manifest|no artifact", code=2)
    file.write_bytes(whole)
    bench.again("labels", inputs=inputs_from(copied, "labels"))


@pytest.mark.parametrize("stage", ["documents", "tokens"])
def test_own_manifest_cut(bench: Bench, stage: str) -> None:
    bench.row("the stage's own artifact.json cut, run again", stage, STOP)
    bench.done(bench.run(stage), stage)
    file = bench.target(stage) / artifact.MANIFEST
    file.write_bytes(file.read_bytes()[:200])
    bench.prove(not artifact.exists(bench.target(stage)), "it is no artifact any more")
    bench.stopped(bench.run(stage), stage, "no valid artifact.json", "--start-over", code=2)
    bench.again(stage, "--start-over")


@pytest.mark.parametrize("damage", ["gone", "cut", "flipped"])
def test_own_shard_damaged_after_commit(bench: Bench, damage: str) -> None:
    bench.row(f"a file of the finished artifact {damage}, the stage is made again", "documents", IDENTICAL)
    made = bench.done(bench.run("documents"), "documents")
    damage_file(largest(made.path, "shards/*.parquet"), damage)
    with pytest.raises(artifact.ArtifactError):
        artifact.load(made.path, verify=True)
    bench.prove(True, "the artifact is not what its manifest says")
    bench.identical(bench.run("documents", "--start-over"), "documents", again=True)


def damage_file(file: Path, damage: str) -> None:
    """Remove a file, cut it, or change one bit."""
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:100])
    else:
        flip(file, 0.5)


def half_done(bench: Bench, stage: str) -> Path:
    """The folder of a stage that was killed once it had some receipts."""
    # The last task never ends: its worker sleeps until the driver has been killed.
    driver = bench.start(
        stage, bench.fault("worker", "sleep 60", at="chatloom.corpus.engine.local:work_here", number=3)
    )
    folder = bench.partial(stage) / "receipts"
    wait_until(lambda: folder.is_dir() and len(list(folder.glob("*.json"))) >= 4)
    driver.kill()
    driver.communicate()
    return bench.partial(stage)


@pytest.mark.parametrize(
    ("stage", "damage"),
    [("documents", "cut"), ("documents", "emptied"), ("labels", "gone"), ("labels", "of another task")],
)
def test_receipt_damaged(bench: Bench, stage: str, damage: str) -> None:
    bench.row(f"receipt {damage} in a half-done run", stage, IDENTICAL)
    receipts = sorted((half_done(bench, stage) / "receipts").glob("*.json"))
    bench.prove(len(receipts) >= 4, "some tasks were done")
    if damage == "gone":
        receipts[0].unlink()
    elif damage == "of another task":
        shutil.copyfile(receipts[1], receipts[0])
    else:
        receipts[0].write_bytes(receipts[0].read_bytes()[:20] if damage == "cut" else b"")
    bench.again(stage)


@pytest.mark.parametrize(
    ("stage", "damage"), [("documents", "gone"), ("documents", "flipped"), ("labels", "cut"), ("labels", "flipped")]
)
def test_shard_of_half_done_run_damaged(bench: Bench, stage: str, damage: str) -> None:
    bench.row(f"shard {damage} in a half-done run", stage, IDENTICAL)
    folder = half_done(bench, stage)
    receipt = json.loads(sorted((folder / "receipts").glob("*.json"))[0].read_text(encoding="utf-8"))
    file = folder / sorted(receipt["files"])[0]
    bench.prove(file.is_file(), "the shard was committed")
    damage_file(file, damage)
    bench.again(stage)


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_draft_damaged(bench: Bench, damage: str) -> None:
    bench.row(f"draft.json {damage} in a half-done run", "documents", IDENTICAL)
    file = half_done(bench, "documents") / artifact.DRAFT
    whole = file.read_bytes()
    file.unlink()
    if damage == "cut":
        file.write_bytes(whole[:30])
    bench.prove(bench.partial("documents").is_dir(), "the folder is there")
    bench.again("documents")


@pytest.mark.parametrize("stage", ["documents", "labels"])
def test_partial_of_other_settings(bench: Bench, stage: str) -> None:
    bench.row("half-done folder of other settings", stage, STOP)
    half_done(bench, stage)
    other = {"limit": 30} if stage == "documents" else {"seconds_per_document": 7.0}
    name = next(iter(other))
    ended = bench.run(stage, **other)
    bench.prove(bench.partial(stage).is_dir(), "what was half done is kept")
    bench.stopped(ended, stage, "half done with other settings|other settings", name, "--start-over", code=ended.code)
    bench.again(stage)


def test_leftovers_of_a_killed_commit(bench: Bench) -> None:
    bench.row("manifest written, killed before the last rename", "documents", IDENTICAL)
    made = bench.done(bench.run("documents"), "documents")
    made.path.rename(bench.partial("documents"))
    (bench.partial("documents") / f"{artifact.MANIFEST}.tmp").write_text("{", encoding="utf-8")
    bench.prove(not bench.target("documents").exists(), "the artifact has no name yet")
    bench.again("documents")


@pytest.fixture(scope="module")
def model(whole: Path) -> Path:
    """An n-gram model of the documents."""
    import subprocess

    settings = {
        "reference": {"path": str(whole / "documents")},
        "language": "en",
        "min_units": 100,
        "held_out_share": 0.3,
    }
    file = whole / "model.yaml"
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    subprocess.run([*COMMAND, "ngram-model", str(file), "--out", str(whole / "lm")], check=True, capture_output=True)
    return whole / "lm"


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_model_damaged(bench: Bench, model: Path, damage: str) -> None:
    bench.row(f"a table of the n-gram model {damage}", "labels", STOP)
    labellers = {"language": {}, "perplexity": {"model": "lm"}}
    fine = Bench(bench.whole, bench.folder / "fine", lambda name, value: None)
    expected = fine.done(fine.run("labels", inputs={"models": [model]}, labellers=labellers), "labels").path
    copy = bench.folder / "lm"
    shutil.copytree(model, copy)
    file = max(
        (f for f in copy.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size if f.suffix != ".html" else 0
    )
    damage_file(file, damage)
    with pytest.raises(artifact.ArtifactError):
        artifact.load(copy, verify=True)
    how: dict[str, Any] = {"inputs": {"models": [copy]}, "labellers": labellers}
    ended = bench.run("labels", **how)
    bench.prove(True, "the model is not what its manifest says")
    bench.stopped(ended, "labels", file.name, "damaged|missing|manifest says", code=ended.code)
    shutil.copyfile(model / file.relative_to(copy), file)
    bench.identical(bench.run("labels", **how), "labels", expected, again=True)


@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_vocabulary_damaged(bench: Bench, copied: Path, damage: str) -> None:
    bench.row(f"tokenizer.json {damage}", "tokens", STOP)
    file = copied / "tokenizer" / "tokenizer.json"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2] if damage == "cut" else data.replace(b'"merges"', b'"nerges"'))
    bench.prove(file.read_bytes() != data, "it is another file")
    ended = bench.run("tokens", inputs=inputs_from(copied, "tokens"))
    bench.stopped(ended, "tokens", "tokenizer.json", code=ended.code)
