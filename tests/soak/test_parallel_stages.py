"""Every training stage that can be shared out, by every way of doing so; and torchrun's own restarts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from parallel_processes import ends_of, start
from toys import World

from chatloom import artifact
from chatloom.training import checkpoints

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stages"))
from test_several_processes import apart, command, wait_for

pytestmark = pytest.mark.soak

WAYS = ({"data": "replicate"}, {"data": "zero2"}, {"data": "zero3"}, {"tensor": 2}, {"pipeline": 2})


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward", "dpo"])
def test_a_stage_on_two_processes_ends_where_one_ends(
    stage: str, way: dict[str, str], world: World, tmp_path: Path
) -> None:
    out = tmp_path / stage
    processes = start(2, command(world, stage, out, loop={"parallel": way, "checkpoint_every": 3}))
    texts = ends_of(processes)
    assert [process.returncode for process in processes] == [0, 0], "\n".join(texts)
    made, alone = artifact.load(out, verify=True), world[stage]
    assert made.fingerprint == alone.fingerprint
    assert apart(out, alone.path) < 1e-3  # Adam's first steps make the sign of what is nearly 0 count
    for name in ("heldout_loss", "heldout_accuracy", "last_accuracy", "last_loss"):
        if alone.metrics.get(name) is not None:
            assert made.metrics[name] == pytest.approx(alone.metrics[name], rel=1e-3), name


def test_torchrun_restarts_a_job_that_lost_a_process_and_it_goes_on(world: World, tmp_path: Path) -> None:
    out = tmp_path / "restarted"
    python, _, *rest = command(world, "pretrain", out, epochs=40, loop={"checkpoint_every": 2})
    launcher = [python, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1", "--master-port"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    job = subprocess.Popen(
        [*launcher, "29731", "-m", *rest], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
    )
    partial = artifact.partial_of(out)
    wait_for(lambda: len(checkpoints.steps(partial)) >= 2, [job])
    children = psutil.Process(job.pid).children(recursive=True)
    second = next(child for child in children if child.environ().get("RANK") == "1")
    os.kill(second.pid, signal.SIGKILL)
    text = ends_of([job], 200)[0]
    assert job.returncode == 0, text
    assert "resuming after step" in text
    assert apart(out, world.run("pretrain", tmp_path / "whole", epochs=40).path) < 1e-4
