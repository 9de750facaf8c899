"""Labels `sensitive`: how often terms of the user's own lists occur. No list comes with chatloom."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import Field

from chatloom.corpus.labellers.terms import Terms
from chatloom.corpus.labelling import SPANS, Labeller
from chatloom.corpus.record import Document
from chatloom.errors import ChatloomError
from chatloom.settings import Settings


class SensitiveSettings(Settings):
    """The user's lists."""

    lists: dict[str, tuple[Path, ...]] = Field(
        default_factory=dict, description="language -> files of terms, one a line: {en: [en.txt], zh: [zh.txt]}"
    )


class Sensitive(Labeller[SensitiveSettings]):
    """Terms of the user's lists: English ones as whole words, Chinese ones anywhere; every list on every document.

    Source: the bad-word rule of C4 (Raffel et al. 2020, section 2.2), as counts instead of a verdict: how
    many are too many depends on the list.

    sensitive: occurrences; sensitive_<language>: those of a language's lists; sensitive_distinct: different terms;
    sensitive_share: share of characters in them; sensitive_spans: where. Raises ChatloomError without a list.
    """

    name = "sensitive"
    Settings = SensitiveSettings

    def __init__(self, settings: SensitiveSettings) -> None:
        super().__init__(settings)
        if not self.files():
            raise ChatloomError(
                "labeller `sensitive`: no list of terms was given and none comes with chatloom; set `lists`, for "
                "example {en: [terms.en.txt], zh: [terms.zh.txt]}, one term a line"
            )
        columns: dict[str, pa.DataType] = {"sensitive": pa.int64()}
        columns |= {f"sensitive_{language}": pa.int64() for language in sorted(settings.lists)}
        columns |= {"sensitive_distinct": pa.int64(), "sensitive_share": pa.float64(), "sensitive_spans": SPANS}
        self.columns: Mapping[str, pa.DataType] = columns

    def files(self) -> Sequence[Path]:
        """The user's lists."""
        return [path for language in sorted(self.settings.lists) for path in self.settings.lists[language]]

    @functools.cached_property
    def _terms(self) -> tuple[Terms, dict[str, Terms]]:
        by_language = {language: Terms.read(files) for language, files in self.settings.lists.items()}
        return Terms.read(self.files()), by_language

    def label(self, documents: Sequence[Document]) -> list[dict[str, Any]]:
        """What was found in each document."""
        return [self._label(document.text) for document in documents]

    def _label(self, text: str) -> dict[str, Any]:
        together, by_language = self._terms
        found = together.find(text)
        terms = [term for _, _, term in found]
        row: dict[str, Any] = {
            "sensitive": len(found),
            "sensitive_distinct": len(set(terms)),
            "sensitive_share": sum(end - start for start, end, _ in found) / len(text) if text else 0.0,
            "sensitive_spans": [place for start, end, _ in found for place in (start, end)],
        }
        row |= {f"sensitive_{name}": sum(term in own for term in terms) for name, own in by_language.items()}
        return row
