"""The steps of a stage run one after another under one progress bar."""

from __future__ import annotations

from collections.abc import Sequence

from chatloom.corpus.engine.choice import EngineSettings, make_engine
from chatloom.corpus.engine.steps import Receipt, Step
from chatloom.progress import progress


def run_steps(
    steps: Sequence[Step], settings: EngineSettings, *, label: str, quiet: bool, here: bool = False
) -> list[Receipt]:
    """Run what is not done of each step; the receipts of the last one. `here`: little work stays in this process."""
    receipts: list[Receipt] = []
    with (
        make_engine(settings, here=here) as engine,
        progress(sum(len(step.tasks) for step in steps), unit="tasks", label=label, quiet=quiet) as bar,
    ):
        for step in steps:
            bar.advance(len(step.done()))
            receipts = step.run(engine, advance=lambda _: bar.advance(1))
    return receipts
