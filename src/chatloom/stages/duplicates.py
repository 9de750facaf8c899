"""Stage `duplicates`: documents -> which are copies of which, and on which side of the split each one is.

Copies are found for the whole corpus, before anything is selected, so that `selection` can keep of each cluster one
that passes. The columns lie beside the documents as labels do: `cluster`, `duplicate_kind`, `similarity`, `split`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from chatloom.artifact import write_json
from chatloom.corpus.columns import ABOUT, ColumnWriter
from chatloom.corpus.duplicates.search import CopySettings, read_shard, search
from chatloom.corpus.record import Document, document_files
from chatloom.corpus.split import HELD_OUT, TRAIN, side_of, sides_of_clusters
from chatloom.progress import progress
from chatloom.stage import Context, Input, Line, Plan, PlanContext, Stage

FOLDER = "duplicates"
COLUMNS = {
    "cluster": pa.string(),
    "cluster_size": pa.int64(),
    "duplicate_kind": pa.string(),
    "similarity": pa.float64(),
    "split": pa.string(),
}
MEMBERS_IN_A_RANGE = 5_000_000  # documents whose records one range of hashes holds at once
SECONDS_A_MEGABYTE = 0.15  # all searches, one processor


class DuplicatesSettings(CopySettings):
    """Which documents are copies, and how many are held out."""

    held_out_share: float = Field(0.05, ge=0.0, lt=1.0, description="share of documents held out (whole clusters)")


@dataclass
class _Known:
    """What was found out about documents in clusters; the others are alone."""

    cluster: dict[str, str]
    size: dict[str, int]
    kind: dict[str, str]
    similarity: dict[str, float | None]
    side: dict[str, str]


def run(context: Context) -> None:
    """Search, then write the columns shard by shard."""
    settings: DuplicatesSettings = context.settings
    shards = document_files(context.artifact("documents").path)
    rows = sum(pq.read_metadata(shard).num_rows for shard in shards)
    plain = CopySettings.parse({name: getattr(settings, name) for name in CopySettings.model_fields})
    scratch = context.path / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)  # of a search that was cut off: it is done from the beginning
    parts = 1 + rows // MEMBERS_IN_A_RANGE
    table, clusters = search([read_shard(shard) for shard in shards], scratch, plain, parts=parts)
    known = _known(table, clusters, settings.held_out_share, context.seed)
    counts = _write(context, shards, known, settings.held_out_share)
    write_json(context.path / FOLDER / ABOUT, {"name": FOLDER, "columns": {n: str(t) for n, t in COLUMNS.items()}})
    kinds = table.column("kind").to_pylist()
    context.metrics.update(
        documents=rows,
        clusters=len(clusters),
        copies={kind: kinds.count(kind) for kind in sorted(set(kinds))},
        split=counts,
    )


def _known(table: pa.Table, clusters: Sequence[tuple[str, list[str]]], held_out_share: float, seed: int) -> _Known:
    cluster = {name: key for key, names in clusters for name in names}
    size = {key: len(names) for key, names in clusters}
    kind: dict[str, str] = {}
    similarity: dict[str, float | None] = {}
    for row in table.to_pylist():
        # A document may be a copy by its text and by its address; the text says more.
        if row["id"] not in kind:
            kind[row["id"]], similarity[row["id"]] = row["kind"], row["similarity"]
    return _Known(cluster, size, kind, similarity, dict(sides_of_clusters(clusters, held_out_share, seed)))


def _write(context: Context, shards: Sequence[Path], known: _Known, held_out_share: float) -> dict[str, int]:
    counts = {TRAIN: 0, HELD_OUT: 0}
    with progress(len(shards), unit="shards", label=context.name, quiet=context.quiet) as bar:
        for shard in shards:
            with ColumnWriter(context.path / FOLDER / shard.name, COLUMNS) as writer, pq.ParquetFile(shard) as file:
                for batch in file.iter_batches(columns=["id"], batch_size=4096):
                    documents = [Document(name, "") for name in batch.column(0).to_pylist()]
                    labels = [_labels(document.id, known, held_out_share, context.seed) for document in documents]
                    for row in labels:
                        counts[row["split"]] += 1
                    writer.add(documents, labels)
            bar.advance(1)
    return counts


def _labels(name: str, known: _Known, held_out_share: float, seed: int) -> Mapping[str, Any]:
    cluster = known.cluster.get(name)
    return {
        "cluster": cluster,
        "cluster_size": 1 if cluster is None else known.size[cluster],
        "duplicate_kind": known.kind.get(name),
        "similarity": known.similarity.get(name),
        "split": known.side.get(name) or side_of(name, held_out_share, seed),
    }


def plan(context: PlanContext) -> Plan:
    """Records on disk while it runs (about 400 bytes a document of 3 kB), and the time of all searches."""
    documents = context.plans.get("documents")
    size = documents.value("bytes") if documents is not None else 0.0
    return Plan((Line("disk", 0.15 * size, "bytes"), Line("time", SECONDS_A_MEGABYTE * size / 1e6, "s")))


STAGE = Stage(
    kind="duplicates",
    about="documents -> which are copies, and the split",
    version=1,
    settings=DuplicatesSettings,
    inputs={"documents": Input("the texts", kinds=("documents",))},
    output="duplicates",
    run=run,
    plan=plan,
)
