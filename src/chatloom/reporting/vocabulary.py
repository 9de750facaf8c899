"""The page of a vocabulary: how well it compresses, what it was learnt from, which entries are idle, how it cuts text.

It draws the figures of `report.json` and nothing else, so any saved report can be drawn again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chatloom.reporting import blocks, plots
from chatloom.reporting.html import Html
from chatloom.reporting.report import Section, flatten, render_report
from chatloom.reporting.tables import Column, render_html

FLAT = 0.01  # a gain below this from the last doubling of the text is called flat
COMPRESSION = [
    Column("name", "text"),
    Column("texts", "texts", ","),
    Column("bytes", "bytes", ","),
    Column("bytes_per_token", "bytes / token", ".3f", about="higher is shorter sequences"),
    Column("tokens_per_character", "tokens / character", ".3f", about="lower is shorter sequences"),
    Column("fertility", "tokens / word", ".3f", about="a Han character counts as a word"),
]
MAX_SOURCES = 30


def render_vocabulary_page(
    figures: Mapping[str, Any],
    *,
    title: str,
    settings: Mapping[str, Any],
    megabytes_per_second: float | None = None,
) -> str:
    """The page as one HTML document, from the figures that the stages `tokenizer` and `extend-tokenizer` write."""
    sections = [
        _summary(figures, megabytes_per_second),
        _compression(figures["compression"]),
        _extension(figures.get("extension")),
        _sample(figures.get("sample"), figures.get("curve", [])),
        _comparisons(figures.get("comparisons", {})),
        _entries(figures.get("entries")),
        _digits(figures.get("digits")),
        _round_trips(figures.get("round_trips")),
        Section("Settings", "设置", [blocks.pairs(flatten(settings))]),
    ]
    shown = [section for section in sections if section is not None]
    return render_report(shown, title, "How this vocabulary cuts text.", eyebrow="chatloom vocabulary")


def _summary(figures: Mapping[str, Any], speed: float | None) -> Section:
    kind, total = figures["vocabulary"], figures["compression"]["all"]
    cards: list[dict[str, Any]] = [
        {"label": "entries", "value": kind["size"], "note": f"{kind['algorithm']} over {kind['alphabet']}"},
        {"label": "bytes per token", "value": f"{total['bytes_per_token']:.2f}"},
        {"label": "tokens per word", "value": f"{total['fertility']:.2f}"},
    ]
    if figures.get("entries"):
        cards.append({"label": "entries not used", "value": f"{figures['entries']['unused_share']:.1%}"})
    trips = figures.get("round_trips")
    if trips:
        failures = trips["failed"] + trips["byte_strings_failed"] + trips["special_tokens_forged"]
        tried = trips["texts"] + trips["byte_strings"]
        note = f"of {tried:,} random texts and byte strings"
        cards.append(
            {"label": "failed round trips", "value": failures, "note": note, "tone": "bad" if failures else "good"}
        )
    if speed:
        cards.append({"label": "encoding", "value": f"{speed:.1f} MB/s", "note": "on this machine, while it was made"})
    return Section("Summary", "概要", [blocks.cards(cards)])


def _compression(figures: Mapping[str, Any]) -> Section:
    rows = [{"name": "all", "group": "", **figures["all"]}]
    rows += [{"name": name, "group": "by language", **row} for name, row in figures["languages"].items()]
    sources = list(figures["sources"].items())
    rows += [{"name": name or "(none)", "group": "by source", **row} for name, row in sources[:MAX_SOURCES]]
    caption = f"Measured on {figures['measured_on']}."
    if len(sources) > MAX_SOURCES:
        caption += f" {len(sources) - MAX_SOURCES} smaller sources are in report.json."
    return Section("Compression", "压缩", [render_html(COMPRESSION, rows, group="group", caption=caption)])


def _sample(sample: Mapping[str, Any] | None, curve: Sequence[Mapping[str, Any]]) -> Section | None:
    if sample is None:
        return None
    columns = [
        Column("language", "language"),
        Column("source", "source"),
        Column("available", "bytes there", ","),
        Column("taken", "bytes taken", ","),
        Column("share", "of the sample", ".1%"),
    ]
    total = max(sum(row["taken"] for row in sample["strata"]), 1)
    rows = [{**row, "share": row["taken"] / total} for row in sample["strata"]]
    rows.sort(key=lambda row: (-row["taken"], row["language"], row["source"]))
    shown: list[Html | str] = [
        render_html(columns, rows[:MAX_SOURCES], caption=f"Learnt from at most {sample['limit']:,} bytes of text.")
    ]
    if len(curve) > 1:
        gain = curve[-1]["bytes_per_token"] / curve[-2]["bytes_per_token"] - 1
        growth = curve[-1]["bytes"] / max(curve[-2]["bytes"], 1)
        verdict = "flat: more text would hardly help" if gain < FLAT else "still rising: more text would help"
        drawn = plots.curves(
            [
                plots.Line(
                    "bytes per token", [row["bytes"] / 1e6 for row in curve], [row["bytes_per_token"] for row in curve]
                )
            ],
            description="Bytes per token on text that was not learnt from, against the size of the sample",
            x="megabytes learnt from",
            y="bytes per token",
            log_x=True,
        )
        caption = f"The last step, to {growth:.1f} times the text, gained {gain:.2%}: {verdict}."
        shown.append(blocks.figure(drawn, "Compression against the size of the sample", caption))
    return Section("What it was learnt from", "学习样本", shown)


def _extension(figures: Mapping[str, Any] | None) -> Section | None:
    if figures is None:
        return None
    changes = figures["changes"]
    facts = {
        "entries before": figures["first_new_id"],
        "merges added": figures["merges"],
        "pairs refused, since old text has them": figures["refused"],
        "old documents checked": changes["documents"],
        "of them cut otherwise than before": changes["changed"],
        "share": f"{changes['share']:.3%} (at most {figures['max_changed_share']:.3%})",
    }
    shown: list[Html | str] = [blocks.pairs(facts)]
    if changes["examples"]:
        columns = [Column("text", "text"), Column("before", "before"), Column("after", "after")]
        shown.append(render_html(columns, changes["examples"], caption="Where old text is cut otherwise."))
    return Section("Extension", "扩充", shown)


def _comparisons(found: Mapping[str, Any]) -> Section | None:
    if not found:
        return None
    rows = [
        {"group": f"{other} ({figures['size']:,} entries, has {figures['shared_entries']:.0%} of ours)",
         "name": name, **values}
        for other, figures in found.items()
        for name, values in figures["bytes_per_token"].items()
    ]  # fmt: skip
    columns = [
        Column("name", "text"),
        Column("ours", "this vocabulary", ".3f"),
        Column("theirs", "the other", ".3f"),
        Column("ratio", "ratio", ".2f", about="above 1: this one needs fewer tokens"),
    ]
    return Section(
        "Beside other vocabularies", "比较", [render_html(columns, rows, group="group", caption="Bytes per token.")]
    )


def _entries(figures: Mapping[str, Any] | None) -> Section | None:
    if figures is None:
        return None
    facts = {
        "learnt entries": figures["learnt"],
        "never used on the measured text": f"{figures['unused']:,} ({figures['unused_share']:.1%})",
        f"used fewer than {figures['under_trained_below']} times": (
            f"{figures['under_trained']:,} ({figures['under_trained_share']:.1%})"
        ),
        "that no text can reach": figures["unreachable"],
        "tokens that are a single byte": f"{figures['single_byte_share']:.2%}",
        "tokens that are a byte of a broken character": f"{figures['broken_character_share']:.2%}",
    }
    columns = [Column("entry", "entry"), Column("bytes", "bytes"), Column("uses", "uses")]
    return Section(
        "Entries",
        "词条",
        [
            blocks.pairs(facts),
            blocks.heading("Longest"),
            render_html(columns[:2], figures["longest"]),
            blocks.details("Most used", render_html([columns[0], columns[2]], figures["most_used"])),
            blocks.details("Never used", blocks.code("  ".join(figures["unused_examples"]) or "none")),
            blocks.details("Hardly used", blocks.code("  ".join(figures["under_trained_examples"]) or "none")),
            "␣ is a space, ↵ a line end, ⇥ a tab; ⟨E4⟩ is a byte that is part of a character.",
        ],
    )


def _digits(figures: Mapping[str, Any] | None) -> Section | None:
    if figures is None:
        return None
    facts: dict[str, Any] = {"longest run of digits in a token": figures["longest_run"]}
    for name, whole in {"1_digits": 10, "2_digits": 100, "3_digits": 1000}.items():
        facts[f"numbers of {name[0]} digit{'' if name[0] == '1' else 's'} that are one token"] = (
            f"{figures['one_token'][name]:,} of {whole:,}"
        )
    cut = {number: " | ".join(parts) for number, parts in figures["examples"].items()}
    return Section("Digits", "数字", [blocks.pairs(facts), blocks.pairs(cut)])


def _round_trips(figures: Mapping[str, Any] | None) -> Section | None:
    if figures is None:
        return None
    facts = {
        "random texts that came back otherwise": f"{figures['failed']:,} of {figures['texts']:,}",
        "byte strings that came back otherwise": f"{figures['byte_strings_failed']:,} of {figures['byte_strings']:,}",
        "texts that became a special token": figures["special_tokens_forged"],
        "half of a surrogate pair is refused": figures["lone_surrogate_refused"],
    }
    failed = [*figures["examples"], *figures["byte_string_examples"]]
    shown: list[Html | str] = [blocks.pairs(facts)]
    if failed:
        shown.append(blocks.code("\n".join(failed)))
    return Section("Round trips", "往返", shown)
