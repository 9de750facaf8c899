"""Which documents stay, and with what weight: decided last, from their labels alone.

Language, limits of the rules, then short expressions over labels (`expressions.py`), which may differ by language and
source. Nothing is measured here, so that another threshold costs one reading of the labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from chatloom.corpus.labellers.personal_data import KINDS
from chatloom.corpus.record import Document, Label
from chatloom.corpus.selection.expressions import Expression
from chatloom.corpus.settings import LanguageSettings, RuleSettings, rule_limits
from chatloom.corpus.text.rules import RULE_LABEL, Limits, judge
from chatloom.errors import ChatloomError
from chatloom.settings import Settings, nearest

LANGUAGE, RULE, KEEP, COPIES, EDITS = "language", "rules", "keep", "copies", "edits"
STEPS = (LANGUAGE, RULE, KEEP, COPIES, EDITS)
FIELDS = ("source", "url", "time")  # of a document, that expressions may name beside labels


class Case(Settings):
    """What holds for some of the documents: the first case whose `when` is true decides."""

    when: str = Field(description="condition over labels, `source`, `url` and `time`, such as `language == 'zh'`")
    keep: str = Field("", description="condition for staying; empty: stays")
    weight: float | str = Field(1.0, description="sample weight: a number, or an expression over labels")


class SelectionSettings(Settings):
    """Which documents stay; everything is decided from labels."""

    language: LanguageSettings = Field(default_factory=LanguageSettings, description="which languages stay")
    rules: RuleSettings = Field(
        default_factory=lambda: RuleSettings(preset="none"), description="limits on the labels of the labeller `rules`"
    )
    keep: str = Field("", description="condition for staying, for documents that no case is about; empty: all stay")
    weight: float | str = Field(1.0, description="their sample weight: a number, or an expression over labels")
    cases: tuple[Case, ...] = Field((), description="other conditions and weights for some languages or sources")
    copies: Literal["one", "all"] = Field("one", description="of each cluster of copies: one stays, or all")
    prefer: str = Field("", description="number by which the copy that stays is chosen, highest first; empty: first id")
    cut: tuple[str, ...] = Field((), description="labels that hold spans; what lies in them is cut out")
    redact: dict[str, str] = Field(
        default_factory=dict, description="kind of personal data -> what stands in its place, such as email: '<email>'"
    )
    min_characters: int = Field(1, ge=1, description="shortest text that stays, after cutting")
    held_out_share: float = Field(
        0.0, ge=0.0, lt=1.0, description="share of documents held out, where no earlier stage has split them"
    )

    @model_validator(mode="after")
    def _understood(self) -> Self:
        for text in self.texts():
            Expression.parse(text)
        for kind in self.redact:
            if kind not in KINDS.values():
                near = nearest(kind, KINDS.values())
                raise ValueError(f"redact: there is no kind `{kind}`; did you mean `{near or 'email'}`?")
        return self

    def texts(self) -> list[str]:
        """Every expression of the settings."""
        found = [self.keep, self.weight, self.prefer]
        for case in self.cases:
            found += [case.when, case.keep, case.weight]
        return [text for text in found if isinstance(text, str) and text]


@dataclass(frozen=True)
class Failure:
    """Something that speaks against a document: the step and the rule, and what was measured against which limit."""

    step: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Verdict:
    """What becomes of a document before copies are looked at: all that speaks against it, in the order of deciding."""

    failures: tuple[Failure, ...]
    weight: float


class Judge:
    """Judges documents by settings; made once for the labels that there are.

    Raises ChatloomError when settings ask for labels that nobody made.
    """

    def __init__(self, settings: SelectionSettings, labels: Iterable[str]) -> None:
        self.settings = settings
        names = {*labels, *FIELDS}
        self._expressions = {text: Expression.parse(text, names) for text in settings.texts()}
        kept = [settings.keep, *(case.keep for case in settings.cases)]
        self._parts = {text: self._expressions[text].parts() for text in kept if text}
        self._limits = _limits(settings.rules, names)
        if (settings.language.keep or settings.language.min_confidence) and "language" not in names:
            raise ChatloomError("`language`: no label `language` is there; add the labeller `language: {}`")
        if settings.redact and "personal_data" not in names:
            raise ChatloomError("`redact`: no label `personal_data` is there; add the labeller `personal_data: {}`")
        for name in settings.cut:
            if name not in names:
                raise ChatloomError(f"`cut`: there is no label `{name}`; labels are {', '.join(sorted(names))}")

    def verdict(self, document: Document) -> Verdict:
        """All that language, rules and expressions object to, in this order; the first is the reason.

        Of a condition the parts that `and` ties together object each for itself.
        """
        values = {**document.labels, **{name: getattr(document, name) for name in FIELDS}}
        keep, weight = self.settings.keep, self.settings.weight
        for case in self.settings.cases:
            if self._expressions[case.when].holds(values):
                keep, weight = case.keep, case.weight
                break
        failures = [*_language_failures(values, self.settings.language), *self._rule_failures(values)]
        for part in self._parts.get(keep, ()):
            if not part.holds(values):
                named = ", ".join(f"{name} {_shown(values.get(name))}" for name in sorted(part.names))
                failures.append(Failure(KEEP, shortened(part.text), named))
        amount = self._weight(weight, values, certain=not failures)
        if amount <= 0:
            failures.append(Failure(KEEP, "weight", f"weight {amount:g}"))
        return Verdict(tuple(failures), 0.0 if failures else amount)

    def preference(self, document: Document) -> float | None:
        """How much this one is wanted among its copies; None without `prefer`."""
        if not self.settings.prefer:
            return None
        values = {**document.labels, **{name: getattr(document, name) for name in FIELDS}}
        value = self._expressions[self.settings.prefer].evaluate(values)
        return None if value is None else self._number(self.settings.prefer, values, "prefer")

    def _weight(self, weight: float | str, values: Mapping[str, Any], *, certain: bool) -> float:
        """The sample weight; what goes anyway may have one that is no number, and that says nothing against it."""
        try:
            return self._number(weight, values, "weight")
        except ChatloomError:
            if certain:
                raise
            return 1.0

    def _number(self, value: float | str, values: Mapping[str, Any], what: str) -> float:
        if not isinstance(value, str):
            return float(value)
        found = self._expressions[value].evaluate(values)
        if found is None:
            return 0.0
        if isinstance(found, bool | str) or not math.isfinite(found):
            raise ChatloomError(f"`{what}: {value}` is {found!r}; expected a number")
        return float(found)

    def _rule_failures(self, values: Mapping[str, Any]) -> Iterator[Failure]:
        language = str(values.get("language") or "")
        for name, limits in self._limits.items():
            measured = values.get(RULE_LABEL + name)
            if measured is not None and (objection := judge(measured, language, limits)) is not None:
                yield Failure(RULE, name, f"{name} {objection}")


def active_limits(settings: RuleSettings) -> dict[str, Mapping[str, Limits]]:
    """Limits of the rules that have any, by language."""
    return {
        name: by_language
        for name, by_language in rule_limits(settings).items()
        if any(bound is not None for pair in by_language.values() for bound in pair)
    }


def _limits(settings: RuleSettings, names: Iterable[str]) -> dict[str, Mapping[str, Limits]]:
    """The same; raises ChatloomError where there is no label to hold against them."""
    limits = active_limits(settings)
    missing = [name for name in limits if RULE_LABEL + name not in set(names)]
    if missing:
        raise ChatloomError(
            f"`rules`: no label `{RULE_LABEL}{missing[0]}` is there; add the labeller `rules: {{}}`, or `preset: none`"
        )
    return limits


def _language_failures(values: Mapping[str, Any], settings: LanguageSettings) -> Iterator[Failure]:
    code, confidence = str(values.get("language") or "und"), float(values.get("language_confidence") or 0.0)
    if settings.keep and code not in settings.keep:
        wanted = ", ".join(settings.keep)
        yield Failure(LANGUAGE, "other_language", f"{code} (confidence {confidence:.2f}) is not among {wanted}")
    if confidence < settings.min_confidence:
        yield Failure(
            LANGUAGE, "uncertain_language", f"{code} with {confidence:.2f} is below {settings.min_confidence:g}"
        )


def _shown(value: Label) -> str:
    return f"{value:.4g}" if isinstance(value, float) else repr(value)


def shortened(text: str) -> str:
    """A condition as the name of a reason."""
    text = " ".join(text.split())
    return text if len(text) <= 200 else text[:197] + "..."
