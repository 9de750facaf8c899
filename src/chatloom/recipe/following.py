"""One recipe, several processes: the first one runs it, the others do their part of every training stage.

The first process alone plans, locks, writes, prints and runs what only one can run. At a training stage it tells the
others what stage it is; they run the same code on their share until training ends, and wait again. So the same command
works for one process and, behind `torchrun --nproc-per-node N -m`, for N.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatloom import progress, stages
from chatloom.artifact import Artifact
from chatloom.errors import ChatloomError
from chatloom.stage import Context
from chatloom.training.parallel import launch
from chatloom.training.parallel.settings import ParallelSettings

if TYPE_CHECKING:
    from chatloom.training.parallel.world import Line

# Kinds of stages that several processes can share out.
SHARED = ("pretrain", "sft", "reward", "dpo")


@dataclass
class Crew:
    """The processes of a run; `line` is what the first one talks to the others on, None where it is alone."""

    line: Line | None = None
    _listening: bool = field(default=True, repr=False)

    @classmethod
    def assemble(cls, settings: Iterable[Any]) -> Crew:
        """All processes that a launcher has started; they wait for each other. Collective.

        settings: of the stages to come, of whose time-outs the longest counts.
        """
        if launch.world_size() == 1:
            return cls()
        from chatloom.training.parallel.world import Line  # loads torch

        loops = [item.loop.parallel for item in settings if hasattr(item, "loop")]
        return cls(Line.open(max(item.timeout for item in loops or [ParallelSettings()])))

    @property
    def leads(self) -> bool:
        """Whether this is the process that runs the recipe."""
        return launch.rank() == 0

    def share(self, context: Context) -> None:
        """Have the others join in a stage that is about to begin, if it is of a kind that can be shared out.

        Raises ChatloomError for `loop.parallel` on a stage of another kind.
        """
        if context.kind in SHARED:
            if self.line is not None:
                self._listening = False
                self.line.tell(("stage", replace(context, metrics={})))
            return
        chosen = getattr(getattr(context.settings, "loop", None), "parallel", None)
        if chosen is not None and chosen != ParallelSettings():
            raise ChatloomError(
                f"loop.parallel is for stages {', '.join(SHARED)}; a stage `{context.kind}` runs on one process: leave "
                "the setting out"
            )
        if self.line is not None and not context.quiet:
            progress.say(f"stage `{context.name}` runs on one process; {launch.world_size() - 1} wait")

    def back(self) -> None:
        """The others have done their part and wait for what comes next."""
        self._listening = True

    @contextlib.contextmanager
    def leading(self) -> Iterator[None]:
        """Ends the others when what is done meanwhile fails, if they wait; those that train notice by themselves."""
        try:
            yield
        except BaseException:
            if self.line is not None and self._listening:
                self.line.tell(("failed", None))
            raise

    def end(self, made: Mapping[str, Artifact]) -> None:
        """Nothing more comes: let the others go with what was made."""
        if self.line is not None:
            self.line.tell(("end", dict(made)))

    def follow(self) -> dict[str, Artifact]:
        """Do what the first process says until it is done; what it has made.

        Ends this process where the first one has failed, which says why; an error here says whose it is.
        """
        from chatloom.training.parallel.world import PeerLost

        assert self.line is not None
        progress.silence()
        while True:
            try:
                what, value = self.line.hear()
                if what == "stage":
                    _join_in(value)
            except PeerLost:
                raise SystemExit(1) from None
            except ChatloomError as error:
                raise ChatloomError(f"process {launch.rank()}: {error}") from error
            if what == "failed":
                raise SystemExit(1)
            if what == "end":
                made: dict[str, Artifact] = value
                return made


def _join_in(context: Context) -> None:
    """This process's part of a stage; what it writes by the way is thrown away."""
    from chatloom.training.parallel.team import Released

    with tempfile.TemporaryDirectory(prefix="chatloom-") as scratch:
        try:
            stages.find(context.kind).run(replace(context, path=Path(scratch), quiet=True))
        except Released:
            return
    raise AssertionError(f"stage `{context.name}` did not come to the place where one process goes on alone")
