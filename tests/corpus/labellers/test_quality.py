"""Promises of the labels `quality`: the classifier's score and GPT-3's draw, each for the selection to use or not."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from chatloom.corpus.labellers import load_labeller
from chatloom.corpus.labellers.quality import Quality, QualitySettings
from chatloom.corpus.quality.classifier import QualityClassifier, classifier_files, pareto_draw, write_languages
from chatloom.corpus.record import Document
from chatloom.errors import ChatloomError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    weights = np.random.default_rng(0).normal(size=1 << 10).astype(np.float32)
    for language, bias in (("en", 0.0), ("zh", 1.0)):
        QualityClassifier(weights, bias, 2.0, 300, 2).save(tmp_path / language)
    write_languages(tmp_path, ["zh", "en"])
    return tmp_path


def document(key: str, text: str, language: str | None) -> Document:
    return Document(key, text, labels={"language": language})


def test_scores_are_the_classifiers_and_draws_the_documents(folder: Path) -> None:
    labeller = Quality(QualitySettings(model=folder, seed=4))
    documents = [
        document("a", "one two three", "en"),
        document("b", "一二三", "zh"),
        document("c", "one two three", "fr"),
        document("d", " ", "en"),
        document("e", "one two three", None),
    ]
    rows = labeller.label(documents)
    assert all(set(row) == set(labeller.columns) for row in rows)
    assert rows[0]["quality"] == QualityClassifier.load(folder / "en").score(["one two three"])[0]
    assert rows[1]["quality"] == QualityClassifier.load(folder / "zh").score(["一二三"])[0]
    assert [row["quality"] for row in rows[2:]] == [None, None, None]
    assert [row["quality_pareto"] for row in rows] == [pareto_draw(key, 4) for key in "abcde"]
    assert labeller.label(documents[::-1])[::-1] == rows
    assert pickle.loads(pickle.dumps(labeller)).label(documents) == rows
    assert load_labeller("quality") is Quality


def test_the_place_of_the_model_does_not_count_but_its_content_and_the_seed(folder: Path) -> None:
    labeller = Quality(QualitySettings(model=folder, seed=4))
    assert labeller.settings.result() == {"seed": 4}
    names = [file.relative_to(folder).as_posix() for file in labeller.files()]
    assert names == ["model.json", "en/model.json", "en/weights.npy", "zh/model.json", "zh/weights.npy"]
    assert list(labeller.files()) == list(classifier_files(folder))


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ChatloomError, match="give the folder of a trained model"):
        Quality(QualitySettings(model=tmp_path)).label([document("a", "b", "en")])
