"""The passes of a selection over the shards, and the choice of copies between them.

`write_verdicts` judges each document and surveys them for the report; of each cluster of copies one is chosen that
stays (`copies.py`), among those that passed everything else, so that a good copy is never lost for a bad one;
`write_selected` writes what stays, with its cuts and redactions made, what goes with its reason, and the tally of both.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from chatloom.corpus.columns import read_labelled
from chatloom.corpus.engine.steps import Step, Task
from chatloom.corpus.record import Document, DocumentWriter, Dropped, DroppedWriter
from chatloom.corpus.report.columns import LabelColumn
from chatloom.corpus.report.counting import Counting, CountTokens
from chatloom.corpus.report.survey import FRAME, Survey, read_frame
from chatloom.corpus.report.tally import write_tally
from chatloom.corpus.selection.choice import Failure, Judge, SelectionSettings
from chatloom.corpus.selection.copies import CLUSTER, STANDING, Candidates, Chosen
from chatloom.corpus.selection.decisions import Decider, Decision
from chatloom.errors import ChatloomError
from chatloom.tokens.vocabulary import Vocabulary

HERE, CHOICE, REPORT = "chatloom.corpus.selection.tasks", "chatloom.corpus.selection.copies", "chatloom.corpus.report"
VERDICTS, TALLIES = "verdicts", "tallies"
EXCERPT = 2000  # characters of a document that goes; its whole text stays in the documents artifact
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("failures", pa.list_(pa.struct([(name, pa.string()) for name in ("step", "reason", "detail")]))),
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
    labels: Sequence[LabelColumn],
    vocabulary: Path | None = None,
    ranges: int = 1,
) -> list[Step]:
    """All steps in order; the last writes into `folder`, the others into `scratch`.

    `columns` are the folders of label columns, `labels` what they hold; a `vocabulary` counts tokens.
    """
    judged, chosen = scratch / VERDICTS, scratch / "copies"
    kinds = {label.name: label.kind for label in labels}
    shared = {"settings": settings.everything(), "seed": seed, "parts": ranges, "kinds": kinds}
    stems = {"folder": str(judged), "shards": [shard.stem for shard in shards]}
    more = {
        "verdicts": str(judged),
        "copies": str(chosen),
        "frame": str(scratch / FRAME),
        "labels": {label.name: label.type for label in labels if label.plain},
        "names": {label.name: dict(label.names) for label in labels if label.names},
        "vocabulary": None if vocabulary is None else str(vocabulary),
    }

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
    survey = Task("all", f"{REPORT}.survey:write_frame", {**stems, "kinds": kinds, "seed": seed})
    return [
        by_shard(f"{name}, verdicts", judged, "write_verdicts", shared),
        Step(f"{name}, survey of all", scratch, [survey]),
        Step(f"{name}, books that stay", chosen, [Task(STANDING, f"{CHOICE}:write_standing", stems)]),
        Step(f"{name}, copies that stay", chosen, kept),
        by_shard(name, folder, "write_selected", {**shared, **more}),
    ]


def write_verdicts(arguments: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """The first task: `verdicts/<shard>`, one row a document, what the choice of copies needs, and the survey.

    `arguments`: shard, columns, settings, seed, parts (ranges of clusters), kinds (of the labels, see `survey`).
    """
    shard, settings = Path(arguments["shard"]), SelectionSettings.parse(arguments["settings"], where="selection")
    judge_of: Judge | None = None
    counts = {"documents": 0, "passed": 0}
    candidates, survey = Candidates(), Survey(arguments["kinds"], arguments["seed"])
    (folder / VERDICTS).mkdir()
    with pq.ParquetWriter(folder / VERDICTS / shard.name, SCHEMA, compression="zstd") as writer:
        for documents in read_labelled(shard, map(Path, arguments["columns"])):
            judge_of = judge_of or Judge(settings, documents[0].labels)
            rows = []
            for document in documents:
                verdict = judge_of.verdict(document)
                failures = [dict(vars(failure)) for failure in verdict.failures]
                rows.append({"id": document.id, "failures": failures, "weight": verdict.weight})
                if not failures:
                    counts["passed"] += 1
                    if settings.copies == "one":
                        clustered = document.labels.get(CLUSTER) is not None
                        wanted = judge_of.preference(document) if clustered else None
                        candidates.add(document.id, document.labels, wanted)
            counts["documents"] += len(rows)
            writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
            survey.add(documents)
    candidates.write(folder, shard.stem, arguments["parts"])
    survey.write(folder, shard.stem)
    return counts


def write_selected(arguments: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """The last task: `shards/<shard>`, `dropped/<shard>`, the tally; counts by step, reason, language and split.

    `arguments`: shard, columns, settings, seed, parts, verdicts and copies (the folders of these steps), frame (the
    folder of the survey of all), labels (name -> Arrow type of those that stay with the documents), kinds and names (of
    the labels, see `Counting`), vocabulary (a folder, or None).
    """
    shard, settings = Path(arguments["shard"]), SelectionSettings.parse(arguments["settings"], where="selection")
    copies = Path(arguments["copies"])
    decider = Decider(settings, Chosen(copies / f"{STANDING}.npy", copies, arguments["parts"]), arguments["seed"])
    counting = Counting(
        read_frame(Path(arguments["frame"])),
        arguments["kinds"],
        arguments["names"],
        settings.cut,
        decider.placeholders,
        arguments["seed"],
        _token_counter(arguments["vocabulary"]) if arguments["vocabulary"] else None,
    )
    verdict_file = Path(arguments["verdicts"]) / VERDICTS / shard.name
    verdicts = _rows(verdict_file)
    counts: dict[str, int] = {}
    for name in ("shards", "dropped", TALLIES):
        (folder / name).mkdir()
    labels = {name: pa.type_for_alias(kind) for name, kind in arguments["labels"].items()} | ADDED
    with (
        DocumentWriter(folder / "shards" / shard.name, labels) as writer,
        DroppedWriter(folder / "dropped" / shard.name) as dropped,
    ):
        for documents in read_labelled(shard, map(Path, arguments["columns"])):
            decisions = []
            for document in documents:
                row = next(verdicts)
                if row["id"] != document.id:
                    raise ChatloomError(f"{verdict_file}: does not fit {shard.name}; run the stage again")
                failures = [Failure(**failure) for failure in row["failures"]]
                decision = decider.decide(document, failures, row["weight"])
                decisions.append(decision)
                stays = decision.stays
                if stays is None:
                    gone = _dropped(decision)
                    dropped.add(gone)
                    _count(counts, f"removed|{gone.stage}|{gone.reason}|{gone.language}", len(document.text))
                else:
                    plain = {name: value for name, value in stays.labels.items() if name in labels}
                    writer.add(replace(stays, labels=plain))
                    _count(counts, f"kept|{stays.labels['split']}|{_language(stays)}", len(stays.text))
            counting.add(decisions)
    write_tally(counting.finish(), folder / TALLIES, shard.stem)
    return counts


def _dropped(decision: Decision) -> Dropped:
    """What goes, with the first reason; of the rules all that object are named."""
    document, reason = decision.document, decision.failures[0]
    detail = "; ".join(failure.detail for failure in decision.failures if failure.step == reason.step)
    text = document.text[:EXCERPT]
    return Dropped(
        document.id, reason.step, reason.reason, detail, text, _language(document), document.source, document.url
    )


def _token_counter(folder: str) -> CountTokens:
    vocabulary = _vocabulary(folder)

    def count(texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in vocabulary.encode_batch(texts)]

    return count


@functools.lru_cache(maxsize=1)  # a process does many shards
def _vocabulary(folder: str) -> Vocabulary:
    return Vocabulary.load(folder)


def _language(document: Document) -> str:
    return str(document.labels.get("language") or "")


def _count(counts: dict[str, int], key: str, characters: int) -> None:
    for unit, amount in (("documents", 1), ("characters", characters)):
        counts[f"{key}|{unit}"] = counts.get(f"{key}|{unit}", 0) + amount


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1024):
            yield from batch.to_pylist()
