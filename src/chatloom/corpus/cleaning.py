"""One raw page -> a document with its labels, or the reason why not: the pure function that every worker runs.

The order is: extract, language, rules, then fingerprints for the search for duplicates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chatloom.corpus.documents import dropped_raw, text_of
from chatloom.corpus.duplicates import band_keys, shingles, signature, text_hash
from chatloom.corpus.extraction.extract import Extracted
from chatloom.corpus.reading.decoding import Undecodable
from chatloom.corpus.reading.files import Page
from chatloom.corpus.record import Document, Dropped, Label, Quarantined
from chatloom.corpus.settings import CorpusSettings, rule_limits
from chatloom.corpus.text.language import detect_language
from chatloom.corpus.text.measures import TextView
from chatloom.corpus.text.rules import RULES, Limits, judge

LANGUAGE, RULE = "language", "rules"
RULE_LABEL = "rule_"  # a rule's measure is the label `rule_<name>`
MEASURED_CHARACTERS = 4_000_000  # of a longer text the rules look at the beginning, so that one page cannot take hours


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A document that passed, with the hash of its text and its 14 band keys (empty where not wanted)."""

    document: Document
    text_hash: str
    bands: tuple[int, ...]


def clean_page(page: Page | Quarantined, settings: CorpusSettings) -> Cleaned | Dropped | Quarantined:
    """What becomes of one raw page; bytes in no known encoding are quarantined, every other loss is a Dropped."""
    if isinstance(page, Quarantined):
        return page
    try:
        extracted = text_of(page, settings.extraction)
    except Undecodable as error:
        return Quarantined(page.source, page.number, f"page {page.id}: {error}")
    if isinstance(extracted, Dropped):
        return extracted
    if not extracted.text:
        return dropped_raw(page, "empty", "no text was found on the page")
    document, reason = _label(page, extracted, settings)
    if reason is not None:
        return reason
    exact, near = settings.duplicates.exact or settings.duplicates.near, settings.duplicates.near
    bands = tuple(band_keys(signature(shingles(document.text))).tolist()) if near else ()
    return Cleaned(document, text_hash(document.text) if exact else "", bands)


def _label(page: Page, extracted: Extracted, settings: CorpusSettings) -> tuple[Document, Dropped | None]:
    text = extracted.text
    language = detect_language(text)
    view = TextView(text[:MEASURED_CHARACTERS], language.code)
    values = {name: rule.measure(view) for name, rule in RULES.items()}
    labels: dict[str, Label] = {
        "language": language.code,
        "language_confidence": round(language.confidence, 6),
        "n_characters": len(text),
        **{RULE_LABEL + name: round(value, 6) for name, value in values.items()},
    }
    metadata: dict[str, Any] = {**page.metadata}
    metadata |= {"title": extracted.title} if extracted.title else {}
    metadata |= {"language_hint": extracted.language_hint} if extracted.language_hint else {}
    document = Document(
        page.id, text, page.source, page.url or extracted.url or None, page.time, metadata, labels
    )  # fmt: skip
    verdict = _language_verdict(language.code, language.confidence, settings)
    stage = LANGUAGE
    if verdict is None:
        verdict, stage = _rule_verdict(values, language.code, rule_limits(settings.rules)), RULE
    if verdict is None:
        return document, None
    reason, detail = verdict
    return document, Dropped(page.id, stage, reason, detail, text, language.code, page.source, document.url)


def _language_verdict(code: str, confidence: float, settings: CorpusSettings) -> tuple[str, str] | None:
    wanted = settings.language.keep
    if wanted and code not in wanted:
        return "other_language", f"{code} (confidence {confidence:.2f}) is not among {', '.join(wanted)}"
    if confidence < settings.language.min_confidence:
        return "uncertain_language", f"{code} with {confidence:.2f} is below {settings.language.min_confidence:g}"
    return None


def _rule_verdict(
    values: Mapping[str, float], language: str, limits: Mapping[str, Mapping[str, Limits]]
) -> tuple[str, str] | None:
    """The first rule that says no; the detail lists all that do."""
    verdicts = {name: judge(value, language, limits[name]) for name, value in values.items()}
    failed = {name: verdict for name, verdict in verdicts.items() if verdict is not None}
    if not failed:
        return None
    return next(iter(failed)), "; ".join(f"{name} {verdict}" for name, verdict in failed.items())
