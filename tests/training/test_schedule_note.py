"""Promises of what a plan says of rates and batches: the numbers of the schedule, nothing about a run of no steps."""

from __future__ import annotations

import pytest

from chatloom.errors import ChatloomError
from chatloom.tokens.batch_sizes import BatchRamp, BatchSizes, batch_sizes
from chatloom.training.schedule_note import batch_note, schedule_note
from chatloom.training.settings import OptimizerSettings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"warmup": 0.0}, "from 0.001, cosine to 0.0001"),
        ({"cycles": 3}, "warm-up of 20 to 0.001, 3 cosine cycles to 0.0001"),
        ({"schedule": "linear", "final_share": 0.0}, "warm-up of 20 to 0.001, linear to 0"),
        ({"schedule": "constant"}, "warm-up of 20 to 0.001, constant"),
        (
            {"schedule": "inverse_sqrt", "warmup": 0.25},
            "warm-up of 250 to 0.001, inverse square root, at the end 0.0005",
        ),
        ({"schedule": "wsd"}, "warm-up of 20 to 0.001, stable, one minus sqrt in the last 100 to 0.0001"),
        (
            {"schedule": "wcsd", "decay_shape": "linear"},
            "warm-up of 20 to 0.001, cosine to 0.0005 at step 500, stable, linear in the last 100 to 0.0001",
        ),
    ],
)
def test_a_schedule_is_told_in_its_own_numbers(settings: dict[str, object], words: str) -> None:
    [note] = schedule_note(OptimizerSettings(**settings), 1000, exact=True)  # type: ignore[arg-type]
    assert note.title == f"learns by adamw in 1,000 steps: {words}"
    assert len(note.text) == 60


def test_an_estimate_says_so_and_refuses_nothing() -> None:
    long = OptimizerSettings(warmup_steps=50)
    [note] = schedule_note(long, 20.4)
    assert note.title == "learns by adamw in about 20 steps"
    assert "50 steps of warm-up do not fit into 20 steps" in note.text
    assert schedule_note(long, 0) == ()
    assert schedule_note(long, 80.4)[0].title.startswith("learns by adamw in about 80 steps: warm-up of 50")
    with pytest.raises(ChatloomError, match="50 steps of warm-up do not fit into 20 steps"):
        schedule_note(long, 20, exact=True)


def test_a_long_run_is_drawn_in_full_height() -> None:
    [note] = schedule_note(OptimizerSettings(), 3_000_000, exact=True, height=3)
    lines = note.text.splitlines()
    assert lines[0].startswith("0.001 │▃██████▇")  # a rise of 2 % is the first block
    assert lines[-1].endswith("3,000,000")


def test_a_growing_batch_is_drawn_and_an_equal_one_is_not() -> None:
    sizes = batch_sizes(32, BatchRamp(first_rows=8, share=0.24), 1000)
    [note] = batch_note(sizes, sizes.n_steps(1000))
    assert note.title == "reads 8 of 32 rows a step at first, all from step 19 of 42"
    assert note.text.splitlines()[0].startswith("32 │          ")
    assert batch_note(BatchSizes(32), 42) == ()
