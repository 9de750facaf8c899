"""The search for copies, step by step: documents a second of one process, disk a document, precision and recall.

    python benchmarks/duplicates.py [--data FOLDER] [--documents 4000] [--repeats 3] [--write]

Texts are novels and PEPs (English) and modern histories (Chinese), cut to about 3 kB; a tenth of them is added once
more with words or characters replaced. One process; medians of all steps in turn, again and again. `stage` is the whole
stage `duplicates` on the labelled passages, what its clusters say against the labels: copy to original, 0.7 and more.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from measure import Report, arguments, find, in_turn, records, write_lines

from chatloom import recipe
from chatloom.corpus.duplicates import exact, near, passages, sets, windows
from chatloom.corpus.duplicates.contamination import Contamination, ContaminationSettings
from chatloom.corpus.duplicates.minhash import Banding, band_keys, signatures
from chatloom.corpus.duplicates.places import names
from chatloom.corpus.duplicates.runs import Run
from chatloom.corpus.duplicates.search import CopySettings, search
from chatloom.corpus.duplicates.shingling import shingle_rows
from chatloom.corpus.record import Document

SOURCES = {"en": ("en_novels_a", "en_peps"), "zh": ("zh_modern_history",)}
BANDINGS = ((14, 8), (10, 4), (16, 5), (20, 5), (25, 5), (20, 6), (24, 6), (28, 6))
SIZE = 3000  # bytes of a text
WINDOW = 100
BAR = {"precision": 0.97, "recall": 0.97}
TARGETS = {"shingles and signatures": 3000}


def main() -> None:
    """Measure, print one JSON document, and write it if asked to."""
    parser = arguments(__doc__ or "", repeats=3)
    parser.add_argument("--documents", type=int, default=4000)
    options = parser.parse_args()
    report = Report("numpy", "pyarrow")
    labelled = list(records(find(options.data, "near_duplicates_labelled.jsonl.gz")))
    results = {
        "bar": BAR,
        "stage": staged(labelled),
        "steps": [step for lang in SOURCES for step in steps(options.data, lang, options.documents, options.repeats)],
        "bandings": [quality(labelled, *banding) for banding in BANDINGS],
        "contamination": contamination(options.data),
    }
    report.finish(results, options)


def texts(data: Path, language: str, n: int) -> list[str]:
    """About n texts of about SIZE bytes, the last tenth near copies of the first."""
    found: list[str] = []
    for name in SOURCES[language]:
        for row in records(find(data, f"{name}.jsonl.gz")):
            text = row["text"]
            size = len(text) // max(1, round(len(text.encode()) / SIZE)) + 1
            found += [text[start : start + size] for start in range(0, len(text), size)]
    rng = random.Random(0)
    found = rng.sample(found, min(n * 9 // 10, len(found)))
    return found + [changed(text, rng) for text in found[: n // 10]]


def changed(text: str, rng: random.Random) -> str:
    """The text with 1 % of its characters or words replaced."""
    units = list(text) if text.count(" ") < len(text) / 20 else text.split(" ")
    joint = "" if len(units) == len(text) else " "
    return joint.join(rng.choice(units) if rng.random() < 0.01 else unit for unit in units)


def steps(data: Path, language: str, n: int, repeats: int) -> list[dict[str, Any]]:
    """Each step on all texts in one shard and one range."""
    all_texts = texts(data, language, n)
    ids = [f"{number:06}" for number in range(len(all_texts))]
    documents = list(zip(ids, all_texts))
    rows = list(enumerate(all_texts))
    size = sum(len(text.encode()) for text in all_texts)
    names_of = names(ids).tolist()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def file(step: str) -> Path:
            return folder / step

        def verify() -> None:
            some = set(Run(file("wanted")).read()[:, 0].tolist())
            chosen = ((key, text) for key, text in zip(names_of, all_texts) if key in some)
            sets.write_sets(0, chosen, file("sets"))
            found = sets.Sets(sets.index_of(file("sets")), lambda _: file("sets"))
            near.write_edges([file("pairs")], found, file("edges"), threshold=0.7)

        def seen() -> None:
            passages.write_seen([file("lines")], file("seen"))
            consume(passages.seen_in_shard(0, rows, [file("seen")], unit="line"))

        def repeats_found() -> None:
            windows.write_shared([file("anchors")], file("shared"))
            windows.write_windows(0, rows, [file("shared")], file("windows"), min_characters=WINDOW)
            windows.write_repeats([file("windows")], file("repeats"))
            consume(windows.repeats_in_shard(0, range(len(rows)), [file("repeats")], min_characters=WINDOW))

        def signed() -> None:
            for start in range(0, len(all_texts), 128):
                found = shingle_rows(all_texts[start : start + 128])
                band_keys(signatures(found, near.BANDING), near.BANDING)

        work: list[tuple[str, Callable[[], Any], str | None]] = [
            ("text hashes", lambda: exact.write_hashes(documents, file("hashes")), "hashes"),
            ("shingles", lambda: [shingle_rows(all_texts[i : i + 128]) for i in range(0, len(rows), 128)], None),
            ("shingles and signatures", signed, None),
            ("band records, sorted on disk", lambda: near.write_bands(documents, file("bands")), "bands"),
            ("pairs", lambda: near.write_pairs([file("bands")], file("pairs"), file("wanted")), "pairs"),
            ("sets and verification", verify, "sets"),
            ("lines hashed", lambda: passages.write_passages(0, rows, file("lines"), unit="line"), "lines"),
            ("lines seen earlier", seen, "seen"),
            ("anchors", lambda: windows.write_anchors(0, rows, file("anchors"), min_characters=WINDOW), "anchors"),
            ("repeated windows", repeats_found, "windows"),
        ]
        times = in_turn({step: run for step, run, _ in work}, repeats)
        measured = []
        for step, _, output in work:
            disk = round(file(output).stat().st_size / len(rows), 1) if output else None
            measured.append(
                {"language": language, "step": step, "documents_per_second": times[step].rates(len(rows)),
                 "megabytes_per_second": times[step].rates(size / 1e6, 1), "disk_bytes_a_document": disk,
                 **({"target_documents_per_second": TARGETS[step]} if step in TARGETS else {})}
            )  # fmt: skip
        pairs, edges = Run(file("pairs")).count, Run(file("edges")).count
    return [*measured, {"language": language, "documents": len(rows), "pairs compared": pairs, "edges": edges}]


def consume(items: Iterable[object]) -> None:
    """Read to the end."""
    for _ in items:
        pass


def staged(labelled: list[dict[str, Any]]) -> dict[str, Any]:
    """Documents and duplicates as stages with their own settings."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_lines(folder / "passages.jsonl", [{"id": row["doc_id"], "text": row["text"]} for row in labelled])
        inputs = {"documents": recipe.run_stage("documents", {}, {"pages": [folder / "passages.jsonl"]},
                                                folder / "documents", quiet=True)}  # fmt: skip
        made = recipe.run_stage("duplicates", {}, inputs, folder / "duplicates", quiet=True)
        table = pa.concat_tables([pq.read_table(file) for file in sorted(made.path.glob("*/*.parquet"))])
    cluster = {row["id"]: row["cluster"] for row in table.select(["id", "cluster"]).to_pylist() if row["cluster"]}
    return {"settings": made.manifest["settings"], **judged(labelled, cluster)}


def judged(labelled: list[dict[str, Any]], cluster: dict[str, Any]) -> dict[str, float]:
    """Precision and recall: is a copy in one cluster with its original?"""
    base = {row["cluster"]: row["doc_id"] for row in labelled if row["op"] == "base"}
    copies = [row for row in labelled if row["op"] != "base"]
    same = np.array([cluster.get(r["doc_id"], r["doc_id"]) == cluster.get(base[r["cluster"]], base[r["cluster"]])
                     for r in copies])  # fmt: skip
    is_copy = np.array([row["is_duplicate"] for row in copies])
    return {
        "precision": round(float((same & is_copy).sum() / same.sum()), 4),
        "recall": round(float((same & is_copy).sum() / is_copy.sum()), 4),
    }


def quality(rows: list[dict[str, Any]], bands: int, rows_in_band: int) -> dict[str, Any]:
    """Precision and recall of a banding on the labelled pairs (copy to base, threshold 0.7), cost beside them."""
    documents = [Document(row["doc_id"], row["text"]) for row in rows]
    settings = CopySettings(url=False, exact=False, bands=bands, rows=rows_in_band)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        banding = Banding(bands, rows_in_band)
        near.write_bands(((d.id, d.text) for d in documents), folder / "bands", banding)
        pairs = near.write_pairs([folder / "bands"], folder / "pairs", folder / "wanted")
        _, groups = search([lambda: documents], folder / "search", settings)
    cluster = {document: group for group, ids in groups for document in ids}
    similarity = np.array([row["jaccard5_to_base"] for row in rows if row["op"] != "base" and row["is_duplicate"]])
    return {
        "bands x rows": f"{bands} x {rows_in_band}",
        **judged(rows, cluster),
        "recall by the formula": round(float(banding.probability(similarity).mean()), 4),
        "pairs compared": pairs,
        "compared at 0.1, 0.3, 0.5, 0.7": [round(float(banding.probability(j)), 4) for j in (0.1, 0.3, 0.5, 0.7)],
        "disk bytes/document": 16 * bands,
    }


def contamination(data: Path) -> dict[str, Any]:
    """Every fifth evaluation item planted in capitals without punctuation, and all texts as they are."""
    others = ("agieval.jsonl.gz", "en_gsm8k_test_first400.jsonl.gz")
    files = [*sorted((data / "eval").glob("*_mmlu_*.gz")), *(data / "eval" / name for name in others)]
    labeller = Contamination(ContaminationSettings(items=tuple(files), fields=("question",)))
    index = labeller.index
    filler = texts(data, "en", 400)
    planted = []
    for file in files:
        for number, row in enumerate(records(file), 1):
            if number % 5 == 0 and row["question"] and index.n_grams[index.items.index(f"{file.name}:{number}")]:
                plain = "".join(c if c.isalnum() else " " for c in row["question"]).upper()
                planted.append(Document(f"{file.name}:{number}", f"{filler[number % 400]}\n{plain}\n"))
    found = labeller.label(planted)
    clean: dict[str, list[int]] = {}
    begun, n_documents = time.process_time(), 0
    for path in sorted((data / "pretrain").glob("*.jsonl.gz")):
        batch = [Document(str(row["id"]), row["text"]) for row in records(path)]
        labels = labeller.label(batch)
        clean[path.name.split(".")[0]] = [len(batch), sum(row["contamination_items"] > 0 for row in labels)]
        n_documents += len(batch)
    return {
        "items": len(index.items),
        "too short to be searched for": int((index.n_grams == 0).sum()),
        "n-grams": len(index.grams),
        "planted": len(planted),
        "planted found": round(sum(row["contamination_items"] > 0 for row in found) / len(planted), 4),
        "texts, with an item": clean,
        "documents/s": round(n_documents / (time.process_time() - begun)),
    }


if __name__ == "__main__":
    main()
