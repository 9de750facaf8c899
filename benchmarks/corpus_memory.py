"""Peak memory of each stage from raw texts to batches, over an input and over one of many times its size.

    python benchmarks/corpus_memory.py [--data FOLDER] [--megabytes 8] [--times 1 5 20] [--write]

English and Chinese documents of about 3 kB, cut from public books. The larger inputs are the same documents with their
words (Chinese: characters) in another order each time, so that they are new ones; every twentieth document is a plain
copy. Memory is what a stage's manifest says: resident sizes of its process and all children, sampled every 0.2 s. One
process works, so that the number of shards is not hidden behind the number of processors.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measure import Report, arguments, find, records

FILES = {"en": "en_novels_b.jsonl.gz", "zh": "zh_vernacular_novels.jsonl.gz"}
CHARACTERS = {"en": 3000, "zh": 1000}
COPIES = 20  # every so many documents one is a copy
STAGES = ("corpus.documents", "corpus.labels", "corpus.duplicates", "corpus.selection", "tokenizer", "tokens")
RUN = "import sys; from chatloom.cli import main; sys.exit(main(sys.argv[1:]))"


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--megabytes", type=float, default=8.0, help="of text in the smallest input")
    parser.add_argument(
        "--times", type=int, nargs="+", default=[1, 5, 20], help="sizes of the inputs, in smallest ones"
    )
    options = parser.parse_args()
    report = Report("numpy", "pyarrow", "tokenizers")
    base = list(pieces(options.data, options.megabytes * 1e6))
    results: dict[str, Any] = {}
    for times in options.times:
        with tempfile.TemporaryDirectory() as place:
            results[str(times)] = one(Path(place), base, times)
    first, last = (results[str(times)] for times in (options.times[0], options.times[-1]))
    growth = {stage: round(last["peak_mb"][stage] / first["peak_mb"][stage], 3) for stage in STAGES}
    report.finish({"sizes": results, "growth": growth, "times": options.times[-1] / options.times[0]}, options)


def one(place: Path, base: list[str], times: int) -> dict[str, Any]:
    """Sizes of an input, and for each stage its peak in MB and its seconds."""
    (place / "texts").mkdir()
    size, documents = write(place / "texts", base, times)
    entry: dict[str, Any] = {
        "stage": "corpus",
        "pages": {"path": "texts"},
        "documents": {"shards": {"part_megabytes": 2.0, "shard_megabytes": 2.0}},
        "labels": {"labellers": {"language": {}, "rules": {}, "personal_data": {}}},
        "duplicates": {"memory_megabytes": 16},
        "engine": {"workers": 1},
    }
    stages = {
        "corpus": entry,
        "tokenizer": {
            "stage": "tokenizer",
            "documents": {"from": "corpus"},
            "vocab_size": 8192,
            "sample_bytes": 4_000_000,
        },
        "tokens": {"stage": "tokens", "documents": {"from": "corpus"}, "vocabulary": {"from": "tokenizer"}},
    }
    (place / "memory.yaml").write_text(json.dumps({"name": "memory", "seed": 0, "stages": stages}), encoding="utf-8")
    for stage in STAGES:  # each in a process of its own, which holds nothing of those before
        command = [sys.executable, "-c", RUN, "run", "memory.yaml", "--quiet", "--until", stage]
        subprocess.run(command, cwd=place, check=True, stdout=subprocess.DEVNULL)
    made = {stage: manifest(place / "runs" / "memory" / stage) for stage in STAGES}
    return {
        "megabytes": round(size / 1e6, 1),
        "documents": documents,
        "peak_mb": {stage: round(values["peak_memory_bytes"] / 1e6) for stage, values in made.items()},
        "seconds": {stage: values["wall_seconds"] for stage, values in made.items()},
    }


def manifest(folder: Path) -> dict[str, Any]:
    """What an artifact says of itself."""
    values: dict[str, Any] = json.loads((folder / "artifact.json").read_text(encoding="utf-8"))
    return values


def pieces(data: Path, size: float) -> Iterator[str]:
    """Texts of both languages in turn, `size` bytes in all."""
    left, sources = size, [cut(data, language) for language in FILES]
    while left > 0:
        for source in sources:
            text = next(source)
            left -= len(text.encode())
            yield text


def cut(data: Path, language: str) -> Iterator[str]:
    """Pieces of the books of a language."""
    size = CHARACTERS[language]
    for row in records(find(data, FILES[language])):
        yield from (row["text"][start : start + size] for start in range(0, len(row["text"]) - size, size))


def write(folder: Path, base: list[str], times: int) -> tuple[int, int]:
    """Files of 4 MB or so; returns bytes of text and the number of documents."""
    size, number, rows = 0, 0, list[str]()
    for turn in range(times):
        rng = random.Random(turn)
        for place, text in enumerate(base):
            changed = text if turn == 0 or place % COPIES == 0 else shuffled(text, rng)
            size += len(changed.encode())
            rows.append(json.dumps({"id": f"{turn}-{place}", "text": changed}, ensure_ascii=False) + "\n")
            number += 1
            if len(rows) == 1500:
                (folder / f"{number:09d}.jsonl").write_text("".join(rows), encoding="utf-8")
                rows = []
    (folder / f"{number:09d}-last.jsonl").write_text("".join(rows), encoding="utf-8")
    return size, number


def shuffled(text: str, rng: random.Random) -> str:
    """Its words in another order, or its characters where there are hardly any spaces."""
    words = text.split(" ")
    if len(words) * 20 > len(text):
        rng.shuffle(words)
        return " ".join(words)
    return "".join(rng.sample(text, len(text)))


if __name__ == "__main__":
    main()
