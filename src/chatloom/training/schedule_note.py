"""What `chatloom plan` says of a stage's learning rate and batch: a sentence and a curve."""

from __future__ import annotations

from chatloom.errors import ChatloomError
from chatloom.stage import Note
from chatloom.text_curve import text_curve
from chatloom.tokens.batch_sizes import BatchSizes
from chatloom.training.schedules import Schedule
from chatloom.training.settings import OptimizerSettings, schedule_of

POINTS = 2000  # of a long run, so many rates are looked at


def schedule_note(
    choice: OptimizerSettings, steps: float, *, exact: bool = False, height: int = 1, who: str = ""
) -> tuple[Note, ...]:
    """The learning rate over a run of so many steps; of no steps nothing is said.

    Where the number of steps is an estimate, a schedule that does not fit is said so and left for the run to refuse;
    else ChatloomError is raised.
    """
    total = round(steps)
    if total < 1:
        return ()
    begin = f"{who}learns by {choice.name} in {'' if exact else 'about '}{total:,} steps"
    try:
        schedule = schedule_of(choice, total)
    except ChatloomError as error:
        if exact:
            raise
        return (Note(begin, str(error)),)
    rates = [schedule.rate(step) for step in _sampled(total)]
    return (Note(f"{begin}: {described(schedule)}", text_curve(rates, height=height, total=total)),)


def batch_note(sizes: BatchSizes, steps: int, *, height: int = 2) -> tuple[Note, ...]:
    """The rows of each step, where they grow."""
    if not sizes.ramp:
        return ()
    whole = f"all from step {sizes.ramp_steps + 1:,} of {steps:,}"
    title = f"reads {sizes.sizes[0]} of {sizes.last} rows a step at first, {whole}"
    return (Note(title, text_curve([sizes.rows(step) for step in _sampled(steps)], height=height, total=steps)),)


def described(schedule: Schedule) -> str:
    """A schedule in words, with its numbers."""
    peak, total = f"{schedule.peak:.3g}", schedule.total
    final = f"{schedule.rate(total - 1):.3g}"
    begin = f"warm-up of {schedule.warmup:,} to {peak}" if schedule.warmup else f"from {peak}"
    decay = f"{schedule.decay_shape.replace('_', ' ')} in the last {schedule.decay:,} to {final}"
    level = f"{schedule.stable_share * schedule.peak:.3g}"
    following = {
        "cosine": f"cosine to {final}" if schedule.cycles == 1 else f"{schedule.cycles} cosine cycles to {final}",
        "linear": f"linear to {final}",
        "inverse_sqrt": f"inverse square root, at the end {final}",
        "constant": "constant",
        "wsd": f"stable, {decay}",
        "wcsd": f"cosine to {level} at step {schedule.stable_from:,}, stable, {decay}",
    }
    return f"{begin}, {following[schedule.shape]}"


def _sampled(total: int) -> list[int]:
    """All steps, or evenly chosen ones with the first and the last."""
    if total <= POINTS:
        return list(range(total))
    return [round(i * (total - 1) / (POINTS - 1)) for i in range(POINTS)]
