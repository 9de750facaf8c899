"""Probabilities from counts: interpolated modified Kneser-Ney smoothing, from the lowest order up.

    p(w | c) = (a(c w) - D(a(c w))) / sum_v a(c v) + backoff(c) * p(w | c without its first unit)

a are the adjusted counts (see `counts`); D(1), D(2), D(3 and more) are the discounts of an order, estimated from
how many n-grams were seen once to four times; backoff(c) is the share that discounts and pruned n-grams leave
over. Unigrams end in the uniform distribution over all units. (Chen & Goodman 1999, "An empirical study of smoothing
techniques for language modeling", equations 22 to 26; in the order of Heafield et al. 2013, section 3.)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chatloom.corpus.ngrams.counts import Level, chunks, keys_of
from chatloom.corpus.ngrams.table import LAST, KeyTable, save_array
from chatloom.corpus.text.units import I64, U64

FALLBACK = (0.5, 1.0, 1.5)  # discounts where a text is too small, or too regular, to estimate them from
F64 = NDArray[np.float64]
Discounts = tuple[float, float, float]


class Probabilities:
    """Writes the tables of a model's orders, lowest first; arrays as long as a table are memory-mapped files."""

    def __init__(self, folder: Path, scratch: Path, hash_of: U64, start: int, memory_bytes: int) -> None:
        self.folder, self.scratch = folder, scratch
        self.hash_of, self.start = hash_of, start
        self.rows = memory_bytes // 400
        self.sizes: list[int] = []
        self.discounts: list[Discounts] = []
        self._lower = KeyTable.of(hash_of)
        self._lower_probability: F64 = np.zeros(0)

    def write_unigrams(self, adjusted: I64) -> None:
        """Order 1, from an adjusted count for each id (0 for the start mark, which is never predicted)."""
        discounts = discounts_of(np.bincount(np.minimum(adjusted, 5), minlength=6))
        total, taken = int(adjusted.sum()), np.asarray((0.0, *discounts))[np.minimum(adjusted, 3)]
        seen = np.bincount(np.minimum(adjusted, 3), minlength=4)
        left_over = float(np.dot(seen[1:], discounts)) / total
        probability = (adjusted - taken) / total + left_over / (len(adjusted) - 1)
        probability[self.start] = 1.0
        self._finish(1, self._lower, probability, discounts)

    def write_order(self, level: Level, threshold: int) -> None:
        """Back-off weights of the order below, then this order's n-grams that were seen more than `threshold` times."""
        order, lower, below = level.order, self._lower, len(self._lower)
        discounts = discounts_of(self._seen_times(level))
        totals, kept_counts = (self._scratch_array(f"{order}.{name}", np.int64, below) for name in ("total", "kept"))
        times = [self._scratch_array(f"{order}.seen{n}", np.int64, below) for n in (1, 2, 3)]
        n_kept = 0
        for rows in self._rows(level, threshold):
            context, known = lower.find(keys_of(rows.tokens[:, :-1], self.hash_of))[::-1]
            keep, adjusted = rows.keep, rows.adjusted
            np.add.at(totals, context[known], adjusted[known])
            np.add.at(kept_counts, context[keep], adjusted[keep])
            for n in (1, 2, 3):
                np.add.at(times[n - 1], context[keep & (np.minimum(adjusted, 3) == n)], 1)
            n_kept += int(keep.sum())
        backoff = self._scratch_array(f"{order}.backoff", np.float64, below)
        logs = np.lib.format.open_memmap(
            self.folder / f"{order - 1}.backoff.npy", "w+", np.dtype("<f4"), (below,)
        )  # in chunks, as all that is as long as a table
        for part in chunks(below, self.rows):
            total = totals[part]
            mass = kept_counts[part] - sum(d * seen[part] for d, seen in zip(discounts, times))
            backoff[part] = np.where(total > 0, 1.0 - mass / np.maximum(total, 1), 1.0)
            logs[part] = np.log(backoff[part])
        logs.flush()
        taken = np.asarray((0.0, *discounts))
        probability = self._scratch_array(f"{order}.probability", np.float64, n_kept)
        keys = np.lib.format.open_memmap(self.folder / f"{order}.keys.npy", "w+", np.dtype("<u8"), (n_kept + 1,))
        done = 0
        for rows in self._rows(level, threshold):
            tokens, adjusted = rows.tokens[rows.keep], rows.adjusted[rows.keep]
            _, context = lower.find(keys_of(tokens[:, :-1], self.hash_of))
            _, suffix = lower.find(keys_of(tokens[:, 1:], self.hash_of))
            above = (adjusted - taken[np.minimum(adjusted, 3)]) / np.maximum(totals[context], 1)
            part = slice(done, done + len(adjusted))
            probability[part] = above + backoff[context] * self._lower_probability[suffix]
            probability[part][tokens[:, -1] == self.start] = 1.0
            keys[part] = rows.keys[rows.keep]
            done = part.stop
        keys[-1] = LAST
        keys.flush()
        self._finish(order, KeyTable.over(np.asarray(keys)), probability, discounts)

    def _finish(self, order: int, table: KeyTable, probability: F64, discounts: Discounts) -> None:
        if order == 1:
            save_array(self.folder / "1.keys.npy", table.keys)
        save_array(self.folder / f"{order}.index.npy", table.index)
        logs = np.lib.format.open_memmap(
            self.folder / f"{order}.logprob.npy", "w+", np.dtype("<f4"), (len(probability),)
        )
        for part in chunks(len(probability), self.rows):
            logs[part] = np.log(probability[part])
        logs.flush()
        self._lower, self._lower_probability = table, probability
        self.sizes.append(len(table))
        self.discounts.append(discounts)

    def _rows(self, level: Level, threshold: int) -> Iterator[_Rows]:
        for part in chunks(len(level), self.rows):
            tokens = np.asarray(level.tokens[part])
            keep = (np.asarray(level.raw[part]) > threshold) | (tokens[:, -1] == self.start)
            yield _Rows(np.asarray(level.keys[part]), tokens, np.asarray(level.adjusted[part]), keep)

    def _seen_times(self, level: Level) -> I64:
        seen = np.zeros(6, np.int64)
        for part in chunks(len(level), self.rows):
            seen += np.bincount(np.minimum(level.adjusted[part], 5), minlength=6)
        return seen

    def _scratch_array(self, name: str, dtype: type[np.generic], count: int) -> NDArray[Any]:
        return np.asarray(np.memmap(self.scratch / name, dtype, "w+", shape=(count,)))


class _Rows:
    """A stretch of a level's n-grams, and which of them are kept."""

    def __init__(self, keys: U64, tokens: NDArray[np.uint32], adjusted: I64, keep: NDArray[np.bool_]) -> None:
        self.keys, self.tokens, self.adjusted, self.keep = keys, tokens, adjusted, keep


def discounts_of(seen: I64) -> Discounts:
    """D(1), D(2), D(3 and more) from how many n-grams have an adjusted count of 1, 2, 3, 4: `seen[1:5]`.

    Y = n1 / (n1 + 2 n2), D(k) = k - (k + 1) Y n(k+1) / n(k) (Chen & Goodman 1999, equation 26). Where that cannot be
    computed, or would take nothing or all, every discount is Y (their equation 17); without Y those of FALLBACK hold.
    """
    n1, n2, n3, n4 = (int(count) for count in seen[1:5])
    if not (n1 and n2):
        return FALLBACK
    y = n1 / (n1 + 2 * n2)
    if n3:
        d1, d2, d3 = 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3
        if 0 < d1 < 1 and 0 < d2 < 2 and 0 < d3 < 3:
            return d1, d2, d3
    return y, y, y
