"""Clusters: topics that differ are told apart, in both languages; the figures equal those of the plain formulas."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from synthetic_help import CHINESE_TOPICS, TOPICS, seed_documents

from chatloom.corpus.synthetic import clustering
from chatloom.corpus.synthetic.vectors import Features, Sparse, learn, vectors


def dense(sparse: Sparse, columns: int) -> np.ndarray:
    made = np.zeros((len(sparse), columns))
    made[sparse.rows, sparse.columns] = sparse.values
    return made


def texts_of(topics: dict[str, str]) -> tuple[list[str], list[str]]:
    found = [(topic, doc.text) for topic, doc in seed_documents() if topic in topics and doc.labels["split"] == "train"]
    return [topic for topic, _ in found], [text for _, text in found]


def clusters_of(texts: list[str], count: int, seed: int = 0) -> np.ndarray:
    known = learn(texts)
    sparse = vectors(texts, known)
    columns = clustering.leading_columns(sparse, len(known), 8, seed)
    rows = clustering.unit_rows(clustering.project(sparse, columns))
    labels, _ = clustering.nearest(rows, clustering.cluster(rows, count, seed))
    return labels


@pytest.mark.parametrize("topics", [TOPICS, CHINESE_TOPICS], ids=["en", "zh"])
def test_documents_of_a_topic_are_one_cluster(topics: dict[str, str]) -> None:
    truth, texts = texts_of(topics)
    labels = clusters_of(texts, len(topics))
    pairs = Counter(zip(truth, labels.tolist()))
    assert len(pairs) == len(topics)
    assert len({label for _, label in pairs}) == len(topics)


def test_the_same_texts_and_seed_give_the_same_clusters() -> None:
    _, texts = texts_of(TOPICS)
    assert np.array_equal(clusters_of(texts, 5, seed=3), clusters_of(texts, 5, seed=3))


def test_weights_equal_the_formula_worked_out_by_hand() -> None:
    texts = ["red red fish", "red bird", "blue fish", "bird bird bird", "fish stone"]
    known = learn(texts, min_texts=2, max_share=0.6)
    made = dense(vectors(texts, known), len(known))
    # red: 2 texts of 5, bird: 2, fish: 3 (the highest share that is allowed); blue and stone are in one text only.
    weight = {"red": math.log(5 / 2), "bird": math.log(5 / 2), "fish": math.log(5 / 3)}
    first = np.array([(1 + math.log(2)) * weight["red"], weight["fish"]])
    assert len(known) == 3
    assert sorted(made[0][made[0] > 0]) == pytest.approx(sorted(first / np.linalg.norm(first)), rel=1e-6)
    assert sorted(made[3]) == pytest.approx([0, 0, 1])


def test_chinese_features_are_characters_and_their_pairs() -> None:
    texts = ["水稻和土壤", "水稻和种子", "天空"]
    known = learn(texts, min_texts=2, max_share=1.0)
    # 水, 稻, 和, 水稻, 稻和 are in two texts.
    assert len(known) == 5
    assert vectors(["水。稻"], known).offsets.tolist() == [0, 2]


def test_leading_columns_are_those_of_the_singular_value_decomposition() -> None:
    generator = np.random.default_rng(0)
    matrix = (generator.standard_normal((60, 5)) * [20, 15, 10, 5, 3]) @ generator.standard_normal((5, 40))
    matrix += 0.01 * generator.standard_normal(matrix.shape)
    rows, columns = np.nonzero(matrix)
    sparse = Sparse(matrix[rows, columns].astype(np.float32), columns.astype(np.int32), np.arange(0, 2401, 40))
    found = clustering.leading_columns(sparse, 40, 5, seed=0)
    exact = np.linalg.svd(matrix)[2][:5]
    assert np.linalg.svd(exact @ found)[1] == pytest.approx(np.ones(5), abs=1e-4)
    assert found.T @ found == pytest.approx(np.eye(5), abs=1e-5)


def test_blocks_of_rows_do_not_change_the_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    _, texts = texts_of(TOPICS)
    known = learn(texts)
    sparse, columns = vectors(texts, known), np.eye(len(known), 4, dtype=np.float32)
    whole = clustering.project(sparse, columns)
    monkeypatch.setattr(clustering, "CELLS_AT_ONCE", 3 * len(known))
    assert np.array_equal(clustering.project(sparse, columns), whole)


def test_equal_rows_make_fewer_clusters_than_asked_for() -> None:
    rows = np.eye(2, 6, dtype=np.float32)[[0, 0, 1, 0, 1]]
    centres = clustering.cluster(rows, 4, seed=0)
    assert len(centres) == 2
    assert clustering.nearest(rows, centres)[1] == pytest.approx(np.ones(5))


def test_nothing_to_cluster_is_no_cluster() -> None:
    assert clustering.cluster(np.zeros((0, 3), np.float32), 4, seed=0).shape == (0, 3)
    empty = Features(np.zeros(0, np.uint64), np.zeros(0, np.float32))
    assert vectors(["words that nobody knows"], empty).offsets.tolist() == [0, 0]
