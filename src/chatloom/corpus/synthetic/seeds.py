"""Which documents are seeds: those of the training side, in a language that is written; shard by shard, in any order.

    write_sample    (a shard)   the documents with the lowest keyed hash of each language: clusters are found on them
    write_clusters  (a shard)   the cluster of every seed document, and the passages that prompts may show

Both are tasks of an engine. What is held out is never looked at: neither clusters nor terms nor passages know it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chatloom.corpus.columns import read_labelled
from chatloom.corpus.record import Document, ParquetWriter
from chatloom.corpus.split import TRAIN, keyed_value
from chatloom.corpus.synthetic.clustering import unit_rows
from chatloom.corpus.synthetic.model import GIVEN, ClusterModel
from chatloom.corpus.synthetic.passages import passage_of, room_for
from chatloom.corpus.synthetic.vectors import F32
from chatloom.corpus.text.language import detect_language
from chatloom.errors import ChatloomError

SAMPLE_CHARACTERS = 6000  # of a document: enough to say what it is about
SAMPLE, CLUSTERS, SEEDS = "sample", "clusters", "seeds"
SAMPLE_SCHEMA = pa.schema(
    [
        pa.field("rank", pa.float64(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("language", pa.string(), nullable=False),
        pa.field("text", pa.large_string(), nullable=False),
        pa.field("vector", pa.list_(pa.float32())),
        pa.field("cluster", pa.string()),  # where a label gives it
    ]
)
CLUSTERS_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("cluster", pa.string()),
        pa.field("nearness", pa.float32()),  # cosine to the cluster's centre
    ]
)
SEEDS_SCHEMA = pa.schema(
    [
        pa.field("cluster", pa.string(), nullable=False),
        pa.field("rank", pa.float64(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("passage", pa.large_string(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Candidate:
    """A seed document with what clusters are made from: its vector or cluster where they are given."""

    document: Document
    language: str
    vector: F32 | None = None
    cluster: str | None = None


def candidates(arguments: Mapping[str, Any], counts: dict[str, int]) -> Iterator[list[Candidate]]:
    """Seed documents of a shard, a batch at a time; the others are counted by the reason.

    `arguments`: shard, columns (files of labels), languages, vectors (tfidf, label, file), label, embeddings (an .npy
    file, [documents, columns]) and first_row (its row for the shard's first document); name is that of the file to be
    written. Raises ChatloomError for a label that is not there.
    """
    vectors = np.load(arguments["embeddings"], mmap_mode="r", allow_pickle=False) if arguments["embeddings"] else None
    row = int(arguments["first_row"]) - 1
    for documents in read_labelled(Path(arguments["shard"]), map(Path, arguments["columns"])):
        found: list[Candidate] = []
        for document in documents:
            row += 1
            if str(document.labels.get("split") or TRAIN) != TRAIN:
                _count(counts, "held_out")
                continue
            language = str(document.labels.get("language") or "") or detect_language(document.text).code
            if language not in arguments["languages"]:
                _count(counts, "other_language")
                continue
            candidate = Candidate(document, language)
            if vectors is not None:
                candidate = Candidate(document, language, unit_rows(np.asarray(vectors[row : row + 1]))[0])
            elif arguments["vectors"] == "label":
                candidate = _labelled(document, language, arguments["label"])
            if arguments["vectors"] != "tfidf" and candidate.vector is None and candidate.cluster is None:
                _count(counts, "without_vector")
                continue
            _count(counts, "seeds")
            found.append(candidate)
        if found:
            yield found


def _labelled(document: Document, language: str, label: str) -> Candidate:
    if label not in document.labels:
        known = ", ".join(sorted(document.labels)) or "none"
        raise ChatloomError(f"clusters.label: document {document.id!r} has no label `{label}`; it has {known}")
    value: Any = document.labels[label]
    if value is None:
        return Candidate(document, language)
    if isinstance(value, list):
        return Candidate(document, language, unit_rows(np.asarray([value], np.float32))[0])
    return Candidate(document, language, cluster=str(value))


class Lowest:
    """The `size` rows of each group with the lowest (rank, id), whatever order they come in."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._groups: dict[str, list[tuple[_Backwards, Any]]] = {}

    def wants(self, group: str, rank: float, name: str) -> bool:
        """Whether a row would be among them now, so that nobody makes it in vain."""
        rows = self._groups.get(group, [])
        return len(rows) < self.size or rows[0][0] < _Backwards(rank, name)

    def add(self, group: str, rank: float, name: str, row: Any) -> None:
        """Offer a row."""
        rows = self._groups.setdefault(group, [])
        entry = (_Backwards(rank, name), row)
        if len(rows) < self.size:
            heapq.heappush(rows, entry)
        elif rows[0] < entry:
            heapq.heapreplace(rows, entry)

    def groups(self) -> Iterator[tuple[str, list[Any]]]:
        """Groups by name with their rows, lowest first."""
        for group, rows in sorted(self._groups.items()):
            yield group, [row for _, row in sorted(rows, reverse=True)]


@dataclass(frozen=True)
class _Backwards:
    """An order in which the highest (rank, id) comes first, as heaps need it."""

    rank: float
    name: str

    def __lt__(self, other: _Backwards) -> bool:
        return (self.rank, self.name) > (other.rank, other.name)


def write_sample(arguments: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """The task: `sample/<shard>.parquet`; counts of seeds and of documents that are none.

    `arguments`: those of `candidates`, and size (documents of a language), seed.
    """
    counts: dict[str, int] = {}
    lowest = Lowest(int(arguments["size"]))
    for batch in candidates(arguments, counts):
        for item in batch:
            name = item.document.id
            rank = keyed_value("chatloom cluster sample", name, int(arguments["seed"]))
            if lowest.wants(item.language, rank, name):
                row = {
                    "rank": rank,
                    "id": name,
                    "language": item.language,
                    "text": item.document.text[:SAMPLE_CHARACTERS],
                    "vector": None if item.vector is None else item.vector.tolist(),
                    "cluster": item.cluster,
                }
                lowest.add(item.language, rank, name, row)
    _write(folder / SAMPLE / arguments["name"], SAMPLE_SCHEMA, lowest, "text")
    return counts


def write_clusters(arguments: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """The task: `clusters/<shard>.parquet` and `seeds/<shard>.parquet`; counts of documents by cluster.

    `arguments`: those of `candidates`, and model (folder of a ClusterModel), size (seeds of a cluster), passage_words,
    seed.
    """
    counts: dict[str, int] = {}
    seed = int(arguments["seed"])
    model = ClusterModel.load(Path(arguments["model"]))
    lowest = Lowest(int(arguments["size"]))
    name = arguments["name"]
    (folder / CLUSTERS).mkdir()
    with ParquetWriter(folder / CLUSTERS / name, CLUSTERS_SCHEMA) as writer:
        for batch in candidates(arguments, counts):
            for item, (cluster, nearness) in zip(batch, assigned(batch, model), strict=True):
                writer.write({"id": item.document.id, "cluster": cluster, "nearness": nearness}, 0)
                if cluster is None:
                    _count(counts, "apart")
                    continue
                _count(counts, f"cluster:{cluster}")
                rank = keyed_value("chatloom seed", item.document.id, seed)
                if lowest.wants(cluster, rank, item.document.id):
                    at = keyed_value("chatloom passage", item.document.id, seed)
                    room = room_for(int(arguments["passage_words"]), item.language)
                    passage = passage_of(item.document.text, room, at)
                    row = {"cluster": cluster, "rank": rank, "id": item.document.id, "passage": passage}
                    lowest.add(cluster, rank, item.document.id, row)
    _write(folder / SEEDS / name, SEEDS_SCHEMA, lowest, "passage")
    return counts


def assigned(batch: Sequence[Candidate], model: ClusterModel) -> list[tuple[str | None, float | None]]:
    """Cluster and cosine of each; None for a document that has nothing in common with any cluster."""
    found: list[tuple[str | None, float | None]] = [(None, None)] * len(batch)
    for language in sorted({item.language for item in batch}):
        places = [place for place, item in enumerate(batch) if item.language == language]
        own = [batch[place] for place in places]
        if model.kind == GIVEN:
            names = [model.given(language, str(item.cluster)) for item in own]
            rows: Iterable[tuple[str | None, float | None]] = ((name, None) for name in names)
        else:
            rows = model.nearest(language, [item.document.text for item in own], [item.vector for item in own])
        for place, row in zip(places, rows, strict=True):
            found[place] = row
    return found


def merged(paths: Iterable[Path], size: int, group: str) -> Lowest:
    """The lowest rows of all shards' files, by the column `group`."""
    lowest = Lowest(size)
    for path in paths:
        with pq.ParquetFile(path) as file:
            for part in file.iter_batches(batch_size=1024):
                for row in part.to_pylist():
                    lowest.add(row[group], row["rank"], row["id"], row)
    return lowest


def _write(path: Path, schema: pa.Schema, lowest: Lowest, text: str) -> None:
    path.parent.mkdir()
    with ParquetWriter(path, schema) as writer:
        for _, rows in lowest.groups():
            for row in rows:
                writer.write(row, len(row[text]))


def _count(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1
