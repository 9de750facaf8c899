"""A hanging, crashing or greedy item costs only itself; the order is that of the items."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from chatloom.corpus import workers
from chatloom.corpus.workers import Failure, Workers
from chatloom.errors import ChatloomError

FUNCTIONS = """
import os, sys, time
def work(item, options):
    if item == "hang":
        time.sleep(600)
    if item == "die":
        os.kill(os.getpid(), 11)
    if item == "raise":
        raise ValueError("no good")
    if item == "memory":
        return len(bytearray(64 << 30))
    if item == "torch":
        return "torch" in sys.modules
    return item * options["times"]
"""


@pytest.fixture(autouse=True)
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "corpus_test_functions.py").write_text(FUNCTIONS, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))


def run(items: list[object], count: int = 2, seconds: float = 5.0) -> list[object]:
    with Workers("corpus_test_functions:work", {"times": 2}, count, seconds) as pool:
        return list(pool.map((item, 8) for item in items))


def test_results_keep_the_order_whatever_the_number_of_workers() -> None:
    items: list[object] = list(range(500))
    assert run(items, 1) == run(items, 3) == [2 * i for i in range(500)]
    assert run([]) == []


@pytest.mark.parametrize(
    ("bad", "reason"),
    [("hang", "took longer than 1 s"), ("die", "killed by signal 11"), ("raise", "ValueError: no good"),
     ("memory", "more memory")],
)  # fmt: skip
def test_a_bad_item_fails_alone(bad: str, reason: str) -> None:
    items: list[object] = list(range(70))
    items[40] = bad
    results = run(items, seconds=1.0)
    failure = results[40]
    assert isinstance(failure, Failure)
    assert reason in failure.reason
    assert [r for i, r in enumerate(results) if i != 40] == [2 * i for i in range(70) if i != 40]


def test_a_function_that_cannot_be_loaded_is_an_error_not_a_thousand_failures() -> None:
    with pytest.raises(ChatloomError, match="No module named"), Workers("no_such_module:f", {}, 2, 5.0) as pool:
        list(pool.map((i, 8) for i in range(1000)))


def test_torch_is_not_loaded_in_a_worker() -> None:
    with Workers("chatloom.corpus.documents:page_to_document", None, 1, 30.0) as pool:
        list(pool.map([(None, 1)]))  # loads everything extraction needs, then fails on the item
    assert run(["torch"]) == [False]


def test_children_end_with_the_pool_and_when_the_parent_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom chatloom.corpus.workers import Workers\n"
        "pool = Workers('corpus_test_functions:work', {'times': 2}, 1, 60.0)\n"
        "results = pool.map((i, 8) for i in range(10 ** 9))\nnext(results)\n"
        "print(pool._children[0].process.pid, flush=True)\ntime.sleep(60)\n"
    )
    import subprocess

    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=os.environ.copy())
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _is_running(child):
        time.sleep(0.05)
    assert not _is_running(child)


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_memory_waiting_behind_a_slow_item_is_bounded() -> None:
    taken = 0

    def items() -> object:
        nonlocal taken
        for number in range(100_000):
            taken += 1
            yield ("hang" if number == 0 else number), 8

    with Workers("corpus_test_functions:work", {"times": 2}, 2, 1.0) as pool:
        next(pool.map(items()))  # type: ignore[arg-type]
    assert taken <= workers.BATCH_ITEMS * 2 * 6


def test_what_is_left_early_does_not_answer_a_later_call() -> None:
    with Workers("corpus_test_functions:work", {"times": 2}, 2, 5.0) as pool:
        early = pool.map((number, 1 << 19) for number in range(100))
        assert next(early) == 0
        early.close()  # type: ignore[attr-defined]
        assert list(pool.map((1000 + number, 1 << 19) for number in range(5))) == [2000 + 2 * n for n in range(5)]
        kept = [child.process.pid for child in pool._children]
        assert list(pool.map([(7, 8)])) == [14]
        assert set(kept) == {child.process.pid for child in pool._children}
