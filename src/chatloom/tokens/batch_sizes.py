"""How many rows each optimizer step reads: as many in every step, or growing over the first part of the run.

Small batches learn more from a token early on, large ones use the hardware better (McCandlish et al. 2018; GPT-3,
Brown et al. 2020, appendix B, grew its batch from 32 k tokens to the whole over the first 4 to 12 billion). The sizes
rise in equal increments, and about equally many rows are read at each, in whole steps, so that the size is linear in
the tokens read. Which rows a step reads is a function of its number alone, as without a ramp.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from chatloom.errors import ChatloomError
from chatloom.settings import Settings


class BatchRamp(Settings):
    """A batch that grows to `batch_rows`."""

    first_rows: int | None = Field(None, ge=1, description="rows of the first steps; null: all steps have `batch_rows`")
    increment: int | None = Field(None, ge=1, description="rows more at each rise; as many as `first_rows` when null")
    share: float = Field(0.05, gt=0, le=1, description="share of the run's rows over which the batch grows")


NO_RAMP = BatchRamp()


@dataclass(frozen=True)
class BatchSizes:
    """Rows of every step: `ramp` lists (rows, steps) of each size below the last, which lasts to the end."""

    last: int
    ramp: tuple[tuple[int, int], ...] = ()

    @property
    def ramp_steps(self) -> int:
        """Steps before the batch is whole."""
        return sum(steps for _, steps in self.ramp)

    @property
    def ramp_rows(self) -> int:
        """Rows that these steps read."""
        return self.start(self.ramp_steps)

    @property
    def sizes(self) -> tuple[int, ...]:
        """All sizes, in order."""
        return (*(rows for rows, _ in self.ramp), self.last)

    def rows(self, step: int) -> int:
        """Rows of a step, counted from 0."""
        for rows, steps in self.ramp:
            if step < steps:
                return rows
            step -= steps
        return self.last

    def start(self, step: int) -> int:
        """Rows that all steps before this one read: the position of its first row in the run."""
        position = 0
        for rows, steps in self.ramp:
            taken = min(step, steps)
            position, step = position + taken * rows, step - taken
        return position + step * self.last

    def n_steps(self, n_rows: int) -> int:
        """Steps that reading `n_rows`, more than the ramp's, takes; the last one may be short of rows."""
        return self.ramp_steps - (-(n_rows - self.ramp_rows) // self.last)

    def nearest(self, n_rows: float) -> int:
        """Rows of as many whole steps as come nearest to `n_rows`, one of the last size at least."""
        return self.ramp_rows + max(1, round((n_rows - self.ramp_rows) / self.last)) * self.last


def batch_sizes(batch_rows: int, ramp: BatchRamp, n_rows: float) -> BatchSizes:
    """The sizes in a run of about `n_rows` rows.

    Every size below the last is kept for at least one step. Raises ChatloomError for a ramp that does not rise, or that
    would not have reached the whole batch at the run's end.
    """
    if ramp.first_rows is None:
        return BatchSizes(batch_rows)
    if ramp.first_rows >= batch_rows:
        raise ChatloomError(
            f"batch_ramp.first_rows is {ramp.first_rows} and batch_rows {batch_rows}: the batch would not grow; "
            "begin with fewer rows or leave `batch_ramp` out"
        )
    sizes = range(ramp.first_rows, batch_rows, ramp.increment or ramp.first_rows)
    each = ramp.share * n_rows / len(sizes)
    found = BatchSizes(batch_rows, tuple((rows, max(1, round(each / rows))) for rows in sizes))
    if found.ramp_rows >= n_rows:
        raise ChatloomError(
            f"batch_ramp: growing from {ramp.first_rows} to {batch_rows} rows in {len(sizes)} rises takes "
            f"{found.ramp_rows} rows, and the run has about {n_rows:.0f}; raise `increment` or `first_rows`, "
            "or lower `share`"
        )
    return found
