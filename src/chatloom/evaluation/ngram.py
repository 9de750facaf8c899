"""Baselines that a language model must beat: n-gram models over the same token ids, interpolated Kneser-Ney smoothing.

    p(w | context) = max(c(context w) - D, 0) / c(context) + D * kinds(context) / c(context) * p(w | shorter context)

At the highest order c counts occurrences; below, it counts in how many different contexts an n-gram was seen (Kneser
& Ney 1995; Chen & Goodman 1999, section 4). D = n1 / (n1 + 2 n2) from the n-grams seen once and twice. The unigram
ends in the uniform distribution over the vocabulary, so nothing has probability 0. order=1 is the plain unigram
baseline, order=3 the trigram. Counts are sorted arrays: a million tokens take about a second.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from chatloom.evaluation.statistics import EvaluationError


@dataclass(frozen=True)
class _Order:
    """Counts of one order: n-grams and their contexts as sorted keys."""

    grams: np.ndarray  # uint64 [n], context key * base + token
    counts: np.ndarray  # int64 [n]
    contexts: np.ndarray  # uint64 [m]
    totals: np.ndarray  # int64 [m], sum of the counts of a context's n-grams
    kinds: np.ndarray  # int64 [m], number of different tokens seen after the context
    discount: float


class NgramModel:
    """A smoothed n-gram model; `logprobs` scores a document, `distribution` gives p(. | context)."""

    def __init__(self, vocab_size: int, orders: list[_Order]) -> None:
        self.vocab_size = vocab_size
        self.order = len(orders)
        self._orders = orders
        self._base = np.uint64(vocab_size + 1)  # id vocab_size stands for "before the document's start"

    @classmethod
    def fit(cls, documents: Iterable[ArrayLike], vocab_size: int, *, order: int = 3) -> NgramModel:
        """Count documents (token ids [n] each); n-grams do not cross documents.

        Raises EvaluationError for no tokens, ids outside 0..vocab_size-1, or an order too high for 64-bit keys.
        """
        if order < 1 or (vocab_size + 1) ** order >= 2**63:
            raise EvaluationError(f"order {order} with {vocab_size} tokens: expected an order of 1, 2 or 3")
        base = np.uint64(vocab_size + 1)
        padded = _pad(documents, vocab_size, order)
        grams, counts = np.unique(_keys(padded, base, order), return_counts=True)
        # windows that end in padding are no n-grams: they only separate the documents
        keep = grams % base != vocab_size
        grams, counts = grams[keep], counts[keep]
        orders = [_count(grams, counts, base)]
        for n in range(order - 1, 0, -1):
            grams, counts = _shorten(grams, counts, base, n)
            orders.append(_count(grams, counts, base))
        return cls(vocab_size, orders[::-1])

    def logprobs(self, ids: ArrayLike) -> np.ndarray:
        """Log-probability (nats) of each token of a document given its predecessors: float [n], with the first."""
        tokens = _checked(ids, self.vocab_size)
        padded = np.concatenate([np.full(self.order - 1, self.vocab_size, dtype=np.uint64), tokens])
        contexts = [np.zeros(len(tokens), dtype=np.uint64)]
        for n in range(1, self.order):  # keys of the last n tokens before each position
            windows = [padded[self.order - 1 - n + i : len(padded) - n + i] for i in range(n)]
            contexts.append(_join(windows, self._base))
        return np.log(self._probabilities(contexts, tokens))

    def distribution(self, context: Sequence[int]) -> np.ndarray:
        """p(. | context) over the vocabulary, float [vocab_size]; a context under order - 1 starts a document."""
        history = [self.vocab_size] * (self.order - 1) + [int(token) for token in context]
        tokens = np.arange(self.vocab_size, dtype=np.uint64)
        contexts = []
        for n in range(self.order):
            key = np.uint64(0)
            for token in history[len(history) - n :]:
                key = key * self._base + np.uint64(token)
            contexts.append(np.full(self.vocab_size, key, dtype=np.uint64))
        return self._probabilities(contexts, tokens)

    def document_logprobs(self, documents: Sequence[ArrayLike]) -> list[np.ndarray]:
        """Log-probabilities of ids[1:] of each document, in the form that `perplexity.score_text` takes."""
        return [self.logprobs(document)[1:] for document in documents]

    def _probabilities(self, contexts: list[np.ndarray], tokens: np.ndarray) -> np.ndarray:
        result = np.full(len(tokens), 1.0 / self.vocab_size)
        for order, context in zip(self._orders, contexts):
            seen, place = _find(order.contexts, context)
            total = order.totals[place]
            hit, gram = _find(order.grams, context * self._base + tokens)
            count = np.where(hit, order.counts[gram], 0)
            higher = np.maximum(count - order.discount, 0.0) + order.discount * order.kinds[place] * result
            result = np.where(seen, higher / total, result)
        return result


def _pad(documents: Iterable[ArrayLike], vocab_size: int, order: int) -> np.ndarray:
    """All documents in one array, each after order - 1 (at least 1) start marks, so that windows never mix two."""
    start = np.full(max(1, order - 1), vocab_size, dtype=np.uint64)
    parts: list[np.ndarray] = []
    for document in documents:
        tokens = _checked(document, vocab_size)
        if len(tokens):
            parts += [start, tokens]
    if not parts:
        raise EvaluationError("no tokens to count: the n-gram baseline needs at least one document that is not empty")
    return np.concatenate(parts)


def _checked(ids: ArrayLike, vocab_size: int) -> np.ndarray:
    tokens = np.asarray(ids).reshape(-1)
    if len(tokens) and (tokens.min() < 0 or tokens.max() >= vocab_size):
        raise EvaluationError(f"token ids from {tokens.min()} to {tokens.max()}, expected 0 to {vocab_size - 1}")
    return tokens.astype(np.uint64)


def _keys(tokens: np.ndarray, base: np.uint64, order: int) -> np.ndarray:
    return _join([tokens[i : len(tokens) - order + 1 + i] for i in range(order)], base)


def _join(columns: list[np.ndarray], base: np.uint64) -> np.ndarray:
    key = columns[0].copy()
    for column in columns[1:]:
        key = key * base + column
    return key


def _shorten(grams: np.ndarray, counts: np.ndarray, base: np.uint64, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts of n-grams from those of (n + 1)-grams: how many different tokens precede each.

    An n-gram at a document's start has nothing but the start mark before it; it keeps the count of its occurrences.
    """
    shorter = grams % base ** np.uint64(n)
    at_start = (shorter // base ** np.uint64(n - 1) == base - np.uint64(1)) & (n > 1)
    unique, inverse = np.unique(shorter, return_inverse=True)
    weights = np.where(at_start, counts, 1)
    return unique, np.bincount(inverse, weights=weights).astype(np.int64)


def _count(grams: np.ndarray, counts: np.ndarray, base: np.uint64) -> _Order:
    contexts, first = np.unique(grams // base, return_index=True)
    totals = np.add.reduceat(counts, first)
    kinds = np.diff(np.append(first, len(grams)))
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    # where nothing was seen just once (tiny texts) the estimate is 0 and unseen tokens would have no share at all
    discount = min(0.95, max(0.05, once / (once + 2 * twice))) if once + twice else 0.5
    return _Order(grams, counts, contexts, totals, kinds, discount)


def _find(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether each wanted key is among the sorted keys, and its place (any valid place where it is not)."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return keys[place] == wanted, place
