"""What pretraining reads: token stores, the documents of each source, their packed rows, and the order of the run.

Made anew when a run starts, when a plan is made and when a step is looked at, from settings and stores alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chatloom.corpus.selection.expressions import Expression
from chatloom.errors import ChatloomError
from chatloom.tokens.batch_sizes import NO_RAMP, BatchRamp, BatchSizes, batch_sizes
from chatloom.tokens.denoising_index import DenoisingIndex
from chatloom.tokens.joined import JoinedStores
from chatloom.tokens.language_model_rows import plain_segment, segments_batch
from chatloom.tokens.mixture import Mixture, Row, RowIndex, Source
from chatloom.tokens.mixture_plan import MixturePlan, MixtureSettings, Size, check_names, plan_mixture
from chatloom.tokens.objective import Denoising
from chatloom.tokens.order import Order
from chatloom.tokens.packing import Batch, Segment
from chatloom.tokens.packing_index import PackingIndex, Piece
from chatloom.tokens.rows import PackingError
from chatloom.tokens.store import TokenStore
from chatloom.tokens.vocabulary import Vocabulary
from chatloom.training.parallel.shares import nothing_of, row_shares
from chatloom.training.parallel.world import Axis

TRAIN = "train"
EVERYTHING = "everything"


@dataclass(frozen=True)
class PretrainingData:
    """Documents and the order in which a run reads their rows; `plan` is None where no mixture is set.

    denoising: what is made of a piece of text; None: language modelling. unused: documents (and their tokens) that
    belong to no source.
    """

    documents: JoinedStores
    mixture: Mixture
    sizes: BatchSizes
    row_length: int
    plan: MixturePlan | None = None
    denoising: Denoising | None = None
    unused_documents: int = 0
    unused_tokens: int = 0

    @property
    def n_steps(self) -> int:
        """Optimizer steps of the run."""
        return self.sizes.n_steps(self.mixture.n_rows)

    @property
    def n_rows(self) -> int:
        """Rows of one pass over every source that is read."""
        return sum(source.index.n_rows for source in self.mixture.sources if source is not None)

    @property
    def padding(self) -> float:
        """Share of the places of these rows that hold no token."""
        return 1.0 - self._places / (self.n_rows * self.row_length)

    @property
    def loss_share(self) -> float:
        """Share of the tokens in these rows that carry loss; tokens that a store says are only read count as well."""
        losses = sum(source.index.n_losses for source in self.mixture.sources if source is not None)
        return losses / self._places

    @property
    def _places(self) -> int:
        return sum(source.index.n_places for source in self.mixture.sources if source is not None)

    def rows(self, step: int) -> list[Row]:
        """The rows of an optimizer step."""
        return self.mixture.rows(self.sizes.start(step), self.sizes.rows(step))

    def stage(self, step: int) -> str:
        """Name of the mixture's stage that the first row of an optimizer step belongs to."""
        return self.mixture.names[self.mixture.rows(self.sizes.start(step), 1)[0].stage]

    def batches(self, step: int, rows_at_once: int, pad_id: int, *, trim: bool = True) -> list[Batch]:
        """The packed micro-batches of an optimizer step, of at most `rows_at_once` rows each; trim: as in `pack`."""
        rows = self.rows(step)
        return [
            self._batch(rows[first : first + rows_at_once], pad_id, trim=trim)
            for first in range(0, len(rows), rows_at_once)
        ]

    def share(
        self, step: int, rows_at_once: int, pad_id: int, axis: Axis, *, trim: bool = True, equal: bool = False
    ) -> list[Batch]:
        """Those of an optimizer step that one process of an axis does; `equal` sizes where that can be.

        Where a step has fewer rows than there are processes, padding alone for the last ones.
        """
        rows = self.rows(step)
        parts = row_shares(len(rows), rows_at_once, axis.size, equal=equal)
        mine = [self._batch(rows[part.start : part.stop], pad_id, trim=trim) for part in parts[axis.place :: axis.size]]
        return mine or [nothing_of(self._batch(rows[:1], pad_id, trim=trim))]

    def _batch(self, rows: Sequence[Row], pad_id: int, *, trim: bool) -> Batch:
        return segments_batch([self.segments(row) for row in rows], self.row_length, pad_id, trim=trim)

    def segments(self, row: Row) -> list[Segment]:
        """What lies in a row as it is trained on."""
        return [self.segment(row, piece) for piece in self.mixture.pieces(row)]

    def segment(self, row: Row, piece: Piece) -> Segment:
        """A piece of a row as it is trained on: as it is, or with noise taken out that this pass draws."""
        if self.denoising is None:
            return plain_segment(self.documents, piece)
        document, start, end, noise = piece
        ids, weights = self.documents.read(document, start, end), self.documents.weights(document, start, end)
        return self.denoising.segment(ids, weights, noise, epoch=row.epoch, document=document, start=start)

    def state(self, step: int) -> dict[str, Any]:
        """Where the reading is before an optimizer step, for a checkpoint."""
        return self.mixture.state(self.sizes.start(step))

    def check_state(self, step: int, saved: Any) -> None:
        """Raise ChatloomError when a checkpoint's `state` is not what follows from settings and stores here."""
        expected = self.state(step)
        if saved != expected:
            raise ChatloomError(
                f"the checkpoint after step {step} was reading {saved}; here the same step reads {expected}. "
                "The token stores or the version of NumPy are others than when the run began: put them back, or "
                "start over with --start-over"
            )

    def table(self) -> str:
        """The plan as a table, with what no source takes; empty without a mixture."""
        if self.plan is None:
            return ""
        unused = f"\n\nin no source: {self.unused_documents:,} documents, {self.unused_tokens:,} tokens"
        return self.plan.table() + (unused if self.unused_documents else "")


def open_stores(folders: Sequence[Path], vocabulary: Vocabulary, name: str = TRAIN) -> JoinedStores:
    """The stores of some `tokens` artifacts as one."""
    return JoinedStores([TokenStore(folder, vocabulary, name=name) for folder in folders])


def pretraining_data(
    documents: JoinedStores,
    settings: MixtureSettings,
    *,
    row_length: int,
    batch_rows: int,
    epochs: float,
    seed: int,
    denoising: Denoising | None = None,
    ramp: BatchRamp = NO_RAMP,
) -> PretrainingData:
    """Pack every source and lay out the run, in steps of `batch_rows` rows, fewer at first where `ramp` says so.

    With `denoising` tokens are counted as those of the text. Without a mixture there is one source, all documents, read
    `epochs` times, to the nearest whole step. Raises MixtureError for a mixture that cannot be read, ExpressionError
    for a condition on labels that are not there, ChatloomError for a ramp that the run is too short for.
    """

    def pack(lengths: np.ndarray, stream: int = 0) -> RowIndex:
        if denoising is None:
            return PackingIndex(lengths, row_length)
        return DenoisingIndex(lengths, denoising, stream)

    if not settings.sources and not settings.stages:
        index = pack(documents.lengths)
        sizes = batch_sizes(batch_rows, ramp, epochs * index.n_rows)
        only = Source(EVERYTHING, index, Order(index.n_rows, seed))
        mixture = Mixture([only], [(EVERYTHING, [sizes.nearest(epochs * index.n_rows)])])
        return PretrainingData(documents, mixture, sizes, row_length, denoising=denoising)
    check_names(settings)
    owner = owners(documents, [source.where for source in settings.sources])
    sources: list[Source | None] = []
    there: dict[str, Size] = {}
    for number, source in enumerate(settings.sources):
        mine = np.flatnonzero(owner == number)
        lengths = documents.lengths[mine]
        disk = int(lengths.sum()) * documents.bytes_a_token
        try:
            index = pack(lengths, number)
        except PackingError:
            if (lengths >= 2).any():
                raise
            sources.append(None)  # nothing to read; the plan says so if a stage wants it
            there[source.name] = Size(len(mine), 0, 0, disk)
            continue
        sources.append(Source(source.name, index, Order(index.n_rows, seed, stream=number), mine))
        there[source.name] = Size(len(mine), index.n_targets, index.n_rows, disk)
    plan = plan_mixture(settings, there)
    mixture = Mixture(sources, [(stage.name, stage.rows) for stage in plan.stages])
    left = documents.lengths[owner < 0]
    sizes = batch_sizes(batch_rows, ramp, mixture.n_rows)
    return PretrainingData(documents, mixture, sizes, row_length, plan, denoising, len(left), int(left.sum()))


def owners(documents: JoinedStores, conditions: Sequence[str]) -> np.ndarray:
    """The first condition that holds for each document, -1 where none does: int16 [documents].

    An empty condition holds for every document. Raises ExpressionError for a label that no store has.
    """
    known = documents.names
    parsed = [Expression.parse(text if text.strip() else "True", known) for text in conditions]
    names = sorted({name for expression in parsed for name in expression.names})
    parts = []
    for table in documents.tables(names):
        part = np.full(table.num_rows, -1, dtype=np.int16)
        for number, expression in reversed(list(enumerate(parsed))):
            part[expression.mask(table)] = number
        parts.append(part)
    return np.concatenate(parts)
