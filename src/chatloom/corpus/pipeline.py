"""Raw files -> cleaned documents, in one call: every record ends as a document, as dropped, or in quarantine.

    files -> workers (cleaning.py: extract, language, rules, fingerprints) -> exact and near duplicates -> split

Written into one folder: `documents.parquet`, `dropped.parquet`, `quarantine.jsonl`, `funnel.json`. The bytes depend on
the settings, the seed and the sources only, not on the number of workers: results come back in the order of reading.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from chatloom.corpus.cleaning import RULE_LABEL, Cleaned, dropped_raw
from chatloom.corpus.reading.files import Page, list_files, read_file
from chatloom.corpus.record import Document, DocumentWriter, Dropped, DroppedWriter, Quarantined, read_documents
from chatloom.corpus.selection.funnel import Funnel
from chatloom.corpus.settings import CorpusSettings
from chatloom.corpus.split import assign
from chatloom.corpus.survivors import Copy, Survivors, cluster_sizes
from chatloom.corpus.text.rules import RULES
from chatloom.corpus.workers import Failure, Workers
from chatloom.errors import ChatloomError

LABELS: dict[str, pa.DataType] = {
    "language": pa.string(),
    "language_confidence": pa.float64(),
    "n_characters": pa.int64(),
    "cluster_size": pa.int64(),
    "split": pa.string(),
    **{RULE_LABEL + name: pa.float64() for name in RULES},
}
# A handful of bad records is no sign that a source is the wrong one, however few records it has.
ALLOWED_QUARANTINED = 10
VARYING = re.compile(r"\d[\d,.]*|0x[0-9a-f]+|'[^']*'")  # the part of a reason that differs from record to record


class Bar(Protocol):
    """What `clean` needs of chatloom.progress.Progress."""

    def advance(self, n: int = 1, **values: Any) -> None:
        """Count `n` more records."""


def clean(
    settings: CorpusSettings,
    sources: Sequence[Path],
    folder: Path,
    *,
    workers: int | None = None,
    seed: int = 0,
    progress: Bar | None = None,
) -> dict[str, Any]:
    """Clean every record of the sources into `folder`; returns the metrics: the funnel, and seconds by part.

    Raises ChatloomError for a source that is missing or of unknown format, for too large a share of unreadable
    records, when no document is left (naming what dropped them), and when the disk is full.
    """
    files = list_files(sources)
    if not files:
        raise ChatloomError("corpus: no source was given; name at least one file or folder")
    folder.mkdir(parents=True, exist_ok=True)
    passed = folder / "passed.tmp"
    started = time.perf_counter()
    try:
        with DroppedWriter(folder / "dropped.parquet") as dropped:
            run = _Run(settings, folder, dropped, progress)
            restarts = run.read_pages(files, passed, workers or usable_cpus())
            pages_seconds = time.perf_counter() - started
            report = run.finish(passed, seed)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ChatloomError(f"corpus: the disk that holds {folder} is full; free some space, run again") from error
        raise
    finally:
        passed.unlink(missing_ok=True)
    seconds = {"pages": pages_seconds, "duplicates": time.perf_counter() - started - pages_seconds}
    return {**report, "seconds": seconds, "worker_restarts": restarts}


def usable_cpus() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Run:
    """One cleaning under way: what it writes to and what it has counted."""

    def __init__(self, settings: CorpusSettings, folder: Path, dropped: DroppedWriter, progress: Bar | None) -> None:
        self.settings, self.folder, self.dropped, self.progress = settings, folder, dropped, progress
        self.funnel, self.survivors = Funnel(), Survivors()

    def read_pages(self, files: Sequence[tuple[Path, str]], passed: Path, workers: int) -> int:
        """Everything that looks at one page at a time; the texts that pass go to `passed`. Returns worker restarts."""
        seconds = self.settings.extraction.seconds_per_page
        with (
            DocumentWriter(passed, LABELS) as writer,
            open(self.folder / "quarantine.jsonl", "w", encoding="utf-8", newline="\n") as quarantine,
            Workers("chatloom.corpus.cleaning:clean_page", self.settings, workers, seconds) as pool,
        ):
            for outcome in _outcomes(self.settings, files, pool):
                if isinstance(outcome, Cleaned):
                    writer.add(self.survivors.add(outcome))
                elif isinstance(outcome, Dropped):
                    self.drop(outcome)
                else:
                    quarantine.write(json.dumps(asdict(outcome), ensure_ascii=False) + "\n")
                    self.funnel.quarantined(VARYING.sub("*", outcome.reason))
                    self.check_quarantine(last=outcome, finished=False)
                if self.progress is not None:
                    self.progress.advance(1, passed=len(self.survivors.ids), dropped=self.funnel.n_dropped)
            self.check_quarantine(last=None, finished=True)
            return pool.restarts

    def finish(self, passed: Path, seed: int) -> dict[str, Any]:
        """Everything that looks at all documents: copies, split, and the files that stay."""
        ids = self.survivors.ids
        if not ids:
            raise ChatloomError(self.nothing_left())
        copies = self.survivors.copies(self.settings.duplicates, passed)
        sizes = cluster_sizes(copies)
        kept = [name for index, name in enumerate(ids) if index not in copies]
        sides = assign(kept, self.settings.split.held_out_share, seed)
        with DocumentWriter(self.folder / "documents.parquet", LABELS) as writer:
            for index, document in enumerate(read_documents(passed)):
                if index in copies:
                    self.drop(_as_dropped(document, copies[index], ids))
                    continue
                labels = {**document.labels, "cluster_size": 1 + sizes[index], "split": sides[document.id]}
                writer.add(dataclasses.replace(document, labels=labels))
                self.funnel.kept(document, sides[document.id])
        report = self.funnel.report()
        text = json.dumps(report, ensure_ascii=False, indent=2)
        (self.folder / "funnel.json").write_text(text + "\n", encoding="utf-8")
        return report

    def drop(self, dropped: Dropped) -> None:
        self.dropped.add(dropped)
        self.funnel.dropped(dropped)

    def check_quarantine(self, *, last: Quarantined | None, finished: bool) -> None:
        """Stop a run whose sources are mostly unreadable; a share of few records says something at the end only."""
        bad = self.funnel.n_quarantined
        records = bad + self.funnel.n_dropped + len(self.survivors.ids)
        share = self.settings.reading.max_quarantined_share
        if bad <= max(ALLOWED_QUARANTINED, share * records) or (records < 1000 and not finished):
            return
        reasons = "; ".join(f"{n} x {reason}" for reason, n in self.funnel.quarantine_reasons.most_common(3))
        where = f" (last: {last.file}, line {last.line}: {last.reason})" if last else ""
        raise ChatloomError(
            f"corpus: {bad:,} of {records:,} records could not be read, more than the allowed share of {share:g} "
            f"(reading.max_quarantined_share): {reasons}{where}; see {self.folder / 'quarantine.jsonl'}"
        )

    def nothing_left(self) -> str:
        """The sentence for a run in which no document survived: what took them."""
        taken = [
            f"{tally.documents} by {step}/{rule}" for step, rules in self.funnel.removed.items()
            for rule, tally in rules.items()
        ]  # fmt: skip
        taken += [f"{n} unreadable ({reason})" for reason, n in self.funnel.quarantine_reasons.most_common(5)]
        total = self.funnel.n_dropped + self.funnel.n_quarantined
        what = "; ".join(taken) or "the sources hold no records"
        return (
            f"corpus: none of {total:,} records became a document: {what}; look at dropped.parquet and "
            f"quarantine.jsonl in {self.folder}, then loosen `rules`, `language` or `extraction`, or mend the sources"
        )


def _outcomes(
    settings: CorpusSettings, files: Sequence[tuple[Path, str]], pool: Workers
) -> Iterator[Cleaned | Dropped | Quarantined]:
    """One outcome for each record, in the order of reading; a page whose worker failed is dropped with the reason."""
    with_workers: dict[int, Page | Quarantined] = {}

    def items() -> Iterator[tuple[Page | Quarantined, int]]:
        for number, record in enumerate(islice(_records(settings, files), settings.limit)):
            with_workers[number] = record
            yield record, len(record.html or record.text or "") if isinstance(record, Page) else 0

    for number, outcome in enumerate(pool.map(items())):
        record = with_workers.pop(number)
        if isinstance(outcome, Failure):
            yield dropped_raw(record, "failed", outcome.reason) if isinstance(record, Page) else record
        else:
            yield outcome


def _records(settings: CorpusSettings, files: Sequence[tuple[Path, str]]) -> Iterator[Page | Quarantined]:
    reading = settings.reading
    for path, name in files:
        yield from read_file(
            path, name, text_field=reading.text_field, html_field=reading.html_field,
            max_record_bytes=reading.max_record_bytes,
        )  # fmt: skip


def _as_dropped(document: Document, copy: Copy, ids: Sequence[str]) -> Dropped:
    detail = f"copy of {ids[copy.kept]}, Jaccard similarity {copy.similarity:.3f}"
    return Dropped(
        document.id, copy.stage, "duplicate", detail, document.text, str(document.labels["language"]),
        document.source, document.url,
    )  # fmt: skip
