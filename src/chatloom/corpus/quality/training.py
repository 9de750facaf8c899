"""Training of the quality classifier: logistic regression on windows, balanced by document and class, then calibrated.

    minimise sum_i weight_i * log(1 + exp(-y_i * (w . x_i + b))) + l2 / 2 * |w|^2

x_i is a window's vector (see `features`), y_i is +1 for good and -1 for raw text. The windows of a document
share its weight, both classes weigh the same, all weights add up to the number of windows. Scores of documents come
from folds that did not see them (cross-fitting); two numbers fitted to these make them probabilities (Platt 1999).
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from chatloom.corpus.ngrams.counts import chunks
from chatloom.corpus.quality.classifier import QualityClassifier, sigmoid
from chatloom.corpus.quality.features import windows_of
from chatloom.corpus.quality.lbfgs import minimise
from chatloom.corpus.split import split_value
from chatloom.corpus.text.units import U64, batches
from chatloom.errors import ChatloomError
from chatloom.settings import Settings

F64 = NDArray[np.float64]
CHUNK_ENTRIES = 1 << 22
MAX_SHARED = 0.5
# A step that gains less than this share of the loss is the last. What follows takes most of the time and gains hardly
# anything: Wikipedia against crawl, texts held out, 1e-6 and 3e-3: AUC 0.935 and 0.939; cut otherwise, 0.922 and 0.915.
TOLERANCE = 3e-3


class ClassifierSettings(Settings):
    """What the classifier looks at, and how it learns."""

    max_n: int = Field(2, ge=1, le=5, description="longest n-gram, in words (characters where words are not spaced)")
    bits: int = Field(20, ge=10, le=26, description="n-grams are hashed into 2^bits buckets, a weight each")
    window_units: int = Field(
        300, ge=20, description="texts are read in windows of at most this many words: length then tells nothing"
    )
    windows_per_text: int = Field(4, ge=1, description="windows of a text to learn from, spread evenly")
    l2: float = Field(0.003, gt=0, description="penalty on large weights, for a sum of weights of 1 a window")
    folds: int = Field(5, ge=2, le=20, description="parts for cross-fitting; each is scored by the others' classifier")
    max_texts: int = Field(
        20_000, ge=100, description="texts of a class to learn from; of more, those whose hashed ids are smallest"
    )
    min_texts: int = Field(50, ge=10, description="a class with fewer different texts is refused")
    max_steps: int = Field(200, ge=1, description="steps of the optimiser at most")


@dataclass(frozen=True)
class Trained:
    """A classifier, and what it said of each training text while it had not seen it."""

    classifier: QualityClassifier
    cross_scores: F64  # [texts], probabilities
    truths: NDArray[np.bool_]  # [texts]
    n_windows: int
    n_shared: int  # texts that were in both classes, which were left out


class QualityTrainer:
    """Takes texts of both classes with `add`, trains with `finish`; use in a `with`, which removes the scratch file."""

    def __init__(self, folder: Path, settings: ClassifierSettings | None = None, *, seed: int = 0) -> None:
        self.settings = settings or ClassifierSettings()
        self.seed = seed
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "entries.scratch"
        self._entries = open(self._path, "wb")  # noqa: SIM115
        self._sizes: list[NDArray[np.int64]] = []
        self._owners: list[NDArray[np.int64]] = []
        self._good: list[bool] = []
        self._folds: list[int] = []
        self._contents: list[int] = []
        self._draws: list[float] = []
        self._n_shared = 0
        self._chosen = {True: _Chosen(self.settings.max_texts), False: _Chosen(self.settings.max_texts)}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entries.close()
        self._path.unlink(missing_ok=True)

    @property
    def n_texts(self) -> tuple[int, int]:
        """Good and raw texts so far."""
        good = sum(self._good)
        return good, len(self._good) - good

    def add(self, ids: Sequence[str], texts: Sequence[str], *, good: bool) -> None:
        """Learn from texts of one class. A text's fold depends on its id, its windows on the text only."""
        settings = self.settings
        draws = [split_value(f"{key} chosen", self.seed) for key in ids]
        chosen_here = [i for i, draw in enumerate(draws) if self._chosen[good].offer(draw)]
        ids, texts = [ids[i] for i in chosen_here], [texts[i] for i in chosen_here]
        self._draws += [draws[i] for i in chosen_here]
        for first, last in batches(texts):
            part = [_beginning(text, settings) for text in texts[first:last]]
            found = windows_of(part, window_units=settings.window_units, max_n=settings.max_n, bits=settings.bits)
            chosen = _spread(found.texts, settings.windows_per_text)
            keep = chosen[found.windows]
            order = np.argsort(found.windows[keep], kind="stable")
            found.buckets[keep][order].astype("<u4").tofile(self._entries)
            self._sizes.append(found.sizes()[chosen])
            self._owners.append(found.texts[chosen] + len(self._good))
            self._good += [good] * (last - first)
            self._folds += [int(split_value(key, self.seed) * settings.folds) for key in ids[first:last]]
            edges = itertools.pairwise(found.units.offsets.tolist())
            self._contents += [_content(found.units.hashes[a:b]) for a, b in edges]

    def finish(self, advance: Callable[[int, float], None] = lambda _, __: None) -> Trained:
        """Train with cross-fitting, then on everything: `folds` + 1 fits.

        `advance` is told how many more fits are done (0: a step of one) and the loss a window.
        Raises ChatloomError for a class with too few texts, and for classes that hold the same texts.
        """
        settings = self.settings
        self._entries.close()
        truths, used = np.asarray(self._good, bool), self._different()
        folds = np.asarray(self._folds)
        sizes, owners = np.concatenate(self._sizes), np.concatenate(self._owners)
        rows = _Rows(self._path, sizes, settings.bits)
        crossed = np.zeros(len(truths))
        for fold in range(settings.folds):
            inside = used & (folds != fold)
            if not (inside & truths).any() or not (inside & ~truths).any():
                raise ChatloomError(f"{settings.folds} folds leave one without texts of a class; lower `folds`")
            found = self._fit(rows, owners, truths, inside, advance)
            means = _by_text(rows.margins(found[:-1]) + found[-1], owners, len(truths))
            crossed[folds == fold] = means[folds == fold]
        weights = self._fit(rows, owners, truths, used, advance)
        seen = used & np.isfinite(crossed)
        scale, shift = calibrate(crossed[seen], truths[seen])
        every = np.zeros(1 << settings.bits, np.float32)
        every[rows.seen] = weights[:-1]
        classifier = QualityClassifier(
            every,
            float(scale * weights[-1] + shift),
            float(scale),
            settings.window_units,
            settings.max_n,
        )
        n_windows = int(used[owners].sum())
        scores = sigmoid(scale * crossed[seen] + shift)
        return Trained(classifier, scores, truths[seen], n_windows, self._n_shared)

    def _different(self) -> NDArray[np.bool_]:
        """Which texts are in one class only; raises ChatloomError when too few are."""
        contents, truths = np.asarray(self._contents, np.uint64), np.asarray(self._good, bool)
        limits = np.where(truths, self._chosen[True].limit, self._chosen[False].limit)
        chosen = np.asarray(self._draws) < limits
        good, raw = np.unique(contents[truths & chosen]), np.unique(contents[~truths & chosen])
        both = np.intersect1d(good, raw)
        for name, found in (("good", good), ("raw", raw)):
            if len(found) < self.settings.min_texts:
                raise ChatloomError(
                    f"the {name} class has {len(found):,} different texts on the training side, expected at least "
                    f"{self.settings.min_texts:,}; give more, or lower `min_texts`"
                )
        if len(both) > MAX_SHARED * min(len(good), len(raw)):
            raise ChatloomError(
                f"{len(both):,} of {len(good):,} good and {len(raw):,} raw texts are the same: nothing tells the "
                "classes apart; give texts of another source as one of them"
            )
        self._n_shared = int((chosen & np.isin(contents, both)).sum())
        return chosen & ~np.isin(contents, both)

    def _fit(
        self,
        rows: _Rows,
        owners: NDArray[np.int64],
        truths: NDArray[np.bool_],
        used: NDArray[np.bool_],
        advance: Callable[[int, float], None],
    ) -> F64:
        """Weights of the buckets that occur, and the bias, from the texts that are `used`: [seen + 1]."""
        sample = balanced(owners, truths, used)
        sign = np.where(truths[owners], 1.0, -1.0)
        l2 = self.settings.l2

        def loss(place: F64) -> tuple[float, F64]:
            weights = place[:-1]
            agreement = sign * (rows.margins(weights) + place[-1])
            error = -sample * sign * sigmoid(-agreement)
            gradient = np.empty_like(place)
            gradient[:-1] = rows.transposed(error) + l2 * weights
            gradient[-1] = error.sum()
            value = float(sample @ np.logaddexp(0.0, -agreement)) + l2 / 2 * float(weights @ weights)
            return value, gradient

        start, steps, windows = np.zeros(len(rows.seen) + 1), self.settings.max_steps, float(sample.sum())
        place, value = minimise(
            loss, start, max_steps=steps, tolerance=TOLERANCE, advance=lambda value: advance(0, value / windows)
        )
        advance(1, value / windows)
        return place


class _Chosen:
    """At most `size` of a stream of numbers in [0, 1): those below a limit, halved whenever there are too many."""

    def __init__(self, size: int) -> None:
        self.size, self.limit = size, 1.0
        self._kept: list[float] = []

    def offer(self, draw: float) -> bool:
        """Whether a number is below the limit so far; the limit at the end decides."""
        if draw >= self.limit:
            return False
        self._kept.append(draw)
        while len(self._kept) > self.size:
            self.limit /= 2
            self._kept = [kept for kept in self._kept if kept < self.limit]
        return True


class _Rows:
    """All windows' vectors, in a file: window after window, a bucket's number for each entry.

    Only buckets that occur get a weight: `seen` are their numbers. The file is rewritten with places in `seen`.
    """

    def __init__(self, path: Path, sizes: NDArray[np.int64], bits: int) -> None:
        count = int(sizes.sum())
        entries = np.asarray(np.memmap(path, np.uint32, "r+", shape=(count,))) if count else np.zeros(0, np.uint32)
        occurs = np.zeros(1 << bits, bool)
        for part in chunks(count, CHUNK_ENTRIES):
            occurs[entries[part]] = True
        self.seen = np.flatnonzero(occurs)
        places = (np.cumsum(occurs) - 1).astype(np.uint32)
        for part in chunks(count, CHUNK_ENTRIES):
            entries[part] = places[entries[part]]
        self._entries, self._sizes = entries, sizes
        self._values = 1 / np.sqrt(np.maximum(sizes, 1))
        ends = np.cumsum(sizes)
        cuts = np.searchsorted(ends, np.arange(0, int(ends[-1]) if len(ends) else 0, CHUNK_ENTRIES), side="left")
        bounds = np.unique(np.append(cuts, len(sizes)))
        starts = ends - sizes
        self._parts = [
            (int(a), int(b), int(starts[a]), int(ends[b - 1])) for a, b in itertools.pairwise(bounds) if b > a
        ]

    def margins(self, weights: F64) -> F64:
        """X w: [windows]."""
        result = np.zeros(len(self._sizes))
        for first, last, start, stop in self._parts:
            result[first:last] = sums(weights[self._entries[start:stop]], self._sizes[first:last])
        return result * self._values

    def transposed(self, errors: F64) -> F64:
        """X^T e: [seen]."""
        result = np.zeros(len(self.seen))
        for first, last, start, stop in self._parts:
            each = np.repeat(errors[first:last] * self._values[first:last], self._sizes[first:last])
            result += np.bincount(self._entries[start:stop], each, len(self.seen))
        return result


def sums(values: F64, sizes: NDArray[np.int64]) -> F64:
    """Sums of stretches of these sizes, one after the other: [sizes]; 0 for a size of 0."""
    result, there = np.zeros(len(sizes)), sizes > 0
    if there.any():
        result[there] = np.add.reduceat(values, (np.cumsum(sizes) - sizes)[there])
    return result


def balanced(owners: NDArray[np.int64], truths: NDArray[np.bool_], used: NDArray[np.bool_]) -> F64:
    """Weight of each window: equal for texts, equal in sum for classes, their number in all; 0 for texts not used."""
    windows = np.bincount(owners, minlength=len(truths))[owners]
    weights = used[owners] / windows
    for group in (truths[owners], ~truths[owners]):
        weights[group] /= max(float(weights[group].sum()), 1e-300)
    return weights * (int(used[owners].sum()) / 2)


def calibrate(logits: F64, truths: NDArray[np.bool_], steps: int = 50) -> tuple[float, float]:
    """Scale (never negative) and shift that make logits believable, classes weighing the same: Newton's method.

    Platt 1999, "Probabilistic outputs for support vector machines", with the smoothed targets of its section 2.2.
    """
    n_good, n_raw = int(truths.sum()), int((~truths).sum())
    target = np.where(truths, (n_good + 1) / (n_good + 2), 1 / (n_raw + 2))
    weight = np.where(truths, 0.5 / max(n_good, 1), 0.5 / max(n_raw, 1))
    x = np.stack([logits, np.ones(len(logits))])
    found = np.array([1.0, 0.0])
    for _ in range(steps):
        p = sigmoid(found @ x)
        gradient = x @ (weight * (p - target))
        hessian = (x * (weight * p * (1 - p))) @ x.T + 1e-9 * np.eye(2)
        move = np.linalg.solve(hessian, gradient)
        found = found - np.clip(move, -1.0, 1.0)
        if np.abs(move).max() < 1e-9:
            break
    return max(float(found[0]), 0.0), float(found[1])


def _by_text(values: F64, owners: NDArray[np.int64], n_texts: int) -> F64:
    counts = np.bincount(owners, minlength=n_texts)
    total = np.bincount(owners, values, n_texts)
    return np.divide(total, counts, out=np.full(n_texts, np.nan), where=counts > 0)


def _spread(owners: NDArray[np.int64], limit: int) -> NDArray[np.bool_]:
    """At most `limit` windows of each text, at equal distances; `owners` ascends."""
    counts = np.bincount(owners) if len(owners) else np.zeros(0, np.int64)
    number = np.arange(len(owners)) - (np.cumsum(counts) - counts)[owners]
    count = counts[owners]
    kept = np.minimum(count, limit)
    # window i of c is taken when it is the first one of one of `kept` equal stretches
    return (number * kept) // count != ((number - 1) * kept) // count


def _beginning(text: str, settings: ClassifierSettings) -> str:
    """A very long text is learned from by its beginning: 100 times what the windows could hold."""
    return text[: 1000 * settings.window_units * settings.windows_per_text]


def _content(units: U64) -> int:
    """A hash of what a text says, whatever its white space, case and quotation marks."""
    return int.from_bytes(hashlib.blake2b(units.tobytes(), digest_size=8).digest(), "big")
