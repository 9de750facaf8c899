"""What a quality classifier goes by: the n-grams that pull the two classes apart, as they are written in the texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from chatloom.corpus.quality.classifier import F64, QualityClassifier
from chatloom.corpus.quality.features import Windows, windows_of
from chatloom.corpus.text.units import I64, batches


def evidence(
    classifier: QualityClassifier, good: Sequence[str], raw: Sequence[str], count: int = 20
) -> list[dict[str, Any]]:
    """The `count` n-grams that pull most towards good, then as many towards raw.

    Rows of `text` (the most frequent n-gram of the bucket in these texts), `towards`, `pull` (mean logit of a good text
    less that of a raw one, from this n-gram alone; all n-grams together make up the distance of the classes), `weight`
    and the shares of windows that have it, `in_good` and `in_raw`.
    """
    groups = [_windows(classifier, texts) for texts in (good, raw)]
    pulls, shares = zip(*(_means(classifier, group) for group in groups))
    difference = pulls[0] - pulls[1]
    rows = []
    for towards, sign in (("good", 1), ("raw", -1)):
        own = np.where(np.sign(classifier.weights) == sign, difference, -np.inf)
        best = [int(bucket) for bucket in np.argsort(-own, kind="stable")[:count] if own[bucket] > 0]
        names = _names([window for group in groups for window in group], best)
        rows += [
            {
                "text": names[bucket],
                "towards": towards,
                "pull": float(difference[bucket]),
                "weight": float(classifier.weights[bucket]),
                "in_good": float(shares[0][bucket]),
                "in_raw": float(shares[1][bucket]),
            }
            for bucket in best
        ]
    return rows


def _windows(classifier: QualityClassifier, texts: Sequence[str]) -> list[Windows]:
    return [
        windows_of(texts[a:b], window_units=classifier.window_units, max_n=classifier.max_n, bits=classifier.bits)
        for a, b in batches(texts)
    ]


def _means(classifier: QualityClassifier, windows: Sequence[Windows]) -> tuple[F64, F64]:
    """Mean contribution to the logit of a window, and share of windows that have it: [buckets] each."""
    size, n_windows = len(classifier.weights), max(sum(len(part.texts) for part in windows), 1)
    values, counts = np.zeros(size), np.zeros(size)
    for part in windows:
        each = 1 / np.sqrt(np.maximum(part.sizes(), 1))
        values += np.bincount(part.buckets, each[part.windows], size)
        counts += np.bincount(part.buckets, minlength=size)
    return classifier.scale * classifier.weights * values / n_windows, counts / n_windows


def _names(windows: Sequence[Windows], buckets: Sequence[int]) -> dict[int, str]:
    """How the most frequent n-gram of each bucket is spelled, in small letters."""
    wanted: I64 = np.sort(np.asarray(buckets, np.int64))
    seen: dict[int, Counter[str]] = {bucket: Counter() for bucket in buckets}
    for part in windows:
        place = np.minimum(np.searchsorted(wanted, part.buckets), max(len(wanted) - 1, 0))
        for i in np.flatnonzero(wanted[place] == part.buckets) if len(wanted) else ():
            seen[int(part.buckets[i])][part.spelling(int(part.entries[i])).lower()] += 1
    return {bucket: min(found.items(), key=lambda item: (-item[1], item[0]))[0] for bucket, found in seen.items()}
