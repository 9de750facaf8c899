"""The loop of a process that does not lead: it does what the first process tells it, which its own loop decides.

| order | what is done by all together |
|---|---|
| load, folder | fill model, optimizer and controllers from a checkpoint, each one its part |
| back, (step, folder) | the same, after steps that went wrong; the count of steps goes on |
| unit, number | a unit of training; then signals that any has caught are made known to all |
| save | bring weights and optimizer together at the first process, which writes them |
| end | the same once more; then the others leave, and the first process goes on alone with a whole model |
| stop, signal | end as the signal would |
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

from chatloom.training.saving import Run
from chatloom.training.trainer import Trainer


def join_in(run: Run, trainer: Trainer, unit: Callable[[int], dict[str, float]], caught: list[int]) -> None:
    """Follow orders; raises Released at the end, or as the signal does that stops all.

    run, trainer and `unit(i)` are what the first process has as well. caught: signals that have come here.
    """
    team = trainer.team
    while True:
        order, value = team.hear()
        if order == "load":
            run.load(trainer, Path(value))
        elif order == "back":
            run.go_back(trainer, value[0], Path(value[1]))
        elif order == "unit":
            unit(value)
            team.share_signals(caught)
        elif order == "save":
            trainer.state()
            with team.whole():
                pass
        elif order == "end":
            trainer.state()
            team.release()
        else:
            signal.raise_signal(value)
            raise KeyboardInterrupt  # a handler that returned must not make a stopped run look finished
