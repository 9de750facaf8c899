"""Tasks as an Apache Beam pipeline (extra `chatloom[beam]`): Create | Reshuffle | Map, on whatever runner is asked for.

Beam's bound on pyarrow is below ours, so it goes into an environment of its own, with `constraints-beam.txt`. As with
Ray, every worker must see the folders by the same path; the receipts there, not the pipeline's output, are the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from chatloom.corpus.engine.steps import TEMPORARY, Lost, Receipt, Work, read_receipt, run_task
from chatloom.errors import ChatloomError


class OnBeam:
    """A Beam runner with its own options, such as ["--runner=FlinkRunner", "--flink_master=..."]."""

    def __init__(self, options: Sequence[str] = ()) -> None:
        try:
            import apache_beam
        except ImportError:
            raise ChatloomError("engine `beam` is not installed; run: pip install 'chatloom[beam]'") from None
        self._beam, self._options = apache_beam, list(options)

    def __enter__(self) -> Self:
        return self  # every step is a pipeline of its own

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def map(self, work: Iterable[Work]) -> Iterator[Receipt | Lost]:
        """Receipts in the order of the work, once the pipeline has ended; a task without one is Lost."""
        beam = self._beam
        items = list(work)
        ended = "its worker was lost"
        try:
            with beam.Pipeline(argv=self._options) as pipeline:
                _ = pipeline | beam.Create(items) | beam.Reshuffle() | beam.Map(attempt)
        except Exception as error:  # the runner's own: what was done before is told by the receipts
            ended = f"the pipeline ended with {type(error).__name__}: {error}"
        for item in items:
            receipt = read_receipt(Path(item.folder), item.task)
            yield receipt if receipt is not None else Lost(item.task.key, _reason(item) or ended)


def attempt(work: Work) -> None:
    """Do a piece of work; an error costs that task only and leaves its reason where the receipt would be."""
    try:
        run_task(work)
    except Exception as error:
        file = _reason_file(work)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{type(error).__name__}: {error}", encoding="utf-8")


def _reason_file(work: Work) -> Path:
    return Path(work.folder) / TEMPORARY / f"{work.task.key}.lost"


def _reason(work: Work) -> str:
    try:
        return _reason_file(work).read_text(encoding="utf-8")
    except OSError:
        return ""
