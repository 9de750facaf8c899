"""The order in which data is read: a pure function of (seed, stream, epoch, position), whatever the workers or ranks.

Each epoch is a keyed permutation: NumPy's shuffle driven by Philox (Salmon et al. 2011), a generator that is counters
under a key and has no other state. So where a run is, is one number, and any place is reached without reading up to it.
The permutation of the epoch being read is kept, 8 bytes an item; the packing index that it permutes is no smaller.
"""

from __future__ import annotations

import numpy as np

from chatloom.errors import ChatloomError


class Order:
    """An endless stream over `size` items: each epoch is a fresh keyed permutation of all of them.

    Streams with the same seed and another `stream` number have unrelated orders. `item(position)` needs no state beyond
    the position, so resuming and skipping cost nothing.
    """

    def __init__(self, size: int, seed: int, stream: int = 0) -> None:
        if size < 1:
            raise ChatloomError("nothing to read: there is no item to train on; check that the input is not empty")
        self.size, self.seed, self.stream = size, seed, stream
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)

    def permutation(self, epoch: int) -> np.ndarray:
        """All items in the order of an epoch: int64 [size]."""
        if epoch != self._epoch:
            # The stream is the counter's highest word: streams part 2**192 draws from each other and never meet.
            philox = np.random.Philox(
                key=np.array([self.seed & (2**64 - 1), epoch], dtype=np.uint64),
                counter=np.array([0, 0, 0, self.stream], dtype=np.uint64),
            )
            self._permutation, self._epoch = np.random.Generator(philox).permutation(self.size), epoch
        return self._permutation

    def item(self, position: int) -> int:
        """Index of the item read at a position, counted from 0 over all epochs."""
        epoch, offset = divmod(position, self.size)
        return int(self.permutation(epoch)[offset])

    def items(self, start: int, count: int) -> list[int]:
        """Indices of `count` items from a position on."""
        return [self.item(position) for position in range(start, start + count)]
