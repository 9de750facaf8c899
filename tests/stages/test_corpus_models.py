"""Promises of the stages `ngram-model` and `quality-model`: trained on one side, measured on the other, and shown."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from chatloom import stages
from chatloom.artifact import Artifact
from chatloom.corpus.labellers.perplexity import Perplexity, PerplexitySettings
from chatloom.corpus.labellers.quality import Quality, QualitySettings
from chatloom.corpus.ngrams.buckets import LanguageModels
from chatloom.corpus.record import Document, write_documents
from chatloom.errors import ChatloomError
from chatloom.stage import Context, Line, Plan, PlanContext
from chatloom.tokens.vocabulary import Vocabulary

ENGLISH = re.findall(
    r"\w+", "the loom weaves a thread of wool and a thread of silk into one piece of cloth while the weaver sings"
)
CHINESE = "织机把羊毛线和蚕丝线织成一块布织工在歌唱山水人家日月天地大小多少"
GERMAN = [f"Ein kurzer deutscher Satz, der nicht reicht, Nummer {i}." for i in range(8)]
SALES = re.findall(r"\w+", "click here buy now free offer your best price today")


def lines(path: Path, texts: list[str], **more: object) -> Path:
    records = ({"id": f"{path.stem}{i}", "text": text, **more} for i, text in enumerate(texts))
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")
    return path


def english(count: int, seed: int, extra: list[str] | None = None) -> list[str]:
    rng = random.Random(seed)
    words = [*ENGLISH, *(extra or [])]
    phrases = [" ".join(words[i : i + 5]) for i in range(0, len(words) - 4, 5)]
    return [" ".join(rng.choices(phrases, k=16)) for _ in range(count)]


def chinese(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choice([CHINESE[i : i + 4] for i in range(0, 32, 4)]) for _ in range(30)) for _ in range(count)]


def run(kind: str, folder: Path, settings: Mapping[str, Any], **inputs: object) -> Context:
    folder.mkdir()
    stage = stages.find(kind)
    context = Context(stage.settings.parse(settings), inputs, folder, 3, "model", kind, quiet=True)
    stage.run(context)
    return context


def test_a_model_of_each_language_is_trained_measured_and_shown(tmp_path: Path) -> None:
    reference = lines(tmp_path / "reference.jsonl", english(100, 1) + chinese(100, 2) + GERMAN)
    sample = lines(tmp_path / "sample.jsonl", english(60, 3, SALES * 3))
    made = run(
        "ngram-model",
        tmp_path / "lm",
        {"min_units": 500, "held_out_share": 0.4},
        reference=[reference],
        sample=[sample],
    )
    assert set(LanguageModels.load(tmp_path / "lm").models) == {"en", "zh"}
    for language in ("en", "zh"):
        figures = made.metrics[language]
        assert figures["auc_against_shuffled"] > 0.99
        assert figures["training_texts"] + figures["held_out_texts"] == 100
        assert figures["limits"]["fitted_on"] == {"en": "sample", "zh": "held out"}[language]
    assert "de" in made.metrics["too_little_text"]
    assert not (tmp_path / "lm" / "de").exists()
    page = (tmp_path / "lm" / "model.html").read_text("utf-8")
    assert page.count("<svg") == 2
    assert json.loads((tmp_path / "lm" / "report.json").read_text("utf-8"))["en"] == made.metrics["en"]
    labeller = Perplexity(PerplexitySettings(model=tmp_path / "lm"))
    rows = labeller.label([Document("x", text, labels={"language": "en"}) for text in english(60, 3, SALES * 3)])
    buckets = [row["perplexity_bucket"] for row in rows]
    assert all(15 <= buckets.count(name) <= 25 for name in ("head", "middle", "tail"))


def test_models_never_see_the_held_out_side(tmp_path: Path) -> None:
    secret = [
        Document(f"s{i}", "xylophone " + text, labels={"split": "held_out"}) for i, text in enumerate(english(60, 4))
    ]
    known = [Document(f"k{i}", text, labels={"split": "train"}) for i, text in enumerate(english(60, 5))]
    write_documents(tmp_path / "shards" / "0.parquet", known + secret, {"split": pa.string()})
    documents = Artifact(tmp_path, {"kind": "documents", "fingerprint": "f"})
    run("ngram-model", tmp_path / "lm", {"min_units": 100, "ngrams": {"min_count": 1}}, reference=[documents])
    model = LanguageModels.load(tmp_path / "lm").models["en"]
    assert model.is_known("loom xylophone").tolist() == [True, False]
    assert model.description["n_texts"] == 60
    raw = lines(tmp_path / "raw.jsonl", english(60, 6, SALES * 2))
    made = run("quality-model", tmp_path / "quality", {"classifier": {"bits": 12}}, good=[documents], raw=[raw])
    assert made.metrics["en"]["training_good"] == 60
    assert made.metrics["en"]["checked_good"] == 60


def test_pieces_of_a_vocabulary_are_counted_when_it_is_given(tmp_path: Path) -> None:
    texts = english(50, 1)
    Vocabulary.train(texts, 300, allow_smaller=True).save(tmp_path / "v")
    vocabulary = Artifact(tmp_path / "v", {"kind": "vocabulary", "fingerprint": "v"})
    reference = lines(tmp_path / "reference.jsonl", texts)
    settings = {"min_units": 100, "units": "pieces"}
    run("ngram-model", tmp_path / "lm", settings, reference=[reference], vocabulary=vocabulary)
    assert LanguageModels.load(tmp_path / "lm").models["en"].cutter.name == "pieces"
    with pytest.raises(ChatloomError, match="give both or neither"):
        run("ngram-model", tmp_path / "other", settings, reference=[reference])


def test_too_little_text_is_refused_with_what_was_found(tmp_path: Path) -> None:
    reference = lines(tmp_path / "reference.jsonl", english(3, 1))
    with pytest.raises(ChatloomError, match=r"10,000 units that a model needs \(en: 240\)"):
        run("ngram-model", tmp_path / "lm", {}, reference=[reference])
    assert not (tmp_path / "lm" / "en" / "scratch").exists()
    raw = lines(tmp_path / "raw.jsonl", english(80, 2, SALES))
    with pytest.raises(ChatloomError, match=r"50 texts of each class .* \(en: 3 good and \d+ raw\)"):
        run("quality-model", tmp_path / "quality", {}, good=[reference], raw=[raw])


def test_a_classifier_is_trained_measured_and_shown(tmp_path: Path) -> None:
    good = lines(tmp_path / "good.jsonl", english(120, 1))
    raw = lines(tmp_path / "raw.jsonl", [*english(200, 2, SALES * 2), "Ein kurzer Satz nur."])
    made = run("quality-model", tmp_path / "quality", {"classifier": {"bits": 12}}, good=[good], raw=[raw])
    figures = made.metrics["en"]
    assert figures["auc"] > 0.95
    assert figures["checked_on"] == "held-out side"
    assert figures["kept_by_pareto_good"] > figures["kept_by_pareto_raw"]
    report = json.loads((tmp_path / "quality" / "report.json").read_text("utf-8"))["en"]
    assert {row["text"] for row in report["evidence"] if row["towards"] == "raw"} & set(SALES)
    assert sum(row["n"] for row in report["reliability"]) == figures["checked_good"] + figures["checked_raw"]
    page = (tmp_path / "quality" / "model.html").read_text("utf-8")
    assert page.count("<svg") == 2
    assert "click" in page
    assert not (tmp_path / "quality" / "scratch").exists()
    rows = Quality(QualitySettings(model=tmp_path / "quality")).label(
        [Document("a", text, labels={"language": "en"}) for text in (ENGLISH[0], " ".join(ENGLISH), " ".join(SALES))]
    )
    assert rows[1]["quality"] > 0.5 > rows[2]["quality"]


def test_a_classifier_that_cannot_tell_the_classes_apart_is_refused(tmp_path: Path) -> None:
    rng = random.Random(0)
    both = [" ".join(rng.choices(ENGLISH, k=60)) for _ in range(240)]
    good, raw = lines(tmp_path / "good.jsonl", both[:120]), lines(tmp_path / "raw.jsonl", both[120:])
    with pytest.raises(ChatloomError, match="cannot tell good from raw"):
        run("quality-model", tmp_path / "quality", {"classifier": {"bits": 12}}, good=[good], raw=[raw])
    same = lines(tmp_path / "same.jsonl", both[:120])
    with pytest.raises(ChatloomError, match=r"en: .* are the same"):
        run("quality-model", tmp_path / "same", {"classifier": {"bits": 12}}, good=[good], raw=[same])


def test_plans_count_files_from_outside(tmp_path: Path) -> None:
    reference = lines(tmp_path / "reference.jsonl", english(100, 1))
    for kind, name in (("ngram-model", "reference"), ("quality-model", "good")):
        stage = stages.find(kind)
        assert stage.plan is not None
        one, two = (
            stage.plan(PlanContext(stage.settings(), {name: files}, {}, 2, 1e10)).value("time")
            for files in ([], [reference])
        )
        assert two > one
        folder = tmp_path / kind / "shards"
        folder.mkdir(parents=True)
        write_documents(folder / "0.parquet", [Document(str(i), text) for i, text in enumerate(english(100, 1))], {})
        made = Artifact(folder.parent, {"kind": "documents", "fingerprint": "f"})
        three = stage.plan(PlanContext(stage.settings(), {name: [made]}, {}, 2, 1e10)).value("time")
        planned = {f"{name}.0": Plan((Line("bytes", 40_000.0, "bytes"),))}
        four = stage.plan(PlanContext(stage.settings(), {}, planned, 2, 1e10)).value("time")
        assert three > one
        assert four > one
