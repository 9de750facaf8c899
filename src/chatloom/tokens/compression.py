"""How well a vocabulary fits a text: bytes a token by language, entries never used, text that fell apart into bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from chatloom.tokens.vocabulary import SPECIAL_TOKENS, Vocabulary, VocabularyError

BATCH = 256


@dataclass(frozen=True)
class LanguageCompression:
    """Counts of the texts of one language; characters are Unicode code points."""

    texts: int
    bytes: int
    characters: int
    tokens: int

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes that one token stands for; higher is shorter sequences."""
        return self.bytes / self.tokens if self.tokens else 0.0

    @property
    def characters_per_token(self) -> float:
        """Characters that one token stands for; the fairer number across scripts."""
        return self.characters / self.tokens if self.tokens else 0.0


@dataclass(frozen=True)
class CompressionReport:
    """Figures of one vocabulary on some texts; `languages` includes "all"."""

    vocabulary_size: int
    languages: dict[str, LanguageCompression]
    single_byte_share: float  # of all tokens, those that are one byte of a multi-byte character
    unused: int  # entries (specials and single bytes apart) that no text used
    unused_examples: list[str]
    longest: list[str]  # the longest entries, in bytes, as text

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready figures, ratios included."""
        languages = {
            name: {**asdict(counts), "bytes_per_token": counts.bytes_per_token,
                   "characters_per_token": counts.characters_per_token}
            for name, counts in self.languages.items()
        }  # fmt: skip
        return {**asdict(self), "languages": languages}


def measure_compression(
    vocabulary: Vocabulary, texts: Iterable[tuple[str, str]], *, examples: int = 20
) -> CompressionReport:
    """Encode (language, text) pairs, best ones the vocabulary was not trained on. Raises VocabularyError on no text."""
    counts: dict[str, np.ndarray] = {}
    used = np.zeros(vocabulary.size, dtype=np.int64)
    for languages, batch in _batches(texts):
        for language, text, ids in zip(languages, batch, vocabulary.encode_batch(batch), strict=True):
            row = np.array([1, len(text.encode("utf-8")), len(text), len(ids)], dtype=np.int64)
            for name in (language, "all"):
                counts[name] = counts.get(name, 0) + row
            used += np.bincount(ids, minlength=vocabulary.size) if ids else 0
    if not used.any():
        raise VocabularyError("no text to measure compression on")
    specials = len(SPECIAL_TOKENS)
    learned = [i for i in range(specials, vocabulary.size) if vocabulary.bytes_per_id[i] > 1]
    partial = [i for i in range(specials, vocabulary.size)
               if vocabulary.bytes_per_id[i] == 1 and vocabulary.token_bytes(i)[0] >= 0x80]  # fmt: skip
    unused = [i for i in learned if used[i] == 0]
    longest = sorted(learned, key=lambda i: (-int(vocabulary.bytes_per_id[i]), i))
    return CompressionReport(
        vocabulary_size=vocabulary.size,
        languages={name: LanguageCompression(*map(int, row)) for name, row in sorted(counts.items())},
        single_byte_share=float(used[partial].sum() / used.sum()),
        unused=len(unused),
        unused_examples=[vocabulary.decode([i]) for i in unused[:examples]],
        longest=[vocabulary.decode([i]) for i in longest[:examples]],
    )


def _batches(texts: Iterable[tuple[str, str]]) -> Iterable[tuple[list[str], list[str]]]:
    languages: list[str] = []
    batch: list[str] = []
    for language, text in texts:
        languages.append(language)
        batch.append(text)
        if len(batch) == BATCH:
            yield languages, batch
            languages, batch = [], []
    if batch:
        yield languages, batch
