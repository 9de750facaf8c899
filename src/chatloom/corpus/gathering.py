"""The step `documents` as a whole: its tasks, and what is left to do once all shards are there."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import xxhash

from chatloom.corpus.documents import DROPPED, QUARANTINE
from chatloom.corpus.engine.choice import ShardSettings
from chatloom.corpus.engine.steps import Engine, Receipt, Step, Task, total
from chatloom.corpus.reading.parts import CUTS, Part, has_cuts, parts_of, state_of
from chatloom.corpus.record import Document, DocumentWriter, document_files, read_documents
from chatloom.corpus.settings import ExtractionSettings, ReadingSettings
from chatloom.errors import ChatloomError

QUARANTINE_FILE = "quarantine.jsonl"
# A handful of bad records is no sign that a source is the wrong one, however few records it has.
ALLOWED_QUARANTINED = 10
VARYING = re.compile(r"\d[\d,.]*|0x[0-9a-f]+|'[^']*'")  # the part of a reason that differs from record to record
IDS_AT_ONCE = 50_000_000
USUAL_PARTS = 16
SMALLEST_PART = 1e6  # bytes


def cut(
    name: str,
    folder: Path,
    files: Sequence[tuple[Path, str]],
    reading: ReadingSettings,
    part_bytes: int,
    engine: Engine,
) -> list[Part]:
    """The parts that `files` are read in; a task for each big one finds where it can be cut, and writes to `folder`."""
    big = [path for path, _ in files if has_cuts(path, part_bytes)]
    tasks = []
    for number, path in enumerate(big):
        arguments = {
            "key": f"{number:05d}",
            "path": str(path),
            "state": state_of(path),
            "part_bytes": part_bytes,
            "max_record_bytes": reading.max_record_bytes,
        }
        tasks.append(Task(f"{number:05d}", "chatloom.corpus.reading.parts:write_cuts", arguments))
    if tasks:
        Step(f"{name}, cuts", folder, tasks).run(engine)
    cuts = {path: json.loads((folder / CUTS / f"{n:05d}.json").read_text("utf-8")) for n, path in enumerate(big)}
    return parts_of(files, part_bytes, cuts)


def step_of(
    name: str,
    folder: Path,
    parts: Sequence[Part],
    reading: ReadingSettings,
    extraction: ExtractionSettings,
    shards: ShardSettings,
    limit: int | None = None,
) -> Step:
    """The tasks that read `parts` of files into `folder`, each at most `limit` records."""
    tasks = []
    for number, part in enumerate(parts):
        arguments = {
            "key": f"{number:05d}",
            "slices": part.values(),
            "reading": reading.everything(),
            "extraction": extraction.everything(),
            "shard_characters": int(shards.shard_megabytes * 1e6),
            "limit": limit,
        }
        tasks.append(Task(f"{number:05d}", "chatloom.corpus.documents:write_documents", arguments))
    return Step(name, folder, tasks)


def part_bytes(files: Sequence[tuple[Path, str]], shards: ShardSettings) -> int:
    """Size of the parts; of little there are smaller ones, so that there is work for several processes.

    It depends on the files alone, not on where the work runs.
    """
    together = sum(path.stat().st_size for path, _ in files)
    return int(min(shards.part_megabytes * 1e6, max(SMALLEST_PART, together / USUAL_PARTS)))


def finish(name: str, folder: Path, receipts: Sequence[Receipt], reading: ReadingSettings) -> dict[str, Any]:
    """Put the quarantine lines together, see that ids are distinct, count; returns the metrics.

    Raises ChatloomError when too large a share of the records could not be read, and when no document is there.
    """
    counts = total(receipts)
    reasons = gather_quarantine(folder)
    _check(name, folder, counts, reasons, reading.max_quarantined_share)
    renamed = make_ids_distinct(folder)
    metrics: dict[str, Any] = {key: counts.get(key, 0) for key in ("records", "documents", "characters", "shards")}
    metrics["quarantined"] = counts.get("quarantined", 0)
    metrics["quarantine_reasons"] = dict(reasons.most_common(20))
    metrics["dropped"] = {key.partition(":")[2]: n for key, n in counts.items() if key.startswith("dropped:")}
    metrics["ids_renamed"] = renamed
    return metrics


def gather_quarantine(folder: Path) -> Counter[str]:
    """One file of all shards' lines, in the shards' order; counts by reason."""
    reasons: Counter[str] = Counter()
    parts = sorted((folder / QUARANTINE).glob("*.jsonl")) if (folder / QUARANTINE).is_dir() else []
    with open(folder / QUARANTINE_FILE, "w", encoding="utf-8", newline="\n") as out:
        for part in parts:
            with open(part, encoding="utf-8", newline="\n") as lines:
                for line in lines:
                    out.write(line)
                    reasons[VARYING.sub("*", json.loads(line)["reason"])] += 1
    return reasons


def _check(name: str, folder: Path, counts: dict[str, int], reasons: Counter[str], share: float) -> None:
    bad, records = counts.get("quarantined", 0), counts.get("records", 0)
    listed = "; ".join(f"{n} x {reason}" for reason, n in reasons.most_common(3))
    if bad > max(ALLOWED_QUARANTINED, share * records):
        raise ChatloomError(
            f"{name}: {bad:,} of {records:,} records could not be read, more than the allowed share of {share:g} "
            f"(reading.max_quarantined_share): {listed}; see {folder / QUARANTINE_FILE}"
        )
    if not counts.get("documents"):
        dropped = "; ".join(
            f"{n} dropped ({key.partition(':')[2]})" for key, n in counts.items() if key.startswith("dropped:")
        )
        what = "; ".join(filter(None, [dropped, f"unreadable: {listed}" if bad else ""]))
        raise ChatloomError(
            f"{name}: none of {records:,} records became a document: {what or 'the sources hold no records'}; look "
            f"at {DROPPED}/ and {QUARANTINE_FILE} in {folder}, then change `extraction`, or mend the sources"
        )


def make_ids_distinct(folder: Path) -> int:
    """Give documents whose id an earlier one has `#2`, `#3` ... behind it; the number renamed.

    Ids are compared by a 64-bit hash, a hash range at a time (400 MB), then by themselves.
    """
    files = document_files(folder)
    rows = sum(pq.read_metadata(file).num_rows for file in files)
    passes = 1 + rows // IDS_AT_ONCE
    suspects: set[int] = set()
    for number in range(passes):
        parts = [hashes[hashes % np.uint64(passes) == number] for file in files for hashes in [_hashes(file)]]
        values, times = np.unique(np.concatenate(parts), return_counts=True)
        suspects |= set(values[times > 1].tolist())
    if not suspects:
        return 0
    taken = {name for file in files for name in _ids(file) if _hash(name) in suspects}
    seen: set[str] = set()
    renamed = 0
    for file in files:
        names = list(_ids(file))
        fresh = list(names)
        for place, name in enumerate(names):
            if _hash(name) not in suspects:
                continue
            if name in seen:
                copies = 2
                while f"{name}#{copies}" in taken:
                    copies += 1
                fresh[place] = f"{name}#{copies}"
                taken.add(fresh[place])
                renamed += 1
            seen.add(name)
        if fresh != names:
            _rename(file, fresh)
    return renamed


def _rename(file: Path, ids: Sequence[str]) -> None:
    temporary = file.with_suffix(".tmp")
    with DocumentWriter(temporary, {}) as writer:
        for document, name in zip(read_documents(file), ids, strict=True):
            writer.add(Document(name, document.text, document.source, document.url, document.time, document.metadata))
    temporary.replace(file)


def _ids(file: Path) -> Iterator[str]:
    with pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches(columns=["id"], batch_size=65_536):
            yield from batch.column(0).to_pylist()


def _hash(name: str) -> int:
    return int(xxhash.xxh3_64_intdigest(name.encode("utf-8", "surrogatepass")))


def _hashes(file: Path) -> np.ndarray:
    return np.fromiter((_hash(name) for name in _ids(file)), np.uint64)
