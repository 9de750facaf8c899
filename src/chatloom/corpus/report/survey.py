"""The first look, while documents are judged: which languages, sources, values and clusters the tally is to follow.

What it makes of all shards, the `Frame`, is small whatever the corpus, and the same however that is cut into shards.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatloom.corpus.record import Document
from chatloom.corpus.report.columns import TEXT
from chatloom.corpus.report.frequent import Frequent, Sketch
from chatloom.corpus.report.smallest import Smallest
from chatloom.corpus.selection.copies import CLUSTER
from chatloom.corpus.split import sample_value

LANGUAGES = 5  # have distributions of their own, the others one together
SAMPLED, LARGEST = 20, 10  # clusters that are shown
SOURCE, FOLDER = "source", "folder"
SURVEYS, FRAME = "surveys", "frame.json"
UNKNOWN, OTHER = "unknown", "other"
VALUE_CHARACTERS = 100  # of a text label, by which its values are told apart
DIFFERING = ("near", "url")  # kinds of copies that differ from what they are copies of


def language_of(document: Document) -> str:
    """A document's language for counting."""
    return str(document.labels.get("language") or UNKNOWN)


def value_of(text: str) -> str:
    """A text label's value for counting."""
    return text[:VALUE_CHARACTERS]


def folder_of(source: str) -> str:
    """Where a source lies: sources that are single documents are counted by their folders."""
    return f"{source.rpartition('/')[0]}/*" if "/" in source else "*"


class Survey:
    """Of some documents: languages, sketches of sources and text labels, clusters of copies by size and by draw.

    `columns` maps each label to its kind (TEXT, NUMBER ...).
    """

    def __init__(self, columns: Mapping[str, str], seed: int) -> None:
        self.seed = seed
        self.languages: Counter[str] = Counter()
        self._texts = [name for name, kind in columns.items() if kind == TEXT and name != CLUSTER]
        self.sketches = {name: Sketch() for name in (SOURCE, FOLDER, *map(label_key, self._texts))}
        self.largest = Smallest(LARGEST)
        self.sampled = {kind: Smallest(SAMPLED) for kind in DIFFERING}

    def add(self, documents: Iterable[Document]) -> None:
        """Look at documents."""
        found: dict[str, Counter[str]] = {name: Counter() for name in self.sketches}
        for document in documents:
            self.languages[language_of(document)] += 1
            found[SOURCE][document.source] += 1
            found[FOLDER][folder_of(document.source)] += 1
            for name in self._texts:
                value = document.labels.get(name)
                if isinstance(value, str):
                    found[label_key(name)][value_of(value)] += 1
            self._add_cluster(document.labels)
        for name, counts in found.items():
            for value, n in counts.items():
                self.sketches[name].add(value, n)

    def _add_cluster(self, labels: Mapping[str, Any]) -> None:
        cluster = labels.get(CLUSTER)
        if cluster is None:
            return
        self.largest.add(-float(labels.get("cluster_size") or 0), cluster)
        if labels.get("duplicate_kind") in DIFFERING:
            self.sampled[labels["duplicate_kind"]].add(sample_value(cluster, self.seed), cluster)

    def values(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "languages": dict(self.languages),
            "sketches": {name: sketch.values() for name, sketch in self.sketches.items()},
            "largest": self.largest.values(),
            "sampled": {kind: drawn.values() for kind, drawn in self.sampled.items()},
        }

    def write(self, folder: Path, stem: str) -> None:
        """`surveys/<stem>`: what `write_frame` adds up."""
        (folder / SURVEYS).mkdir()
        (folder / SURVEYS / f"{stem}.json").write_text(json.dumps(self.values()), encoding="utf-8")

    def merge(self, values: Mapping[str, Any]) -> None:
        """Add what was seen of other documents, given as JSON."""
        self.languages.update(values["languages"])
        for name, sketch in values["sketches"].items():
            self.sketches[name].merge(Sketch.of(sketch))
        self.largest.merge(values["largest"])
        for kind, drawn in values["sampled"].items():
            self.sampled[kind].merge(drawn)

    def frame(self) -> dict[str, Any]:
        """What the tally follows, as JSON: `Frame.of` reads it."""
        by_number = sorted(self.languages, key=lambda name: (-self.languages[name], name))
        return {
            "languages": by_number[:LANGUAGES],
            "frequent": {
                name: sketch.frequent(least=2 if name == SOURCE else 1).values()
                for name, sketch in self.sketches.items()
            },
            "largest": self.largest.names,
            "sampled": {kind: drawn.names for kind, drawn in self.sampled.items()},
        }


def write_frame(arguments: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """The task: `frame.json` of all shards. `arguments`: folder, shards (their stems), kinds (of the labels), seed."""
    survey = Survey(arguments["kinds"], arguments["seed"])
    for stem in arguments["shards"]:
        path = Path(arguments["folder"]) / SURVEYS / f"{stem}.json"
        survey.merge(json.loads(path.read_text(encoding="utf-8")))
    (folder / FRAME).write_text(json.dumps(survey.frame()), encoding="utf-8")
    return {"documents": sum(survey.languages.values())}


def read_frame(path: Path) -> Frame:
    """What `write_frame` wrote."""
    return Frame.of(json.loads(path.read_text(encoding="utf-8")))


def label_key(name: str) -> str:
    """The name of a label's sketch, which is never that of the sources'."""
    return f"label {name}"


@dataclass(frozen=True)
class Frame:
    """Languages with figures of their own, tests for frequent values, the clusters that are shown."""

    languages: tuple[str, ...]
    frequent: Mapping[str, Frequent]
    largest: tuple[str, ...]
    sampled: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Frame:
        """From JSON."""
        frequent = {name: Frequent(test["places"], test["least"]) for name, test in values["frequent"].items()}
        sampled = {kind: tuple(names) for kind, names in values["sampled"].items()}
        return cls(tuple(values["languages"]), frequent, tuple(values["largest"]), sampled)

    @functools.cached_property
    def compared(self) -> frozenset[str]:
        """Clusters of which two members are shown with their differences."""
        return frozenset().union(*self.sampled.values())

    @functools.cached_property
    def clusters(self) -> frozenset[str]:
        """Clusters whose members are shown."""
        return self.compared.union(self.largest)

    def group(self, language: str) -> str:
        """The language under which a document's numbers are spread."""
        return language if language in self.languages else OTHER

    def source(self, source: str) -> str:
        """The name under which a source is counted: its own if it is frequent, else its folder's, else `other`."""
        if source in self.frequent[SOURCE]:
            return source
        folder = folder_of(source)
        return folder if folder in self.frequent[FOLDER] else OTHER
