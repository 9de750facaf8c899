"""The promise of every training stage: killed (-9) at any moment and run again, it ends with byte-identical weights."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest
from kill_child import SETTINGS, content, in_child, in_this_process, metrics_of
from toys import World

from chatloom import artifact
from chatloom.training import checkpoints


def drawn_moments(stage: str, events: str) -> list[int]:
    """One optimizer step, one flush and one rename, drawn from the whole run."""
    draw = random.Random(f"kill {stage}")
    return [draw.choice([i for i, event in enumerate(events) if event == letter]) for letter in "ufr"]


@pytest.mark.parametrize("stage", SETTINGS)
def test_killed_at_three_moments_and_run_again_it_ends_with_the_same_bytes(
    stage: str, world: World, tmp_path: Path
) -> None:
    whole, events = in_this_process(world, stage, tmp_path / "whole" / stage)
    for moment in drawn_moments(stage, events):
        what = f"event {moment} of {len(events)} ({events[moment]})"
        out = tmp_path / f"killed-{moment}" / stage
        assert in_child(world, stage, out, "KILL", moment).returncode == -signal.SIGKILL, what
        saved = checkpoints.steps(artifact.partial_of(out))
        again, events_again = in_this_process(world, stage, out)
        assert content(again) == content(whole), what
        assert metrics_of(again) == metrics_of(whole), what
        if saved:  # it went on, and did not start again
            assert events_again.count("u") < events.count("u"), what
