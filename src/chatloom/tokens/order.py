"""The order in which data is read: a pure function of (seed, epoch, position), whatever the workers or ranks."""

from __future__ import annotations

import numpy as np

from chatloom.errors import ChatloomError


class Order:
    """An endless stream over `size` items: each epoch is a fresh keyed permutation of all of them.

    `item(position)` needs no state beyond the position, so resuming and skipping cost nothing.
    """

    def __init__(self, size: int, seed: int) -> None:
        if size < 1:
            raise ChatloomError("nothing to read: there is no item to train on; check that the input is not empty")
        self.size, self.seed = size, seed
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)

    def item(self, position: int) -> int:
        """Index of the item read at a position, counted from 0 over all epochs."""
        epoch, offset = divmod(position, self.size)
        if epoch != self._epoch:
            generator = np.random.Generator(np.random.Philox(key=[self.seed & (2**64 - 1), epoch]))
            self._permutation, self._epoch = generator.permutation(self.size), epoch
        return int(self._permutation[offset])

    def items(self, start: int, count: int) -> list[int]:
        """Indices of `count` items from a position on."""
        return [self.item(position) for position in range(start, start + count)]
