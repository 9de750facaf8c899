"""Evaluation items found in documents, by n-grams: how much of which item, and which part of the document.

A unit is a word or a single Han, kana or hangul character; case, punctuation, spacing and width make no difference.
Of a text of an item all 13-grams are looked for (GPT-3: Brown et al. 2020, appendix C), of a mostly Asian one all
20-grams (about as much text); of a shorter text all 8-grams (PaLM: Chowdhery et al. 2022, section 8) or 12 characters.
Three rules keep common phrases from raising an alarm:

* an n-gram of more than `max_items` items is a template of the questions, not an item;
* an n-gram of more than `max_documents` documents is a phrase of the language (GPT-3: 10), where counts are given,
  unless most of its item is as frequent: then the item itself was copied;
* an item counts when at least `min_matches` of its n-grams are in the document; of a short item, all.

How much of an item or of a document suffices to drop it is decided later, over the labels (Llama 2: Touvron et al.
2023, section A.6, goes by shares of tokens as well).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from chatloom.corpus.duplicates.evaluation_items import Index, Sizes, read_items
from chatloom.corpus.duplicates.external_sort import merge
from chatloom.corpus.duplicates.passages import joined
from chatloom.corpus.duplicates.runs import Run, RunWriter
from chatloom.corpus.duplicates.shingling import Located, located_units
from chatloom.corpus.labelling import SPANS, Surveying
from chatloom.corpus.record import Document
from chatloom.corpus.text.units import I64, batches
from chatloom.errors import ChatloomError
from chatloom.settings import Settings

GRAMS = "evaluation n-grams"
TEXTS_AT_ONCE = 1 << 17  # characters


class ContaminationSettings(Settings):
    """Which evaluation sets, and what counts as found."""

    items: tuple[Path, ...] = Field((), description="files of evaluation items: JSON lines, or a plain text a line")
    fields: tuple[str, ...] = Field((), description="fields of a JSON line that are searched for; empty: all strings")
    words: int = Field(13, ge=2, le=1024, description="units of an n-gram (words; Han characters one by one)")
    asian: int = Field(20, ge=2, le=1024, description="units of an n-gram of a mostly Chinese or Japanese text")
    short: int = Field(8, ge=2, le=1024, description="units of an n-gram of a text that has fewer than `words`")
    min_matches: int = Field(3, ge=1, description="n-grams of one item that must be in a document for it to count")
    max_items: int = Field(10, ge=1, description="items that may share an n-gram; more have it from a template")
    max_documents: int = Field(10, ge=1, description="documents that may have an n-gram; more have it from language")
    counts: Path | None = Field(
        None, description="in how many documents each n-gram is; the stage `labels` counts that itself where it is null"
    )


class Contamination(Surveying[ContaminationSettings]):
    """Overlap with evaluation sets (Brown et al. 2020, appendix C; Chowdhery et al. 2022, section 8).

    contamination_items: evaluation items found; contamination_item: file and line of the one found most completely;
    contamination_item_share: of that item's n-grams; contamination_share: of the document's units (words, Han
    characters); contamination_spans: where they are.
    """

    name = "contamination"
    version = 2
    columns = {  # noqa: RUF012 - a constant
        "contamination_items": pa.int64(),
        "contamination_item": pa.string(),  # "file:line"
        "contamination_item_share": pa.float64(),
        "contamination_share": pa.float64(),
        "contamination_spans": SPANS,
    }
    Settings = ContaminationSettings
    survey = "counts"

    def __init__(self, settings: ContaminationSettings) -> None:
        super().__init__(settings)
        if not settings.items:
            raise ChatloomError(
                "labeller `contamination`: no evaluation set was given; set `items` to files of evaluation items"
            )

    def files(self) -> Sequence[Path]:
        """The evaluation sets, and the counts of their n-grams."""
        return [*self.settings.items, *([self.settings.counts] if self.settings.counts else [])]

    @cached_property
    def index(self) -> Index:
        """The n-grams of the evaluation sets."""
        chosen = self.settings
        sizes = Sizes(chosen.words, chosen.asian, chosen.short)
        return Index(list(read_items(chosen.items, chosen.fields)), sizes, chosen.max_items)

    @cached_property
    def _counted(self) -> NDArray[np.bool_]:
        """Which (n-gram, item) rows of the index count: not those of phrases of the language."""
        index, counts = self.index, np.zeros(len(self.index.grams), np.int64)
        if self.settings.counts:
            for block in merge([Run(self.settings.counts, GRAMS, self._about)]):
                counts[block[:, 0].astype(np.int64)] = block[:, 1].astype(np.int64)
        frequent = (counts > self.settings.max_documents)[index.gram_of]
        share = np.bincount(index.item_of, frequent, len(index.items)) / np.maximum(index.n_grams, 1)
        return ~frequent | (share > 0.5)[index.item_of]

    @property
    def _about(self) -> str:
        return f"{len(self.index.grams)} n-grams"

    def write_survey(self, documents: Iterable[Sequence[Document]], path: Path) -> int:
        """Run of (n-gram's number, documents of this shard that have it); returns the n-grams found."""
        counts = np.zeros(len(self.index.grams), np.int64)
        for batch in documents:
            texts = [document.text for document in batch]
            for first, last in batches(texts, TEXTS_AT_ONCE):
                for found in self._found(located_units(texts[first:last])):
                    if found:
                        counts[np.unique(np.concatenate([grams for *_, grams in found]))] += 1
        return self._write_counts(counts, path)

    def sum_surveys(self, paths: Iterable[Path], path: Path) -> int:
        """Run of (n-gram's number, documents that have it); memory: 8 bytes an n-gram."""
        counts = np.zeros(len(self.index.grams), np.int64)
        for part in paths:
            for block in merge([Run(part, GRAMS, self._about)]):
                counts[block[:, 0].astype(np.int64)] += block[:, 1].astype(np.int64)
        return self._write_counts(counts, path)

    def _write_counts(self, counts: I64, path: Path) -> int:
        seen = np.flatnonzero(counts)
        with RunWriter(path, GRAMS, ("gram", "documents"), self._about) as writer:
            writer.append(np.stack([seen, counts[seen]], axis=1).astype(np.uint64))
        return len(seen)

    def label(self, documents: Sequence[Document]) -> list[dict[str, Any]]:
        """Labels of each document; a document without a match has 0 items, share 0 and no spans."""
        texts = [document.text for document in documents]
        labels: list[dict[str, Any]] = []
        for first, last in batches(texts, TEXTS_AT_ONCE):
            located = located_units(texts[first:last])
            labels += [self._judge(located, row, found) for row, found in enumerate(self._found(located))]
        return labels

    def _found(self, located: Located) -> Iterator[list[tuple[int, I64, I64]]]:
        """For each text the matches as (size, units where they begin, n-grams)."""
        rows: list[list[tuple[int, I64, I64]]] = [[] for _ in range(len(located.units))]
        for size in self.index.sizes:
            owners, units, grams = self.index.find(located.units, size)
            breaks = np.flatnonzero(np.diff(owners)) + 1
            for part in np.split(np.arange(len(owners)), breaks):
                if len(part):
                    rows[int(owners[part[0]])].append((size, units[part], grams[part]))
        return iter(rows)

    def _judge(self, located: Located, row: int, found: list[tuple[int, I64, I64]]) -> dict[str, Any]:
        index = self.index
        blank: dict[str, Any] = dict.fromkeys(self.columns)
        blank |= {"contamination_items": 0, "contamination_item_share": 0.0, "contamination_share": 0.0,
                  "contamination_spans": []}  # fmt: skip
        if not found:
            return blank
        distinct = np.unique(np.concatenate([grams for *_, grams in found]))
        postings = np.concatenate([np.arange(index.offsets[gram], index.offsets[gram + 1]) for gram in distinct])
        postings = postings[self._counted[postings]]
        items, matches = np.unique(index.item_of[postings], return_counts=True)
        needed = np.where(index.is_short[items], index.n_grams[items],
                          np.minimum(index.n_grams[items], self.settings.min_matches))  # fmt: skip
        items, matches = items[matches >= needed], matches[matches >= needed]
        if not len(items):
            return blank
        good = np.unique(index.gram_of[postings[np.isin(index.item_of[postings], items)]])
        shares = matches / index.n_grams[items]
        best = int(np.argmax(shares))
        covered = joined(
            (int(unit), int(unit) + size)
            for size, units, grams in found for unit in units[np.isin(grams, good)].tolist()
        )  # fmt: skip
        first, last = located.units.offsets[row], located.units.offsets[row + 1]
        length = sum(covered[1::2]) - sum(covered[::2])
        spans = [int(place) for start, end in zip(covered[::2], covered[1::2])
                 for place in (located.starts[start], located.ends[end - 1])]  # fmt: skip
        return {
            "contamination_items": len(items),
            "contamination_item": index.items[int(items[best])],
            "contamination_item_share": float(shares[best]),
            "contamination_share": length / int(last - first),
            "contamination_spans": spans,
        }
