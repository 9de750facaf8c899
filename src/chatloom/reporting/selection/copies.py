"""Sections about what is edited and what is copied: counts, and texts with the differences marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chatloom.reporting import blocks
from chatloom.reporting.amounts import amount, example, examples, excerpt, level_bars, listing, marked, place, share
from chatloom.reporting.html import Html
from chatloom.reporting.report import Section
from chatloom.reporting.tables import Column, render_html

Figures = Mapping[str, Any]
SIZES = ((2, 2), (3, 3), (4, 4), (5, 8), (9, 16), (17, 64), (65, 256), (257, 1024), (1025, None))
PAIR_NAMES = {"near": "nearly equal texts", "url": "texts of one address"}


def edits_section(figures: Figures) -> Section | None:
    """What was cut out of documents that stay or put in another's place, with examples before and after."""
    editors: Sequence[Figures] = figures["editors"]
    if not editors:
        return None
    before, after = figures["characters_before"], figures["characters_after"]
    lead = (
        f"{figures['documents']:,} documents that stay were changed; of their {amount(before)} characters "
        f"{amount(before - after)} ({share(before - after, before)}) are gone. In the examples what was cut is struck "
        "through, what stands in its place is underlined."
    )
    columns = [
        Column("name", "edited by"), Column("documents", "documents", ","), Column("places", "places", ","),
        Column("characters", "characters in them", ","), Column("languages", "documents by language"),
    ]  # fmt: skip
    rows = [
        {
            **row,
            "languages": ", ".join(
                f"{name} {counts['documents']:,}"
                for name, counts in sorted(row["by_language"].items(), key=lambda item: -item[1]["documents"])[:5]
            ),
        }
        for row in editors
    ]
    shown: list[Html | str] = [lead, render_html(columns, rows)]
    shown_of = [
        blocks.details(
            f"{row['name']}: {len(row['examples'])} of {row['documents']:,} documents, before and after",
            examples(map(_edit, row["examples"])),
        )
        for row in editors
    ]
    shown.append(listing(*shown_of))
    return Section("What was edited", "文本编辑", shown)


def _edit(entry: Figures) -> Html:
    facts = [entry["language"], *place(entry)]
    return example("", facts, marked(entry["pieces"], entry["language"]))


def copies_section(figures: Figures) -> Section | None:
    """Clusters of copies: how large they are, the largest, and pairs with their differences."""
    if not figures["sizes"]:
        return None
    sizes: Sequence[Figures] = figures["sizes"]
    documents = sum(row["documents"] for row in sizes)
    stay = sum(row["stay"] for row in sizes)
    lead = (
        f"{documents:,} documents are in {figures['clusters']:,} clusters of copies: equal texts, nearly equal texts, "
        f"or one address. {stay:,} of these documents stay."
    )
    bars = [_size_bar(low, high, sizes) for low, high in SIZES]
    figure = blocks.figure(
        level_bars([bar for bar in bars if bar["all"]]),
        "Clusters by size · 重复簇大小",
        "How many clusters hold so many documents. Many small ones are pages published twice; few large ones are "
        "templates, licences, and pages without content.",
    )
    shown: list[Html | str] = [lead, figure, *_largest(figures["largest"])]
    if figures["pairs"]:
        told = "What the copy has not is struck through, what it has and the first has not is underlined."
        shown += [blocks.heading("Pairs and their differences · 重复对的差异"), told]
        shown.append(
            listing(
                *(
                    blocks.details(
                        f"{PAIR_NAMES[kind]}: {len(pairs)} pairs drawn at random", examples(map(_pair, pairs))
                    )
                    for kind, pairs in figures["pairs"].items()
                )
            )
        )
    return Section("Copies", "重复文档", shown)


def _size_bar(low: int, high: int | None, sizes: Sequence[Figures]) -> dict[str, Any]:
    inside = [row for row in sizes if row["size"] >= low and (high is None or row["size"] <= high)]
    clusters, documents = (sum(row[key] for row in inside) for key in ("clusters", "documents"))
    name = f"{low:,} documents" if low == high else f"{low:,} to {high:,}" if high else f"{low:,} and more"
    return {
        "name": name,
        "all": clusters,
        "part": clusters,
        "text": f"{clusters:,}",
        "note": f"{documents:,} documents",
    }


def _largest(clusters: Sequence[Figures]) -> list[Html | str]:
    shown: list[Html] = []
    for cluster in clusters:
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in sorted(cluster["kinds"].items(), key=lambda item: -item[1]))
        told = f"{cluster['size']:,} documents ({kinds}): {_title(cluster['members'])}"
        shown.append(blocks.details(told, examples(map(_member, cluster["members"]))))
    return [blocks.heading("The largest · 最大的簇"), listing(*shown)] if shown else []


def _title(members: Sequence[Figures]) -> str:
    text = " ".join(members[0]["text"].split()) if members else ""
    return text[:60] + ("…" if len(text) > 60 else "")


def _member(entry: Figures) -> Html:
    like = f", similarity {entry['similarity']:.3f}" if entry["similarity"] is not None else ""
    why = ("stays" if entry["stays"] else "goes") + f" ({entry['kind']}{like})"
    facts = [entry["language"], *place(entry)]
    return example(why, facts, excerpt(entry["text"], entry["characters"], entry["language"]))


def _pair(pair: Figures) -> Html:
    one, other = pair["first"], pair["copy"]
    like = "similarity not measured" if pair["similarity"] is None else f"Jaccard similarity {pair['similarity']:.3f}"
    stays = "the first stays" if one["stays"] else "the copy stays" if other["stays"] else "both go"
    facts = [
        *place(one), f"{one['characters']:,} characters",
        *place(other), f"{other['characters']:,} characters",
    ]  # fmt: skip
    if max(one["characters"], other["characters"]) > pair["compared"]:
        facts.append(f"the first {pair['compared']:,} characters are compared")
    return example(f"{like}; {stays}", facts, marked(pair["pieces"]))
