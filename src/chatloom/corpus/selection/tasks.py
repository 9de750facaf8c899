"""The passes of a selection over the shards, and the choice of copies between them.

`write_verdicts` judges each document; of each cluster of copies one is chosen that stays (`copies.py`), among those
that passed everything else, so that a good copy is never lost for a bad one; `write_selected` writes what stays, with
its cuts and redactions made, and what goes with its reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from chatloom.corpus.columns import read_labelled
from chatloom.corpus.engine.steps import Step, Task
from chatloom.corpus.labellers.personal_data import KINDS
from chatloom.corpus.record import Document, DocumentWriter, Dropped, DroppedWriter
from chatloom.corpus.selection.choice import COPIES, EDITS, Judge, SelectionSettings
from chatloom.corpus.selection.copies import BOOK, BOOK_SHARE, CLUSTER, COPY_OF, STANDING, Candidates, Chosen
from chatloom.corpus.selection.edits import edited, pairs, redactions, united
from chatloom.corpus.split import HELD_OUT, TRAIN, split_value
from chatloom.errors import ChatloomError

HERE, CHOICE = "chatloom.corpus.selection.tasks", "chatloom.corpus.selection.copies"
VERDICTS = "verdicts"
EXCERPT = 2000  # characters of a document that goes; its whole text stays in the documents artifact
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("step", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("weight", pa.float64(), nullable=False),
    ]
)
ADDED = {"split": pa.string(), "weight": pa.float64(), "n_characters": pa.int64()}


def selection_steps(
    name: str,
    shards: Sequence[Path],
    columns: Sequence[Path],
    settings: SelectionSettings,
    *,
    folder: Path,
    scratch: Path,
    seed: int,
    labels: Mapping[str, str],
    ranges: int = 1,
) -> list[Step]:
    """All steps in order; the last writes into `folder`, the others into `scratch`.

    `columns` are the folders of label columns, `labels` the types of those that stay with the documents.
    """
    judged, chosen = scratch / VERDICTS, scratch / "copies"
    shared = {"settings": settings.everything(), "parts": ranges}
    stems = {"folder": str(judged), "shards": [shard.stem for shard in shards]}
    more = {"verdicts": str(judged), "copies": str(chosen), "seed": seed, "labels": dict(labels)}

    def by_shard(step: str, into: Path, function: str, arguments: Mapping[str, Any]) -> Step:
        tasks = [
            Task(
                shard.stem,
                f"{HERE}:{function}",
                {"shard": str(shard), "columns": [str(folder / shard.name) for folder in columns], **arguments},
            )
            for shard in shards
        ]
        return Step(step, into, tasks)

    standing = {**stems, "parts": ranges, "standing": str(chosen / f"{STANDING}.npy")}
    kept = [Task(f"{part:05d}", f"{CHOICE}:write_kept", {**standing, "part": part}) for part in range(ranges)]
    return [
        by_shard(f"{name}, verdicts", judged, "write_verdicts", shared),
        Step(f"{name}, books that stay", chosen, [Task(STANDING, f"{CHOICE}:write_standing", stems)]),
        Step(f"{name}, copies that stay", chosen, kept),
        by_shard(name, folder, "write_selected", {**shared, **more}),
    ]


def write_verdicts(arguments: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """The first task: `verdicts/<shard>`, one row a document, and what the choice of copies needs.

    `arguments`: shard, columns, settings, parts (ranges of clusters).
    """
    shard, settings = Path(arguments["shard"]), SelectionSettings.parse(arguments["settings"], where="selection")
    judge_of: Judge | None = None
    counts = {"documents": 0, "passed": 0}
    candidates = Candidates()
    (folder / VERDICTS).mkdir()
    with pq.ParquetWriter(folder / VERDICTS / shard.name, SCHEMA, compression="zstd") as writer:
        for documents in read_labelled(shard, map(Path, arguments["columns"])):
            judge_of = judge_of or Judge(settings, documents[0].labels)
            rows = []
            for document in documents:
                verdict = judge_of.verdict(document)
                rows.append({"id": document.id, **vars(verdict)})
                if verdict.step is None:
                    counts["passed"] += 1
                    if settings.copies == "one":
                        clustered = document.labels.get(CLUSTER) is not None
                        wanted = judge_of.preference(document) if clustered else None
                        candidates.add(document.id, document.labels, wanted)
            counts["documents"] += len(rows)
            writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
    candidates.write(folder, shard.stem, arguments["parts"])
    return counts


def write_selected(arguments: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """The last task: `shards/<shard>` and `dropped/<shard>`; returns counts by step, reason, language and split.

    `arguments`: shard, columns, settings, parts, verdicts and copies (the folders of these steps), seed, labels
    (name -> Arrow type of those that stay with the documents).
    """
    shard, settings = Path(arguments["shard"]), SelectionSettings.parse(arguments["settings"], where="selection")
    copies = Path(arguments["copies"])
    chosen = Chosen(copies / f"{STANDING}.npy", copies, arguments["parts"])
    placeholders = {number: settings.redact[kind] for number, kind in KINDS.items() if kind in settings.redact}
    verdict_file = Path(arguments["verdicts"]) / VERDICTS / shard.name
    verdicts = _rows(verdict_file)
    counts: dict[str, int] = {}
    for name in ("shards", "dropped"):
        (folder / name).mkdir()
    labels = {name: pa.type_for_alias(kind) for name, kind in arguments["labels"].items()} | ADDED
    with (
        DocumentWriter(folder / "shards" / shard.name, labels) as writer,
        DroppedWriter(folder / "dropped" / shard.name) as dropped,
    ):
        for documents in read_labelled(shard, map(Path, arguments["columns"])):
            for document in documents:
                row = next(verdicts)
                if row["id"] != document.id:
                    raise ChatloomError(f"{verdict_file}: does not fit {shard.name}; run the stage again")
                outcome = _outcome(document, row, chosen, settings, placeholders, arguments["seed"])
                if isinstance(outcome, Dropped):
                    dropped.add(outcome)
                    _count(counts, f"removed|{outcome.stage}|{outcome.reason}|{outcome.language}", len(document.text))
                else:
                    plain = {name: value for name, value in outcome.labels.items() if name in labels}
                    writer.add(replace(outcome, labels=plain))
                    _count(counts, f"kept|{outcome.labels['split']}|{_language(outcome)}", len(outcome.text))
    return counts


def _outcome(
    document: Document,
    row: Mapping[str, Any],
    chosen: Chosen,
    settings: SelectionSettings,
    placeholders: Mapping[int, str],
    seed: int,
) -> Document | Dropped:
    if row["step"] is not None:
        return _dropped(document, row["step"], row["reason"], row["detail"])
    if settings.copies == "one" and (copy := _copy(document, chosen)) is not None:
        return copy
    try:
        cuts = united(pairs(_spans(document, name)) for name in settings.cut)
        new = redactions(_spans(document, "personal_data"), _spans(document, "personal_data_kinds"), placeholders)
        text = edited(document.text, cuts, new) if cuts or new else document.text
    except ValueError as error:
        raise ChatloomError(f"document {document.id!r}: {error}") from None
    if len(text) < settings.min_characters:
        return _dropped(document, EDITS, "too_short", f"{len(text)} characters are left of {len(document.text)}")
    split = document.labels.get("split")
    if split is None:
        split = HELD_OUT if split_value(document.id, seed) < settings.held_out_share else TRAIN
    labels = {**document.labels, "split": split, "weight": row["weight"], "n_characters": len(text)}
    return replace(document, text=text, labels=labels)


def _copy(document: Document, chosen: Chosen) -> Dropped | None:
    """Why a document that passed goes for another one."""
    labels = document.labels
    cluster, copy_of, similarity = (labels.get(name) for name in (CLUSTER, COPY_OF, "similarity"))
    if isinstance(copy_of, str) and chosen.goes_for_book(copy_of):
        detail = f"{labels.get(BOOK_SHARE):.1%} of its book {labels.get(BOOK)} is in {copy_of}"
        return _dropped(document, COPIES, BOOK, detail)
    if isinstance(cluster, str) and (kept := chosen.kept(cluster)) != document.id:
        like = f", Jaccard similarity to the first of it {similarity:.3f}" if isinstance(similarity, float) else ""
        kind = str(labels.get("duplicate_kind") or "duplicate")
        return _dropped(document, COPIES, kind, f"copy of {kept}, cluster {cluster}{like}")
    return None


def _spans(document: Document, name: str) -> Sequence[int] | None:
    value = document.labels.get(name)
    return value if isinstance(value, list) else None


def _language(document: Document) -> str:
    return str(document.labels.get("language") or "")


def _dropped(document: Document, step: str, reason: str, detail: str) -> Dropped:
    text = document.text[:EXCERPT]
    return Dropped(document.id, step, reason, detail, text, _language(document), document.source, document.url)


def _count(counts: dict[str, int], key: str, characters: int) -> None:
    for unit, amount in (("documents", 1), ("characters", characters)):
        counts[f"{key}|{unit}"] = counts.get(f"{key}|{unit}", 0) + amount


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1024):
            yield from batch.to_pylist()
