"""The quality of a text as a probability: how much it reads like the texts that were called good, not like the others.

A linear classifier over hashed n-grams, trained in the product (`training`). With curated texts against a raw
crawl it is the filter of GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix A), with pages that Wikipedia cites
against random pages that of LLaMA (Touvron et al. 2023, arXiv 2302.13971, section 2.1): the texts make the difference.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chatloom.corpus.ngrams.buckets import folder_of
from chatloom.corpus.ngrams.model import read_description
from chatloom.corpus.ngrams.table import load_array, save_array
from chatloom.corpus.quality.features import windows_of
from chatloom.corpus.text.units import batches, pieces

FORMAT = 1
PARETO_SHAPE = 9.0  # GPT-3's alpha
F64 = NDArray[np.float64]


@dataclass(frozen=True)
class QualityClassifier:
    """logit = scale * (mean over windows of sum of weights / sqrt(buckets)) + bias; see `features`."""

    weights: NDArray[np.float32]  # [2^bits]
    bias: float
    scale: float
    window_units: int
    max_n: int

    @property
    def bits(self) -> int:
        """Bits of a bucket's number."""
        return (len(self.weights) - 1).bit_length()

    def logits(self, texts: Sequence[str]) -> F64:
        """Log-odds of being good, 0 where both are as likely: [texts]; NaN for a text without words.

        A text's logit does not depend on the texts beside it. Long texts are the mean of their windows.
        """
        whole, owners = pieces(texts)
        total, count = np.zeros(len(texts)), np.zeros(len(texts))
        for first, last in batches(whole):
            found = windows_of(whole[first:last], window_units=self.window_units, max_n=self.max_n, bits=self.bits)
            own = owners[first:last][found.texts]
            total += np.bincount(own, margins(found.windows, self.weights[found.buckets], len(own)), len(texts))
            count += np.bincount(own, minlength=len(texts))
        mean = np.divide(total, count, out=np.full(len(texts), np.nan), where=count > 0)
        return self.scale * mean + self.bias

    def score(self, texts: Sequence[str]) -> F64:
        """Probability of being good when both kinds are as frequent: [texts] in 0..1; NaN for a text without words."""
        return sigmoid(self.logits(texts))

    def save(self, folder: Path) -> None:
        """Write weights.npy and the JSON values beside it."""
        folder.mkdir(parents=True, exist_ok=True)
        save_array(folder / "weights.npy", self.weights)
        values = {
            "format": FORMAT, "buckets": len(self.weights), "bias": self.bias, "scale": self.scale,
            "window_units": self.window_units, "max_n": self.max_n,
        }  # fmt: skip
        (folder / "model.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> QualityClassifier:
        """Open a classifier; raises ChatloomError for a folder that holds none, or a damaged one."""
        values = read_description(folder, FORMAT)
        weights = load_array(folder / "weights.npy", np.float32, values["buckets"])
        return cls(weights, values["bias"], values["scale"], values["window_units"], values["max_n"])


def load_classifiers(folder: Path) -> Mapping[str, QualityClassifier]:
    """The classifier of each language that the stage `quality-model` wrote."""
    languages = read_description(folder, FORMAT)["languages"]
    return {language: QualityClassifier.load(folder_of(folder, language)) for language in languages}


def write_languages(folder: Path, languages: Sequence[str]) -> None:
    """The model.json that makes a bundle of the languages' folders."""
    values: dict[str, Any] = {"format": FORMAT, "languages": sorted(languages)}
    (folder / "model.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def classifier_files(folder: Path) -> Sequence[Path]:
    """The files that decide a bundle's scores, in a fixed order."""
    languages = read_description(folder, FORMAT)["languages"]
    parts = (folder_of(folder, language) / name for language in languages for name in ("model.json", "weights.npy"))
    return [folder / "model.json", *parts]


def margins(windows: NDArray[np.int64], weights: NDArray[np.floating[Any]], n_windows: int) -> F64:
    """Sum of weights / sqrt(number of weights) of each window: [n_windows]; `windows` says whose each weight is."""
    sizes = np.bincount(windows, minlength=n_windows)
    return np.bincount(windows, weights, n_windows) / np.sqrt(np.maximum(sizes, 1))


def sigmoid(logits: F64) -> F64:
    """1 / (1 + exp(-logit)), without overflow."""
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1 / (1 + small), small / (1 + small))


def pareto_draw(document_id: str, seed: int) -> float:
    """A number of the Lomax distribution of shape 9 that depends on the document's id and the seed only.

    GPT-3 keeps a document if `np.random.pareto(9) > 1 - score`: so a score s is kept with probability (2 - s)^-9, which
    is 1 for a perfect text and 0.002 for the worst. P(draw > x) = (1 + x)^-9.
    """
    key = f"chatloom quality {seed}".encode()
    value = hashlib.blake2b(document_id.encode("utf-8", "surrogatepass"), digest_size=8, key=key[:64]).digest()
    uniform = (int.from_bytes(value, "big") + 0.5) / 2.0**64
    return float(uniform ** (-1 / PARETO_SHAPE) - 1)
