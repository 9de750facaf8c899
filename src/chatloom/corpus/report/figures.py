"""The report of a selection as one JSON-ready mapping: what `report.json` holds and the page draws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from chatloom.corpus.report.columns import LabelColumn
from chatloom.corpus.report.counting import FIRST, WEIGHT
from chatloom.corpus.report.distributions import label_figures
from chatloom.corpus.report.limits import limits_by_label
from chatloom.corpus.report.marks import differences
from chatloom.corpus.report.survey import DIFFERING, OTHER, Frame
from chatloom.corpus.report.tally import Tally
from chatloom.corpus.selection.choice import STEPS, SelectionSettings

UNITS = ("documents", "characters", "tokens")
EXCERPT = 300  # characters of a cluster's members that are shown
MEMBERS = 4  # of a cluster that are shown
BY = {"language": "by_language", "source": "by_source"}
Figures = dict[str, Any]


def report_figures(
    tally: Tally,
    frame: Frame,
    settings: SelectionSettings,
    labels: Sequence[LabelColumn],
    funnel: Mapping[str, Any],
    *,
    tokens: bool,
) -> Figures:
    """All figures; `tokens` says whether they were counted."""
    units = UNITS if tokens else UNITS[:2]
    limits = limits_by_label(settings, [*frame.languages, OTHER])
    for rows in limits.values():
        for row in rows:
            row["objects"] = _by_group(tally, tuple(row["rule"]), frame)
    return {
        "units": list(units),
        "funnel": dict(funnel),
        "rules": _rules(tally, units),
        "overlap": _overlap(tally),
        "shares": {BY[by]: _shares(tally, by, units) for by in BY},
        "splits": _splits(tally, units),
        "labels": label_figures(tally, labels, frame.languages, limits),
        "examples": {
            "/".join(key[1:]): drawn.entries for key, drawn in sorted(tally.samples.items()) if key[0] == "removed"
        },
        "edits": _edits(tally),
        "copies": _copies(tally, frame),
    }


def _order(rule: tuple[str, ...]) -> int:
    return STEPS.index(rule[0])


def _objections(tally: Tally) -> dict[tuple[str, ...], list[int]]:
    """Documents and characters that each rule objects to."""
    found: dict[tuple[str, ...], list[int]] = {}
    for (step, rule, _), amounts in tally.rows("failed").items():
        found[step, rule] = [a + b for a, b in zip(found.get((step, rule), (0, 0)), amounts)]
    return found


def _by_group(tally: Tally, rule: tuple[str, ...], frame: Frame) -> dict[str, int]:
    """Documents that a rule objects to, by the languages whose labels have figures of their own."""
    found: Counter[str] = Counter()
    for (*key, language), (n, _) in tally.rows("failed").items():
        if tuple(key) == rule:
            found[frame.group(language)] += n
    return dict(found)


def _rules(tally: Tally, units: Sequence[str]) -> list[Figures]:
    """Every rule that objects to a document, in the order of the steps, then by how many it removes."""
    removed: dict[tuple[str, ...], Figures] = {
        rule: {"step": rule[0], "rule": rule[1], "removed": dict.fromkeys(units, 0), "by_language": {}, "by_source": {}}
        for rule in _objections(tally)
    }
    for (step, name, by, value), amounts in sorted(tally.rows("removed").items()):
        row = removed[step, name]
        row[BY[by]][value] = dict(zip(units, amounts))
        if by == "language":
            for unit, amount in zip(units, amounts):
                row["removed"][unit] += amount
    for rule, row in removed.items():
        row["objects"] = dict(zip(UNITS, _objections(tally)[rule]))
        row["alone"] = dict(zip(UNITS, tally.rows("only").get(rule, (0, 0))))
    return [
        removed[rule]
        for rule in sorted(removed, key=lambda rule: (_order(rule), -removed[rule]["removed"]["documents"], rule))
    ]


def _overlap(tally: Tally) -> Figures:
    """Documents that two rules object to: a symmetric matrix, on its diagonal what each objects to."""
    failed = _objections(tally)
    rules = sorted(failed, key=lambda rule: (_order(rule), -failed[rule][0], rule))
    both: Counter[tuple[tuple[str, ...], tuple[str, ...]]] = Counter()
    for key, (n,) in tally.rows("both").items():
        both[key[:2], key[2:]] += n
        both[key[2:], key[:2]] += n
    matrix = [[failed[one][0] if one == other else both[one, other] for other in rules] for one in rules]
    return {"rules": [list(rule) for rule in rules], "documents": matrix}


def _shares(tally: Tally, by: str, units: Sequence[str]) -> list[Figures]:
    """Languages or sources: what there was, what stays, what stays times the weights, largest first."""
    rows: dict[str, Figures] = {}
    for (what, name), amounts in tally.rows("before").items():
        if what == by:
            empty = {"after": dict.fromkeys(units, 0), "weighted": dict.fromkeys(UNITS[:2], 0)}
            rows[name] = {"name": name, "before": dict(zip(units, amounts)), **empty}
    for (_, what, name), amounts in tally.rows("kept").items():
        if what == by:
            for unit, amount in zip(units, amounts):
                rows[name]["after"][unit] += amount
            for unit, amount in zip(UNITS, amounts[len(UNITS) :]):
                rows[name]["weighted"][unit] += amount
    for row in rows.values():
        row["weighted"] = {unit: amount / WEIGHT for unit, amount in row["weighted"].items()}
    return sorted(rows.values(), key=lambda row: (-row["before"]["documents"], row["name"]))


def _splits(tally: Tally, units: Sequence[str]) -> list[Figures]:
    rows: dict[tuple[str, str], Figures] = {}
    for (side, by, name), amounts in sorted(tally.rows("kept").items()):
        if by == "language":
            rows[side, name] = {"side": side, "language": name, **dict(zip(units, amounts))}
    return list(rows.values())


def _edits(tally: Tally) -> Figures:
    """What was changed in documents that stay: by what, and examples."""
    documents, before, after = (sum(row[place] for row in tally.rows("edited").values()) for place in range(3))
    editors: dict[str, Figures] = {}
    for (name, language), amounts in sorted(tally.rows("edits").items()):
        row = editors.setdefault(name, {"name": name, "documents": 0, "places": 0, "characters": 0, "by_language": {}})
        counts = dict(zip(("documents", "places", "characters"), amounts))
        row["by_language"][language] = counts
        for unit, amount in counts.items():
            row[unit] += amount
    for name, row in editors.items():
        row["examples"] = tally.examples("edited", name)
    return {
        "documents": documents,
        "characters_before": before,
        "characters_after": after,
        "editors": sorted(editors.values(), key=lambda row: (-row["documents"], row["name"])),
    }


def _copies(tally: Tally, frame: Frame) -> Figures:
    sizes = sorted((int(key[0]), *amounts) for key, amounts in tally.rows("sizes").items())
    kinds: dict[str, dict[str, int]] = {}
    for (cluster, kind), (n,) in tally.rows("clusters").items():
        kinds.setdefault(cluster, {})[kind] = n
    return {
        "clusters": sum(documents // max(size, 1) for size, documents, _ in sizes),
        "sizes": [
            {"size": size, "clusters": documents // max(size, 1), "documents": documents, "stay": stay}
            for size, documents, stay in sizes
        ],
        "largest": [_cluster(tally, name, kinds.get(name, {})) for name in frame.largest],
        "pairs": {
            kind: pairs
            for kind in DIFFERING
            if (pairs := [pair for name in frame.sampled[kind] for pair in _pair(tally, name, kind, kinds[name])])
        },
    }


def _cluster(tally: Tally, name: str, kinds: Mapping[str, int]) -> Figures:
    members = [entry for kind in (FIRST, *sorted(kinds)) for entry in tally.examples("cluster", name, kind)]
    members = list({entry["id"]: entry for entry in members}.values())[:MEMBERS]
    shown = [{**member, "text": member["text"][:EXCERPT]} for member in members]
    return {"name": name, "size": sum(kinds.values()), "kinds": dict(kinds), "members": shown}


def _pair(tally: Tally, name: str, kind: str, kinds: Mapping[str, int]) -> list[Figures]:
    """The first of a cluster beside a copy of it; none where texts and addresses tie together different documents."""
    firsts = tally.examples("cluster", name, FIRST)
    copies = tally.examples("cluster", name, kind)
    mixed = kinds.get("url", 0) > 0 and (kinds.get("near", 0) > 0 or kinds.get("exact", 0) > 0)
    if mixed or kinds.get(FIRST) != 1 or not copies:
        return []
    first, copy = firsts[0], copies[0]
    about = ("id", "source", "url", "characters", "stays")
    return [
        {
            "cluster": name,
            "similarity": copy["similarity"],
            "first": {key: first[key] for key in about},
            "copy": {key: copy[key] for key in about},
            "compared": max(len(first["text"]), len(copy["text"])),
            "pieces": differences(first["text"], copy["text"]),
        }
    ]
