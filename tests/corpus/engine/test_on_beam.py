"""Beam: the same receipts and the same bytes as on this machine; an error costs its task and is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_tasks import files, step

from chatloom.corpus.engine.local import InProcess
from chatloom.corpus.engine.on_beam import OnBeam
from chatloom.corpus.engine.steps import StepFailed, total

pytest.importorskip("apache_beam")


def test_beam_writes_the_same_bytes(tmp_path: Path) -> None:
    step(tmp_path / "here").run(InProcess())
    receipts = step(tmp_path / "apache_beam").run(OnBeam())
    assert total(receipts) == {"words": 20}
    assert files(tmp_path / "here") == files(tmp_path / "apache_beam")


def test_a_task_that_raises_fails_the_step_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="first b: ValueError: b will not do"):
        step(tmp_path, "refuse").run(OnBeam())
