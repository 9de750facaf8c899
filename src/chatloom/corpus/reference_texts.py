"""Texts that models of the corpus learn from: documents of the corpus and files from outside, each with its side.

A document's side is its label `split` where it has one; else a keyed hash of its id puts a share of them on the
held-out side. Models see the training side only, what is held out only measures them.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from chatloom.artifact import Artifact
from chatloom.corpus.columns import ABOUT, read_labelled
from chatloom.corpus.reading.compression import unpacked_bytes
from chatloom.corpus.reading.files import list_files, read_file
from chatloom.corpus.record import SHARDS, Quarantined, document_files
from chatloom.corpus.split import HELD_OUT, TRAIN, split_value
from chatloom.corpus.text.language import detect_language
from chatloom.errors import ChatloomError
from chatloom.stage import Context, PlanContext

MAX_BAD_SHARE = 0.05
MAX_BAD = 10


@dataclass(frozen=True, slots=True)
class ReferenceText:
    """A text to learn from or to be measured on."""

    id: str
    text: str
    language: str
    side: str  # `train` or `held_out`


@dataclass
class TextSource:
    """Where texts come from: shards of documents, each with its column files of labels, and files from outside.

    `language` is that of all texts; empty: each document's label `language`, else the detector's answer.
    """

    shards: Sequence[tuple[Path, Sequence[Path]]] = ()
    files: Sequence[Path] = ()
    language: str = ""
    held_out_share: float = 0.0
    seed: int = 0
    bad: list[Quarantined] = field(default_factory=list)

    def __iter__(self) -> Iterator[ReferenceText]:
        """All texts in order; empty ones are left out. Raises ChatloomError for HTML and where too much is unreadable.

        What cannot be read is in `bad` afterwards.
        """
        self.bad.clear()
        for shard, columns in self.shards:
            for documents in read_labelled(shard, columns):
                for document in documents:
                    if document.text:
                        language, side = document.labels.get("language"), document.labels.get("split")
                        yield self._made(document.id, document.text, language, side)
        for path, name in list_files(self.files):
            yield from self._of_file(path, name)

    def _of_file(self, path: Path, name: str) -> Iterator[ReferenceText]:
        good = 0
        for page in read_file(path, name):
            if isinstance(page, Quarantined):
                self.bad.append(page)
            elif page.html is not None:
                raise ChatloomError(
                    f"{path}: holds HTML pages, and a model learns from texts; run the stage `documents` on it first "
                    "and give what it makes"
                )
            elif page.text:
                good += 1
                yield self._made(page.id, page.text, None, None)
        bad = [item for item in self.bad if item.file == name]
        if (len(bad) > MAX_BAD and len(bad) > MAX_BAD_SHARE * (len(bad) + good)) or (bad and not good):
            raise ChatloomError(
                f"{path}: {len(bad):,} of {len(bad) + good:,} records cannot be read; the first: line {bad[0].line}: "
                f"{bad[0].reason}"
            )

    def _made(self, key: str, text: str, language: object, side: object) -> ReferenceText:
        if self.language:
            language = self.language
        elif not isinstance(language, str) or not language:
            language = detect_language(text).code
        if side not in (TRAIN, HELD_OUT):
            side = HELD_OUT if split_value(key, self.seed) < self.held_out_share else TRAIN
        return ReferenceText(key, text, str(language), str(side))


class Sample:
    """At most `size` texts of each language, chosen by a keyed hash of their ids, whatever order they come in."""

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size, self.seed = size, seed
        self._heaps: dict[str, list[tuple[float, str, str]]] = {}

    def add(self, text: ReferenceText) -> None:
        """Offer a text."""
        heap = self._heaps.setdefault(text.language, [])
        entry = (-split_value(text.id, self.seed), text.id, text.text)
        if len(heap) < self.size:
            heapq.heappush(heap, entry)
        elif entry > heap[0]:
            heapq.heapreplace(heap, entry)

    def texts(self, language: str) -> list[str]:
        """The texts of a language, ordered by their ids."""
        return [text for _, _, text in sorted(self._heaps.get(language, []), key=lambda entry: entry[1:])]

    def languages(self) -> list[str]:
        """Languages with at least one text."""
        return sorted(self._heaps)


def source_of(
    context: Context, name: str, *, language: str = "", held_out_share: float = 0.0, labels: str = "labels"
) -> TextSource:
    """The texts of a stage's input `name` (documents and files), with the labels of its input `labels`."""
    columns = context.artifacts(labels)
    shards: list[tuple[Path, Sequence[Path]]] = []
    for artifact in context.artifacts(name):
        folders = [
            about.parent
            for labelled in columns
            if artifact.fingerprint in _flat(labelled.manifest.get("parents", {}).get("documents"))
            for about in sorted(labelled.path.glob(f"*/{ABOUT}"))
        ]
        shards += [(shard, [folder / shard.name for folder in folders]) for shard in document_files(artifact.path)]
    return TextSource(shards, context.files(name), language, held_out_share, context.seed)


def planned_bytes(context: PlanContext, *names: str) -> float:
    """Bytes of text that some inputs of a stage hold: documents that are made or planned, and files once unpacked."""
    total = 0.0
    for name in names:
        given = context.inputs.get(name, [])
        items = given if isinstance(given, list) else [given]
        total += sum(_text_bytes(item.path) for item in items if isinstance(item, Artifact))
        files = list_files([item for item in items if isinstance(item, Path)])
        total += unpacked_bytes([path for path, _ in files])
        total += sum(p.value("bytes") for key, p in context.plans.items() if key == name or key.startswith(f"{name}."))
    return total


def _text_bytes(folder: Path) -> float:
    tables = [pq.read_metadata(file) for file in (folder / SHARDS).glob("*.parquet")]
    groups = [table.row_group(i) for table in tables for i in range(table.num_row_groups)]
    columns = (group.column(i) for group in groups for i in range(group.num_columns))
    return float(sum(column.total_uncompressed_size for column in columns if column.path_in_schema == "text"))


def _flat(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else [value]
