"""How the labels are distributed, as figures: bins with limits for numbers, the most frequent values for the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chatloom.corpus.report.bins import Spread, binned, display_edges, united
from chatloom.corpus.report.columns import LIST, NUMBER, SPANS, LabelColumn
from chatloom.corpus.report.survey import OTHER
from chatloom.corpus.report.tally import Tally
from chatloom.corpus.selection.choice import RULE_LABEL
from chatloom.corpus.text.rules import RULES

VALUES = 12  # most frequent values that are listed
Figures = dict[str, Any]


def label_figures(
    tally: Tally,
    labels: Sequence[LabelColumn],
    languages: Sequence[str],
    limits: Mapping[str, Sequence[Mapping[str, Any]]],
) -> list[Figures]:
    """One entry a label, in the order given."""
    found = []
    for label in labels:
        name, rule = label.name, RULES.get(label.name.removeprefix(RULE_LABEL))
        about = rule.about if rule is not None and name.startswith(RULE_LABEL) else label.about
        head = {"name": name, "kind": label.kind, "labeller": label.labeller, "about": about}
        if label.kind in (NUMBER, SPANS, LIST):
            found.append({**head, **_numbers(tally, name, languages, limits.get(name, ()))})
        else:
            found.append({**head, **_values(tally, name)})
    return found


def _numbers(tally: Tally, name: str, languages: Sequence[str], limits: Sequence[Mapping[str, Any]]) -> Figures:
    groups = {group: tally.spreads[name, group] for group in (*languages, OTHER) if (name, group) in tally.spreads}
    whole = united([spread for spread, _ in groups.values()])
    scale, edges = display_edges(whole, [limit["value"] for limit in limits])
    return {
        "scale": scale,
        "edges": edges,
        "whole": whole.whole,
        "values": whole.n,
        "absent": whole.absent,
        "not_finite": whole.odd,
        "limits": list(limits),
        "groups": [
            {"language": group, **_spread(spread, edges), "stays": binned(stays, edges) if edges else []}
            for group, (spread, stays) in groups.items()
            if spread.n
        ],
    }


def _spread(spread: Spread, edges: Sequence[float]) -> Figures:
    shares = {"p05": 0.05, "median": 0.5, "p95": 0.95}
    return {
        "documents": spread.n,
        "lowest": spread.low,
        **{key: spread.quantile(share) for key, share in shares.items()},
        "highest": spread.high,
        "all": binned(spread, edges),
    }


def _values(tally: Tally, name: str) -> Figures:
    rows = {key[1:]: amounts for key, amounts in tally.rows("values").items() if key[0] == name}
    listed = sorted(
        ((value, amounts[0], amounts[1]) for (kind, value), amounts in rows.items() if kind == "value"),
        key=lambda row: (-row[1], row[0]),
    )
    rest = [sum(row[1] for row in listed[VALUES:]), sum(row[2] for row in listed[VALUES:])]
    rare, absent = (rows.get((kind, ""), (0, 0)) for kind in ("rest", "absent"))
    return {
        "values": sum(row[1] for row in listed) + rare[0],
        "absent": absent[0],
        "absent_stays": absent[1],
        "most_frequent": [{"value": value, "all": n, "stays": stays} for value, n, stays in listed[:VALUES]],
        "others": {"all": rest[0] + rare[0], "stays": rest[1] + rare[1]},
    }
