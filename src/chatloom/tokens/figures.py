"""The report of a vocabulary as one JSON-ready mapping: what `report.json` holds and the page draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chatloom.tokens.fuzz import round_trips
from chatloom.tokens.layout import VocabularyError
from chatloom.tokens.report import ALL, Counts, compare, count_words, digit_figures, entry_figures, measure
from chatloom.tokens.vocabulary import Vocabulary
from chatloom.tokens.wordpiece import WordPiece

Texts = Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Held:
    """What a vocabulary is measured on, as (language, source, text): documents, and conversations where there are any.

    `name` says for people what the documents are.
    """

    name: str
    documents: Texts
    conversations: Texts = ()

    def bytes_per_token(self, vocabulary: Vocabulary | WordPiece) -> float:
        """On the documents."""
        texts = [text for _, _, text in self.documents]
        tokens = sum(map(len, vocabulary.encode_batch(texts)))
        return round(sum(len(text.encode("utf-8")) for text in texts) / tokens, 4) if tokens else 0.0


def vocabulary_figures(
    vocabulary: Vocabulary, held: Held, others: Mapping[str, Vocabulary] | None = None, *, seed: int = 0
) -> dict[str, Any]:
    """All figures of a report but those of the sample that it was learnt from; `timing` is not of the vocabulary.

    Raises VocabularyError when a text does not come back, or becomes a special token: such a vocabulary is broken.
    """
    everything = [*held.documents, *held.conversations]
    measured = measure(vocabulary, everything)
    compression = {"measured_on": held.name, **measured.figures()}
    compression["documents"] = measure(vocabulary, held.documents).figures()[ALL]
    if any(text for _, _, text in held.conversations):
        compression["conversations"] = measure(vocabulary, held.conversations).figures()[ALL]
    trips = round_trips(vocabulary, seed=seed)
    broken = [*trips["examples"], *trips["byte_string_examples"]]
    if broken or trips["special_tokens_forged"]:
        raise VocabularyError(
            f"{trips['failed'] + trips['byte_strings_failed']} of {2 * trips['texts']} random texts did not come back "
            f"and {trips['special_tokens_forged']} became special tokens, such as {broken[:2]}: it is broken"
        )
    return {
        "vocabulary": {
            "size": vocabulary.size,
            "sha256": vocabulary.sha256,
            "algorithm": vocabulary.layout.algorithm,
            "alphabet": vocabulary.layout.alphabet,
            "lossless": vocabulary.lossless,
            "special_tokens": vocabulary.special_tokens,
        },
        "compression": compression,
        "entries": entry_figures(vocabulary, measured.uses),
        "digits": digit_figures(vocabulary),
        "round_trips": trips,
        "comparisons": {name: compare(vocabulary, other, held.documents) for name, other in (others or {}).items()},
        "timing": {"megabytes_per_second": round(measured.megabytes_per_second, 3)},
    }


def wordpiece_figures(vocabulary: WordPiece, held: Held) -> dict[str, Any]:
    """What can be said of a vocabulary that loses text: compression, unknown tokens, texts that came back."""
    languages: dict[str, Counts] = {}
    sources: dict[str, Counts] = {}
    total = Counts()
    unknown = back = 0
    texts = [text for _, _, text in held.documents]
    for (language, source, text), ids in zip(held.documents, vocabulary.encode_batch(texts), strict=True):
        counts = Counts(1, len(text.encode("utf-8")), len(text), count_words(text), len(ids))
        for group in (languages.setdefault(language, Counts()), sources.setdefault(source, Counts()), total):
            group.add(counts)
        unknown += ids.count(vocabulary.unknown_id)
        back += vocabulary.decode(ids) == text
    if not total.tokens:
        raise VocabularyError("no text to measure the vocabulary on")
    return {
        "vocabulary": {
            "size": vocabulary.size, "algorithm": "wordpiece", "alphabet": "characters", "lossless": False,
            "unknown_share": round(unknown / total.tokens, 6), "texts_that_come_back": back, "texts": total.texts,
        },
        "compression": {
            "measured_on": held.name,
            ALL: total.figures(),
            "documents": total.figures(),
            "languages": {name: counts.figures() for name, counts in sorted(languages.items())},
            "sources": {name: counts.figures() for name, counts in sorted(sources.items())},
        },
    }  # fmt: skip
