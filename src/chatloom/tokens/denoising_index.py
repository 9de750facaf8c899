"""The packing index of a denoising objective: which pieces of which documents share a row, and under which noise.

Parts of documents are shared out to the denoisers, cut into pieces that in their final form fit in a row (input, target
and sentinels, see `Noise.longest`), and packed by best-fit decreasing of these final lengths: no sequence exceeds its
row, whatever is drawn later, and rows are as full as those of language modelling. Every token of text is read exactly
once in a pass. A piece keeps its denoiser in every pass; what is taken out of it is drawn anew.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from chatloom.tokens.denoising import Ints, part_generator
from chatloom.tokens.objective import Denoising
from chatloom.tokens.packing_index import Piece, best_fit
from chatloom.tokens.rows import PackingError

PART_ROWS = 16  # a longer document is parted, so that one book is not all of one denoiser


class DenoisingIndex:
    """Rows over documents of given lengths, as `PackingIndex`; `stream` is the number of the source.

    n_rows; n_targets (tokens of text that one pass reads); n_losses (how many tokens carry loss; of prefixes cut
    anywhere, the mean); n_places (tokens that lie in rows, sentinels included). Memory: 21 bytes a piece.
    """

    def __init__(self, lengths: Sequence[int] | NDArray[np.integer], denoising: Denoising, stream: int = 0) -> None:
        """lengths: tokens of each document. Raises PackingError when none has two, DenoisingError when none fits."""
        sizes = np.asarray(lengths, dtype=np.int64)
        documents = np.flatnonzero(sizes >= 2)
        if not len(documents):
            raise PackingError(
                f"none of {len(sizes)} documents has two tokens, so there is nothing to take out; check the corpus"
            )
        row_length = denoising.row_length
        part, begin, end = cut(sizes[documents], np.full(len(documents), PART_ROWS * row_length))
        noise = share_out(end - begin, denoising.shares, part_generator(denoising.seed, stream))
        owner, first, last = cut(end - begin, np.array(denoising.longest, dtype=np.int64)[noise])
        self.row_length = row_length
        self._document = documents[part[owner]]
        self._start, self._end = begin[owner] + first, begin[owner] + last
        self._noise = noise[owner].astype(np.uint8)
        texts = last - first
        places, losses = np.empty_like(texts), np.empty_like(texts)
        for number, kind in enumerate(denoising.noises):
            mine = self._noise == number
            places[mine], losses[mine] = kind.places(texts[mine]), kind.losses(texts[mine])
        self._members, self._starts = best_fit(np.arange(len(places)), places, row_length)
        self.n_rows = len(self._starts) - 1
        self.n_targets, self.n_losses, self.n_places = int(texts.sum()), int(losses.sum()), int(places.sum())
        self.padding = 1.0 - self.n_places / (self.n_rows * row_length)

    def pieces(self, row: int) -> list[Piece]:
        """What lies in a row, left to right; raises IndexError outside 0..n_rows-1."""
        if not 0 <= row < self.n_rows:
            raise IndexError(f"row {row} of {self.n_rows}")
        return [
            Piece(int(self._document[n]), int(self._start[n]), int(self._end[n]), int(self._noise[n]))
            for n in self._members[self._starts[row] : self._starts[row + 1]].tolist()
        ]

    def targets(self, rows: Sequence[int] | NDArray[np.integer]) -> Ints:
        """Tokens of text that are read in each of some rows: int64 [rows]."""
        texts = (self._end - self._start)[self._members]
        up_to = np.concatenate([[0], np.cumsum(texts)])
        chosen = np.asarray(rows, dtype=np.int64)
        return np.asarray(up_to[self._starts[chosen + 1]] - up_to[self._starts[chosen]], dtype=np.int64)


def cut(lengths: Ints, steps: Ints) -> tuple[Ints, Ints, Ints]:
    """Cut items of some lengths (2 and more), each into pieces of at most its step (4 and more), none of one token.

    Returns of each piece its item, start and end. All pieces of an item but the last two are as long as its step.
    """
    counts = -(-lengths // steps)
    owner = np.repeat(np.arange(len(lengths)), counts)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    start = number * steps[owner]
    end = np.minimum(start + steps[owner], lengths[owner])
    single = np.flatnonzero(end - start == 1)  # never an item's first: that would be an item of one token
    start[single] -= 1
    end[single - 1] -= 1
    return owner, start, end


def share_out(sizes: Ints, shares: Sequence[float], generator: np.random.Generator) -> Ints:
    """Number of the share that each of some items falls to: in a drawn order, by tokens, exact to within an item."""
    order = generator.permutation(len(sizes))
    ordered = sizes[order]
    middle = (np.cumsum(ordered) - ordered / 2) / sizes.sum()
    found = np.empty(len(sizes), dtype=np.int64)
    found[order] = np.searchsorted(np.cumsum(shares)[:-1], middle, side="right")
    return found
