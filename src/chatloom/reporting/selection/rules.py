"""Sections about the rules: the summary, what each step took, which rules take the same, examples of what went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chatloom.reporting import blocks
from chatloom.reporting.amounts import (
    amount,
    example,
    examples,
    excerpt,
    level_bars,
    listing,
    named,
    place,
    shade_table,
    share,
)
from chatloom.reporting.bars import funnel
from chatloom.reporting.html import Html
from chatloom.reporting.report import Section
from chatloom.reporting.tables import Column, render_html

Figures = Mapping[str, Any]
STEP_NAMES = {
    "extraction": "extraction",
    "language": "language",
    "rules": "rules",
    "keep": "conditions",
    "copies": "copies",
    "edits": "left too short",
}
COPY_NAMES = {
    "exact": "equal text",
    "near": "nearly equal text",
    "url": "same address",
    "book": "a book that another one holds",
    "duplicate": "first of its cluster, but another is preferred",
}
MOST_RULES, MOST_LANGUAGES, MOST_SOURCES, MATRIX, LONGEST_NAME = 12, 6, 12, 14, 90


def rule_name(step: str, rule: str) -> str:
    """A rule as the page calls it: rules by their names, conditions as they are written, others with their step."""
    if step == "copies":
        rule = COPY_NAMES.get(rule, rule)
    return _short(rule if step in ("rules", "keep") else f"{STEP_NAMES.get(step, step)}: {rule.replace('_', ' ')}")


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def summary_section(figures: Figures) -> Section:
    """Headline figures, and one sentence that says what was found."""
    total = figures["funnel"]
    read, text = total["steps"][0]["documents_in"], total["steps"][0]["characters_in"]
    stay = total["documents"]
    items: list[dict[str, Any]] = [
        {"label": "documents read", "value": amount(read), "note": f"{amount(text)} characters of text"},
        {"label": "documents that stay", "value": amount(stay), "note": f"{share(stay, read)} of those read"},
        {"label": "characters that stay", "value": amount(total["characters"]),
         "note": f"{share(total['characters'], text)} of the text"},
    ]  # fmt: skip
    if "tokens" in figures["units"]:
        before, after = (
            sum(row[part]["tokens"] for row in figures["shares"]["by_language"]) for part in ("before", "after")
        )
        items.append({"label": "tokens that stay", "value": amount(after), "note": f"{share(after, before)} of all"})
    held_out = total["splits"].get("held_out", {}).get("documents", 0)
    items.append({"label": "held out", "value": amount(held_out), "note": f"{share(held_out, stay)} of what stays"})
    quarantined = total["quarantined"]
    if quarantined:
        items.append(
            {"label": "unreadable records", "value": amount(quarantined), "note": "in quarantine, not documents"}
        )
    taken = sorted(figures["rules"], key=lambda row: -row["removed"]["documents"])[:1]
    sentence = ""
    if taken and taken[0]["removed"]["documents"]:
        n = taken[0]["removed"]["documents"]
        name = rule_name(taken[0]["step"], taken[0]["rule"])
        sentence = f"The rule that took most is {name}: {amount(n)} documents, {share(n, read)} of those read."
    return Section("Summary", "概要", [blocks.cards(items), *([sentence] if sentence else [])])


def steps_section(figures: Figures) -> Section:
    """The funnel, the rules that take most, every rule in numbers, rules by language, steps by source."""
    total = figures["funnel"]
    steps = [
        {"name": STEP_NAMES[row["step"]], "kept": row["documents_out"],
         "dropped": row["documents_in"] - row["documents_out"]}
        for row in total["steps"]
    ]  # fmt: skip
    drawn = funnel(steps, description="documents left after each step")
    caption = (
        "Steps are taken in this order, from above; pale is what a step takes away from what the one before it left. "
        "A step that takes most of the documents deserves a look at its examples."
    )
    shown: list[Html | str] = [blocks.figure(drawn, "Documents left after each step · 漏斗", caption, wide=True)]
    shown += [*_rule_bars(figures), *_rule_table(figures)]
    shown += [*_by_language(figures), *_by_source(figures)]
    return Section("What each step took", "逐步筛选", shown)


def _most(figures: Figures, unit: str, most: int) -> list[Figures]:
    """The rules that remove or object to most documents, in the order of the steps."""
    ordered = sorted(figures["rules"], key=lambda row: -row[unit]["documents"])
    chosen = [row for row in ordered if row[unit]["documents"]][:most]
    return [row for row in figures["rules"] if row in chosen]


def _rule_bars(figures: Figures) -> list[Html]:
    read = figures["funnel"]["steps"][0]["documents_in"]
    bars = [
        {"name": rule_name(row["step"], row["rule"]), "all": row["objects"]["documents"],
         "part": row["removed"]["documents"], "text": amount(row["removed"]["documents"]),
         "note": f"{share(row['removed']['documents'], read)} of all read"}
        for row in _most(figures, "objects", MOST_RULES)
    ]  # fmt: skip
    caption = (
        "A document is removed by the first rule that says no to it (strong); pale are those that an earlier rule had "
        "removed already. A bar that is pale to its beginning is a rule that others do the work of."
    )
    return [blocks.figure(level_bars(bars), "What each rule removed · 各规则删除", caption)] if bars else []


def _rule_table(figures: Figures) -> list[Html | str]:
    read = figures["funnel"]["steps"][0]["documents_in"]
    rows = [
        {"group": "extraction (pages that never had a text)", "name": rule, "documents": found["documents"],
         "share": found["documents"] / max(read, 1)}
        for rule, found in figures["funnel"]["steps"][0]["removed"].items()
    ]  # fmt: skip
    for row in figures["rules"]:
        rows.append(
            {
                "group": STEP_NAMES[row["step"]],
                "name": _short(COPY_NAMES.get(row["rule"], row["rule"]) if row["step"] == "copies" else row["rule"]),
                **row["removed"],
                "share": row["removed"]["documents"] / max(read, 1),
                "objects": row["objects"]["documents"],
                "alone": row["alone"]["documents"],
            }
        )
    if not rows:
        return ["No rule removed any document."]
    columns = [
        Column("name", "rule"),
        Column("documents", "documents removed", ","),
        Column("share", "of all read", ".2%"),
        *(Column(unit, unit, ",") for unit in figures["units"][1:]),
        Column("objects", "says no to", ",", about="documents that the rule says no to, whatever others say"),
        Column("alone", "it alone", ",", about="documents that no other rule says no to"),
    ]
    caption = (
        "“Says no to” counts a document for every rule that does; “it alone” counts what no other rule says no to: at "
        "most so many would come back without it."
    )
    if "tokens" not in figures["units"]:
        caption += " Tokens were not counted: give the stage a `vocabulary` to have them."
    told = f"Rules in numbers ({len(rows)}): {', '.join(figures['units'])}, what each alone says no to"
    return [blocks.details(told, named(render_html(columns, rows, group="group", caption=caption)))]


def _by_language(figures: Figures) -> list[Html | str]:
    """How much of each language a rule takes: where a rule is unfair to one, it is seen here."""
    languages = figures["shares"]["by_language"][:MOST_LANGUAGES]
    rows = _most(figures, "removed", MOST_RULES)
    if len(languages) < 2 or not rows:
        return []
    cells = [[_shaded(_removed(row, "by_language", language), language) for language in languages] for row in rows]
    table = shade_table(
        [rule_name(row["step"], row["rule"]) for row in rows],
        [language["name"] for language in languages],
        cells,
        corner="share of the language's documents removed by",
    )
    note = (
        "Each column is a language, each cell the share of its documents that the rule removed. A row with one dark "
        "cell is a rule that treats that language otherwise than the rest: right for a language that is not wanted, a "
        "reason to look at the limits where it is. Shown are the rules that removed most."
    )
    return [blocks.heading("By language · 按语言"), table, note]


def _by_source(figures: Figures) -> list[Html | str]:
    """How much of each source a step takes; each rule by source is in report.json."""
    sources = figures["shares"]["by_source"][:MOST_SOURCES]
    steps = [step for step in STEP_NAMES if any(row["step"] == step for row in figures["rules"])]
    if len(sources) < 2 or not steps:
        return []
    cells = [
        [
            _shaded(sum(_removed(row, "by_source", source) for row in figures["rules"] if row["step"] == step), source)
            for step in steps
        ]
        for source in sources
    ]
    names, columns = [source["name"] for source in sources], [STEP_NAMES[step] for step in steps]
    table = shade_table(names, columns, cells, corner="share of the source's documents removed by")
    note = "Sources with the most documents. Single rules by source are in report.json."
    return [blocks.heading("By source · 按来源"), table, note]


def _removed(rule: Figures, by: str, group: Figures) -> int:
    """Documents of a language or source that a rule removed."""
    return int(rule[by].get(group["name"], {}).get("documents", 0))


def _shaded(n: int, group: Figures) -> tuple[str, float, str]:
    """A cell of the share that n documents are of a language or source."""
    whole = group["before"]["documents"]
    return share(n, whole) if n else "·", 2 * n / max(whole, 1), f"{n:,} of {whole:,} documents"


def overlap_section(figures: Figures) -> Section | None:
    """The matrix of rules: of what the row objects to, how much the column objects to as well."""
    rules, matrix = figures["overlap"]["rules"], figures["overlap"]["documents"]
    if len(rules) < 2:
        return None
    chosen = sorted(sorted(range(len(rules)), key=lambda i: (-matrix[i][i], i))[:MATRIX])
    names = [rule_name(*rules[i]) for i in chosen]
    cells = [
        [
            (_percent(matrix[i][j], matrix[i][i]) if i != j else amount(matrix[i][i]),
             0.0 if i == j else matrix[i][j] / max(matrix[i][i], 1),
             f"{matrix[i][j]:,} documents: {names[a]} and {names[b]}" if i != j else f"{matrix[i][i]:,} documents")
            for b, j in enumerate(chosen)
        ]
        for a, i in enumerate(chosen)
    ]  # fmt: skip
    numbers = [str(place + 1) for place in range(len(chosen))]
    table = shade_table(
        [f"{number}  {name}" for number, name in zip(numbers, names)],
        numbers,
        cells,
        corner="of what this rule says no to, % that rule … says no to as well",
        titles=names,
    )
    note = (
        "Read a row: on the diagonal the number of documents that the rule says no to, beside it for how many percent "
        "of them the rule of that column does so too. A dark row is a rule that others make unnecessary; two rules "
        "dark both ways are one rule."
    )
    if len(rules) > len(chosen):
        note += f" The {len(chosen)} rules that say no to most; all {len(rules)} are in report.json."
    return Section("Rules that take the same", "规则重叠", [table, note])


def _percent(part: int, whole: int) -> str:
    return "·" if not part else f"{max(1, round(100 * part / max(whole, 1)))}"


def examples_section(figures: Figures) -> Section | None:
    """Documents that each rule removed, drawn at random."""
    shown: list[Html] = []
    for row in figures["rules"]:
        drawn = figures["examples"].get(f"{row['step']}/{row['rule']}", [])
        if drawn:
            n = row["removed"]["documents"]
            told = f"{rule_name(row['step'], row['rule'])}: {len(drawn)} of {n:,}"
            shown.append(blocks.details(told, examples(map(_example, drawn))))
    if not shown:
        return None
    lead = (
        "Open a rule to see documents that it removed, drawn at random. If many of them are good, its limit is wrong. "
        "Pages that had no text at all are in the documents artifact, in dropped/."
    )
    return Section("Examples of what went", "删除示例", [lead, listing(*shown)])


def _example(entry: Figures) -> Html:
    also: Sequence[str] = entry["also"]
    facts = [
        entry["language"],
        *place(entry),
        f"{entry['characters']:,} characters",
        f"also: {'; '.join(also[:3])}{' …' if len(also) > 3 else ''}" if also else "",
    ]
    return example(entry["detail"], facts, excerpt(entry["text"], entry["characters"], entry["language"]))
