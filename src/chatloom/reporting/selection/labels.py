"""Section about labels: how numbers are spread, with the limits they are held against, and which values are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chatloom.progress import value_text
from chatloom.reporting import blocks
from chatloom.reporting.amounts import amount, level_bars, listing, share
from chatloom.reporting.html import Html
from chatloom.reporting.report import Section
from chatloom.reporting.spreads import spreads

Figures = Mapping[str, Any]
NUMBERS = ("number", "spans", "list")
MOST_LANGUAGES, LEAST_SHARE, MOST_LIMITED = 4, 0.02, 8
SIGNS = {">=": "from", ">": "above", "<=": "up to", "<": "below", "==": "equal to"}
UNITS = {"spans": "spans in a document", "list": "entries in a document"}


def labels_section(labels: Sequence[Figures]) -> Section | None:
    """Labels whose limits decide most first, then the other limits, then the other labels by labeller."""
    labels = [label for label in labels if label["name"] != "cluster"]
    if not labels:
        return None
    limited = [label for label in labels if label.get("limits")]
    crossed = sorted((label for label in limited if _crossed(label)), key=lambda label: -_crossed(label))
    lead = (
        "Pale: all documents; strong: those that stay. Dashed lines are limits, and what lies on their shaded side "
        "goes. A limit that cuts through a hill is a bold one. Each panel is as high as its own highest bar; the "
        "lowest bars are drawn a little higher than they are, to be seen."
    )
    shown: list[Html | str] = [lead]
    if crossed:
        most = blocks.side_by_side(*map(_figure, crossed[:MOST_LIMITED]))
        shown += [blocks.heading("Labels that decide most · 起作用的阈值"), most]
    idle = [label for label in limited if label not in crossed]
    rest: dict[str, list[Figures]] = {}
    for name, members in (("limits that fewer cross", crossed[MOST_LIMITED:]), ("limits that none crosses", idle)):
        if members:
            rest[name] = members
    for label in labels:
        if label not in limited:
            rest.setdefault(label["labeller"], []).append(label)
    closed = [
        blocks.details(f"{name}: {', '.join(label['name'] for label in members)}",
                       blocks.side_by_side(*map(_figure, members)))
        for name, members in rest.items()
    ]  # fmt: skip
    if closed:
        shown += [blocks.heading("All others · 其他标签"), listing(*closed)]
    return Section("Labels", "标签分布", shown)


def _crossed(label: Figures) -> int:
    """Documents on the wrong side of a label's limits."""
    rules = {tuple(limit["rule"]): sum(limit["objects"].values()) for limit in label["limits"]}
    return sum(rules.values())


def _figure(label: Figures) -> Html:
    return _numbers(label) if label["kind"] in NUMBERS else _values(label)


def _numbers(label: Figures) -> Html:
    groups = _shown(label["groups"])
    drawn = spreads(
        [
            {
                "name": f"{group['language']} · {group['documents']:,} documents",
                "all": group["all"],
                "part": group["stays"],
                "limits": [limit for limit in label["limits"] if limit["language"] in ("", group["language"])],
            }
            for group in groups
        ],
        label["edges"],
        log=label["scale"] == "log",
        whole=label["whole"],
        description=f"distribution of {label['name']}",
        x=_unit(label),
    )
    return blocks.figure(drawn, label["name"], " ".join(_told(label, groups)))


def _shown(groups: Sequence[Figures]) -> list[Figures]:
    """The languages with a share worth a look."""
    total = sum(group["documents"] for group in groups)
    ordered = sorted(groups, key=lambda group: (group["language"] == "other", -group["documents"]))
    return [group for group in ordered if group["documents"] >= LEAST_SHARE * total][:MOST_LANGUAGES]


def _unit(label: Figures) -> str:
    about = label["about"].lower()
    if label["kind"] in UNITS:
        return UNITS[label["kind"]]
    return "share" if about.startswith("share of") else "number" if about.startswith("number of") else ""


def _told(label: Figures, groups: Sequence[Figures]) -> list[str]:
    """What the figure shows, in words: what it is, medians, limits, and what is missing from it."""
    told = [_sentence(label["about"])] if label["about"] else []
    if not groups:
        return [*told, "No document has a value."]
    if len(groups) > 1:
        medians = ", ".join(f"{group['language']} {_number(group['median'])}" for group in groups)
        told.append(f"Medians: {medians}.")
    else:
        low, middle, high = (_number(groups[0][key]) for key in ("p05", "median", "p95"))
        told.append(f"Median {middle}; nine in ten from {low} to {high}.")
    if label["limits"]:
        told.append(_limits(label["limits"], groups))
    highest = max(group["highest"] for group in groups)
    if label["edges"] and highest > label["edges"][-1]:
        told.append(f"The last bar holds all up to {_number(highest)}.")
    if label["absent"]:
        told.append(f"{amount(label['absent'])} documents have no value.")
    if label["not_finite"]:
        told.append(f"{amount(label['not_finite'])} are not finite.")
    return told


def _limits(limits: Sequence[Figures], groups: Sequence[Figures]) -> str:
    """All limits in words, those of a language with its name, and how many documents are beyond them."""
    named = {group["language"] for group in groups}
    texts: dict[str, list[str]] = {}
    beyond: dict[tuple[str, ...], Mapping[str, int]] = {}
    for limit in limits:
        if limit["language"] and limit["language"] not in named:
            continue
        texts.setdefault(f"{SIGNS[limit['stays']]} {_number(limit['value'])}", []).append(limit["language"])
        beyond[tuple(limit["rule"])] = limit["objects"]
    told = "; ".join(
        f"{' and '.join(languages)} {text}" if any(languages) and set(languages) != named else text
        for text, languages in texts.items()
    )
    count = sum(sum(objects.values()) for objects in beyond.values())
    by_language = ", ".join(
        f"{name} {n:,}"
        for name in sorted(named)
        if (n := sum(objects.get(name, 0) for objects in beyond.values())) and len(named) > 1
    )
    crossed = f"{count:,} documents are on the wrong side" if count else "No document is on the wrong side"
    return f"Stays: {told}. {crossed}{f' ({by_language})' if by_language else ''}."


def _number(value: float) -> str:
    return value_text(float(f"{value:.3g}"))


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "。")) else ".")


def _values(label: Figures) -> Html:
    total = label["values"] + (label["absent"] if label["kind"] != "kinds" else 0)
    rows = [
        {"name": row["value"] or "(empty)", "all": row["all"], "part": row["stays"], "text": share(row["all"], total),
         "note": f"{amount(row['stays'])} of {amount(row['all'])} stay"}
        for row in label["most_frequent"]
    ]  # fmt: skip
    if label["others"]["all"]:
        others = label["others"]
        rows.append({"name": "all others", "all": others["all"], "part": others["stays"],
                     "text": share(others["all"], total), "note": ""})  # fmt: skip
    what = "spans" if label["kind"] == "kinds" else "documents"
    told = [_sentence(label["about"])] if label["about"] else []
    told.append(f"Share of {what} with each value, the most frequent first; strong: of {what} that stay.")
    if label["absent"]:
        told.append(f"{amount(label['absent'])} documents have no value.")
    if not rows:
        told = [*told[:-1], "No document has a value."]
    return blocks.figure(level_bars(rows), label["name"], " ".join(told))
