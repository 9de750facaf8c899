"""Steps: what is done is known by receipts, so nothing is lost, doubled or believed without its files."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from toy_tasks import TESTS, files, step

from chatloom.corpus.engine.local import InProcess, LocalPool
from chatloom.corpus.engine.steps import (
    Lost,
    Receipt,
    StepFailed,
    Work,
    run_task,
    total,
)
from chatloom.errors import ChatloomError


def test_counts_are_sums_over_receipts_and_files_are_in_place(tmp_path: Path) -> None:
    receipts = step(tmp_path).run(InProcess())
    assert total(receipts) == {"words": 2 + 4 + 6 + 8}
    assert sorted(files(tmp_path)) == [f"words/{k}.json" for k in "abcd"]


def test_what_has_a_receipt_is_not_done_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    out = tmp_path / "out"
    step(out, log=str(log)).run(InProcess())
    again = step(out, log=str(log)).run(InProcess())
    assert log.read_text(encoding="utf-8").split() == list("abcd")
    assert total(again) == {"words": 20}


@pytest.mark.parametrize("damage", ["file gone", "file cut", "bit flipped", "receipt cut", "other arguments"])
def test_a_receipt_that_is_not_true_is_not_believed(tmp_path: Path, damage: str) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    step(out, log=str(log)).run(InProcess())
    before = files(out)
    log.unlink()
    if damage == "file gone":
        (out / "words" / "c.json").unlink()
    elif damage == "file cut":
        (out / "words" / "c.json").write_bytes(b"")
    elif damage == "bit flipped":
        data = (out / "words" / "c.json").read_bytes()
        (out / "words" / "c.json").write_bytes(bytes([data[0] ^ 1]) + data[1:])
    elif damage == "receipt cut":
        (out / "receipts" / "c.json").write_text('{"key": "c"', encoding="utf-8")
    else:
        values = json.loads((out / "receipts" / "c.json").read_text(encoding="utf-8"))
        (out / "receipts" / "c.json").write_text(json.dumps({**values, "identity": "0" * 16}), encoding="utf-8")
    step(out, log=str(log)).run(InProcess())
    assert log.read_text(encoding="utf-8").split() == ["c"]
    assert files(out) == before


class StopsAfter:
    """An engine that is killed after some tasks: the last one between its files and its receipt."""

    def __init__(self, tasks: int) -> None:
        self.tasks = tasks

    def map(self, work: Iterable[Work]) -> Iterator[Receipt | Lost]:
        for number, item in enumerate(work):
            receipt = run_task(item)
            if number == self.tasks:
                (Path(item.folder) / "receipts" / f"{item.task.key}.json").unlink()
                raise KeyboardInterrupt
            yield receipt


@pytest.mark.parametrize("tasks", [0, 1, 2, 3])
def test_killed_anywhere_and_run_again_gives_the_same_files_and_exact_counts(tmp_path: Path, tasks: int) -> None:
    step(tmp_path / "whole").run(InProcess())
    with pytest.raises(KeyboardInterrupt):
        step(tmp_path / "cut").run(StopsAfter(tasks))
    receipts = step(tmp_path / "cut").run(InProcess())
    assert total(receipts) == {"words": 20}
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_what_nobody_waits_for_any_more_is_not_put_in_place(tmp_path: Path) -> None:
    toy, wanted = step(tmp_path / "out"), tmp_path / "batch"
    wanted.touch()
    run_task(Work(toy.tasks[0], str(toy.folder), wanted=str(wanted)))
    wanted.unlink()
    with pytest.raises(ChatloomError, match="nobody waits"):
        run_task(Work(toy.tasks[1], str(toy.folder), wanted=str(wanted)))
    assert list(files(toy.folder)) == ["words/a.json"]
    assert list((toy.folder / "tmp").iterdir()) == []


def test_a_task_that_kills_its_process_is_done_again_carefully_and_costs_no_other_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", TESTS)
    toy = step(tmp_path, "die_once")
    receipts = toy.run(LocalPool(2))
    assert total(receipts) == {"words": 20}
    assert sorted(files(tmp_path)) == [f"words/{k}.json" for k in "abcd"]


def test_a_task_that_never_ends_fails_the_step_by_name_and_keeps_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", TESTS)
    toy = step(tmp_path, "hang")
    with pytest.raises(StepFailed, match=r"1 of 4 shards could not be done, first b: took longer than 1 s"):
        toy.run(LocalPool(2, seconds=1.0))
    assert sorted(files(tmp_path)) == [f"words/{k}.json" for k in "acd"]


def test_children_and_this_process_write_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", TESTS)
    step(tmp_path / "here").run(InProcess())
    step(tmp_path / "there").run(LocalPool(2))
    assert files(tmp_path / "here") == files(tmp_path / "there")


def test_children_that_are_held_do_the_tasks_of_several_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", TESTS)
    seen = []
    for held in (True, False):
        pool = LocalPool(1)
        with pool if held else contextlib.nullcontext():
            for name in "ab":
                step(tmp_path / f"{held}-{name}", "tell_process").run(pool)
        told = [file for name in "ab" for file in files(tmp_path / f"{held}-{name}").values()]
        seen.append(len(set(told)))
    assert seen == [1, 2]


def test_a_held_pool_works_on_after_a_step_that_was_broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", TESTS)

    def stop(receipt: Receipt) -> None:
        raise KeyboardInterrupt

    with LocalPool(2) as pool:
        with pytest.raises(KeyboardInterrupt):
            step(tmp_path / "broken").run(pool, advance=stop)
        step(tmp_path / "there").run(pool)
    step(tmp_path / "here").run(InProcess())
    assert files(tmp_path / "here") == files(tmp_path / "there")


def test_a_limit_on_memory_that_is_too_low_is_told_with_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", TESTS)
    with pytest.raises(StepFailed, match=r"needed more memory than a process may have \(2 GB: engine.gigabytes\)"):
        step(tmp_path, "eat_memory").run(LocalPool(1, memory_bytes=2_000_000_000))
