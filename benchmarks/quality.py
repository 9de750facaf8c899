"""N-gram models and quality classifiers on real texts: how well they tell texts apart, how fast, in how much memory.

    python benchmarks/quality.py [--data FOLDER] [--orders 2 3 5] [--write]

Perplexity: trained on some books, measured on windows of others, against the same
windows with their words in random order. Quality: Wikipedia against crawled pages, cross-validated by document on
windows of 1,500 characters with white space collapsed (whole pages differ trivially, in length and line ends). Rates
count the processor time of one core. With scikit-learn installed, its hashing vectoriser and SGD stand beside ours.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measure import Report, arguments, find, records

from chatloom.corpus.ngrams.model import NgramModel
from chatloom.corpus.ngrams.training import NgramSettings, NgramTrainer
from chatloom.corpus.quality.classifier import QualityClassifier
from chatloom.corpus.quality.evidence import evidence
from chatloom.corpus.quality.separation import auc
from chatloom.corpus.quality.training import ClassifierSettings, QualityTrainer
from chatloom.corpus.split import split_value

BOOKS = {"en": ("en_novels_a", ("Conrad", "Hardy")), "zh": ("zh_vernacular_novels", ("红楼梦",))}
WINDOW = 1500
FOLDS = 5
DOCUMENT = 3000  # characters of a document, for rates


def main() -> None:
    """Measure, print one JSON document, and write it if asked to."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--orders", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    options = parser.parse_args()
    report = Report("numpy", "scikit-learn")
    rows = [perplexity(options.data, language, order) for language in BOOKS for order in options.orders]
    results = {"perplexity": rows, "quality": quality(find(options.data, "en_web_wiki_sample.jsonl.gz"))}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    report.finish({**results, "peak_memory_mb": peak}, options)


def seconds(work: Callable[[], object]) -> float:
    """Processor time of a piece of work."""
    start = time.process_time()
    work()
    return time.process_time() - start


def perplexity(data: Path, language: str, order: int) -> dict[str, Any]:
    """One model: rates, size, held-out cross-entropy, and AUC of real against shuffled windows of several lengths."""
    name, held_out = BOOKS[language]
    rows = list(records(find(data, f"{name}.jsonl.gz")))
    train = [row["text"] for row in rows if not any(book in row["id"] for book in held_out)]
    others = [row["text"] for row in rows if any(book in row["id"] for book in held_out)]
    real = [text[a : a + WINDOW] for text in others for a in range(0, min(len(text) - WINDOW, 6000), WINDOW)][:400]
    documents = [text[a : a + DOCUMENT] for text in others for a in range(0, len(text), DOCUMENT)]
    with tempfile.TemporaryDirectory() as place:
        with NgramTrainer(Path(place), NgramSettings(order=order)) as trainer:
            trainer.cutter(train[:1])  # tables of characters are made once a process
            training = seconds(lambda: (trainer.add(train), trainer.finish()))
        model = NgramModel.load(Path(place))
        scores = model.score(documents)
        scoring = seconds(lambda: model.score(documents))
        area = {}
        for length in (100, 200, 500, WINDOW):
            texts = [text[:length] for text in real]
            area[str(length)] = round(auc(model.score(texts, shuffle=1).perplexity, model.score(texts).perplexity), 4)
        return {
            "language": language,
            "order": order,
            "training_units": trainer.n_units,
            "training_units_per_second": round(trainer.n_units / training),
            "bytes_per_training_unit": round(model.n_bytes / trainer.n_units, 2),
            "held_out_nats_per_unit": round(float(scores.nats.sum() / scores.n_units.sum()), 4),
            "held_out_bits_per_byte": round(float(scores.nats.sum() / scores.n_bytes.sum() / np.log(2)), 4),
            "auc_by_characters": area,
            "documents_per_second": round(len(documents) / scoring),
            "units_per_document": round(float(scores.n_units.mean())),
            "units_per_second": round(float(scores.n_units.sum()) / scoring),
        }


def quality(path: Path) -> dict[str, Any]:
    """Wikipedia against crawl: AUC of windows and of documents, of trivial measures, what it goes by, and rates."""
    pages = [(row["id"], row["text"], "Wikipedia" in row["source"]) for row in records(path)]
    windows = [
        (key, collapsed[a : a + WINDOW], good)
        for key, text, good in pages
        for collapsed in [" ".join(text.split())]
        for a in range(0, len(collapsed) - WINDOW + 1, WINDOW)
    ]
    keys, texts, good = ([window[i] for window in windows] for i in range(3))
    truths = np.array(good)
    scores, classifier, training = cross_validated(keys, texts, good)
    documents = [text[:DOCUMENT] for _, text, _ in pages] * 5
    classifier.score(documents[:50])
    rate = len(documents) / seconds(lambda: classifier.score(documents))
    length = np.array([len(text) for _, text, _ in pages])
    line_ends = np.array([text.count("\n") / len(text) for _, text, _ in pages])
    whole = np.array([is_good for _, _, is_good in pages])
    return {
        "windows": [int(truths.sum()), int((~truths).sum())],
        "documents": [len(set(np.array(keys)[truths])), len(set(np.array(keys)[~truths]))],
        "auc_of_windows": round(auc(scores[truths], scores[~truths]), 4),
        "auc_of_documents": round(by_document(scores, keys, truths), 4),
        "auc_of_length_alone_on_whole_pages": round(auc(length[whole], length[~whole]), 4),
        "auc_of_line_ends_alone_on_whole_pages": round(auc(-line_ends[whole], -line_ends[~whole]), 4),
        "training_seconds": round(training, 2),
        "documents_per_second": round(rate),
        "characters_per_document": round(float(np.mean([len(text) for text in documents]))),
        "goes_by": {
            side: [row["text"] for row in told if row["towards"] == side]
            for told in [evidence(classifier, [t for t, g in zip(texts, good) if g],
                                  [t for t, g in zip(texts, good) if not g])]
            for side in ("good", "raw")
        },
        "scikit_learn": scikit_learn(keys, texts, truths, documents),
    }  # fmt: skip


def fold_of(key: str) -> int:
    """All windows of a document are in one fold."""
    return int(split_value(key, 0) * FOLDS)


def cross_validated(
    keys: Sequence[str], texts: Sequence[str], good: Sequence[bool]
) -> tuple[np.ndarray, QualityClassifier, float]:
    """Score of each window by the classifier of the other folds; the last one; mean time of a training."""
    scores, times = np.zeros(len(texts)), []
    for fold in range(FOLDS):
        inside = [i for i, key in enumerate(keys) if fold_of(key) != fold]
        outside = [i for i, key in enumerate(keys) if fold_of(key) == fold]
        with tempfile.TemporaryDirectory() as place:
            start = time.process_time()
            settings = ClassifierSettings(min_texts=10, folds=2, windows_per_text=100)
            with QualityTrainer(Path(place), settings, seed=1) as trainer:
                for side in (True, False):
                    own: dict[str, str] = {}  # a document is its windows, put together again
                    for i in inside:
                        if good[i] is side:
                            own[keys[i]] = own.get(keys[i], "") + texts[i]
                    trainer.add(list(own), list(own.values()), good=side)
                classifier = trainer.finish().classifier
            times.append(time.process_time() - start)
        scores[outside] = classifier.logits([texts[i] for i in outside])
    return scores, classifier, float(np.mean(times))


def by_document(scores: np.ndarray, keys: Sequence[str], truths: np.ndarray) -> float:
    """AUC of documents, each the mean of its windows."""
    groups: dict[tuple[str, bool], list[float]] = {}
    for score, key, truth in zip(scores, keys, truths):
        groups.setdefault((key, bool(truth)), []).append(float(score))
    means = {
        side: [np.mean(values) for (_, truth), values in groups.items() if truth is side] for side in (True, False)
    }
    return auc(means[True], means[False])


def scikit_learn(
    keys: Sequence[str], texts: Sequence[str], truths: np.ndarray, documents: Sequence[str]
) -> dict[str, Any] | None:
    """The same folds with scikit-learn's hashing vectoriser (1-2 words, binary) and SGD; None where not installed."""
    try:
        import sklearn
        from sklearn.feature_extraction.text import HashingVectorizer
        from sklearn.linear_model import SGDClassifier
    except ImportError:
        return None
    vectoriser = HashingVectorizer(ngram_range=(1, 2), n_features=1 << 20, binary=True, alternate_sign=False)
    folds = np.array([fold_of(key) for key in keys])
    scores, times = np.zeros(len(texts)), []
    for fold in range(FOLDS):
        inside = folds != fold
        model = SGDClassifier(loss="log_loss", class_weight="balanced", random_state=0)
        train = [text for text, keep in zip(texts, inside) if keep]
        times.append(
            seconds(lambda train=train, inside=inside, m=model: m.fit(vectoriser.transform(train), truths[inside]))
        )
        scores[~inside] = model.decision_function(
            vectoriser.transform([text for text, keep in zip(texts, inside) if not keep])
        )
    rate = len(documents) / seconds(lambda: model.predict_proba(vectoriser.transform(documents)))
    return {
        "version": sklearn.__version__,
        "auc_of_windows": round(auc(scores[truths], scores[~truths]), 4),
        "auc_of_documents": round(by_document(scores, keys, truths), 4),
        "training_seconds": round(float(np.mean(times)), 2),
        "documents_per_second": round(rate),
    }


if __name__ == "__main__":
    main()
