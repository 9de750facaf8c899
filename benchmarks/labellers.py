"""Documents a second of each labeller, one core, beside what was aimed at.

    python benchmarks/labellers.py [--data ../shared/data] [--repeats 5] [--only language rules] [--write]
    python benchmarks/labellers.py --with 'perplexity={"models": "runs/lm"}'

Documents of about 3 kB are cut from public texts: English (web pages and Wikipedia, novels, technical prose) and
Chinese (modern histories, wiki pages with code, poems as they are). Time is processor time, the best of the repeats,
all labellers taken in turn; a labeller that reads the language is given it. `--write` puts the result with date,
versions and machine into benchmarks/results/.
"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from chatloom import __version__
from chatloom.corpus.labellers import load_labeller
from chatloom.corpus.labelling import Labeller
from chatloom.corpus.record import Document

SETS = {
    "english web": ("en", ["en_web_wiki_sample"]),
    "english books": ("en", ["en_novels_a", "en_peps"]),
    "chinese": ("zh", ["zh_modern_history", "zh_vernacular_novels"]),
    "chinese wiki with code": ("zh", ["zh_oiwiki"]),
    "chinese poems": ("zh", ["zh_poetry"]),
}
BYTES = 3000
TARGETS = {"language": 10_000, "rules": 5_000}
PLAIN = ("language", "length", "rules", "url", "c4", "sentences", "code", "tex", "question_answer", "personal_data")


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--documents", type=int, default=512, help="of each set")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="labellers to measure")
    parser.add_argument("--with", nargs="*", dest="also", default=[], metavar="NAME=SETTINGS", help="further ones")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    settings: dict[str, Mapping[str, Any]] = {name: {} for name in PLAIN}
    settings["sensitive"] = {"lists": {"en": [str(options.data / "clean" / "badwords_en.txt")]}}
    settings |= {name: json.loads(text) for name, _, text in (item.partition("=") for item in options.also)}
    labellers = {
        name: build(name, values) for name, values in settings.items() if not options.only or name in options.only
    }
    sets = {
        name: list(documents(options.data / "pretrain", files, language, options.documents))
        for name, (language, files) in SETS.items()
    }
    result = {
        "date": date.today().isoformat(),
        "chatloom": __version__,
        "machine": f"{platform.machine()}, {platform.python_implementation()} {platform.python_version()}, one core",
        "bytes a document": {name: round(mean_bytes(own)) for name, own in sets.items()},
        "documents/s": measure(labellers, sets, options.repeats),
        "targets": {name: TARGETS[name] for name in labellers if name in TARGETS},
    }
    print(json.dumps(result, indent=1))
    if options.write:
        target = Path(__file__).parent / "results" / f"labellers-{result['date']}.json"
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def build(name: str, settings: Mapping[str, Any]) -> Labeller[Any]:
    """The labeller of a name with these settings."""
    kind = load_labeller(name)
    return kind(kind.Settings.parse(settings, where=name))


def documents(folder: Path, files: Sequence[str], language: str, count: int) -> Iterator[Document]:
    """Pieces of about 3 kB of the files' texts, as many of each file."""
    labels = {"language": language}
    for file in files:
        left = count // len(files)
        for number, text in enumerate(texts(folder / f"{file}.jsonl.gz")):
            for start in range(0, max(len(text), 1), BYTES if language == "en" else BYTES // 3):
                piece = text[start : start + (BYTES if language == "en" else BYTES // 3)]
                if left and (start == 0 or len(piece) > BYTES // 6):
                    url = f"https://www.site{number % 97}.example.com/{file}/{start}"
                    yield Document(f"{file}/{number}/{start}", piece, file, url, labels=labels)
                    left -= 1
            if not left:
                break


def texts(path: Path) -> Iterator[str]:
    """Texts of a packed file of JSON lines."""
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        for line in file:
            yield json.loads(line)["text"]


def mean_bytes(found: Sequence[Document]) -> float:
    """Mean length in UTF-8."""
    return sum(len(document.text.encode("utf-8")) for document in found) / max(len(found), 1)


def measure(
    labellers: Mapping[str, Labeller[Any]], sets: Mapping[str, list[Document]], repeats: int
) -> dict[str, dict[str, int]]:
    """Documents a second of each labeller on each set; the first round is not counted."""
    best: dict[tuple[str, str], float] = {}
    for round_number in range(repeats + 1):
        for kind, found in sets.items():
            for name, labeller in labellers.items():
                fresh = [replace(document) for document in found]
                started = time.process_time()
                for at in range(0, len(fresh), 256):
                    labeller.label(fresh[at : at + 256])
                seconds = time.process_time() - started
                if round_number:
                    best[name, kind] = min(best.get((name, kind), seconds), seconds)
    return {name: {kind: round(len(sets[kind]) / best[name, kind]) for kind in sets} for name in labellers}


if __name__ == "__main__":
    main()
