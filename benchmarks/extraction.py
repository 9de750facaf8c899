"""HTML to text: how much of the true text each extractor finds, how much else it takes along, and how fast it is.

    python benchmarks/extraction.py [--data FOLDER] [--repeats 3] [--write]

Articles: 145 English pages with their whole text (scrapinghub/article-extraction-benchmark; the other part of its 181
pages is kept elsewhere), and 108 pages of mozilla/readability. Chinese: 14 news pages with text and title. Segments:
520 pages of trafilatura's own test set, most of them German, with passages that must be kept and others that must not.

`4-grams`: of words, of characters in Chinese; precision and recall are means over pages, F1 their harmonic mean, as
that benchmark's `evaluate.py` has them. `tokens`: words and Chinese characters, small letters; F1 is the mean over
pages. Rates: pages a second of one core on the articles, and of the stage `documents` on all processors.
"""

from __future__ import annotations

import base64
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, get_args

from measure import Report, arguments, find, in_turn, records, write_lines

from chatloom import recipe
from chatloom.corpus.engine.choice import usable_cpus
from chatloom.corpus.extraction.extract import Extractor, extract
from chatloom.corpus.reading.decoding import Undecodable

BAR = {"trafilatura": 0.955}  # F1 of the articles
TARGETS = {"trafilatura": 60, "resiliparse": 600, "resiliparse-main": 600}  # pages a second of the stage, two cores
TOKEN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|[^\W\u3400-\u9fff\uf900-\ufaff]+")
SHINGLE = 4
STAGED = ("trafilatura", "resiliparse-main")


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = arguments(__doc__ or "", repeats=3)
    parser.add_argument("--copies", type=int, default=4, help="how often the stage gets the articles")
    options = parser.parse_args()
    report = Report("trafilatura", "resiliparse")
    articles = list(records(find(options.data, "extraction_articles.jsonl.gz")))
    sets: dict[str, Callable[[Extractor], dict[str, Any]]] = {
        "articles": partial(texts, articles, [row["gold_text"] for row in articles]),
        "readability": partial(readability, list(records(find(options.data, "extraction_readability.jsonl.gz")))),
        "chinese": partial(chinese, list(records(find(options.data, "zh_news_pages.jsonl.gz")))),
        "segments": partial(segments, list(records(find(options.data, "extraction_segments.jsonl.gz")))),
    }
    names: tuple[Extractor, ...] = get_args(Extractor)
    results: dict[str, Any] = {name: {kind: score(name) for kind, score in sets.items()} for name in names}
    pages = [row["html"] for row in articles]
    times = in_turn({name: partial(all_pages, pages, name) for name in names}, options.repeats, warm_up=0)
    for name in names:
        results[name]["pages_per_second_of_a_core"] = times[name].rates(len(pages), 1)
    for name, rates in staged(articles, options.copies, options.repeats).items():
        results[name][f"pages_per_second_of_the_stage_on_{usable_cpus()}_processors"] = rates
    report.finish({"bars": {"articles, 4-grams F1": BAR, "stage": TARGETS}, "results": results}, options)


def all_pages(pages: Sequence[str], name: Extractor) -> None:
    """Extract every page."""
    for page in pages:
        extract(page, name)


def texts(rows: Sequence[dict[str, Any]], wanted: Sequence[str], name: Extractor) -> dict[str, Any]:
    """Both ways of comparing whole texts."""
    return compared([extract(row["html"], name).text for row in rows], wanted)


def readability(rows: Sequence[dict[str, Any]], name: Extractor) -> dict[str, Any]:
    """Pages with an accepted text."""
    return texts(rows, [row["gold_text"] for row in rows], name)


def chinese(rows: Sequence[dict[str, Any]], name: Extractor) -> dict[str, Any]:
    """Pages with a reference: text, and whether the page's title holds the article's."""
    known = [row for row in rows if row.get("reference")]
    pages = [extract(row["html"], name) for row in known]
    found = [plain(row["reference"]["title"]) in plain(page.title) for row, page in zip(known, pages, strict=True)]
    result = compared([page.text for page in pages], [row["reference"]["content"] for row in known])
    return result | {"titles_found": sum(found)}


def segments(rows: Sequence[dict[str, Any]], name: Extractor) -> dict[str, Any]:
    """Passages to be kept and not to be kept that are in the text, letter by letter."""
    kept = missed = wrong = right = unreadable = 0
    for row in rows:
        html = base64.b64decode(row["html_base64"]) if row.get("html_base64") else row["html"]
        try:
            text = extract(html, name).text
        except Undecodable:  # the stage puts it into quarantine: nothing of it is found
            text, unreadable = "", unreadable + 1
        kept += sum(segment in text for segment in row["with"])
        missed += sum(segment not in text for segment in row["with"])
        wrong += sum(segment in text for segment in row["without"])
        right += sum(segment not in text for segment in row["without"])
    precision, recall = kept / max(kept + wrong, 1), kept / max(kept + missed, 1)
    return {
        "pages": len(rows),
        "pages_in_no_known_encoding": unreadable,
        "segments": kept + missed + wrong + right,
        **shown(precision, recall, harmonic(precision, recall)),
        "accuracy": round((kept + right) / (kept + missed + wrong + right), 4),
    }


def compared(found: Sequence[str], wanted: Sequence[str]) -> dict[str, Any]:
    """4-grams and tokens of texts against the true ones."""
    grams = [overlap(shingles(a), shingles(b)) for a, b in zip(found, wanted, strict=True)]
    words = [
        overlap(Counter(TOKEN.findall(a.lower())), Counter(TOKEN.findall(b.lower()))) for a, b in zip(found, wanted)
    ]
    precision, recall = mean(pair[0] for pair in grams), mean(pair[1] for pair in grams)
    return {
        "pages": len(found),
        "4-grams": shown(precision, recall, harmonic(precision, recall)),
        "tokens": shown(mean(p for p, _ in words), mean(r for _, r in words), mean(harmonic(*pair) for pair in words)),
    }


def shingles(text: str) -> Counter[tuple[str, ...]]:
    """Runs of four tokens; of a shorter text the text itself."""
    words = TOKEN.findall(text)
    return Counter(tuple(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1)) if words)


def tokens(text: str) -> Counter[str]:
    """Words and Chinese characters."""
    return Counter(TOKEN.findall(text))


def overlap(found: Counter[Any], wanted: Counter[Any]) -> tuple[float, float]:
    """Precision and recall of a multiset; of two empty ones both are 1."""
    common = (found & wanted).total()
    if not found and not wanted:
        return 1.0, 1.0
    return common / max(found.total(), 1), common / max(wanted.total(), 1)


def harmonic(a: float, b: float) -> float:
    """Harmonic mean, 0 of two zeros."""
    return 2 * a * b / (a + b) if a + b else 0.0


def shown(precision: float, recall: float, f1: float) -> dict[str, float]:
    """Four digits of each."""
    return {"precision": round(precision, 4), "recall": round(recall, 4), "f1": round(f1, 4)}


def plain(text: str) -> str:
    """Without white space and with one kind of quotation mark."""
    return re.sub(r"[“”‘’\"']", '"', re.sub(r"\s", "", text))


def staged(articles: Sequence[dict[str, Any]], copies: int, repeats: int) -> dict[str, dict[str, float]]:
    """Pages a second of the stage `documents`, its processes' start included."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "pages").mkdir()
        rows = [
            {"id": f"{copy}-{number}", "html": row["html"]}
            for copy in range(copies)
            for number, row in enumerate(articles)
        ]
        files = 2 * usable_cpus()
        for number in range(files):
            write_lines(folder / "pages" / f"{number:03d}.jsonl", rows[number::files])

        def run(name: str) -> None:
            shutil.rmtree(folder / "made", ignore_errors=True)
            settings = {"extraction": {"extractor": name}, "shards": {"part_megabytes": 1}}
            made = recipe.run_stage("documents", settings, {"pages": [folder / "pages"]}, folder / "made", quiet=True)
            if made.metrics["documents"] + sum(made.metrics["dropped"].values()) != len(rows):
                raise SystemExit(f"{name}: {made.metrics}; expected {len(rows)} pages")

        times = in_turn({name: partial(run, name) for name in STAGED}, repeats, warm_up=0)
        return {name: times[name].rates(len(rows), 1) for name in STAGED}


if __name__ == "__main__":
    main()
