"""Settings that the steps of the corpus chapter share, and the rule limits that presets stand for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from chatloom.corpus.extraction.extract import Extractor
from chatloom.corpus.text.rules import RULES, Limits
from chatloom.settings import Settings, nearest

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Preset = Literal["web", "documentation", "curated", "none"]
OFF: Limits = (None, None)
REPETITION = tuple(name for name in RULES if name.startswith("repeated_"))
# `web` is the rules' own limits. Each other preset replaces some of them, for every language unless one is named.
PRESETS: dict[Preset, dict[str, dict[str, Limits]]] = {
    "web": {},
    # Pages of signatures: many symbols, and sections that repeat what a base class says word for word. What goes are
    # pages without prose (lists of constants) and pages that are one line over and over.
    "documentation": {
        "word_count": {"*": (20, None), "zh": (30, None)},
        "mean_word_length": {"*": (2.5, 15), "zh": (1, 40)},
        "alphabetic_share": {"*": (0.6, None), "zh": (0.4, None)},
        "bullet_lines": {"*": (None, 0.95)},
        **{name: {"*": (None, 0.9), "zh": (None, 0.9)} for name in REPETITION},
        **{f"top_{n}gram": {"*": (None, 0.35)} for n in (2, 3, 4)},
    },
    # Texts that somebody chose (books, poems, stories): short ones are wanted, refrains are meant; damage goes.
    "curated": {
        "word_count": {"*": (8, None), "zh": (10, None)},
        "symbol_share": {"*": (None, 0.5), "zh": (None, 0.3)},
        "alphabetic_share": {"*": (0.5, None), "zh": (0.4, None)},
        "punctuation_share": {"*": (None, 0.5), "zh": (None, 0.5)},
        "stop_words": {"en": OFF, "zh": OFF},
        "terminal_punctuation": {"*": OFF},
        "bullet_lines": {"*": OFF},
        "ellipsis_lines": {"*": OFF},
        **{name: {"*": (None, 0.7), "zh": (None, 0.7)} for name in REPETITION},
        **{f"top_{n}gram": {"*": (None, 0.4)} for n in (2, 3, 4)},
    },
    "none": {name: dict.fromkeys(("*", *rule.limits), OFF) for name, rule in RULES.items()},
}


class ReadingSettings(Settings):
    """How raw files are read."""

    text_field: str = Field(
        default="text", description="field or column that holds a record's text (JSON lines, Parquet)"
    )
    html_field: str = Field(
        default="html", description="field or column that holds a record's HTML, where it has no text"
    )
    max_record_bytes: int = Field(
        default=20_000_000, ge=1000, description="bytes of one record (line, page, response); longer ones are set aside"
    )
    max_quarantined_share: Share = Field(
        default=0.1, description="share of unreadable records at which the run stops with an error"
    )


class ExtractionSettings(Settings):
    """How HTML becomes text."""

    extractor: Extractor = Field(
        default="trafilatura",
        description="blocks (documentation: keeps layout and code), resiliparse (all text), resiliparse-main "
        "(main content, fast), trafilatura (articles)",
    )
    max_page_bytes: int = Field(
        default=2_000_000, ge=1000, description="bytes of HTML of one page; longer pages are dropped, with their reason"
    )
    seconds_per_page: float = Field(
        default=20.0, gt=0, description="seconds one page may take before its process is killed and the page dropped"
    )


class LanguageSettings(Settings):
    """Which languages stay."""

    keep: tuple[str, ...] = Field(default=(), description="ISO 639 codes of the languages to keep; empty keeps all")
    min_confidence: Share = Field(
        default=0.0, description="detector's confidence below which a document is dropped (0 keeps all)"
    )


class RuleSettings(Settings):
    """Which rules decide, and their limits."""

    preset: Preset = Field(default="web", description="limits to start from: web, documentation, curated or none")
    limits: dict[str, dict[str, tuple[float | None, float | None]]] = Field(
        default_factory=dict,
        description="own limits: rule -> language (`*` for all others) -> [lowest, highest], null for no limit",
    )

    @model_validator(mode="after")
    def _known_rules(self) -> Self:
        for name, by_language in self.limits.items():
            if name not in RULES:
                raise ValueError(f"there is no rule `{name}`; did you mean `{nearest(name, RULES) or 'word_count'}`?")
            for language, (low, high) in by_language.items():
                if low is not None and high is not None and low > high:
                    raise ValueError(f"rule `{name}`, language `{language}`: lowest {low:g} is above highest {high:g}")
        return self


def rule_limits(settings: RuleSettings) -> dict[str, Mapping[str, Limits]]:
    """Limits of every rule by language, after the preset and the user's own; a rule without limits only measures."""
    preset = PRESETS[settings.preset]
    limits: dict[str, Mapping[str, Limits]] = {}
    for name, rule in RULES.items():
        # A preset's or user's `*` replaces what the rule says of every language, then the languages named replace it.
        merged = dict(rule.limits)
        for change in (preset.get(name, {}), settings.limits.get(name, {})):
            if "*" in change:
                merged = {}
            merged |= change
        limits[name] = merged
    return limits
