"""Training of an n-gram model in bounded memory: counting is in `counts`, smoothing in `probabilities`.

Units are cut once and written to a scratch file as hashes; then rare ones become the unknown unit, n-grams are counted
range by range, and probabilities are computed from the lowest order up.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from chatloom.corpus.ngrams.counts import I64, Level, Ranges, chunks, count_windows, mapped, shorten
from chatloom.corpus.ngrams.probabilities import Probabilities
from chatloom.corpus.ngrams.table import KeyTable
from chatloom.corpus.ngrams.units import N_SPELLING, UnitCutter, Words, spelling_counts
from chatloom.corpus.text.units import U64, batches, pieces
from chatloom.errors import ChatloomError
from chatloom.settings import Settings

FORMAT = 1
START = np.uint64(0x243F6A8885A308D3)  # stands before a text
UNKNOWN = np.uint64(0x13198A2E03707344)  # every unit that is not in the vocabulary
READ_CHARACTERS = 1 << 20


class NgramSettings(Settings):
    """What an n-gram model looks like."""

    order: int = Field(3, ge=1, le=6, description="units in the longest n-gram: 3 looks two units back")
    min_count: int = Field(2, ge=1, description="a word seen less often is the unknown word")
    prune: tuple[int, ...] = Field(
        (), description="n-grams seen this often or less are left out, by order: [0, 0, 1] drops trigrams seen once"
    )

    @model_validator(mode="after")
    def _prune_from_above(self) -> Self:
        if any(count < 0 for count in self.prune) or list(self.prune) != sorted(self.prune):
            raise ValueError("numbers must not fall from order to order, since a kept n-gram needs its parts")
        if self.prune[:1] not in ((), (0,)):
            raise ValueError("single units are not pruned; raise min_count instead (the first number must be 0)")
        if len(self.prune) > self.order:
            raise ValueError(f"has {len(self.prune)} numbers for a model of order {self.order}")
        return self

    def threshold(self, order: int) -> int:
        """N-grams of this order seen more often than this are kept; the last number stands for higher orders too."""
        return self.prune[min(order, len(self.prune)) - 1] if self.prune else 0


class NgramTrainer:
    """Takes texts with `add`, writes the model with `finish`; use in a `with`, which removes the scratch files."""

    def __init__(
        self,
        folder: Path,
        settings: NgramSettings | None = None,
        cutter: UnitCutter | None = None,
        *,
        memory_bytes: int = 256 << 20,
    ) -> None:
        self.folder = folder
        self.settings = settings or NgramSettings()
        self.cutter = cutter or Words()
        self.memory_bytes = memory_bytes
        self.n_texts = self.n_units = self.n_bytes = 0
        self._types: U64 = np.zeros(0, np.uint64)
        self._counts: I64 = np.zeros(0, np.int64)
        self._spelling: I64 = np.zeros(N_SPELLING, np.int64)
        folder.mkdir(parents=True, exist_ok=True)
        self._scratch = folder / "scratch"
        self._scratch.mkdir(exist_ok=True)
        self._stream = open(self._scratch / "stream", "wb")  # noqa: SIM115

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def add(self, texts: Sequence[str]) -> None:
        """Learn from texts; the model does not depend on how they are divided into calls."""
        self.n_texts += len(texts)
        whole, _ = pieces(texts)
        for first, last in batches(whole, READ_CHARACTERS):
            stream = self.cutter(whole[first:last])
            pad = self.settings.order - 1
            padded = np.full(len(stream.hashes) + pad * (last - first), START, np.uint64)
            padded[unit_places(stream.offsets, pad)] = stream.hashes
            padded.tofile(self._stream)
            self.n_units += len(stream.hashes)
            self.n_bytes += int(stream.n_bytes.sum())
            types, where, counts = np.unique(stream.hashes, return_index=True, return_counts=True)
            new = self._count(types, counts)
            if stream.units is not None:  # each different word counts once: unknown words are like rare ones
                self._spelling += spelling_counts(stream.units, where[new])

    def _count(self, types: U64, counts: I64) -> NDArray[np.bool_]:
        place = np.searchsorted(self._types, types)
        known = np.zeros(len(types), bool)
        inside = place < len(self._types)
        known[inside] = self._types[place[inside]] == types[inside]
        self._counts[place[known]] += counts[known]
        self._types = np.insert(self._types, place[~known], types[~known])
        self._counts = np.insert(self._counts, place[~known], counts[~known])
        return ~known

    def finish(self, advance: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
        """Write the model's files; its description. `advance` is told how many units of the stream were counted.

        Raises ChatloomError when the texts hold no unit.
        """
        if not self.n_units:
            raise ChatloomError(f"no words to learn an n-gram model from in {self.n_texts} texts")
        self._stream.close()
        hash_of, unigrams, start = self._vocabulary()
        order = self.settings.order
        levels: list[Level] = []
        if order > 1:
            levels = [self._count_highest(hash_of, start, advance)]
            while levels[0].order > 1:
                levels.insert(0, shorten(levels[0], self._scratch, hash_of, start, self.memory_bytes))
            unigrams = np.zeros_like(unigrams)
            unigrams[levels[0].tokens[:, 0]] = levels[0].adjusted
            unigrams[start] = 0
        else:
            advance(self.n_units)
        table = Probabilities(self.folder, self._scratch, hash_of, start, self.memory_bytes)
        table.write_unigrams(unigrams)
        for level in levels[1:]:
            table.write_order(level, self.settings.threshold(level.order))
        description = {
            "format": FORMAT,
            "units": self.cutter.name,
            "order": order,
            "types": len(hash_of) - 1 - (self.cutter.closed_vocabulary() is None),
            "n_texts": self.n_texts,
            "n_units": self.n_units,
            "n_bytes": self.n_bytes,
            "n_grams": table.sizes,
            "discounts": [list(item) for item in table.discounts],
            "settings": self.settings.result(),
            "spelling": self._spelling.tolist(),
        }
        (self.folder / "model.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        return description

    def discard(self) -> None:
        """Give the training up: the model's folder is removed."""
        self._stream.close()
        shutil.rmtree(self.folder)

    def _vocabulary(self) -> tuple[U64, I64, int]:
        """Hash of each id (sorted), how often each occurs, and the id of the start mark."""
        closed = self.cutter.closed_vocabulary()
        keep = self._counts >= self.settings.min_count
        marks = [START] if closed is not None else [START, UNKNOWN]
        hash_of = np.sort(np.concatenate([self._types[keep] if closed is None else closed, marks]))
        counts = np.zeros(len(hash_of), np.int64)
        counts[np.searchsorted(hash_of, self._types[keep])] = self._counts[keep]
        if closed is None:
            counts[np.searchsorted(hash_of, UNKNOWN)] = self._counts[~keep].sum()
        else:
            counts[np.searchsorted(hash_of, self._types)] = self._counts
        return hash_of, counts, int(np.searchsorted(hash_of, START))

    def _count_highest(self, hash_of: U64, start: int, advance: Callable[[int], None]) -> Level:
        order = self.settings.order
        table = KeyTable.of(hash_of)
        unknown = int(np.searchsorted(hash_of, UNKNOWN))
        stream = mapped(self._scratch / "stream", np.uint64, (self.n_units + (order - 1) * self._n_pieces(),))
        ranges = Ranges(self._scratch, order, self.n_units, self.memory_bytes)
        for part in chunks(len(stream) - order + 1, self.memory_bytes // (8 * 40)):
            found, place = table.find(np.asarray(stream[part.start : part.stop + order - 1]))
            ids = np.where(found, place, unknown).astype(np.uint32)
            keys, tokens, counts = count_windows(ids, hash_of, order, start)
            ranges.add(keys, tokens, counts, counts)
            advance(int((ids[order - 1 :] != start).sum()))
        return ranges.merge(hash_of, start)

    def _n_pieces(self) -> int:
        size = (self._scratch / "stream").stat().st_size // 8
        return (size - self.n_units) // (self.settings.order - 1)


def unit_places(offsets: I64, pad: int) -> I64:
    """Where units stand in a stream that has `pad` start marks before each text."""
    texts = np.repeat(np.arange(1, len(offsets)), np.diff(offsets))
    return np.arange(int(offsets[-1])) + pad * texts
