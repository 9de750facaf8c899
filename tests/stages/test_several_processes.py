"""Promises of one command on several processes: the same result, one voice, and an end of all when one is lost."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
import torch
import yaml
from parallel_processes import ends_of, start
from safetensors.torch import load_file
from toys import World

from chatloom import artifact
from chatloom.errors import ChatloomError
from chatloom.training import checkpoints
from chatloom.training.metrics import read_metrics

OF_THE_MACHINE = ("seconds", "tokens_per_second", "mfu", "data_wait", "memory")


def command(world: World, stage: str, out: Path, **changes: Any) -> list[str]:
    """What a user would type for a stage of the toy world."""
    world.prepare(stage)
    inputs = {
        name: [{"path": str(item)} for item in given] if isinstance(given, list) else {"path": str(given)}
        for name, given in world.inputs(stage).items()
    }
    file = out.with_name(f"{out.name}.yaml")
    file.write_text(yaml.safe_dump({**world.settings(stage, **changes), **inputs, "seed": 7}), encoding="utf-8")
    return [sys.executable, "-m", "chatloom", stage, str(file), "--out", str(out)]


def apart(folder: Path, other: Path) -> float:
    """Relative distance of two models' weights and of their optimizers' states; the larger."""
    found = []
    for name in ("model.safetensors", "state/optimizer.safetensors"):
        ours, theirs = load_file(folder / name), load_file(other / name)
        assert ours.keys() == theirs.keys()
        a, b = (torch.cat([group[key].flatten().double() for key in sorted(ours)]) for group in (ours, theirs))
        found.append(float((a - b).norm() / b.norm()))
    return max(found)


def rows_of(folder: Path) -> list[dict[str, float]]:
    rows = read_metrics(folder / "metrics.jsonl").rows
    return [{name: value for name, value in row.items() if name not in OF_THE_MACHINE} for row in rows]


def flat(values: Any, name: str = "") -> dict[str, float]:
    """The numbers of nested metrics."""
    if isinstance(values, Mapping):
        return {key: number for inner in values for key, number in flat(values[inner], f"{name}.{inner}").items()}
    return {name: values} if isinstance(values, int | float) else {}


def wait_for(condition: Callable[[], bool], processes: list[Popen[str]], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert all(process.poll() is None for process in processes), "\n".join(ends_of(processes))
        assert time.monotonic() < end, "nothing came of it"
        time.sleep(0.02)


def test_two_processes_end_where_one_ends_and_only_the_first_is_seen(world: World, tmp_path: Path) -> None:
    out = tmp_path / "two"
    processes = start(2, command(world, "pretrain", out, loop={"parallel": {"data": "zero1"}}))
    first, second = ends_of(processes)
    assert [process.returncode for process in processes] == [0, 0], first + second
    assert "steps in" in first
    assert second == ""
    alone, both = world["pretrain"], artifact.load(out, verify=True)
    assert both.fingerprint == alone.fingerprint
    assert sorted(both.manifest["files"]) == sorted(alone.manifest["files"])
    assert apart(both.path, alone.path) < 1e-5
    for ours, theirs in zip(rows_of(both.path), rows_of(alone.path), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert flat(both.metrics["heldout"]) == pytest.approx(flat(alone.metrics["heldout"]), rel=1e-4)


def test_a_lost_process_ends_the_other_and_one_alone_goes_on_from_what_both_had_saved(
    world: World, tmp_path: Path
) -> None:
    out = tmp_path / "lost"
    changes: dict[str, Any] = {"loop": {"parallel": {"data": "zero3"}, "checkpoint_every": 2}, "epochs": 12}
    processes = start(2, command(world, "pretrain", out, **changes))
    partial = artifact.partial_of(out)
    wait_for(lambda: len(checkpoints.steps(partial)) >= 2, processes)
    processes[1].kill()
    killed_at = time.monotonic()
    text = ends_of(processes[:1], 60)[0]
    assert time.monotonic() - killed_at < 30
    assert processes[0].returncode == 1
    assert "another process of this run ended or did not answer in time" in text
    saved = checkpoints.steps(partial)[-1]
    assert world.run("pretrain", out, **changes).path == out  # one process, and so another world size
    rows = rows_of(out)
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert len(rows) > saved
    whole = world.run("pretrain", tmp_path / "whole", epochs=12)
    assert apart(out, whole.path) < 1e-4
    assert rows[-1]["loss"] == pytest.approx(rows_of(whole.path)[-1]["loss"], rel=1e-4)


PLANTED = """
import sys
from chatloom.cli import main
from chatloom.training.anomalies import Finding, Watch
calls = 0
def judge(self, values):
    global calls
    calls += 1
    return Finding("planted", 99.0) if 13 <= calls <= 15 else None
Watch.judge = judge
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("data", ["zero1", "zero3"])
def test_all_processes_go_back_to_a_checkpoint_together_and_on_from_the_same_step(
    data: str, world: World, tmp_path: Path
) -> None:
    ends = []
    for n in (1, 2):
        out = tmp_path / f"on-{n}"
        given = command(
            world, "pretrain", out, anomalies={"rollback_every": 5}, loop={"parallel": {"data": data}} if n > 1 else {}
        )
        processes = start(n, [sys.executable, "-c", PLANTED, *given[3:]])
        texts = ends_of(processes)
        assert [process.returncode for process in processes] == [0] * n, "\n".join(texts)
        ends.append(artifact.load(out, verify=True))
    alone, both = ends
    assert [row["step"] for row in rows_of(both.path) if "rolled_back_to" in row] == [15]
    assert both.metrics["rollbacks"] == 1
    # Another rate or another step on one of them would show in weights and moments.
    assert apart(both.path, alone.path) < 1e-5
    for ours, theirs in zip(rows_of(both.path), rows_of(alone.path), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_a_signal_to_one_process_stops_and_saves_all(world: World, tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    processes = start(2, command(world, "pretrain", out, epochs=40, loop={"checkpoint_seconds": 1e6}))
    partial = artifact.partial_of(out)
    wait_for(lambda: len(read_metrics(partial / "metrics.jsonl").rows) >= 3, processes)
    processes[1].send_signal(signal.SIGTERM)
    text, _ = ends_of(processes, 60)
    assert processes[0].returncode == 128 + signal.SIGTERM
    assert "run the same command again to go on from here" in text
    steps = len(read_metrics(partial / "metrics.jsonl").rows)
    assert checkpoints.steps(partial) == [steps]
    values = json.loads((partial / "checkpoints" / f"step-{steps}" / "state" / "values.json").read_text())
    assert values["trainer"]["updates"] == steps


def test_a_plan_that_cannot_work_is_said_once_and_ends_all(world: World, tmp_path: Path) -> None:
    loop = {"parallel": {"tensor": 3}}
    processes = start(2, command(world, "pretrain", tmp_path / "three", loop=loop))
    first, second = ends_of(processes, 60)
    assert [process.returncode for process in processes] == [1, 1], first + second
    assert "tensor 3 x pipeline 1 = 3 processes" in first


def test_a_stage_that_cannot_be_shared_out_refuses_to_be(world: World, tmp_path: Path) -> None:
    with pytest.raises(ChatloomError, match="pretrain, sft, reward, dpo; a stage `ppo` runs on one process"):
        world.run("ppo", tmp_path / "ppo", loop={"parallel": {"data": "zero1"}})
