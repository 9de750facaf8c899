"""Labels `perplexity`: how surprising a text is to a language model of good text, and in which third that puts it."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from chatloom.corpus.labelling import Labeller
from chatloom.corpus.ngrams.buckets import LanguageModels, bundle_files
from chatloom.corpus.record import Document
from chatloom.settings import Settings, runtime


class PerplexitySettings(Settings):
    """Which models measure."""

    # Where the model lies does not matter: its files are hashed.
    model: Path = runtime(..., description="folder that the stage `ngram-model` wrote")


class Perplexity(Labeller[PerplexitySettings]):
    """Perplexity under the n-gram model of the document's language, and its bucket (CCNet, arXiv 1911.00359, 3.4).

    perplexity: exp(nats per unit); perplexity_nats: nats per unit; perplexity_bits_per_byte: compares across languages
    and lengths; perplexity_unknown: share of units that the model does not know; perplexity_bucket: head, middle or
    tail. All are None for a language without a model and for a text without words, the bucket also where no limits
    were fitted.
    """

    name = "perplexity"
    needs = ("language",)
    columns: Mapping[str, pa.DataType] = {
        "perplexity": pa.float64(),
        "perplexity_nats": pa.float64(),
        "perplexity_bits_per_byte": pa.float64(),
        "perplexity_unknown": pa.float64(),
        "perplexity_bucket": pa.string(),
    }
    Settings = PerplexitySettings

    def files(self) -> Sequence[Path]:
        """The tables and limits of every language."""
        return bundle_files(self.settings.model)

    def label(self, documents: Sequence[Document]) -> list[dict[str, Any]]:
        """Labels of each document; those of one language are scored together."""
        bundle = opened(self.settings.model)
        rows: list[dict[str, Any]] = [dict.fromkeys(self.columns) for _ in documents]
        for language, model in bundle.models.items():
            members = [i for i, document in enumerate(documents) if document.labels.get("language") == language]
            if not members:
                continue
            scores = model.score([documents[i].text for i in members])
            perplexities, nats, bits = scores.perplexity, scores.nats_per_unit, scores.bits_per_byte
            terciles = bundle.terciles.get(language)
            for row, i in enumerate(members):
                if math.isnan(nats[row]):
                    continue
                rows[i] = {
                    "perplexity": float(perplexities[row]),
                    "perplexity_nats": float(nats[row]),
                    "perplexity_bits_per_byte": float(bits[row]),
                    "perplexity_unknown": float(scores.n_unknown[row] / scores.n_units[row]),
                    "perplexity_bucket": terciles.bucket(float(perplexities[row])) if terciles else None,
                }
        return rows


def opened(folder: Path) -> LanguageModels:
    """The models of a folder, opened once a process: it labels many shards with them."""
    try:
        state = (folder / "model.json").stat().st_mtime_ns
    except OSError:
        state = 0  # loading says what is wrong
    return _opened(folder, state)


@functools.lru_cache(maxsize=4)
def _opened(folder: Path, state: int) -> LanguageModels:  # noqa: ARG001 - a changed file is another argument
    return LanguageModels.load(folder)
