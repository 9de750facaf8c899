"""N-gram models of several languages in one folder, and the limits that part head, middle and tail of a crawl.

As in CCNet (Wenzek et al. 2019, arXiv 1911.00359, section 3.4): a third of the reference sample has a perplexity below
the first limit and is the head, a third lies above the second and is the tail. Limits are per language, since
perplexities of different languages do not compare.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chatloom.corpus.ngrams.model import F64, NgramModel, read_description
from chatloom.corpus.ngrams.units import PIECES
from chatloom.errors import ChatloomError
from chatloom.tokens.vocabulary import Vocabulary

FORMAT = 1
HEAD, MIDDLE, TAIL = "head", "middle", "tail"
MIN_TEXTS = 30  # for limits: of fewer texts a third is a matter of chance


@dataclass(frozen=True)
class Terciles:
    """Perplexities up to `head` are the head, up to `tail` the middle, above it the tail; fitted on `n_texts`."""

    head: float
    tail: float
    n_texts: int

    @classmethod
    def fit(cls, perplexities: F64) -> Terciles | None:
        """Limits that part a sample into thirds; None for fewer than MIN_TEXTS texts with a perplexity."""
        values = perplexities[np.isfinite(perplexities)]
        if len(values) < MIN_TEXTS:
            return None
        head, tail = np.quantile(values, [1 / 3, 2 / 3])
        return cls(float(head), float(tail), len(values))

    def bucket(self, perplexity: float) -> str | None:
        """head, middle or tail; None for a text without a perplexity."""
        if not np.isfinite(perplexity):
            return None
        return HEAD if perplexity <= self.head else MIDDLE if perplexity <= self.tail else TAIL


@dataclass(frozen=True)
class LanguageModels:
    """A model for each language and, where there was a sample to fit them on, its limits."""

    models: Mapping[str, NgramModel]
    terciles: Mapping[str, Terciles]

    @classmethod
    def load(cls, folder: Path) -> LanguageModels:
        """Open what the stage `ngram-model` wrote; raises ChatloomError for anything else."""
        description = read_description(folder, FORMAT)
        vocabulary = Vocabulary.load(folder) if description["units"] == PIECES else None
        models, terciles = {}, {}
        for language, values in description["languages"].items():
            models[language] = NgramModel.load(folder_of(folder, language), vocabulary)
            if values is not None:
                terciles[language] = Terciles(**values)
        return cls(models, terciles)


def folder_of(folder: Path, language: str) -> Path:
    """Where a language's model lies in a bundle; raises ChatloomError for a name that is no language code."""
    if not re.fullmatch(r"[A-Za-z0-9][\w-]{0,30}", language):
        raise ChatloomError(f"{folder}: {language!r} is no language code, such as `en` or `zh`")
    return folder / language


def write_bundle(folder: Path, units: str, terciles: Mapping[str, Terciles | None]) -> None:
    """The model.json that makes a bundle of the languages' folders."""
    languages: dict[str, Any] = {
        language: None if limits is None else {"head": limits.head, "tail": limits.tail, "n_texts": limits.n_texts}
        for language, limits in sorted(terciles.items())
    }
    text = json.dumps({"format": FORMAT, "units": units, "languages": languages}, indent=2)
    (folder / "model.json").write_text(text + "\n", encoding="utf-8")


def bundle_files(folder: Path) -> Sequence[Path]:
    """The files that decide a bundle's scores, in a fixed order; what is only shown to people is not among them."""
    languages = read_description(folder, FORMAT)["languages"]
    own = [folder / "model.json", *([folder / "tokenizer.json"] if (folder / "tokenizer.json").exists() else [])]
    return own + [file for language in sorted(languages) for file in sorted(folder_of(folder, language).glob("*"))]
