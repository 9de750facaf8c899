"""Second step of the chapter: a shard of documents -> the columns of one or more labellers, row by row.

A document that kills or holds up its labeller costs that document's labels only: the shard is done again with each
document in a child process of its own, the culprit gets empty labels and a line in `quarantine/`.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from chatloom.artifact import sha256_tree
from chatloom.corpus.columns import ColumnWriter, read_labelled
from chatloom.corpus.documents import QUARANTINE
from chatloom.corpus.labellers import load_labeller
from chatloom.corpus.labelling import Labeller, Surveying
from chatloom.corpus.record import Document, Quarantined
from chatloom.corpus.workers import Failure, Workers
from chatloom.errors import ChatloomError
from chatloom.settings import digest


@dataclass(frozen=True)
class Chosen:
    """A labeller as a recipe names it: its folder's name, what it is (a known name or module:class), its settings."""

    name: str
    use: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> Labeller[Any]:
        """The labeller itself. Raises SettingsError for settings that it does not have."""
        kind = load_labeller(self.use)
        return kind(kind.Settings.parse(self.settings, where=f"labellers.{self.name}"))

    def key(self, labeller: Labeller[Any], documents: str, needed: Mapping[str, str]) -> str:
        """Hash of all that decides the columns; `documents`: their fingerprint, `needed`: keys of what it reads."""
        return digest(
            {
                "labeller": type(labeller).__qualname__,
                "use": self.use,
                "version": labeller.version,
                "settings": labeller.settings.result(),
                "files": [sha256_tree(file) for file in labeller.files()],
                "documents": documents,
                "needed": dict(needed),
            }
        )[:16]


def in_order(chosen: Sequence[Chosen], given: Sequence[str] = ()) -> list[Chosen]:
    """The labellers so that each comes behind those whose labels it reads; `given` are labels that are there already.

    Raises ChatloomError when a label is needed that nobody makes, when two make the same, or in a circle.
    """
    makers: dict[str, str] = dict.fromkeys(given, "")
    built = {item.name: item.build() for item in chosen}
    for item in chosen:
        for column in built[item.name].columns:
            if column in makers:
                other = f"labeller `{makers[column]}`" if makers[column] else "an earlier stage"
                raise ChatloomError(
                    f"labeller `{item.name}`: label `{column}` is made by {other} already; leave one out"
                )
            makers[column] = item.name
    left, done, ordered = list(chosen), set(given), list[Chosen]()
    while left:
        ready = [item for item in left if set(built[item.name].needs) <= done]
        if not ready:
            item = left[0]
            lacking = next(need for need in built[item.name].needs if need not in done)
            why = f"`{makers[lacking]}` waits for it in turn" if lacking in makers else "no labeller makes it"
            raise ChatloomError(f"labeller `{item.name}`: needs the label `{lacking}`, but {why}; add what makes it")
        for item in ready:
            ordered.append(item)
            done |= set(built[item.name].columns)
            left.remove(item)
    return ordered


def wants_survey(item: Chosen) -> bool:
    """Whether a labeller must have seen all documents first, and nobody gives it what they tell."""
    labeller = item.build()
    return isinstance(labeller, Surveying) and getattr(labeller.settings, labeller.survey) is None


def surveyed(item: Chosen, path: Path) -> Chosen:
    """The labeller with its survey."""
    return replace(item, settings={**item.settings, _surveying(item).survey: str(path)})


def _surveying(item: Chosen) -> Surveying[Any]:
    labeller = item.build()
    assert isinstance(labeller, Surveying)  # `wants_survey` has said so
    return labeller


def write_surveys(arguments: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """The task: what a shard tells each of `labellers`, as `<labeller>/<shard>`.

    `arguments`: shard, labellers ([name, use, settings]), beside (column files of labels that are there already).
    """
    shard = Path(arguments["shard"])
    counts = {}
    for chosen in (Chosen(**item) for item in arguments["labellers"]):
        (folder / chosen.name).mkdir()
        documents = read_labelled(shard, map(Path, arguments["beside"]))
        counts[chosen.name] = _surveying(chosen).write_survey(documents, folder / chosen.name / shard.stem)
    return counts


def sum_surveys(arguments: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """The task: one survey of all shards for `labeller`. `arguments`: labeller, folder, shards (their stems)."""
    chosen = Chosen(**arguments["labeller"])
    parts = (Path(arguments["folder"]) / chosen.name / stem for stem in arguments["shards"])
    return {chosen.name: _surveying(chosen).sum_surveys(parts, folder / chosen.name)}


def write_labels(arguments: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """The task: read `shard`, write `<labeller>/<shard>` for each of `labellers` (in order); returns the counts.

    `arguments`: shard, labellers ([name, use, settings]), beside (column files of labels that are there already),
    seconds (a document may take, when careful).
    """
    shard = Path(arguments["shard"])
    chosen = [Chosen(**item) for item in arguments["labellers"]]
    counts = {"documents": 0}
    with contextlib.ExitStack() as stack:
        label = _carefully(chosen, arguments, stack) if arguments.get("careful") else _quickly(chosen)
        writers = {
            item.name: stack.enter_context(ColumnWriter(folder / item.name / shard.name, item.build().columns))
            for item in chosen
        }
        bad: list[Quarantined] = []
        for documents in read_labelled(shard, map(Path, arguments["beside"])):
            rows, failures = label(documents)
            for item in chosen:
                writers[item.name].add(documents, rows[item.name])
            bad += failures
            counts["documents"] += len(documents)
    if bad:
        counts["quarantined"] = len(bad)
        (folder / QUARANTINE).mkdir()
        lines = "".join(json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in bad)
        (folder / QUARANTINE / f"{shard.stem}.jsonl").write_text(lines, encoding="utf-8", newline="\n")
    return counts


Rows = dict[str, list[dict[str, Any]]]


def label_documents(
    documents: Sequence[Document], labellers: Mapping[str, Labeller[Any]]
) -> dict[str, list[dict[str, Any]]]:
    """Labels of documents by each labeller in order, later ones seeing what earlier ones found."""
    found: Rows = {}
    for name, labeller in labellers.items():
        found[name] = labeller.label(documents)
        documents = [
            replace(document, labels={**document.labels, **row})
            for document, row in zip(documents, found[name], strict=True)
        ]
    return found


def _quickly(chosen: Sequence[Chosen]) -> Any:
    labellers = {item.name: item.build() for item in chosen}
    return lambda documents: (label_documents(documents, labellers), [])


def label_one(document: Document, chosen: Sequence[Chosen]) -> dict[str, dict[str, Any]]:
    """Labels of a single document: what a child process is asked for when a shard must be done carefully."""
    labellers = _built(tuple(json.dumps(asdict(item), sort_keys=True) for item in chosen))
    labels = {name: rows[0] for name, rows in label_documents([document], labellers).items()}
    for name, labeller in labellers.items():
        _check(name, labels[name], labeller.columns)
    return labels


def _check(name: str, labels: Mapping[str, Any], columns: Mapping[str, pa.DataType]) -> None:
    """Raise ValueError where the labels of a document are not what their labeller declares."""
    if set(labels) != set(columns):
        raise ValueError(f"labeller `{name}` gives {sorted(labels)}, declared are {sorted(columns)}")
    for column, kind in columns.items():
        try:
            pa.array([labels[column]], kind)
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            given = f"{labels[column]!r:.60}"
            raise ValueError(f"labeller `{name}` gives {column} = {given}, declared is {kind}") from None


@functools.cache  # a child is asked for one set of labellers, thousands of times
def _built(chosen: tuple[str, ...]) -> dict[str, Labeller[Any]]:
    return {item.name: item.build() for item in (Chosen(**json.loads(text)) for text in chosen)}


def _carefully(chosen: Sequence[Chosen], arguments: Mapping[str, Any], stack: contextlib.ExitStack) -> Any:
    child = stack.enter_context(Workers("chatloom.corpus.labels:label_one", list(chosen), 1, arguments["seconds"]))
    empty = {item.name: dict.fromkeys(item.build().columns) for item in chosen}

    def label(documents: Sequence[Document]) -> tuple[Rows, list[Quarantined]]:
        rows: Rows = {item.name: [] for item in chosen}
        bad: list[Quarantined] = []
        for document, labels in zip(documents, child.map((document, 1 << 19) for document in documents), strict=True):
            if isinstance(labels, Failure):
                bad.append(Quarantined(document.source, 0, f"document {document.id}: labelling {labels.reason}"))
                labels = empty
            for name in rows:
                rows[name].append(labels[name])
        return rows, bad

    return label
