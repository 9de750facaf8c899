"""Promises of the quality classifier: what it learns, that length tells it nothing, that its score can be believed."""

from __future__ import annotations

import gzip
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatloom.corpus.quality.classifier import QualityClassifier, margins, pareto_draw, sigmoid
from chatloom.corpus.quality.evidence import evidence
from chatloom.corpus.quality.features import one_of_each, windows_of
from chatloom.corpus.quality.lbfgs import minimise
from chatloom.corpus.quality.separation import auc
from chatloom.corpus.quality.training import (
    ClassifierSettings,
    QualityTrainer,
    Trained,
    _Chosen,
    _Rows,
    _spread,
    balanced,
    calibrate,
)
from chatloom.corpus.text.units import cut, join
from chatloom.errors import ChatloomError

COMMON = ["the", "of", "and", "to", "in", "that", "it", "is", "for", "on", "as", "with"]
PROSE = ["however", "century", "theory", "which", "therefore", "including"]
SALES = ["click", "buy", "now", "free", "your", "offer"]


def texts(kind: list[str], count: int, seed: int, words: int = 120, share: float = 0.15) -> list[str]:
    rng = random.Random(seed)
    return [
        " ".join(rng.choice(kind) if rng.random() < share else rng.choice(COMMON) for _ in range(words))
        for _ in range(count)
    ]


def ids(name: str, group: list[str]) -> list[str]:
    return [f"{name}/{i}" for i in range(len(group))]


def trained(folder: Path, good: list[str], raw: list[str], **values: object) -> Trained:
    with QualityTrainer(folder, ClassifierSettings.parse({"bits": 14, **values})) as trainer:
        trainer.add(ids("good", good), good, good=True)
        trainer.add(ids("raw", raw), raw, good=False)
        return trainer.finish()


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained(tmp_path_factory.mktemp("quality"), texts(PROSE, 120, 1), texts(SALES, 120, 2))


def test_texts_it_never_saw_are_told_apart(result: Trained) -> None:
    good, raw = (result.classifier.score(texts(kind, 50, 9, share=0.05)) for kind in (PROSE, SALES))
    assert auc(good, raw) > 0.97
    assert auc(result.cross_scores[result.truths], result.cross_scores[~result.truths]) > 0.99


def test_a_long_text_is_the_mean_of_its_windows(result: Trained) -> None:
    text = texts(PROSE, 1, 5, words=300)[0]
    thrice = result.classifier.logits([text, " ".join([text] * 3), " ".join([text] * 40)])
    assert thrice[1] == pytest.approx(thrice[0], abs=0.2)
    assert thrice[2] == pytest.approx(thrice[0], abs=0.2)


def test_scores_do_not_depend_on_the_texts_beside_them(result: Trained) -> None:
    rng = random.Random(3)
    group = [" ".join(rng.choices([*COMMON, *PROSE, *SALES, "好", "坏"], k=rng.randint(0, 2000))) for _ in range(40)]
    together = result.classifier.logits(group)
    alone = [result.classifier.logits([text])[0] for text in group]
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(together[::-1], result.classifier.logits(group[::-1]))


def test_white_space_case_and_kind_of_quotes_are_no_matter(result: Trained) -> None:
    a, b = result.classifier.logits(["The theory's  “x”\n\nof it, 1999.", 'the THEORY’s "x" of it, 2024.'])
    assert a == b


def test_a_text_without_words_has_no_score(result: Trained) -> None:
    assert np.isnan(result.classifier.score(["", " \n"])).all()


def test_the_logit_is_the_formula(result: Trained) -> None:
    classifier, text = result.classifier, "the theory of the theory"
    hashes = cut([text]).hashes
    grams = set((hashes >> np.uint64(50)).tolist()) | set((join(hashes[:-1], hashes[1:]) >> np.uint64(50)).tolist())
    mean = sum(float(classifier.weights[gram]) for gram in grams) / math.sqrt(len(grams))
    assert len(grams) == 3 + 3
    assert classifier.logits([text])[0] == pytest.approx(classifier.scale * mean + classifier.bias, abs=1e-6)


def test_a_saved_classifier_scores_the_same(result: Trained, tmp_path: Path) -> None:
    result.classifier.save(tmp_path)
    group = texts(PROSE, 5, 7)
    assert QualityClassifier.load(tmp_path).score(group).tolist() == result.classifier.score(group).tolist()
    (tmp_path / "weights.npy").write_bytes(b"")
    with pytest.raises(ChatloomError, match=r"weights\.npy"):
        QualityClassifier.load(tmp_path)


def test_training_does_not_depend_on_how_texts_are_given(tmp_path: Path, result: Trained) -> None:
    good, raw = texts(PROSE, 120, 1), texts(SALES, 120, 2)
    with QualityTrainer(tmp_path, ClassifierSettings(bits=14)) as trainer:
        for first in range(0, 120, 7):
            trainer.add(ids("good", good)[first : first + 7], good[first : first + 7], good=True)
        for first in range(0, 120, 50):
            trainer.add(ids("raw", raw)[first : first + 50], raw[first : first + 50], good=False)
        again = trainer.finish()
    np.testing.assert_array_equal(again.classifier.weights, result.classifier.weights)
    assert again.classifier.bias == result.classifier.bias
    assert list(tmp_path.iterdir()) == []  # no scratch file is left


def test_classes_of_unequal_size_weigh_the_same(tmp_path: Path) -> None:
    found = trained(tmp_path, texts(PROSE, 60, 1), texts(SALES, 600, 2))
    neither = found.classifier.score([" ".join(COMMON * 5)])[0]
    assert 0.1 < neither < 0.9


def test_scores_are_probabilities_that_can_be_believed(tmp_path: Path) -> None:
    """Classes that overlap: of texts scored about p, a share of about p is good."""
    good = texts([*PROSE * 3, *SALES * 2], 300, 1, words=60)  # each class has the other's words too
    raw = texts([*PROSE * 2, *SALES * 3], 300, 2, words=60)
    found = trained(tmp_path, good, raw, max_n=1)
    scores, truths = found.cross_scores, found.truths
    for low, high in ((0.0, 0.3), (0.3, 0.6), (0.6, 1.0)):
        inside = (scores >= low) & (scores < high)
        assert inside.sum() >= 40
        assert scores[inside].mean() == pytest.approx(truths[inside].mean(), abs=0.12)
    assert 0.6 < auc(scores[truths], scores[~truths]) < 0.95


def test_cross_fitted_scores_are_of_classifiers_that_did_not_see_the_text(tmp_path: Path) -> None:
    """Two classes of the same making: whoever tells them apart has seen the texts before."""
    found = trained(tmp_path, texts(PROSE, 120, 1), texts(PROSE, 120, 2))
    assert auc(found.cross_scores[found.truths], found.cross_scores[~found.truths]) < 0.65
    assert found.classifier.scale < 0.3  # and so its score says next to nothing


def test_too_few_texts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ChatloomError, match="raw class has 20 different texts"):
        trained(tmp_path, texts(PROSE, 60, 1), texts(SALES, 20, 2))
    with pytest.raises(ChatloomError, match="good class has 1 different texts"):
        trained(tmp_path, texts(PROSE, 1, 1) * 80, texts(SALES, 80, 2))


def test_classes_of_the_same_texts_are_refused(tmp_path: Path) -> None:
    group = texts(PROSE, 100, 1)
    with pytest.raises(ChatloomError, match="nothing tells the classes apart"):
        trained(tmp_path, group, [text.upper() + "\n" for text in group])


def test_texts_in_both_classes_teach_nothing(tmp_path: Path) -> None:
    good, raw = texts(PROSE, 100, 1), texts(SALES, 100, 2)
    assert trained(tmp_path, good, [*raw, *good[:20]]).n_shared == 40
    kept = trained(tmp_path, good[20:], raw)
    again = trained(tmp_path, good, [*raw, *good[:20]])
    assert len(again.truths) == len(kept.truths)


def test_evidence_names_the_words_that_differ(result: Trained) -> None:
    rows = evidence(result.classifier, texts(PROSE, 50, 3), texts(SALES, 50, 4), count=6)
    found = {side: {row["text"] for row in rows if row["towards"] == side} for side in ("good", "raw")}
    assert found["good"] & set(PROSE) and not found["good"] & set(SALES)  # noqa: PT018
    assert found["raw"] & set(SALES) and not found["raw"] & set(PROSE)  # noqa: PT018
    assert all(row["pull"] > 0 for row in rows)


def test_all_pulls_together_are_the_distance_of_the_classes(result: Trained) -> None:
    good, raw = texts(PROSE, 30, 3), texts(SALES, 30, 4)  # one window each
    rows = evidence(result.classifier, good, raw, count=1 << 14)
    distance = result.classifier.logits(good).mean() - result.classifier.logits(raw).mean()
    all_pulls = sum(row["pull"] for row in rows)
    assert all_pulls >= distance  # n-grams that pull the wrong way are not listed
    assert all_pulls == pytest.approx(distance, rel=0.1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 60), max_size=300))
def test_one_of_each_keeps_the_last_of_each(values: list[int]) -> None:
    codes = np.array(values, np.uint64)
    last = {value: i for i, value in enumerate(values)}
    assert np.flatnonzero(one_of_each(codes)).tolist() == sorted(last.values())


def test_one_of_each_survives_a_crowded_table() -> None:
    codes = np.random.default_rng(0).integers(0, 2**63, 50_000, np.uint64)
    codes = np.concatenate([codes, codes[::2]])
    kept = one_of_each(codes)
    assert len(np.unique(codes[kept])) == kept.sum() == 50_000


def test_windows_are_equal_parts_and_hold_each_bucket_once() -> None:
    found = windows_of(["a b c d e f g", "", "x"], window_units=3, max_n=2, bits=20)
    assert found.texts.tolist() == [0, 0, 0, 2]
    # 7 units in 3 windows: 2, 2 and 3 units, so 2 + 1, 2 + 1, 3 + 2 n-grams, none across a window's border
    assert found.sizes().tolist() == [3, 3, 5, 1]
    assert {found.spelling(int(entry)) for entry in found.entries} == {*"abcdefgx", "a b", "c d", "e f", "f g"}


def test_windows_to_learn_from_are_spread_over_the_text() -> None:
    owners = np.repeat([0, 2, 3], [10, 3, 1])
    assert np.flatnonzero(_spread(owners, 4)).tolist() == [0, 3, 5, 8, 10, 11, 12, 13]


def test_balanced_weights_are_equal_for_texts_and_classes() -> None:
    owners = np.array([0, 0, 0, 1, 2, 2, 3])
    weights = balanced(owners, np.array([True, True, False, False]), np.array([True, True, True, False]))
    assert weights.sum() == pytest.approx(6)
    assert weights[:3].sum() == pytest.approx(weights[3])
    assert weights[:4].sum() == pytest.approx(3)
    assert weights[6] == 0


def test_both_products_with_the_windows_are_those_of_one_matrix(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = np.array([3, 1, 0, 4])
    buckets = np.array([1, 5, 9, 5, 1, 2, 9, 15], np.uint32)
    buckets.tofile(tmp_path / "entries")
    rows = _Rows(tmp_path / "entries", sizes, 4)
    assert rows.seen.tolist() == [1, 2, 5, 9, 15]
    weights, errors = rng.normal(size=5), rng.normal(size=4)
    assert rows.margins(weights)[1] == pytest.approx(weights[2])
    assert rows.margins(weights)[0] == pytest.approx((weights[0] + weights[2] + weights[3]) / math.sqrt(3))
    assert errors @ rows.margins(weights) == pytest.approx(rows.transposed(errors) @ weights)
    assert rows.margins(weights)[2] == 0


def test_lbfgs_finds_the_minimum_of_a_skewed_quadratic() -> None:
    rng = np.random.default_rng(1)
    root = rng.normal(size=(30, 30))
    matrix, target = root @ root.T + 0.1 * np.eye(30), rng.normal(size=30)
    place, value = minimise(
        lambda x: (0.5 * (x - target) @ matrix @ (x - target), matrix @ (x - target)),
        np.zeros(30), max_steps=500, tolerance=1e-15,
    )  # fmt: skip
    np.testing.assert_allclose(place, target, atol=1e-3)
    assert value < 1e-6


def test_calibration_finds_the_scale_that_was_lost() -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 2, 20_000)
    truths = rng.random(20_000) < sigmoid(logits)
    # balanced classes shift the odds by those of the sample
    scale, shift = calibrate(3 * logits - 1, truths)
    odds = math.log((~truths).sum() / truths.sum())
    assert scale == pytest.approx(1 / 3, rel=0.05)
    assert shift - scale == pytest.approx(odds, abs=0.1)
    assert calibrate(-logits, truths)[0] == 0.0  # a classifier that is worse than a coin is not turned round


def test_the_draw_is_gpt3s_pareto_and_keyed_by_document_and_seed() -> None:
    draws = np.array([pareto_draw(f"doc{i}", 7) for i in range(20_000)])
    numpy_draws = np.random.default_rng(0).pareto(9, 200_000)
    for q in (0.1, 0.5, 0.9, 0.99):
        assert np.quantile(draws, q) == pytest.approx(np.quantile(numpy_draws, q), rel=0.06)
    for score in (0.0, 0.5, 0.9):
        assert (draws > 1 - score).mean() == pytest.approx((2 - score) ** -9, abs=0.01)
    assert (draws > 0).all()
    assert pareto_draw("doc1", 7) == draws[1] != pareto_draw("doc1", 8)


def test_of_too_many_texts_a_keyed_choice_is_learned_from(tmp_path: Path) -> None:
    chosen = _Chosen(100)
    draws = np.random.default_rng(0).random(5000)
    taken = [draw for draw in draws if chosen.offer(float(draw))]
    final = [draw for draw in taken if draw < chosen.limit]
    assert 25 <= len(final) <= 100
    assert set(final) == {draw for draw in draws if draw < chosen.limit}
    found = trained(tmp_path, texts(PROSE, 400, 1), texts(SALES, 300, 2), max_texts=100)
    assert 50 <= found.truths.sum() <= 100
    assert 50 <= (~found.truths).sum() <= 100


def test_wikipedia_is_told_from_a_crawl_by_how_it_is_written(tmp_path: Path, shared_data: Path) -> None:
    """Windows of one length and white space collapsed, so that neither length nor line ends can give it away."""
    groups: dict[bool, dict[str, str]] = {True: {}, False: {}}
    path = shared_data / "pretrain" / "en_web_wiki_sample.jsonl.gz"
    for record in map(json.loads, filter(None, gzip.decompress(path.read_bytes()).decode("utf-8").split("\n"))):
        text = " ".join(record["text"].split())
        if len(text) >= 1500:
            groups["Wikipedia" in record["source"]][record["id"]] = text[: len(text) // 1500 * 1500][:6000]
    with QualityTrainer(tmp_path, ClassifierSettings(min_texts=20, bits=18, folds=3)) as trainer:
        for good, group in groups.items():
            trainer.add(list(group), list(group.values()), good=good)
        found = trainer.finish()
    assert (found.truths.sum(), (~found.truths).sum()) == (27, 116)
    assert auc(found.cross_scores[found.truths], found.cross_scores[~found.truths]) > 0.93


def test_margins_are_scaled_by_the_root_of_their_number() -> None:
    assert margins(np.array([0, 0, 0, 0, 2]), np.ones(5), 3).tolist() == [2.0, 0.0, 1.0]
