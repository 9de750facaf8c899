"""Raw records to chosen documents: chatloom's chain beside datatrove's, same records, same machine, interleaved.

    python benchmarks/against_datatrove.py --data FOLDER --datatrove PYTHON [--repeats 3] [--documents 4000] [--write]

PYTHON is the interpreter of an environment of its own: pip install "datatrove[io,processing]" spacy. FOLDER holds
`en_peps.jsonl.gz` and `en_novels_a.jsonl.gz` for texts (field `text`), `extraction_articles.jsonl.gz` for pages (field
`html`). The steps are those that both run without a network: reading JSON lines; with pages, trafilatura; Gopher's
rules for quality and repetition; C4's rules; near copies by MinHash; writing. datatrove at its best here: as many tasks
and workers as processors, its own defaults otherwise; its language filter needs a download and is left out, chatloom's
is counted. Every side is a process of its own, started anew each time.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

SOURCES = {"texts": ("en_peps.jsonl.gz", "en_novels_a.jsonl.gz"), "pages": ("extraction_articles.jsonl.gz",)}
FIELDS = {"texts": "text", "pages": "html"}
COPIES_EVERY = 10  # every tenth record comes twice, so that there is something to find

THEIRS = """
import sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.extractors import Trafilatura
from datatrove.pipeline.filters import C4QualityFilter, GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter

if __name__ == "__main__":
    source, out, field, workers = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    config = MinhashConfig()
    extract = [Trafilatura(timeout=20)] if field == "html" else []

    def run(name, pipeline, tasks):
        LocalPipelineExecutor(pipeline=pipeline, tasks=tasks, workers=workers, logging_dir=f"{out}/logs/{name}").run()

    run("filter", [JsonlReader(source, text_key=field), *extract, GopherRepetitionFilter(), GopherQualityFilter(),
                   C4QualityFilter(filter_no_terminal_punct=False), JsonlWriter(f"{out}/filtered")], workers)
    run("sign", [JsonlReader(f"{out}/filtered"), MinhashDedupSignature(f"{out}/sign", config=config)], workers)
    run("buckets", [MinhashDedupBuckets(f"{out}/sign", f"{out}/buckets", config=config)], config.num_buckets)
    run("cluster", [MinhashDedupCluster(f"{out}/buckets", f"{out}/remove", config=config)], 1)
    run("write", [JsonlReader(f"{out}/filtered"), MinhashDedupFilter(f"{out}/remove"), JsonlWriter(f"{out}/result")],
        workers)
"""
OURS = """
import sys
from pathlib import Path
from chatloom import recipe

if __name__ == "__main__":
    source, out, field, workers = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    engine = {"engine": {"workers": workers}}
    sizes = {"shards": {"part_megabytes": float(sys.argv[5]), "shard_megabytes": float(sys.argv[5])}}

    def make(kind, settings, inputs):
        return recipe.run_stage(kind, {**engine, **settings}, inputs, out / kind, quiet=True)

    texts = make("documents", sizes, {"pages": [source]})
    labels = make("labels", {"labellers": {"language": {}, "rules": {}, "c4": {}}}, {"documents": texts})
    copies = make("duplicates", {"url": False}, {"documents": texts})
    inputs = {"documents": texts, "labels": labels, "duplicates": copies}
    make("selection", {"rules": {"preset": "web"}, "cut": ["c4_cut"]}, inputs)
"""


def main() -> None:
    """Measure both sides in turn, print one JSON document, and write it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--datatrove", required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--documents", type=int, default=4000)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for what in SOURCES:
            source = Path(folder) / what
            records, size = prepare(options.data, what, source, options.documents, files=2 * workers)
            seconds: dict[str, list[float]] = {"chatloom": [], "datatrove": []}
            left: dict[str, int] = {}
            for _ in range(options.repeats):
                for side in seconds:
                    taken, left[side] = measure(
                        side, options.datatrove, source, Path(folder), FIELDS[what], workers, size
                    )
                    seconds[side].append(taken)
            medians = {side: statistics.median(values) for side, values in seconds.items()}
            results.append(
                {
                    "work": what,
                    "records": records,
                    "megabytes": round(size / 1e6, 1),
                    "documents_left": left,
                    "seconds": {side: [round(value, 2) for value in values] for side, values in seconds.items()},
                    "documents_per_second": {side: round(records / value, 1) for side, value in medians.items()},
                    "ratio": round(medians["datatrove"] / medians["chatloom"], 2),
                }
            )
    report = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {workers} processors, Python {platform.python_version()}",
        "datatrove": version(options.datatrove, "datatrove"),
        "chatloom": version(sys.executable, "chatloom"),
        "results": results,
    }
    print(json.dumps(report, indent=1))
    if options.write:
        target = Path(__file__).parent / "results" / f"against_datatrove-{report['date']}.json"
        target.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def prepare(data: Path, what: str, source: Path, documents: int, files: int) -> tuple[int, int]:
    """Write `documents` records as JSON lines into some files; how many records and bytes these are."""
    source.mkdir()
    rows: list[dict[str, Any]] = []
    for name in SOURCES[what]:
        with gzip.open(next(data.rglob(name)), "rt", encoding="utf-8", newline="\n") as lines:
            rows += [json.loads(line) for line in lines]
    rows = rows[:documents]
    rows += rows[::COPIES_EVERY]
    field = FIELDS[what]
    size = 0
    for number in range(files):
        text = "".join(
            json.dumps({"id": f"{number}-{i}", field: row[field]}, ensure_ascii=False) + "\n"
            for i, row in enumerate(rows[number::files])
        )
        (source / f"{number:03d}.jsonl").write_text(text, encoding="utf-8")
        size += len(text.encode())
    return len(rows), size


def measure(
    side: str, datatrove: str, source: Path, folder: Path, field: str, workers: int, size: int
) -> tuple[float, int]:
    """Seconds of one run of one side, and how many documents it left."""
    out = folder / side
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    program = out / "program.py"
    program.write_text(THEIRS if side == "datatrove" else OURS, encoding="utf-8")
    megabytes = str(max(1.0, size / 1e6 / (4 * workers)))
    python = datatrove if side == "datatrove" else sys.executable
    started = time.perf_counter()
    done = subprocess.run(
        [python, str(program), str(source), str(out), field, str(workers), megabytes], capture_output=True, text=True
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    return seconds, count(side, out)


def count(side: str, out: Path) -> int:
    """Documents that a side left."""
    if side == "datatrove":
        total = 0
        for file in (out / "result").rglob("*.jsonl.gz"):
            with gzip.open(file, "rt", encoding="utf-8", newline="\n") as lines:
                total += sum(1 for _ in lines)
        return total
    manifest = json.loads((out / "selection" / "artifact.json").read_text(encoding="utf-8"))
    return int(manifest["metrics"]["documents"])


def version(python: str, package: str) -> str:
    """Version of a package in an environment."""
    code = f"from importlib import metadata; print(metadata.version({package!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
