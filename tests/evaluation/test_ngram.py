"""Promises of the n-gram baselines: true distributions, hand-computed values, order, speed."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from chatloom.evaluation.ngram import NgramModel
from chatloom.evaluation.perplexity import score_text, total
from chatloom.evaluation.statistics import EvaluationError


def markov_text(n: int, vocab: int, seed: int) -> np.ndarray:
    """Ids in which each token is likely one of three that depend on the two before it."""
    generator = np.random.default_rng(seed)
    ids = [0, 1]
    for _ in range(n - 2):
        if generator.uniform() < 0.8:
            ids.append((ids[-1] * 7 + ids[-2] * 3 + int(generator.integers(3))) % vocab)
        else:
            ids.append(int(generator.integers(vocab)))
    return np.array(ids)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_probabilities_sum_to_one_after_seen_unseen_and_empty_contexts(order: int) -> None:
    model = NgramModel.fit([markov_text(500, 30, 0), [1, 2, 3], [5]], 30, order=order)
    for context in ([], [0], [0, 1], [29, 29], [3, 3, 3, 7], [2, 3]):
        distribution = model.distribution(context)
        assert distribution.sum() == pytest.approx(1.0, abs=1e-12)
        assert (distribution > 0).all()


def test_the_unigram_equals_the_formula_by_hand() -> None:
    # counts 3, 2, 1; one seen once, one twice: D = 1 / (1 + 2); uniform share D * 3 kinds / 6 / 4 ids
    model = NgramModel.fit([[0, 0, 0, 1], [1, 2]], 4, order=1)
    uniform = (1 / 3) * 3 / 6 / 4
    assert model.distribution([]) == pytest.approx([(c - 1 / 3) / 6 + uniform for c in (3, 2, 1)] + [uniform])


def test_the_bigram_backs_off_to_how_many_contexts_a_token_completes() -> None:
    # "1" follows only "0" though often; "3" follows 0, 1 and 2. After an unknown context 3 is likelier (Kneser-Ney).
    model = NgramModel.fit([[0, 1], [0, 1], [0, 1], [0, 1], [0, 3], [2, 3], [1, 3]], 6, order=2)
    unseen = model.distribution([5])
    assert unseen[3] > unseen[1]
    assert model.distribution([0])[1] > model.distribution([0])[3]


def test_scores_agree_with_the_distributions() -> None:
    model = NgramModel.fit([markov_text(400, 20, 1)], 20, order=3)
    ids = [4, 4, 9, 0, 1, 19]
    expected = [math.log(model.distribution(ids[:i])[token]) for i, token in enumerate(ids)]
    assert model.logprobs(ids) == pytest.approx(expected)
    assert model.document_logprobs([ids])[0] == pytest.approx(expected[1:])


def test_counts_do_not_cross_documents() -> None:
    model = NgramModel.fit([[0, 1], [2, 3]] * 50, 5, order=3)
    assert model.distribution([0, 1])[2] < 0.3  # "2" never followed "1"
    assert model.distribution([])[0] == pytest.approx(model.distribution([])[2])


def test_a_trigram_beats_a_unigram_on_text_with_structure_and_both_lose_to_nothing_on_noise() -> None:
    train, test = markov_text(60_000, 50, 2), markov_text(5_000, 50, 3)
    bits = {}
    for order in (1, 3):
        model = NgramModel.fit([train], 50, order=order)
        bits[order] = total(score_text([test], model.document_logprobs, np.full(50, 4))).bits_per_byte
    assert bits[3] < 0.7 * bits[1]
    noise = np.random.default_rng(4).integers(0, 50, 20_000)
    best = math.log2(50) / 4
    for order in (1, 3):
        model = NgramModel.fit([noise[:15_000]], 50, order=order)
        score = total(score_text([noise[15_000:]], model.document_logprobs, np.full(50, 4)))
        assert best - 0.01 < score.bits_per_byte < 1.15 * best


def test_half_a_million_tokens_take_seconds() -> None:
    ids = np.random.default_rng(5).zipf(1.3, 500_000) % 8000
    start = time.perf_counter()
    model = NgramModel.fit([ids], 8000, order=3)
    model.logprobs(ids[:100_000])
    assert time.perf_counter() - start < 20


def test_ids_that_cannot_be_counted_are_refused() -> None:
    with pytest.raises(EvaluationError, match="expected 0 to 9"):
        NgramModel.fit([[3, 10]], 10)
    with pytest.raises(EvaluationError, match="expected 0 to 9"):
        NgramModel.fit([[3]], 10).logprobs([-1])
    with pytest.raises(EvaluationError, match="no tokens"):
        NgramModel.fit([[], []], 10)
    with pytest.raises(EvaluationError, match="order"):
        NgramModel.fit([[1]], 10**7, order=3)


def slow_kneser_ney(documents: list[list[int]], vocab: int, context: tuple[int, int], word: int) -> float:
    """The formula of the module's docstring for order 3, written out with dictionaries; -1 stands before the start."""
    raw = [tuple(([-1, -1, *document])[i : i + 3]) for document in documents for i in range(len(document))]
    three = {gram: raw.count(gram) for gram in set(raw)}
    two = {
        gram: sum(three[g] if gram[0] == -1 else 1 for g in three if g[1:] == gram) for gram in {g[1:] for g in three}
    }
    one = {gram: sum(1 for g in two if g[1:] == gram) for gram in {g[1:] for g in two}}

    def discount(counts: dict[tuple[int, ...], int]) -> float:
        once, twice = (sum(c == k for c in counts.values()) for k in (1, 2))
        return min(0.95, max(0.05, once / (once + 2 * twice))) if once + twice else 0.5

    result = 1 / vocab
    for counts, history in ((one, ()), (two, context[1:]), (three, context)):
        after = {gram: count for gram, count in counts.items() if gram[:-1] == history}
        if after:
            total, d = sum(after.values()), discount(counts)
            result = max(after.get((*history, word), 0) - d, 0) / total + d * len(after) / total * result
    return result


def test_the_trigram_equals_a_slow_implementation_of_the_same_formula() -> None:
    documents = [list(markov_text(60, 7, seed)) for seed in range(3)] + [[1], [2, 2]]
    model = NgramModel.fit(documents, 8, order=3)
    for context in ((0, 1), (3, 3), (-1, -1), (-1, 0), (7, 7), (1, 7)):
        history = [token for token in context if token >= 0]
        expected = [slow_kneser_ney(documents, 8, context, word) for word in range(8)]
        assert model.distribution(history) == pytest.approx(expected, abs=1e-12)
