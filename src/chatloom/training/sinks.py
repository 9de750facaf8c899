"""Other places that metrics go to, off the critical path: TensorBoard's event files, Weights & Biases, Trackio.

`metrics.jsonl` stays the source of truth. Each sink has a thread and a queue of its own and is opened there, so one
that hangs, raises or whose network is down costs its own curves and not a step.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from chatloom.errors import ChatloomError
from chatloom.progress import say
from chatloom.settings import digest
from chatloom.training.metrics import is_number

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}
WAITING = 10_000  # rows in a queue; more are left out
TRIES = 10  # rows in a row that may fail before a sink is given up
SECONDS = 10.0  # for a sink to take what is left when a run ends


class Sink(Protocol):
    """Takes rows."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """The numbers of a step (from 1)."""

    def close(self) -> None:
        """No more rows come."""


class TensorBoard:
    """Event files in the stage's folder `tensorboard/`; what a resumed run makes again replaces what was there."""

    def __init__(self, folder: Path, start: int) -> None:
        writer = import_module(PACKAGES["tensorboard"]).SummaryWriter
        # The suffix keeps apart what two attempts write in one second.
        self._writer = writer(
            str(folder / "tensorboard"), purge_step=start + 1 if start else None, filename_suffix=f".after-{start}"
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One scalar a metric."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush."""
        self._writer.close()


class Tracker:
    """A run of Weights & Biases or of Trackio, which take the same calls; an interrupted one is gone on with.

    Keys and addresses are theirs to find, from environment variables.
    """

    def __init__(self, package: str, name: str, config: Mapping[str, Any], run_id: str) -> None:
        self._library = import_module(PACKAGES[package])
        own = {"id": run_id} if package == "wandb" else {}
        self._library.init(project="chatloom", name=name, config=dict(config), resume="allow", **own)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """All metrics of a step."""
        self._library.log(dict(values), step=step)

    def close(self) -> None:
        """Hand over what is left."""
        self._library.finish()


def sinks_of(
    names: Sequence[str], folder: Path, start: int, identity: Mapping[str, Any]
) -> dict[str, Callable[[], Sink]]:
    """How to open each sink that is asked for; raises ChatloomError for one whose package is not installed.

    folder: the stage's. start: steps that are done. identity: of the run; its settings are shown beside the curves.
    """
    config = {"stage": identity.get("stage"), "seed": identity.get("seed"), **identity.get("settings", {})}
    run_id = digest(dict(identity))[:16]
    found: dict[str, Callable[[], Sink]] = {}
    for name in names:
        if find_spec(PACKAGES[name]) is None:
            raise ChatloomError(
                f"loop.sinks names {name}, and the package {PACKAGES[name]} is not installed; install "
                f"chatloom[{name}], or leave {name} out"
            )
        if name == "tensorboard":
            found[name] = partial(TensorBoard, folder, start)
        else:
            shown = f"{folder.parent.name}/{folder.name.removesuffix('.partial')}"
            found[name] = partial(Tracker, name, shown, config, run_id)
    return found


class _Fed(threading.Thread):
    """A sink in a thread of its own; a daemon, so that one that hangs does not keep the process."""

    def __init__(self, name: str, opened: Callable[[], Sink]) -> None:
        super().__init__(name=f"sink {name}", daemon=True)
        self.label, self._open = name, opened
        self.rows: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(WAITING)
        self.given_up = False
        self.left_out = 0

    def put(self, row: tuple[int, dict[str, float]] | None) -> None:
        """Never waits."""
        if self.given_up:
            return
        try:
            self.rows.put_nowait(row)
        except queue.Full:
            self.left_out += 1

    def run(self) -> None:
        """Open, take rows until there are no more, close; an error is said once."""
        try:
            sink = self._open()
        except Exception as error:
            self._give_up(f"could not be opened ({_told(error)})")
            return
        failures = 0
        while (row := self.rows.get()) is not None:
            try:
                sink.log(*row)
                failures = 0
            except Exception as error:
                failures += 1
                if failures == 1:
                    say(f"WARNING: metrics do not reach {self.label} ({_told(error)}); training goes on")
                if failures == TRIES:
                    self._give_up("failed too often")
                    return
        try:
            sink.close()
        except Exception as error:
            say(f"WARNING: {self.label} could not be closed ({_told(error)})")

    def _give_up(self, why: str) -> None:
        self.given_up = True
        say(f"WARNING: {self.label} {why}; it gets no more metrics, which are all in metrics.jsonl")


def _told(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


@contextlib.contextmanager
def fed(opened: Mapping[str, Callable[[], Sink]], *, seconds: float = SECONDS) -> Iterator[Callable[[int, Any], None]]:
    """A function that gives the numbers of a row to all sinks and returns at once.

    At the end sinks have `seconds` together for what they have not taken yet; who needs longer is left behind.
    """
    threads = [_Fed(name, opening) for name, opening in opened.items()]
    for thread in threads:
        thread.start()

    def give(step: int, values: Mapping[str, Any]) -> None:
        numbers = {name: float(value) for name, value in values.items() if is_number(value)} if threads else {}
        for thread in threads:
            thread.put((step, numbers))

    try:
        yield give
    finally:
        for thread in threads:
            thread.put(None)
        for thread in threads:
            thread.join(seconds / len(threads))
            if thread.is_alive() or thread.left_out:
                say(f"WARNING: {thread.label} did not take all metrics in time; they are all in metrics.jsonl")
