"""Promises of bits per byte: exact bytes, sums not means, specials left out, bad models refused."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from chatloom.evaluation.perplexity import TextScore, bits_per_byte, check_bytes, score_text, total, total_by
from chatloom.evaluation.statistics import EvaluationError

# ids 0 and 1 are special; 2 "a", 3 "bc", 4 and 5 two parts of one three-byte character
BYTES = np.array([0, 0, 1, 2, 1, 2])
CHARACTERS = np.array([0, 0, 1, 2, 1, 0])


def quarter(documents: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [np.full(max(0, len(ids) - 1), math.log(0.25)) for ids in documents]


def test_a_model_that_gives_each_token_a_quarter_needs_two_bits_a_token() -> None:
    (score,) = score_text([[1, 2, 3, 4, 5]], quarter, BYTES, characters_per_id=CHARACTERS)
    assert (score.tokens, score.bytes, score.characters) == (4, 6, 4)
    assert score.bits_per_byte == pytest.approx(4 * 2 / 6)
    assert score.bits_per_character == pytest.approx(2.0)
    assert score.perplexity == pytest.approx(4.0)


def test_with_an_end_of_text_in_front_every_byte_is_counted() -> None:
    text = "bca中"
    ids = [3, 2, 4, 5]
    check_bytes(ids, BYTES, text)
    (score,) = score_text([[1, *ids]], quarter, BYTES)
    assert score.bytes == len(text.encode("utf-8"))


def test_tokens_that_are_no_text_are_in_neither_sum() -> None:
    (plain,) = score_text([[1, 2, 3]], quarter, BYTES)
    (ended,) = score_text([[1, 2, 3, 1]], quarter, BYTES)
    assert (ended.nll, ended.bytes, ended.special_tokens) == (plain.nll, plain.bytes, 1)


def test_the_total_is_a_ratio_of_sums_not_a_mean_of_ratios() -> None:
    scores = [TextScore(nll=8 * math.log(2), tokens=1, bytes=1), TextScore(nll=0.0, tokens=3, bytes=3)]
    assert total(scores).bits_per_byte == pytest.approx(2.0)
    by = total_by(scores, ["zh", "en"])
    assert list(by) == ["en", "zh"]
    assert by["zh"].bits_per_byte == pytest.approx(8.0)
    assert total([]).bytes == 0
    assert math.isnan(total([]).bits_per_byte)
    assert math.isnan(bits_per_byte(1.0, 0))


def test_the_score_does_not_depend_on_how_documents_are_batched() -> None:
    documents = [[1, 2, 3], [1], [2, 2, 2, 2], [], [1, 4, 5]]
    assert score_text(documents, quarter, BYTES, batch=1) == score_text(documents, quarter, BYTES, batch=64)


def test_a_tokenizer_that_changes_text_is_found_out() -> None:
    with pytest.raises(EvaluationError, match="3 bytes, the text has 4 bytes"):
        check_bytes([2, 3], BYTES, "abc ")


def test_a_model_that_returns_nonsense_is_refused() -> None:
    with pytest.raises(EvaluationError, match="2 log-probabilities for 2 tokens, expected 1"):
        score_text([[2, 3]], lambda documents: [np.zeros(2)], BYTES)
    with pytest.raises(EvaluationError, match="expected at most 0"):
        score_text([[2, 3]], lambda documents: [[0.5]], BYTES)
    with pytest.raises(EvaluationError, match="nan"):
        score_text([[2, 3]], lambda documents: [[math.nan]], BYTES)
    with pytest.raises(EvaluationError, match="0 documents of 1"):
        score_text([[2, 3]], lambda documents: [], BYTES)
