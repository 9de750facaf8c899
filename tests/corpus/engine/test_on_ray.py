"""Ray: the same receipts and the same bytes as this machine's processes, and a dead worker costs one attempt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from toy_tasks import TESTS, files, step

from chatloom.corpus.engine.local import InProcess
from chatloom.corpus.engine.on_ray import OnRay
from chatloom.corpus.engine.steps import StepFailed, total

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One local cluster for all tests of this file: starting it takes seconds."""
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": TESTS}})
    yield
    ray.shutdown()


@pytest.mark.usefixtures("cluster")
def test_ray_writes_the_same_bytes(tmp_path: Path) -> None:
    step(tmp_path / "here").run(InProcess())
    receipts = step(tmp_path / "ray").run(OnRay())
    assert total(receipts) == {"words": 20}
    assert files(tmp_path / "here") == files(tmp_path / "ray")


@pytest.mark.usefixtures("cluster")
def test_a_worker_that_dies_costs_one_attempt(tmp_path: Path) -> None:
    assert total(step(tmp_path, "die_once").run(OnRay())) == {"words": 20}


@pytest.mark.usefixtures("cluster")
def test_a_task_that_raises_fails_the_step_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="first b: ValueError: b will not do"):
        step(tmp_path, "refuse").run(OnRay())
