"""Promises of the labels `perplexity`: the models' scores, per language, and the third that they put a text in."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pytest

from chatloom.corpus.labellers import load_labeller
from chatloom.corpus.labellers.perplexity import Perplexity, PerplexitySettings
from chatloom.corpus.ngrams.buckets import LanguageModels, Terciles, bundle_files, folder_of, write_bundle
from chatloom.corpus.ngrams.training import NgramTrainer
from chatloom.corpus.record import Document
from chatloom.errors import ChatloomError

ENGLISH = ["the cat sat on the mat", "the dog sat on the log", "a cat and a dog sat on the mat"]
CHINESE = ["猫坐在垫子上", "狗坐在木头上", "猫和狗坐在垫子上"]


def bundle(folder: Path, terciles: dict[str, Terciles | None]) -> Path:
    for language, texts in (("en", ENGLISH), ("zh", CHINESE)):
        with NgramTrainer(folder / language) as trainer:
            trainer.add(texts * 3)
            trainer.finish()
    write_bundle(folder, "words", terciles)
    return folder


def document(text: str, language: str | None) -> Document:
    return Document("id", text, labels={} if language is None else {"language": language})


def test_each_language_is_measured_by_its_model(tmp_path: Path) -> None:
    limits = {"en": Terciles(10.0, 50.0, 99), "zh": None}
    labeller = Perplexity(PerplexitySettings(model=bundle(tmp_path, limits)))
    documents = [
        document(ENGLISH[0], "en"),
        document("mat the on sat cat the", "en"),
        document(CHINESE[0], "zh"),
        document("子垫在上坐猫", "zh"),
        document(ENGLISH[0], "fr"),
        document(ENGLISH[0], None),
        document(" \n", "en"),
        document("quixotic zebras juggle", "en"),
    ]
    rows = labeller.label(documents)
    assert all(set(row) == set(labeller.columns) for row in rows)
    assert rows[0]["perplexity"] < rows[1]["perplexity"]
    assert rows[2]["perplexity"] < rows[3]["perplexity"]
    assert rows[0]["perplexity"] == pytest.approx(math.exp(rows[0]["perplexity_nats"]))
    bits = 6 * rows[0]["perplexity_nats"] / math.log(2) / len("thecatsatonthemat")
    assert rows[0]["perplexity_bits_per_byte"] == pytest.approx(bits)
    assert [row["perplexity"] for row in rows[4:7]] == [None] * 3
    assert (rows[0]["perplexity_bucket"], rows[7]["perplexity_bucket"]) == ("head", "tail")
    assert rows[2]["perplexity_bucket"] is None
    assert (rows[0]["perplexity_unknown"], rows[7]["perplexity_unknown"]) == (0.0, 1.0)
    models = LanguageModels.load(tmp_path).models
    assert rows[2]["perplexity_nats"] == models["zh"].score([CHINESE[0]]).nats_per_unit[0]


def test_the_labeller_travels_to_another_process_and_is_found_by_name(tmp_path: Path) -> None:
    labeller = Perplexity(PerplexitySettings(model=bundle(tmp_path, {"en": None, "zh": None})))
    documents = [document(ENGLISH[0], "en")]
    rows = labeller.label(documents)
    assert pickle.loads(pickle.dumps(labeller)).label(documents) == rows
    assert load_labeller("perplexity") is Perplexity


def test_the_place_of_the_model_does_not_count_but_its_content(tmp_path: Path) -> None:
    labeller = Perplexity(PerplexitySettings(model=bundle(tmp_path / "a", {"en": None, "zh": None})))
    assert "model" not in labeller.settings.result()
    names = {file.relative_to(tmp_path / "a").as_posix() for file in labeller.files()}
    assert {"model.json", "en/model.json", "zh/3.keys.npy", "en/1.backoff.npy"} <= names
    (tmp_path / "a" / "page.html").write_text("made at noon", "utf-8")
    assert labeller.files() == bundle_files(tmp_path / "a")
    assert not any(file.suffix == ".html" for file in labeller.files())


def test_a_model_that_was_trained_again_is_opened_again(tmp_path: Path) -> None:
    folder = bundle(tmp_path, {"en": None, "zh": None})
    labeller = Perplexity(PerplexitySettings(model=folder))
    assert labeller.label([document(ENGLISH[0], "en")])[0]["perplexity_bucket"] is None
    write_bundle(folder, "words", {"en": Terciles(1e6, 1e7, 99), "zh": None})
    assert labeller.label([document(ENGLISH[0], "en")])[0]["perplexity_bucket"] == "head"


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ChatloomError, match="give the folder of a trained model"):
        Perplexity(PerplexitySettings(model=tmp_path)).label([document("a", "en")])
    for name in ("../en", "", "a/b", ".."):
        with pytest.raises(ChatloomError, match="no language code"):
            folder_of(tmp_path, name)


def test_limits_part_a_sample_into_thirds() -> None:
    values = np.random.default_rng(0).lognormal(6, 1, 300).tolist()
    limits = Terciles.fit(np.array([*values, math.nan]))
    assert limits is not None
    assert limits.n_texts == 300
    buckets = [limits.bucket(value) for value in values]
    assert [buckets.count(name) for name in ("head", "middle", "tail")] == [100, 100, 100]
    assert max(v for v, b in zip(values, buckets) if b == "head") < min(
        v for v, b in zip(values, buckets) if b == "middle"
    )
    assert limits.bucket(math.nan) is None
    assert Terciles.fit(np.arange(29.0)) is None
