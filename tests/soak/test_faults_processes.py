"""The fault matrix, processes: killed, stopped, hanging, alone and all together."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest
from bench import IDENTICAL, STAGES, STOP, WORKED, Bench, Ended, wait_until

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

MOMENTS = 3
TASKS = "chatloom.corpus.engine.local:work_here"
PAGES = "chatloom.corpus.documents:page_to_document"


def touches(bench: Bench, stage: str) -> int:
    """How often the driver touches its files in an undisturbed run."""
    count = bench.whole / f"touches of {stage}"
    if not count.is_file():
        counted = Bench(bench.whole, bench.folder / "counted", lambda name, value: None)
        ended = counted.run(stage, fault=counted.fault("driver", "", number=-1, count=str(count)))
        assert ended.code == 0, ended.err
    return int(count.read_text(encoding="utf-8"))


@pytest.mark.parametrize("stage", STAGES)
def test_driver_killed_at_several_moments(bench: Bench, stage: str) -> None:
    bench.row(f"driver killed (-9) at {MOMENTS} moments", stage, IDENTICAL)
    total = touches(bench, stage)
    draw = random.Random(stage)
    for part in range(MOMENTS):  # one in each part of the run, the last one inside the commit
        moment = draw.randrange(part * total // MOMENTS, (part + 1) * total // MOMENTS)
        once = Bench(bench.whole, bench.folder / str(moment), lambda name, value: None)
        ended = once.run(stage, fault=once.fault("driver", "signal SIGKILL", number=moment))
        once.happened(1)
        assert ended.code == -signal.SIGKILL
        once.again(stage)
    bench.prove(True, "each attempt ended by the signal")
    bench.looked_at.add(IDENTICAL)
    bench.note("outcome", "each time, run again: identical")


@pytest.mark.parametrize("stage", ["documents", "duplicates"])
def test_driver_killed_six_times_in_a_row(bench: Bench, stage: str) -> None:
    bench.row("driver killed (-9) six times in a row", stage, IDENTICAL)
    draw = random.Random(f"again {stage}")
    total = touches(bench, stage)
    for _ in range(6):
        ended = bench.run(
            stage, fault=bench.fault("driver", "signal SIGKILL", number=draw.randrange(total // 3), times=9)
        )
        assert ended.code == -signal.SIGKILL
    bench.happened(6)
    bench.again(stage)


@pytest.mark.parametrize(("stage", "name"), [("documents", "SIGTERM"), ("labels", "SIGINT"), ("selection", "SIGTERM")])
def test_driver_asked_to_end(bench: Bench, stage: str, name: str) -> None:
    bench.row(f"driver asked to end ({name})", stage, STOP)
    moment = touches(bench, stage) // 2
    number = signal.Signals[name]
    ended = bench.run(
        stage,
        fault=bench.fault("driver", f"signal {name}", number=moment),
        before=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    bench.happened(1)
    assert ended.code == 128 + number, ended.err
    assert "To go on:" in ended.err
    assert "Traceback" not in ended.err
    bench.looked_at.add(STOP)
    bench.note("outcome", f"stopped with {ended.code}, says how to go on")
    bench.again(stage)


@pytest.mark.parametrize("stage", WORKED)
def test_worker_killed_once(bench: Bench, stage: str) -> None:
    bench.row("worker killed (-9) in its task", stage, IDENTICAL)
    ended = bench.run(stage, fault=bench.fault("worker", "signal SIGKILL", number=9))
    bench.happened(1)
    bench.identical(ended, stage)


@pytest.mark.parametrize("stage", ["documents", "labels"])
def test_worker_killed_between_files_and_receipt(bench: Bench, stage: str) -> None:
    bench.row("worker killed (-9) when it flushes what it made", stage, IDENTICAL)
    fault = bench.fault("worker", "signal SIGKILL", at="flush", number=1)
    ended = bench.run(stage, fault=fault)
    bench.happened(1)
    bench.identical(ended, stage)


@pytest.mark.parametrize(("stage", "tasks"), [("documents", 2), ("labels", 7)])
def test_every_worker_killed(bench: Bench, stage: str, tasks: int) -> None:
    bench.row("worker of every task killed (-9), also at the second attempt", stage, STOP)
    ended = bench.run(stage, fault=bench.fault("worker", "signal SIGKILL", number=3, ever=True, times=1000))
    assert bench.happened() >= 2 * tasks  # two attempts each
    bench.stopped(
        ended, stage, f"{tasks} of {tasks} shards could not be done", "killed by signal 9", "run the same command"
    )
    bench.again(stage)


def test_worker_stopped(bench: Bench) -> None:
    bench.row("worker stopped (SIGSTOP), deadline of 5 s", "labels", IDENTICAL)
    engine = {"workers": 2, "seconds": 5}
    ended = bench.run("labels", fault=bench.fault("worker", "signal SIGSTOP", number=5), engine=engine)
    bench.happened(1)
    bench.identical(ended, "labels")
    assert not left_behind(bench.folder), "the stopped worker lives on"


def test_page_process_killed(bench: Bench) -> None:
    bench.row("process that extracts pages killed (-9) once", "documents", IDENTICAL)
    ended = bench.run("documents", fault=bench.fault("page", "signal SIGKILL", at=PAGES, number=3))
    bench.happened(1)
    bench.identical(ended, "documents")


def test_page_process_stopped(bench: Bench) -> None:
    bench.row("process that extracts pages stopped (SIGSTOP), deadline of 3 s", "documents", IDENTICAL)
    slow = {"extractor": "resiliparse", "seconds_per_page": 3}
    undisturbed = Bench(bench.whole, bench.folder / "undisturbed", lambda name, value: None)
    undisturbed.done(undisturbed.run("documents", extraction=slow), "documents")
    ended = bench.run("documents", fault=bench.fault("page", "signal SIGSTOP", at=PAGES, number=3), extraction=slow)
    bench.happened(1)
    bench.identical(ended, "documents", undisturbed.target("documents"))


@pytest.mark.parametrize("stage", ["documents", "labels"])
def test_power_cut(bench: Bench, stage: str) -> None:
    bench.row("all processes killed at once", stage, IDENTICAL)
    ended = bench.run(stage, fault=bench.fault("driver", "power-cut", number=touches(bench, stage) // 2))
    bench.happened(1)
    assert ended.code == -signal.SIGKILL
    bench.again(stage)


def test_workers_of_a_killed_driver_end(bench: Bench) -> None:
    bench.row("driver killed (-9) while its workers work; run again at once", "documents", IDENTICAL)
    fault = bench.fault("worker", "sleep 1", at="flush", number=2, times=2)
    driver = bench.start("documents", fault)
    wait_until(lambda: list(bench.folder.glob("fault.*")))
    workers = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    ended = bench.run("documents")
    driver.communicate()
    bench.happened()
    bench.prove(len(workers) >= 2, "workers were at work")
    bench.identical(ended, "documents", again=True)
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive, "workers outlive their driver"


def test_driver_stopped_and_continued(bench: Bench) -> None:
    bench.row("driver stopped for 3 s (SIGSTOP, SIGCONT)", "labels", IDENTICAL)
    driver = bench.start("labels", bench.fault("driver", "signal SIGSTOP", number=touches(bench, "labels") // 2))
    wait_until(lambda: psutil.Process(driver.pid).status() == psutil.STATUS_STOPPED)
    bench.happened(1)
    time.sleep(3)
    os.kill(driver.pid, signal.SIGCONT)
    out, err = driver.communicate(timeout=120)
    bench.identical(Ended(driver.returncode, out, err), "labels")


def test_two_drivers_at_once(bench: Bench) -> None:
    bench.row("two drivers on the same folder at once", "documents", STOP)
    first = bench.start("documents", bench.fault("driver", "sleep 6", number=6))
    wait_until(lambda: list(bench.folder.glob("fault.*")))
    second = bench.run("documents")
    bench.happened(1)
    bench.prove(first.poll() is None, "the first one was still at work")
    bench.stopped(second, "documents", f"another process \\(pid {first.pid} on", "wait for it, or end it")
    out, err = first.communicate(timeout=120)
    bench.identical(Ended(first.returncode, out, err), "documents")


def test_stale_lock(bench: Bench) -> None:
    bench.row("lock file left by a process that is gone", "documents", IDENTICAL)
    lock = bench.target("documents").with_name(".documents.lock")
    lock.parent.mkdir(parents=True)
    lock.write_text("pid 4194304 on elsewhere", encoding="utf-8")
    ended = bench.run("documents")
    bench.prove("4194304" not in lock.read_text(encoding="utf-8"), "it was taken over")
    bench.identical(ended, "documents")


@pytest.mark.parametrize("stage", ["documents"])
def test_ray_worker_killed(bench: Bench, stage: str) -> None:
    bench.row("worker of Ray killed (-9) in its task", stage, IDENTICAL)
    pytest.importorskip("ray")
    engine = {"name": "ray", "address": "local", "workers": 2}
    ended = bench.run(stage, fault=bench.fault("ray", "signal SIGKILL", number=9), engine=engine)
    bench.happened(1)
    bench.identical(ended, stage)


def left_behind(folder: Path) -> list[int]:
    """Processes that acted on a fault and live still."""
    named = [int(file.read_text(encoding="utf-8")) for file in folder.glob("fault.*")]
    return [number for number in named if psutil.pid_exists(number)]
