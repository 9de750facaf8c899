"""Labels `quality`: how much a text reads like the good texts that a classifier was trained on."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import Field

from chatloom.corpus.labelling import Labeller
from chatloom.corpus.quality.classifier import QualityClassifier, classifier_files, load_classifiers, pareto_draw
from chatloom.corpus.record import Document
from chatloom.settings import Settings, runtime


class QualitySettings(Settings):
    """Which classifier scores, and the seed of the draw."""

    # Where the model lies does not matter: its files are hashed.
    model: Path = runtime(..., description="folder that the stage `quality-model` wrote")
    seed: int = Field(0, ge=0, description="seed of the draw, which is made for each document's id")


class Quality(Labeller[QualitySettings]):
    """Score of a linear classifier over hashed n-grams, and a draw that turns it into a choice (GPT-3, appendix A).

    quality: probability 0..1 of being one of the good texts, if these were half of all; None for a language without a
    classifier and for a text without words. quality_pareto: a random number keyed by the document's id; the rule of
    Brown et al. 2020 (arXiv 2005.14165) keeps what has quality_pareto > 1 - quality.
    """

    name = "quality"
    needs = ("language",)
    columns: Mapping[str, pa.DataType] = {"quality": pa.float64(), "quality_pareto": pa.float64()}
    Settings = QualitySettings

    def files(self) -> Sequence[Path]:
        """The weights of every language."""
        return classifier_files(self.settings.model)

    def label(self, documents: Sequence[Document]) -> list[dict[str, Any]]:
        """Score and draw of each document; those of one language are scored together."""
        rows: list[dict[str, Any]] = [
            {"quality": None, "quality_pareto": pareto_draw(document.id, self.settings.seed)} for document in documents
        ]
        for language, classifier in opened(self.settings.model).items():
            members = [i for i, document in enumerate(documents) if document.labels.get("language") == language]
            if members:
                scores = classifier.score([documents[i].text for i in members])
                for i, score in zip(members, scores.tolist()):
                    rows[i]["quality"] = None if math.isnan(score) else score
        return rows


def opened(folder: Path) -> Mapping[str, QualityClassifier]:
    """The classifiers of a folder, opened once a process: it labels many shards with them."""
    try:
        state = (folder / "model.json").stat().st_mtime_ns
    except OSError:
        state = 0  # loading says what is wrong
    return _opened(folder, state)


@functools.lru_cache(maxsize=4)
def _opened(folder: Path, state: int) -> Mapping[str, QualityClassifier]:  # noqa: ARG001 - as a part of the key
    return load_classifiers(folder)
