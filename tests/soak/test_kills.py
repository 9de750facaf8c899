"""The long kill matrix: every training stage, killed (-9) at many moments, always ends with the same bytes."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest
from kill_child import SETTINGS, content, in_child, in_this_process, metrics_of
from toys import World

from chatloom import artifact
from chatloom.artifact import Artifact

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

MOMENTS = 20


def killed_and_finished(world: World, stage: str, out: Path, moments: list[int]) -> Artifact:
    """Killed at each of the moments (counted anew in every attempt), then run to the end; a new process every time."""
    for moment in moments:
        assert in_child(world, stage, out, "KILL", moment).returncode == -signal.SIGKILL
    last = in_child(world, stage, out)
    assert last.returncode == 0, last.stderr
    return artifact.load(out, verify=True)


@pytest.mark.parametrize("stage", SETTINGS)
def test_every_training_stage_killed_at_twenty_moments_ends_with_the_same_bytes(
    stage: str, world: World, tmp_path: Path
) -> None:
    whole, events = in_this_process(world, stage, tmp_path / "whole" / stage)
    moments = sorted(random.Random(f"soak {stage}").sample(range(len(events)), MOMENTS))
    for moment in moments:
        again = killed_and_finished(world, stage, tmp_path / f"at-{moment}" / stage, [moment])
        assert content(again) == content(whole), f"event {moment} of {len(events)} ({events[moment]})"
        assert metrics_of(again) == metrics_of(whole), moment


@pytest.mark.parametrize("stage", SETTINGS)
def test_every_training_stage_killed_six_times_in_a_row_ends_with_the_same_bytes(
    stage: str, world: World, tmp_path: Path
) -> None:
    whole, events = in_this_process(world, stage, tmp_path / "whole" / stage)
    draw = random.Random(f"again {stage}")
    moments = [draw.randrange(len(events) // 2) for _ in range(6)]
    again = killed_and_finished(world, stage, tmp_path / "again" / stage, moments)
    assert content(again) == content(whole), moments
    assert metrics_of(again) == metrics_of(whole), moments


def test_no_moment_inside_a_checkpoint_or_the_final_commit_loses_anything(world: World, tmp_path: Path) -> None:
    whole, events = in_this_process(world, "sft", tmp_path / "whole" / "sft")
    steps = [i for i, event in enumerate(events) if event == "u"]
    one_checkpoint = range(steps[3] + 1, steps[4])
    the_end = range(steps[-1] + 1, len(events))
    for moment in [*one_checkpoint, *the_end]:
        again = killed_and_finished(world, "sft", tmp_path / f"at-{moment}" / "sft", [moment])
        assert content(again) == content(whole), f"event {moment} of {len(events)} ({events[moment]})"
        assert metrics_of(again) == metrics_of(whole), moment
