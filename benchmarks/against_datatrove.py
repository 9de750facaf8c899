"""Raw records to chosen documents: chatloom's chain beside datatrove's, same records, same machine, in turn.

    python3 -m venv theirs && theirs/bin/pip install "datatrove[io,processing]" spacy lxml_html_clean
    python benchmarks/against_datatrove.py --datatrove theirs/bin/python [--data FOLDER] [--repeats 3] [--write]

Texts: English novels, stories, technical prose and web pages, lines joined to paragraphs, in pieces of 3 kB, as web
pages are. Pages: 145 news articles as HTML. Every tenth record comes twice, every second of these with one word in a
hundred replaced. Steps on both sides, those that both run without a network: reading JSON lines; with pages,
trafilatura in its fast mode; Gopher's rules for repetition and quality; C4's rules for lines and pages; near copies by
MinHash; writing. Only chatloom also tells the language (datatrove's detector is a download), compares copies exactly,
searches for equal texts, and keeps labels and what it dropped.

datatrove at its best on one machine: a task and a process a processor, started by fork, which spares it importing
everything anew; signatures in the pipeline that filters, so that no text is read for them; buffers as large as the
files; nothing compressed. spacy and lxml_html_clean are needed by its rules and its extractor, and its extras lack
them; without the second its extractor's process dies and the run hangs. Every side is a process of its own, started
anew each time.

What stays is compared by id, so that both sides do the same work. datatrove takes a punctuation mark for a word and,
with Gopher's limit of 0.8 on words with a letter, drops a third of these texts before C4's rules see them; 0.65 here.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from measure import HERE, Report, arguments, find, in_turn, not_possible, ratio, records, write_lines

from chatloom.corpus.engine.choice import usable_cpus
from chatloom.corpus.record import document_files, read_documents

SOURCES = {
    "texts": ("en_novels_a", "en_novels_b", "en_peps", "en_children_stories", "en_web_wiki_sample"),
    "pages": ("extraction_articles",),
}
FIELDS = {"texts": "text", "pages": "html"}
BARS = {"texts": 3.0, "pages": 1.0}  # times datatrove's documents a second
PIECE = 3000  # characters
COPIES_EVERY = 10
CHANGED = 0.01  # words of every second copy that are replaced
COPY = "-again"
SECONDS = 3600  # of one run, before it counts as hanging

THEIRS = """
import sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.extractors import Trafilatura
from datatrove.pipeline.filters import C4QualityFilter, GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.logging import logger

if __name__ == "__main__":
    logger.remove()
    source, out, field, workers = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    config = MinhashConfig()
    fast = Trafilatura(favour_precision=False, deduplicate=False, timeout=20, no_fallback=True)

    def run(name, pipeline, tasks):
        LocalPipelineExecutor(pipeline=pipeline, tasks=tasks, workers=workers, start_method="fork",
                              logging_dir=f"{out}/logs/{name}").run()

    run("filter", [JsonlReader(source, text_key=field), *([fast] if field == "html" else []), GopherRepetitionFilter(),
                   GopherQualityFilter(max_non_alpha_words_ratio=0.65), C4QualityFilter(),
                   JsonlWriter(f"{out}/filtered", compression=None),
                   MinhashDedupSignature(f"{out}/sign", config=config)], workers)
    run("buckets", [MinhashDedupBuckets(f"{out}/sign", f"{out}/buckets", config=config, lines_to_buffer=-1)],
        config.num_buckets)
    run("cluster", [MinhashDedupCluster(f"{out}/buckets", f"{out}/remove", config=config, lines_to_buffer=-1)], 1)
    run("write", [JsonlReader(f"{out}/filtered"), MinhashDedupFilter(f"{out}/remove", lines_to_buffer=-1),
                  JsonlWriter(f"{out}/result", compression=None)], workers)
"""
OURS = """
import sys
from pathlib import Path
from chatloom import recipe

if __name__ == "__main__":
    source, out, workers, megabytes = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[4]), float(sys.argv[5])
    engine = {"engine": {"workers": workers}}
    sizes = {"shards": {"part_megabytes": megabytes, "shard_megabytes": megabytes}}

    def make(kind, settings, inputs):
        return recipe.run_stage(kind, settings, inputs, out / kind, quiet=True)

    texts = make("documents", {**engine, **sizes}, {"pages": [source]})
    labellers = {"language": {}, "rules": {}, "c4": {"min_line_words": 3}}
    labels = make("labels", {**engine, "labellers": labellers}, {"documents": texts})
    copies = make("duplicates", {"url": False}, {"documents": texts})
    chosen = {"rules": {"preset": "web"}, "cut": ["c4_cut", "c4_citations"],
              "keep": "c4_sentences >= 5 and c4_curly_brackets == 0 and c4_lorem_ipsum == 0"}
    make("selection", {**engine, **chosen}, {"documents": texts, "labels": labels, "duplicates": copies})
"""


def main() -> None:
    """Measure both sides in turn, print, and write if asked to."""
    parser = arguments(__doc__ or "", repeats=3)
    parser.add_argument("--datatrove", type=Path, default=HERE.parent / "theirs" / "bin" / "python", metavar="PYTHON")
    parser.add_argument("--documents", type=int, default=6000, help="texts at most, before some come twice")
    parser.add_argument("--page-copies", type=int, default=4, help="how often the pages come, changed a little")
    options = parser.parse_args()
    if not options.datatrove.is_file():
        not_possible(f"{options.datatrove}: no such interpreter; see the first lines of this file")
    report = Report("trafilatura", "numpy", "pyarrow")
    names = ("datatrove", "trafilatura", "numpy", "spacy")
    report.head["versions"]["theirs"] = {name: version_there(options.datatrove, name) for name in names}
    results = [compare(what, options) for what in SOURCES]
    report.finish({"bars": BARS, "results": results}, options)


def compare(what: str, options: Any) -> dict[str, Any]:
    """One kind of records through both chains."""
    workers = usable_cpus()
    rows = texts(options.data, options.documents) if what == "texts" else pages(options.data, options.page_copies)
    rows += [again(row, number, FIELDS[what]) for number, row in enumerate(rows[::COPIES_EVERY])]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "source").mkdir()
        size = sum(
            write_lines(folder / "source" / f"{number:03d}.jsonl", rows[number::workers]) for number in range(workers)
        )
        run = partial(run_side, folder=folder, field=FIELDS[what], workers=workers, size=size, python=options.datatrove)
        times = in_turn({side: partial(run, side) for side in ("chatloom", "datatrove")}, options.repeats, warm_up=1)
        ours, theirs = kept(folder / "chatloom"), kept_theirs(folder / "datatrove")
        steps = steps_of(folder / "chatloom")
    return {
        "work": what,
        "records": len(rows),
        "megabytes": round(size / 1e6, 1),
        "documents_left": {"chatloom": len(ours), "datatrove": len(theirs)},
        "left_by_both": len(ours & theirs),
        "left_by_either": len(ours | theirs),
        "seconds": {side: found.seconds() for side, found in times.items()},
        "documents_per_second": {side: found.rates(len(rows), 1) for side, found in times.items()},
        "times_as_fast": ratio(times["datatrove"], times["chatloom"]),
        "chatloom_seconds_by_stage": steps,
    }


def texts(data: Path, count: int) -> list[dict[str, Any]]:
    """Pieces of all sources in turn, as many of each as there are, `count` at most."""
    found: list[list[str]] = []
    for name in SOURCES["texts"]:
        pieces = []
        for row in records(find(data, f"{name}.jsonl.gz")):
            text = re.sub(r"(?<!\n)\n(?!\n)", " ", row["text"])
            pieces += [text[at : at + PIECE] for at in range(0, max(len(text) - PIECE // 4, 1), PIECE)]
        found.append(pieces)
    whole = sum(map(len, found))
    chosen = [piece for own in found for piece in own[: max(1, round(count * len(own) / whole))]]
    random.Random(0).shuffle(chosen)
    return [{"id": f"text-{number:06d}", "text": text} for number, text in enumerate(chosen[:count])]


def pages(data: Path, copies: int) -> list[dict[str, Any]]:
    """The pages `copies` times, all but the first time with words of their own in each paragraph, so no copies."""
    rows = list(records(find(data, f"{SOURCES['pages'][0]}.jsonl.gz")))
    rng = random.Random(0)
    vocabulary = re.findall(r"[a-z]{4,}", " ".join(row["gold_text"] for row in rows))
    found = []
    for copy in range(copies):
        for number, row in enumerate(rows):
            html = row["html"] if not copy else replaced(row["html"], 0.5, vocabulary, rng)
            found.append({"id": f"page-{copy}-{number:04d}", "html": html})
    return found


def replaced(text: str, share: float, vocabulary: list[str], rng: random.Random) -> str:
    """A share of the lower-case words that stand between spaces, others in their place; mark-up stays."""
    return re.sub(
        r"(?<= )[a-z]{4,}(?= )", lambda m: rng.choice(vocabulary) if rng.random() < share else m.group(), text
    )


def again(row: Mapping[str, Any], number: int, field: str) -> dict[str, Any]:
    """A record once more; every second one a little changed."""
    text = row[field]
    if number % 2:
        text = replaced(text, CHANGED, ["certainly"], random.Random(number))
    return {"id": f"{row['id']}{COPY}", field: text}


def run_side(side: str, *, folder: Path, field: str, workers: int, size: int, python: Path) -> None:
    """One run of one side, in a process of its own."""
    out = folder / side
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    program = out / "program.py"
    program.write_text(THEIRS if side == "datatrove" else OURS, encoding="utf-8")
    megabytes = str(max(1.0, size / 1e6 / (2 * workers)))
    command = [python if side == "datatrove" else sys.executable, program, folder / "source", out, field, workers]
    try:
        done = subprocess.run(
            [*map(str, command), megabytes], capture_output=True, text=True, errors="replace", timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        raise SystemExit(f"{side} did not end in {SECONDS} s") from None
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")


def kept(out: Path) -> set[str]:
    """Documents that chatloom left; a copy counts as what it is a copy of."""
    files = document_files(out / "selection")
    return {document.id.removesuffix(COPY) for file in files for document in read_documents(file)}


def kept_theirs(out: Path) -> set[str]:
    """Documents that datatrove left."""
    files = (out / "result").glob("*.jsonl")
    return {row["id"].removesuffix(COPY) for file in files for row in records(file)}


def steps_of(out: Path) -> dict[str, float]:
    """Seconds of each stage of chatloom's last run."""
    manifests = {kind: out / kind / "artifact.json" for kind in ("documents", "labels", "duplicates", "selection")}
    return {
        kind: round(json.loads(file.read_text(encoding="utf-8"))["wall_seconds"], 2) for kind, file in manifests.items()
    }


def version_there(python: Path, package: str) -> str:
    """Version of a package in another environment."""
    code = f"from importlib import metadata; print(metadata.version({package!r}))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True)
    if done.returncode:
        not_possible(f"{python}: {package} is not installed there; see the first lines of this file")
    return done.stdout.strip()


if __name__ == "__main__":
    main()
