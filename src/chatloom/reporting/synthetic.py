"""The page of synthetic text: what became of the replies, by filter, template and language; what clusters are about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chatloom.reporting import bars, blocks
from chatloom.reporting.html import Html
from chatloom.reporting.report import Section, flatten, render_report
from chatloom.reporting.tables import Column, render_html

Counts = Mapping[str, Mapping[str, Mapping[str, int]]]  # group -> its name -> outcome -> replies
EXCERPT, KEPT = 600, "kept"
# The filters' order (corpus/synthetic/filters.py), before and behind the document rules.
FIRST, LAST = ("unfinished", "empty", "refusal", "other_language"), ("copied", "exact_copy", "near_copy")


def render_synthetic_page(
    title: str,
    report: Mapping[str, Any],
    clusters: Sequence[Mapping[str, Any]],
    examples: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
) -> str:
    """`report`: metrics with `counts`; `clusters` as in clusters.json; `examples`: outcome, template, prompt, text."""
    counts: Counts = report["counts"]
    sections = [
        Section("Summary", "概要", [blocks.cards(_cards(report))]),
        Section("What became of the replies", "回复的去向", [replies_funnel(report), *_by_group(counts)]),
        Section("Clusters", "聚类", [_clusters(clusters, counts)]),
        Section("Examples", "例子", _examples(examples)),
        Section("Settings", "设置", [blocks.pairs(flatten(settings))]),
    ]
    lead = (
        "Texts written by a model about what the corpus is about. Read some of them: filters catch what is broken, not "
        "what is wrong."
    )
    return render_report(sections, title, lead, facts=[str(report["generator"])], eyebrow="chatloom stage")


def _cards(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    cards: list[dict[str, Any]] = [
        {"label": "documents", "value": report["documents"], "note": f"of {report['replies']:,} replies"},
        {"label": "characters", "value": report["characters"]},
        {"label": "seed documents", "value": report["seeds"].get("seeds", 0), "note": "of the training side"},
        {"label": "prompts", "value": report["prompts"]},
        {"label": "tokens", "value": report["tokens"], "note": "prompts and replies, as counted by the generator"},
    ]
    if report["failed"]:
        cards.append({"label": "without a reply", "value": report["failed"], "tone": "bad"})
    return cards


def replies_funnel(report: Mapping[str, Any], title: str = "Filters · 过滤") -> Html:
    """What is left of the replies that were asked for after each filter."""
    counts, failed = report["counts"], report["failed"]
    outcomes = counts.get("all", {}).get("", {})
    left = outcomes.get("replies", 0)
    steps = [{"name": "asked for", "kept": left + failed, "dropped": 0}]
    if failed:
        steps.append({"name": "no reply", "kept": left, "dropped": failed})
    for reason in reasons(counts):
        dropped = outcomes.get(f"dropped:{reason}", 0)
        left -= dropped
        steps.append({"name": reason, "kept": left, "dropped": dropped})
    drawn = bars.funnel(steps, description="replies left after each filter", unit="replies")
    caption = (
        "Each bar is what is left after a filter; the light part is what it took. A reply goes by the first reason."
    )
    return blocks.figure(drawn, title, caption, wide=True)


def reasons(counts: Counts) -> list[str]:
    """Reasons for which replies went, in the order in which they are looked at; the rules stand in the middle."""
    names = counts.get("all", {}).get("", {})
    found = [name.partition(":")[2] for name in names if name.startswith("dropped:")]
    place = {name: number - len(FIRST) for number, name in enumerate(FIRST)}
    place |= {name: number + 1 for number, name in enumerate(LAST)}
    return sorted(found, key=lambda name: (place.get(name, 0), name))


def _by_group(counts: Counts) -> list[Html]:
    tables = []
    for group in ("template", "language"):
        names = reasons(counts)
        columns = [Column("name", group), Column("replies", "replies"), Column("kept", "kept"),
                   Column("share", "share", ".0%"), *(Column(f"dropped:{name}", name) for name in names)]  # fmt: skip
        rows = [
            {"name": name, **outcomes, "share": outcomes.get("kept", 0) / max(outcomes.get("replies", 0), 1)}
            for name, outcomes in counts.get(group, {}).items()
        ]
        tables.append(render_html(columns, rows))
    return tables


def _clusters(clusters: Sequence[Mapping[str, Any]], counts: Counts) -> Html:
    columns = [Column("name", "cluster"), Column("documents", "seed documents"), Column("replies", "replies"),
               Column("kept", "kept"), Column("terms", "topic terms")]  # fmt: skip
    rows = [
        {
            "name": cluster["name"],
            "language": cluster["language"],
            "documents": cluster["documents"],
            "replies": 0,
            "kept": 0,
            **counts.get("cluster", {}).get(cluster["name"], {}),
            "terms": " · ".join(term["text"] for term in cluster["terms"]) or "none",
        }
        for cluster in clusters
    ]
    caption = "Topic terms: what the cluster's documents have and others have not, by TF-IDF; best first."
    return render_html(columns, rows, group="language", caption=caption)


def _examples(examples: Sequence[Mapping[str, Any]]) -> list[Html | str]:
    shown: list[Html | str] = []
    for outcome in dict.fromkeys(str(item["outcome"]) for item in examples):
        own = [item for item in examples if item["outcome"] == outcome]
        rows = [
            {
                "prompt": _short(item["prompt"]),
                "answers": {"reply": {"text": _short(item["text"]), "note": f"{item['template']} {item['detail']}"}},
            }
            for item in own
        ]
        drawn = blocks.samples(rows, ["reply"])
        title = f"{outcome} ({len(own)} shown)"
        shown += [blocks.heading(title), drawn] if outcome == KEPT else [blocks.details(title, drawn)]
    return shown or ["There is no reply."]


def _short(text: str) -> str:
    return text if len(text) <= EXCERPT else text[:EXCERPT] + " ..."
