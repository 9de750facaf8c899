"""How well a model predicts text: bits per byte, the figure in which models of different tokenizers compare.

    bits per byte = sum of -log p (nats) / (ln 2 * bytes of the text that was scored)

A token that is no text (a special token, 0 bytes) is left out of both sums. The model comes in as a function from
token ids to log-probabilities; nothing here knows how it computes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from chatloom.evaluation.statistics import EvaluationError

# ids [n] of some documents -> for each, the log-probability (nats) of ids[1:] given what precedes, float [n - 1]
LogProbs = Callable[[Sequence[np.ndarray]], Iterable[ArrayLike]]


@dataclass(frozen=True)
class TextScore:
    """Sums over scored text; scores of parts add up to the score of the whole."""

    nll: float = 0.0  # nats
    tokens: int = 0
    bytes: int = 0
    characters: int = 0  # 0: not counted
    special_tokens: int = 0  # predicted, but left out of all sums

    def __add__(self, other: TextScore) -> TextScore:
        return TextScore(
            self.nll + other.nll,
            self.tokens + other.tokens,
            self.bytes + other.bytes,
            self.characters + other.characters,
            self.special_tokens + other.special_tokens,
        )

    @property
    def bits_per_byte(self) -> float:
        """The headline figure: below 8 for any model worth its name, about 1 for a good small one on English."""
        return bits_per_byte(self.nll, self.bytes)

    @property
    def bits_per_character(self) -> float | None:
        """The same by Unicode character, which is the fairer unit for Chinese; None if characters were not counted."""
        return bits_per_byte(self.nll, self.characters) if self.characters else None

    @property
    def nats_per_token(self) -> float:
        """Mean loss; comparable only between models with the same tokenizer."""
        return self.nll / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """exp(nats per token)."""
        return math.exp(min(self.nats_per_token, 700.0))

    def as_dict(self) -> dict[str, Any]:
        """Every figure as plain data for a summary."""
        return {
            "bits_per_byte": self.bits_per_byte,
            "bits_per_character": self.bits_per_character,
            "nats_per_token": self.nats_per_token,
            "perplexity": self.perplexity,
            "nll": self.nll,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "characters": self.characters,
            "bytes_per_token": self.bytes / self.tokens if self.tokens else None,
        }


def bits_per_byte(nll: float, n_bytes: int) -> float:
    """nll (nats) over n_bytes of text, in bits per byte; NaN for no text."""
    return nll / (math.log(2) * n_bytes) if n_bytes > 0 else math.nan


def score_text(
    documents: Sequence[ArrayLike],
    logprobs: LogProbs,
    bytes_per_id: ArrayLike,
    *,
    characters_per_id: ArrayLike | None = None,
    batch: int = 64,
) -> list[TextScore]:
    """Score each document (token ids [n]); every token but a document's first is predicted, and counted, exactly once.

    Put an end-of-text token in front to have the whole text counted. bytes_per_id [vocab] is 0 for special tokens;
    characters_per_id likewise counts the UTF-8 lead bytes of a token. Documents go to `logprobs` `batch` at a time.
    Raises EvaluationError if `logprobs` gives a wrong number of values or a log-probability above 0 or not finite.
    """
    n_bytes = np.asarray(bytes_per_id, dtype=np.int64)
    n_characters = None if characters_per_id is None else np.asarray(characters_per_id, dtype=np.int64)
    arrays = [np.asarray(document, dtype=np.int64).reshape(-1) for document in documents]
    scores = []
    for start in range(0, len(arrays), batch):
        group = arrays[start : start + batch]
        found = list(logprobs(group))
        if len(found) != len(group):
            raise EvaluationError(f"the model scored {len(found)} documents of {len(group)} given to it")
        for offset, (ids, values) in enumerate(zip(group, found)):
            values = np.asarray(values, dtype=float).reshape(-1)
            _check_logprobs(values, ids, start + offset)
            targets = ids[1:]
            text = n_bytes[targets] > 0
            scores.append(
                TextScore(
                    nll=-math.fsum(values[text]),
                    tokens=int(text.sum()),
                    bytes=int(n_bytes[targets].sum()),
                    characters=0 if n_characters is None else int(n_characters[targets].sum()),
                    special_tokens=int((~text).sum()),
                )
            )
    return scores


def total(scores: Iterable[TextScore]) -> TextScore:
    """Score of all texts together: sums of nats over sums of bytes, never a mean of means."""
    result = TextScore()
    for score in scores:
        result = result + score
    return result


def total_by(scores: Sequence[TextScore], labels: Sequence[str]) -> dict[str, TextScore]:
    """The same apart by label (language, source), labels sorted."""
    if len(scores) != len(labels):
        raise EvaluationError(f"{len(scores)} scores but {len(labels)} labels: give one label a document")
    return {label: total(s for s, other in zip(scores, labels) if other == label) for label in sorted(set(labels))}


def check_bytes(ids: ArrayLike, bytes_per_id: ArrayLike, text: str) -> None:
    """Raise EvaluationError unless the tokens' bytes add up to len(text.encode()): else bits per byte would lie."""
    found = int(np.asarray(bytes_per_id, dtype=np.int64)[np.asarray(ids, dtype=np.int64)].sum())
    expected = len(text.encode("utf-8"))
    if found != expected:
        raise EvaluationError(
            f"tokens stand for {found} bytes, the text has {expected} bytes of UTF-8: the tokenizer changes text "
            "(normalises or drops characters), so bits per byte would be wrong"
        )


def _check_logprobs(values: np.ndarray, ids: np.ndarray, document: int) -> None:
    if len(values) != max(0, len(ids) - 1):
        raise EvaluationError(
            f"document {document}: {len(values)} log-probabilities for {len(ids)} tokens, "
            f"expected {max(0, len(ids) - 1)}"
        )
    bad = np.flatnonzero(~np.isfinite(values) | (values > 1e-4))
    if len(bad):
        raise EvaluationError(
            f"document {document}: the log-probability of token {bad[0] + 1} is {values[bad[0]]}, expected at most 0"
        )
