"""The two passes of a selection over the shards, and the choice of copies between them.

`write_verdicts` judges each document; `choose_copies` picks the one of each cluster of copies that stays, among those
that passed everything else, so that a good copy is never lost for a bad one; `write_selected` writes what stays, with
its cuts and redactions made, and what goes with its reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from chatloom.corpus.columns import read_labelled
from chatloom.corpus.labellers.personal_data import KINDS
from chatloom.corpus.record import Document, DocumentWriter, Dropped, DroppedWriter
from chatloom.corpus.selection.choice import COPIES, EDITS, Judge, SelectionSettings
from chatloom.corpus.selection.edits import edited, pairs, redactions, united
from chatloom.corpus.split import HELD_OUT, TRAIN, split_value
from chatloom.errors import ChatloomError

EXCERPT = 2000  # characters of a document that goes; its whole text stays in the documents artifact
VERDICTS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("step", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("weight", pa.float64(), nullable=False),
        pa.field("cluster", pa.string()),
        pa.field("preference", pa.float64()),
    ]
)
ADDED = {"split": pa.string(), "weight": pa.float64(), "n_characters": pa.int64()}


def id_hash(name: str) -> int:
    """64-bit hash of a document's id or a cluster's name."""
    return int(xxhash.xxh3_64_intdigest(name.encode("utf-8", "surrogatepass")))


def write_verdicts(arguments: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """The first task: `verdicts/<shard>`, one row a document. `arguments`: shard, columns, settings."""
    shard, settings = Path(arguments["shard"]), SelectionSettings.parse(arguments["settings"], where="selection")
    judge_of: Judge | None = None
    counts = {"documents": 0, "passed": 0}
    (folder / "verdicts").mkdir()
    with pq.ParquetWriter(folder / "verdicts" / shard.name, VERDICTS, compression="zstd") as writer:
        for documents in read_labelled(shard, map(Path, arguments["columns"])):
            judge_of = judge_of or Judge(settings, documents[0].labels)
            rows = []
            for document in documents:
                verdict = judge_of.verdict(document)
                cluster = document.labels.get("cluster") if settings.copies == "one" else None
                passed = verdict.step is None
                row = {"id": document.id, **vars(verdict), "cluster": cluster if passed else None}
                rows.append(row | {"preference": judge_of.preference(document) if passed and cluster else None})
                counts["passed"] += passed
            counts["documents"] += len(rows)
            writer.write_table(pa.Table.from_pylist(rows, schema=VERDICTS))
    return counts


def choose_copies(verdicts: Iterable[Path]) -> np.ndarray:
    """Of each cluster with copies that pass, which one stays: uint64 [clusters, 2], hashes of cluster and of kept id.

    The most preferred, then the first by id. Rows are sorted by the cluster's hash.
    """
    best: dict[int, tuple[float, str]] = {}
    for file in verdicts:
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(columns=["id", "cluster", "preference"]):
                for row in batch.filter(batch.column("cluster").is_valid()).to_pylist():
                    wanted = row["preference"]
                    rank = (-wanted if wanted is not None else float("inf"), row["id"])
                    key = id_hash(row["cluster"])
                    if key not in best or rank < best[key]:
                        best[key] = rank
    table = np.array([[key, id_hash(name)] for key, (_, name) in best.items()], np.uint64).reshape(-1, 2)
    return table[np.argsort(table[:, 0])]


def write_selected(arguments: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """The second task: `shards/<shard>` and `dropped/<shard>`; returns counts by step, reason, language and split.

    `arguments`: shard, columns, settings, verdicts (the file), copies (what `choose_copies` found, as .npy), seed,
    labels (name -> Arrow type of those that stay with the documents).
    """
    shard, settings = Path(arguments["shard"]), SelectionSettings.parse(arguments["settings"], where="selection")
    kept = np.load(arguments["copies"], mmap_mode="r", allow_pickle=False)
    placeholders = {number: settings.redact[kind] for number, kind in KINDS.items() if kind in settings.redact}
    verdicts = _rows(Path(arguments["verdicts"]))
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
                    raise ChatloomError(f"{arguments['verdicts']}: does not fit {shard.name}; run the stage again")
                outcome = _outcome(document, row, kept, settings, placeholders, arguments["seed"])
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
    kept: np.ndarray,
    settings: SelectionSettings,
    placeholders: Mapping[int, str],
    seed: int,
) -> Document | Dropped:
    if row["step"] is not None:
        return _dropped(document, row["step"], row["reason"], row["detail"])
    if row["cluster"] is not None and not _stays(kept, row["cluster"], document.id):
        similarity = document.labels.get("similarity")
        like = f", Jaccard similarity {similarity:.3f}" if isinstance(similarity, float) else ""
        kind = str(document.labels.get("duplicate_kind") or "duplicate")
        return _dropped(document, COPIES, kind, f"copy, cluster {row['cluster']}{like}")
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


def _stays(kept: np.ndarray, cluster: str, name: str) -> bool:
    place = int(np.searchsorted(kept[:, 0], np.uint64(id_hash(cluster))))
    return bool(kept[place, 1] == np.uint64(id_hash(name)))


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
