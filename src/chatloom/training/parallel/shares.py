"""Which part of an optimizer step each process does: pure functions of the step's content and the number of processes.

What a step holds is decided before, by (seed, epoch, position) alone. Only who computes which part of it is decided
here, and as losses and gradients are summed over all parts, that changes nothing but the order of sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from chatloom.errors import ChatloomError
from chatloom.tokens.packing import Batch


def row_shares(n_rows: int, most: int, ranks: int, *, equal: bool = False) -> list[range]:
    """Cut the rows of a step into micro-batches; number n belongs to rank n % ranks.

    None has more than `most` rows. Where there are rows enough every rank gets as many micro-batches as the others;
    where there are fewer rows than ranks the last ranks get none. Sizes differ by one at most; with `equal` they do not
    differ where a number of micro-batches can be found that allows it.
    """
    fewest = -(-n_rows // (most * ranks)) * ranks
    numbers = range(fewest, n_rows + 1, ranks) if equal else range(0)
    count = next((number for number in numbers if n_rows % number == 0), fewest)
    count = min(count, n_rows)
    return [range(n * n_rows // count, (n + 1) * n_rows // count) for n in range(count)]


def item_shares(sizes: Sequence[int], ranks: int) -> list[list[int]]:
    """Share items out so that the sums of their `sizes` (tokens) are about equal; indices ascend in each share.

    Largest first, each to the rank that has least so far (Graham 1969: at most 4/3 of the best); ties go to the lower
    index and rank. Every rank gets an item; raises ChatloomError when there are fewer items than ranks.
    """
    if len(sizes) < ranks:
        raise ChatloomError(
            f"a step of {len(sizes)} examples cannot be shared among {ranks} processes that each need one; raise the "
            "examples of a step or start fewer processes"
        )
    loads = [0] * ranks
    shares: list[list[int]] = [[] for _ in range(ranks)]
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        rank = min(range(ranks), key=lambda r: (loads[r], len(shares[r]), r))
        shares[rank].append(index)
        loads[rank] += sizes[index]
    return [sorted(share) for share in shares]


def nothing_of(batch: Batch) -> Batch:
    """A batch of the same shape that holds padding alone, for a process that must go along and has nothing to do."""
    return replace(
        batch,
        segments=torch.full_like(batch.segments, -1),
        weights=torch.zeros_like(batch.weights),
        supervised=batch.supervised[:0],
        segment_end=batch.segment_start - 1,
        prefix=None if batch.prefix is None else torch.zeros_like(batch.prefix),
        n_tokens=0,
        total_weight=0.0,
    )
