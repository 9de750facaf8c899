"""The funnel: how many documents and characters each step let through, and what each rule removed, by language."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from chatloom.corpus.documents import EXTRACTION
from chatloom.corpus.selection.choice import STEPS as SELECTION_STEPS

STEPS = (EXTRACTION, *SELECTION_STEPS)


class Tally:
    """Documents and characters, also by language."""

    def __init__(self) -> None:
        self.documents = self.characters = 0
        self.by_language: dict[str, Counter[str]] = {}

    def add(self, documents: int, characters: int, language: str) -> None:
        """Count documents of one language."""
        self.documents += documents
        self.characters += characters
        counted = self.by_language.setdefault(language or "unknown", Counter())
        counted.update(documents=documents, characters=characters)

    def report(self) -> dict[str, Any]:
        """JSON-ready counts."""
        languages = {name: dict(self.by_language[name]) for name in sorted(self.by_language)}
        return {"documents": self.documents, "characters": self.characters, "by_language": languages}


def selection_funnel(counts: Mapping[str, int], documents: Mapping[str, Any]) -> dict[str, Any]:
    """The funnel of a selection: records read, documents and characters in and out of each step, then what is left.

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
            splits.setdefault(split, Tally()).add(documents_here, characters, language)
            kept.add(documents_here, characters, language)
        else:
            step, *reason, language = names
            removed.setdefault(step, {}).setdefault("|".join(reason), Tally()).add(documents_here, characters, language)
    dropped = {reason: Tally() for reason in documents.get("dropped", {})}
    for reason, tally in dropped.items():
        tally.add(documents["dropped"][reason], 0, "")
    left = Counter(documents=documents["documents"] + sum(documents.get("dropped", {}).values()))
    left["characters"] = documents["characters"]
    steps = []
    for step in STEPS:
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
