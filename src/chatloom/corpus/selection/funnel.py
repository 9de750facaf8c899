"""The funnel: how many documents and characters each step let through, and what each rule removed, by language."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from chatloom.corpus.cleaning import LANGUAGE, RULE
from chatloom.corpus.documents import EXTRACTION
from chatloom.corpus.record import Document, Dropped
from chatloom.corpus.selection.choice import STEPS as SELECTION_STEPS
from chatloom.corpus.survivors import EXACT, NEAR

STEPS = (EXTRACTION, LANGUAGE, RULE, EXACT, NEAR)


class Tally:
    """Documents and characters, also by language."""

    def __init__(self) -> None:
        self.documents = self.characters = 0
        self.by_language: dict[str, Counter[str]] = {}

    def add(self, characters: int, language: str) -> None:
        """Count one document."""
        self.documents += 1
        self.characters += characters
        self.by_language.setdefault(language or "unknown", Counter()).update(documents=1, characters=characters)

    def add_many(self, documents: int, characters: int, language: str) -> None:
        """Count documents of one language."""
        self.documents += documents
        self.characters += characters
        counted = self.by_language.setdefault(language or "unknown", Counter())
        counted.update(documents=documents, characters=characters)

    def report(self) -> dict[str, Any]:
        """JSON-ready counts."""
        languages = {name: dict(self.by_language[name]) for name in sorted(self.by_language)}
        return {"documents": self.documents, "characters": self.characters, "by_language": languages}


class Funnel:
    """Counts every record once: quarantined, dropped by a rule of a step, or kept."""

    def __init__(self) -> None:
        self.records = 0
        self.n_quarantined = 0
        self.quarantine_reasons: Counter[str] = Counter()
        self.removed: dict[str, dict[str, Tally]] = {step: {} for step in STEPS}
        self.total, self.splits = Tally(), dict[str, Tally]()

    @property
    def n_dropped(self) -> int:
        """Records dropped so far."""
        return sum(tally.documents for rules in self.removed.values() for tally in rules.values())

    def quarantined(self, reason: str) -> None:
        """Count a record that could not be read."""
        self.n_quarantined += 1
        self.quarantine_reasons[reason] += 1

    def dropped(self, dropped: Dropped) -> None:
        """Count a dropped page under its step and rule."""
        tally = self.removed[dropped.stage].setdefault(dropped.reason, Tally())
        tally.add(len(dropped.text), dropped.language)

    def kept(self, document: Document, split: str) -> None:
        """Count a document that stays."""
        language = str(document.labels["language"])
        self.total.add(len(document.text), language)
        self.splits.setdefault(split, Tally()).add(len(document.text), language)

    def report(self) -> dict[str, Any]:
        """JSON-ready: records read, then documents and characters in and out of each step, then what is left."""
        documents = self.total.documents + self.n_dropped
        characters = self.total.characters + sum(
            tally.characters for step in STEPS if step != EXTRACTION for tally in self.removed[step].values()
        )
        steps = []
        for step in STEPS:
            rules = self.removed[step]
            gone = Counter(documents=0, characters=0)
            for tally in rules.values():
                # What fails in extraction has no text of its own: its characters are HTML and not counted as removed.
                length = 0 if step == EXTRACTION else tally.characters
                gone.update(documents=tally.documents, characters=length)
            counts = {"documents_in": documents, "characters_in": characters}
            documents -= gone["documents"]
            characters -= gone["characters"]
            counts |= {"documents_out": documents, "characters_out": characters}
            removed = {name: rules[name].report() for name in sorted(rules, key=lambda n: (-rules[n].documents, n))}
            steps.append({"step": step, **counts, "removed": removed})
        return {
            "records": self.total.documents + self.n_dropped + self.n_quarantined,
            "quarantined": self.n_quarantined,
            "quarantine_reasons": dict(self.quarantine_reasons.most_common(20)),
            "steps": steps,
            "dropped": self.n_dropped,
            **self.total.report(),
            "splits": {name: self.splits[name].report() for name in sorted(self.splits)},
        }


def selection_funnel(counts: Mapping[str, int], documents: Mapping[str, Any]) -> dict[str, Any]:
    """The funnel of a selection, as `Funnel.report` gives it.

    `counts`: what `write_selected` counted, by "removed|step|reason|language|unit" and "kept|split|language|unit";
    `documents`: the metrics of the stage `documents` (records, documents, characters, quarantined, dropped).
    """
    removed: dict[str, dict[str, Tally]] = {}
    splits: dict[str, Tally] = {}
    kept = Tally()
    for key, documents_here in counts.items():
        kind, *names, unit = key.split("|")
        if unit != "documents":
            continue
        characters = counts["|".join([kind, *names, "characters"])]
        if kind == "kept":
            split, language = names
            splits.setdefault(split, Tally()).add_many(documents_here, characters, language)
            kept.add_many(documents_here, characters, language)
        else:
            step, *reason, language = names
            removed.setdefault(step, {}).setdefault("|".join(reason), Tally()).add_many(
                documents_here, characters, language
            )
    dropped = {reason: Tally() for reason in documents.get("dropped", {})}
    for reason, tally in dropped.items():
        tally.add_many(documents["dropped"][reason], 0, "")
    left = Counter(documents=documents["documents"] + sum(documents.get("dropped", {}).values()))
    left["characters"] = documents["characters"]
    steps = []
    for step in (EXTRACTION, *SELECTION_STEPS):
        rules = dropped if step == EXTRACTION else removed.get(step, {})
        row: dict[str, Any] = {"step": step, "documents_in": left["documents"], "characters_in": left["characters"]}
        for tally in rules.values():
            left -= Counter(documents=tally.documents, characters=tally.characters)
        row |= {"documents_out": left["documents"], "characters_out": left["characters"]}
        ordered = sorted(rules, key=lambda name: (-rules[name].documents, name))
        steps.append({**row, "removed": {name: rules[name].report() for name in ordered}})
    return {
        "records": documents.get("records", documents["documents"]),
        "quarantined": documents.get("quarantined", 0),
        "quarantine_reasons": dict(documents.get("quarantine_reasons", {})),
        "steps": steps,
        "dropped": sum(tally.documents for rules in (dropped, *removed.values()) for tally in rules.values()),
        **kept.report(),
        "splits": {name: splits[name].report() for name in sorted(splits)},
    }
