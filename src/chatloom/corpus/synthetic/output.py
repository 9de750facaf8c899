"""Replies -> documents: judged block by block, then copies are searched for, then what stays is written.

    replies/<block>.parquet   what came back, with its prompt          (by the stage, in order)
    judged/<block>.parquet    documents that pass, dropped/<block>.parquet those that do not, with the reason
    shards/<block>.parquet    without copies of each other and of the passages that prompts showed

The last two are tasks of an engine; a document never depends on the block it is in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from chatloom.corpus.record import (
    SHARDS,
    Document,
    DocumentWriter,
    Dropped,
    DroppedWriter,
    Label,
    ParquetWriter,
    read_documents,
    write_documents,
)
from chatloom.corpus.split import TRAIN
from chatloom.corpus.synthetic.filters import judge_replies
from chatloom.corpus.synthetic.prompts import Prompt, Seed
from chatloom.corpus.synthetic.settings import FilterSettings
from chatloom.corpus.synthetic.templates import Refusals
from chatloom.settings import digest

REPLIES, JUDGED, DROPPED = "replies", "judged", "dropped"
SYNTHETIC, COPIES = "synthetic", "duplicates"
AT_ONCE = 256
PRIORITY = "priority"  # of two copies the one with the lower priority stays: passages come before replies
LABELS = {"language": pa.string(), "language_confidence": pa.float64(), "split": pa.string()}
PROMPTS_SCHEMA = pa.schema(
    [
        pa.field("number", pa.int64(), nullable=False),
        pa.field("hash", pa.string(), nullable=False),
        pa.field("template", pa.string(), nullable=False),
        pa.field("language", pa.string(), nullable=False),
        pa.field("cluster", pa.string(), nullable=False),
        pa.field("terms", pa.list_(pa.string()), nullable=False),
        pa.field("seeds", pa.list_(pa.string()), nullable=False),
        pa.field("passages", pa.list_(pa.large_string()), nullable=False),
        pa.field("text", pa.large_string(), nullable=False),
    ]
)
REPLIES_SCHEMA = pa.schema(
    [
        *PROMPTS_SCHEMA,
        pa.field("sample", pa.int64(), nullable=False),
        pa.field("reply", pa.large_string(), nullable=False),
        pa.field("finish", pa.string(), nullable=False),
    ]
)


def write_prompts(path: Path, prompts: Iterator[Prompt]) -> None:
    """All prompts, in a file that is there whole or not at all."""
    temporary = path.with_suffix(".tmp")
    with ParquetWriter(temporary, PROMPTS_SCHEMA) as writer:
        for prompt in prompts:
            writer.write(_row(prompt), len(prompt.text))
    temporary.replace(path)


def read_prompts(path: Path) -> Iterator[Prompt]:
    """The prompts in order, a few at a time."""
    with pq.ParquetFile(path) as file:
        for part in file.iter_batches(batch_size=AT_ONCE):
            for row in part.to_pylist():
                yield Prompt(
                    number=row["number"],
                    text=row["text"],
                    template=row["template"],
                    language=row["language"],
                    cluster=row["cluster"],
                    terms=tuple(row["terms"]),
                    seeds=tuple(map(Seed, row["seeds"], row["passages"])),
                )


class ReplyWriter:
    """Replies in blocks of `size`, with all that is known of their prompts; use in a `with`."""

    def __init__(self, folder: Path, size: int) -> None:
        self.files: list[Path] = []
        self._folder, self._size = folder, size
        self._writer: ParquetWriter | None = None
        folder.mkdir(exist_ok=True)
        for old in folder.glob("*.parquet"):  # of a run that was cut off: replies are read from their record
            old.unlink()

    def add(self, prompt: Prompt, sample: int, text: str, finish: str) -> None:
        """Append a reply."""
        if self._writer is not None and self._writer.rows >= self._size:
            self.__exit__()
        if self._writer is None:
            self.files.append(self._folder / f"{len(self.files):05d}.parquet")
            self._writer = ParquetWriter(self.files[-1], REPLIES_SCHEMA)
        row = {**_row(prompt), "sample": sample, "reply": text, "finish": finish}
        self._writer.write(row, len(text) + len(prompt.text))

    def __enter__(self) -> ReplyWriter:
        return self

    def __exit__(self, *error: Any) -> None:
        if self._writer is not None:
            self._writer.__exit__(*(error or (None, None, None)))
        self._writer = None


def _row(prompt: Prompt) -> dict[str, Any]:
    return {
        "number": prompt.number,
        "hash": prompt.hash,
        "template": prompt.template,
        "language": prompt.language,
        "cluster": prompt.cluster,
        "terms": list(prompt.terms),
        "seeds": [seed.document for seed in prompt.seeds],
        "passages": [seed.passage for seed in prompt.seeds],
        "text": prompt.text,
    }


def write_judged(arguments: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """The task: `judged/<block>.parquet` and `dropped/<block>.parquet`; counts by reason, template and language.

    `arguments`: replies (the block) and sha256 (of it), filters (settings as JSON), refusals (by language), generator
    (what answered).
    """
    block = Path(arguments["replies"])
    settings = FilterSettings.parse(arguments["filters"], where="filters")
    refusals = {language: Refusals.parse(values) for language, values in arguments["refusals"].items()}
    counts: dict[str, int] = {}
    for name in (JUDGED, DROPPED):
        (folder / name).mkdir()
    with (
        DocumentWriter(folder / JUDGED / block.name, {**LABELS, PRIORITY: pa.int64()}) as writer,
        DroppedWriter(folder / DROPPED / block.name) as dropped,
        pq.ParquetFile(block) as file,
    ):
        for part in file.iter_batches(batch_size=AT_ONCE):
            rows = [{**row, "reply": row["reply"].strip()} for row in part.to_pylist()]
            given = [{"text": r["reply"], "finish": r["finish"], "language": r["language"], "prompt": r["text"]}
                     for r in rows]  # fmt: skip
            for row, (verdict, language) in zip(rows, judge_replies(given, refusals, settings), strict=True):
                document = _document(row, language.code, language.confidence, arguments["generator"])
                if verdict is None:
                    writer.add(document)
                else:
                    dropped.add(_dropped(document, *verdict, row["language"]))
                _count(counts, row, "replies", "passed" if verdict is None else f"dropped:{verdict[0]}")
    return counts


def _document(row: Mapping[str, Any], language: str, confidence: float, generator: str) -> Document:
    metadata = {
        "cluster": row["cluster"],
        "template": row["template"],
        "language": row["language"],
        "prompt": row["number"],
        "sample": row["sample"],
        "prompt_hash": row["hash"],
        "generator": generator,
        "terms": row["terms"],
        "seeds": row["seeds"],
    }
    labels: dict[str, Label] = {
        "language": language,
        "language_confidence": round(confidence, 6),
        "split": TRAIN,
        PRIORITY: 1,
    }
    # Another generator, or a prompt that reads otherwise, makes another document of the same number.
    told = digest([generator, row["hash"]])[:8]
    name = f"{SYNTHETIC}/{row['number']:08d}/{row['sample']}/{told}"
    return Document(name, row["reply"], f"{SYNTHETIC}/{row['template']}", metadata=metadata, labels=labels)


def _dropped(document: Document, reason: str, detail: str, language: str) -> Dropped:
    return Dropped(document.id, SYNTHETIC, reason, detail, document.text, language, document.source)


def _count(counts: dict[str, int], row: Mapping[str, Any], *outcomes: str) -> None:
    for group in ("all", f"template:{row['template']}", f"language:{row['language']}", f"cluster:{row['cluster']}"):
        for name in outcomes:
            counts[f"{group}|{name}"] = counts.get(f"{group}|{name}", 0) + 1


def write_passages(path: Path, prompts: Iterator[Prompt]) -> int:
    """The passages that prompts show, each once, as documents that come before all replies; their number."""
    seen: set[str] = set()

    def passages() -> Iterator[Document]:
        for prompt in prompts:
            for seed in prompt.seeds:
                if seed.document not in seen:  # a document gives one passage
                    seen.add(seed.document)
                    yield Document(f"passage/{seed.document}", seed.passage, labels={PRIORITY: 0})

    return write_documents(path, passages(), {PRIORITY: pa.int64()})


def copies_of(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Replies that are copies: id -> kind (exact, near), the one that is kept, and the similarity to it."""
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        for row in pq.read_table(path, columns=["id", "kind", "kept", "similarity"]).to_pylist():
            if row["id"].startswith(f"{SYNTHETIC}/"):
                found[row["id"]] = row
    return found


def write_kept(arguments: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """The task: `shards/<block>.parquet`, and `dropped/copies-<block>.parquet`; counts as `write_judged` gives them.

    `arguments`: judged (the block) and sha256 (of all blocks), copies (files that `copies_of` reads).
    """
    block = Path(arguments["judged"])
    copies = copies_of([Path(path) for path in arguments["copies"]])
    counts: dict[str, int] = {}
    for name in (SHARDS, DROPPED):
        (folder / name).mkdir()
    with (
        DocumentWriter(folder / SHARDS / block.name, LABELS) as writer,
        DroppedWriter(folder / DROPPED / f"copies-{block.name}") as dropped,
    ):
        for document in read_documents(block):
            about = document.metadata
            if (copy := copies.get(document.id)) is not None:
                similarity = "" if copy["similarity"] is None else f", Jaccard similarity {copy['similarity']:.3f}"
                reason = f"{copy['kind']}_copy"
                detail = f"of {copy['kept']}{similarity}"
                dropped.add(_dropped(document, reason, detail, about["language"]))
                _count(counts, about, f"dropped:{reason}")
                continue
            writer.add(replace(document, labels={name: document.labels[name] for name in LABELS}))
            _count(counts, about, "kept")
            counts["characters"] = counts.get("characters", 0) + len(document.text)
    return counts
