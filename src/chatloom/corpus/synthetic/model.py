"""What tells a document's cluster: for each language features, columns and centres; or the names that a label gives.

<folder>/clusters.json                    kind, and for each cluster its name, language, terms and sample size
<folder>/<language>/{hashes,idf,columns,centres}.npy    (centres alone where vectors are given)
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chatloom.artifact import write_json
from chatloom.corpus.synthetic import clustering
from chatloom.corpus.synthetic.settings import ClusterSettings
from chatloom.corpus.synthetic.terms import Term, topic_terms
from chatloom.corpus.synthetic.vectors import F32, Features, learn, vectors
from chatloom.errors import ChatloomError

TFIDF, DENSE, GIVEN = "tfidf", "dense", "given"
FILE = "clusters.json"


@dataclass(frozen=True)
class Topic:
    """A cluster: what it is about, and how many documents of the sample are in it."""

    name: str
    language: str
    terms: tuple[Term, ...]
    n_sample: int


@dataclass(frozen=True)
class _Space:
    """Where the documents of one language lie."""

    centres: F32
    names: list[str]
    features: Features | None = None
    columns: F32 | None = None


@dataclass
class ClusterModel:
    """Clusters of every language; `kind` is how documents find theirs."""

    kind: str
    topics: list[Topic]
    _spaces: dict[str, _Space] = field(default_factory=dict)
    _names: frozenset[str] = frozenset()

    @classmethod
    def fit(
        cls, samples: Mapping[str, Sequence[Mapping[str, Any]]], settings: ClusterSettings, seed: int
    ) -> ClusterModel:
        """Clusters of sampled documents by language: rows with id, text, and vector or cluster where they are given.

        Raises ChatloomError where some documents have a vector and others a cluster's name.
        """
        rows = [row for found in samples.values() for row in found]
        named = sum(row["cluster"] is not None for row in rows)
        if settings.vectors == "label" and 0 < named < len(rows):
            raise ChatloomError(
                f"clusters.label: `{settings.label}` is a list of numbers in {len(rows) - named:,} sampled documents "
                f"and none in {named:,}; it must be the same in all"
            )
        kind = TFIDF if settings.vectors == "tfidf" else GIVEN if named else DENSE
        model = cls(kind, [])
        for language, found in sorted(samples.items()):
            model._fit_language(language, found, settings, seed)
        model._names = frozenset(topic.name for topic in model.topics)
        return model

    def _fit_language(
        self, language: str, rows: Sequence[Mapping[str, Any]], settings: ClusterSettings, seed: int
    ) -> None:
        texts = [row["text"] for row in rows]
        if self.kind == GIVEN:
            numbers = {name: number for number, name in enumerate(sorted({str(row["cluster"]) for row in rows}))}
            names = [cluster_name(language, name) for name in numbers]
            labels = np.array([numbers[str(row["cluster"])] for row in rows], np.int32)
        else:
            dense, features, columns = self._dense(rows, texts, settings, seed)
            count = min(settings.count, max(1, len(rows) // settings.min_documents))
            centres = clustering.cluster(dense, count, seed)
            labels, _ = clustering.nearest(dense, centres) if len(centres) else (np.zeros(len(rows), np.int32), None)
            names = [f"{language}-{number:03d}" for number in range(len(centres))]
            self._spaces[language] = _Space(centres, names, features, columns)
        sizes = np.bincount(labels, minlength=len(names))
        terms = topic_terms(texts, labels, len(names), settings.terms) if names else []
        self.topics += [
            Topic(name, language, tuple(found), int(size)) for name, found, size in zip(names, terms, sizes)
        ]

    def _dense(
        self, rows: Sequence[Mapping[str, Any]], texts: Sequence[str], settings: ClusterSettings, seed: int
    ) -> tuple[F32, Features | None, F32 | None]:
        if self.kind == DENSE:
            widths = {len(row["vector"]) for row in rows}
            if len(widths) > 1:
                raise ChatloomError(f"clusters: vectors of different lengths: {', '.join(map(str, sorted(widths)))}")
            return np.array([row["vector"] for row in rows], np.float32), None, None
        features = learn(texts)
        sparse = vectors(texts, features)
        columns = clustering.leading_columns(sparse, len(features), settings.columns, seed)
        return clustering.unit_rows(clustering.project(sparse, columns)), features, columns

    def nearest(
        self, language: str, texts: Sequence[str], given: Sequence[F32 | None]
    ) -> Iterator[tuple[str | None, float | None]]:
        """Cluster and cosine of documents of one language, by their texts or by the vectors that are given."""
        space = self._spaces.get(language)
        if space is None or not len(space.centres):
            yield from [(None, None)] * len(texts)
            return
        if space.features is not None and space.columns is not None:
            dense = clustering.unit_rows(clustering.project(vectors(texts, space.features), space.columns))
        else:
            dense = np.array(given, np.float32)
            if dense.shape[1] != space.centres.shape[1]:
                raise ChatloomError(
                    f"clusters: a vector of {dense.shape[1]} numbers; {space.centres.shape[1]} expected"
                )
        labels, cosines = clustering.nearest(dense, space.centres)
        for label, cosine in zip(labels.tolist(), cosines.tolist()):
            yield (space.names[label], cosine) if cosine > 0 else (None, None)

    def given(self, language: str, value: str) -> str | None:
        """The cluster of a label's value; None for one that no sampled document has."""
        name = cluster_name(language, value)
        return name if name in self._names else None

    def save(self, folder: Path) -> None:
        """Write everything."""
        folder.mkdir(parents=True, exist_ok=True)
        for language, space in self._spaces.items():
            (folder / language).mkdir(exist_ok=True)
            arrays: dict[str, NDArray[Any] | None] = {"centres": space.centres, "columns": space.columns}
            if space.features is not None:
                arrays |= {"hashes": space.features.hashes, "idf": space.features.idf}
            for name, array in arrays.items():
                if array is not None:
                    np.save(folder / language / f"{name}.npy", array, allow_pickle=False)
        spaces = {language: space.names for language, space in self._spaces.items()}
        write_json(
            folder / FILE, {"kind": self.kind, "spaces": spaces, "topics": [asdict(topic) for topic in self.topics]}
        )

    @classmethod
    def load(cls, folder: Path) -> ClusterModel:
        """Open what `save` wrote."""
        values = json.loads((folder / FILE).read_text(encoding="utf-8"))
        topics = [
            Topic(row["name"], row["language"], tuple(Term(**term) for term in row["terms"]), row["n_sample"])
            for row in values["topics"]
        ]
        spaces = {}
        for language, names in values["spaces"].items():
            arrays = {
                file.stem: np.load(file, mmap_mode="r", allow_pickle=False)
                for file in (folder / language).glob("*.npy")
            }
            features = Features(arrays["hashes"], arrays["idf"]) if "hashes" in arrays else None
            spaces[language] = _Space(arrays["centres"], names, features, arrays.get("columns"))
        return cls(values["kind"], topics, spaces, frozenset(topic.name for topic in topics))


def cluster_name(language: str, value: str) -> str:
    """Name of a cluster that a label gives."""
    return f"{language}-{value}"
