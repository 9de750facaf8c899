"""What the stages that make vocabularies share: bounded samples of documents, and the report that they write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chatloom.artifact import Artifact, write_json
from chatloom.corpus.text_samples import document_texts
from chatloom.reporting.vocabulary import render_vocabulary_page
from chatloom.stage import Context
from chatloom.tokens.figures import Held
from chatloom.tokens.importing import import_vocabulary
from chatloom.tokens.sampling import Read, SamplePlan, plan_sample
from chatloom.tokens.vocabulary import Vocabulary

REPORT, PAGE = "report.json", "report.html"


def bounded_texts(read: Read, limit: int, smoothing: float, seed: int) -> list[tuple[str, str, str]]:
    """At most `limit` bytes of texts as (language, source, text), languages and sources in fair shares."""
    plan = plan_sample(read(), limit, smoothing=smoothing, seed=seed)
    return [(item.language, item.source, item.text) for item in plan.take(read())]


def held_out_texts(documents: Sequence[Artifact], limit: int, smoothing: float, seed: int) -> Held:
    """Held-out documents or, where there are none, all documents; what was used is said in the name."""
    held = bounded_texts(lambda: document_texts(documents, "held_out"), limit, smoothing, seed)
    if any(text for _, _, text in held):
        return Held("held-out documents", held)
    every = bounded_texts(lambda: document_texts(documents), limit, smoothing, seed)
    return Held("the documents it was learnt from, since none are held out", every)


def other_vocabularies(context: Context) -> dict[str, Vocabulary]:
    """The vocabularies of the input `compare` by the names of their folders or files."""
    paths = [*(item.path for item in context.artifacts("compare")), *context.files("compare")]
    return {path.name: import_vocabulary(path) for path in paths}


def sample_figures(plan: SamplePlan, limit: int) -> dict[str, Any]:
    """What is there and what was taken, by language and source."""
    rows = [
        {"language": language, "source": source, "available": size, "taken": plan.quota[language, source]}
        for (language, source), size in plan.available.items()
    ]
    return {"limit": limit, "bytes": sum(plan.quota.values()), "strata": rows}


def write_vocabulary_report(context: Context, figures: dict[str, Any]) -> None:
    """Write report.json and the page, and hand the headline figures to the manifest.

    `timing` is another on every run, so it goes to the manifest and the page only.
    """
    timing = figures.pop("timing", {})
    write_json(context.path / REPORT, figures)
    page = render_vocabulary_page(
        figures,
        title=context.name,
        settings=context.settings.everything(),
        megabytes_per_second=timing.get("megabytes_per_second"),
    )
    (context.path / PAGE).write_text(page, encoding="utf-8")
    context.metrics.update(headline(figures), **timing)


def headline(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures of a report that tables of runs show."""
    compression = figures["compression"]
    found: dict[str, Any] = {
        "vocab_size": figures["vocabulary"]["size"],
        "bytes_per_token_documents": compression["documents"]["bytes_per_token"],
    }
    if "conversations" in compression:
        found["bytes_per_token_conversations"] = compression["conversations"]["bytes_per_token"]
    found |= {
        f"bytes_per_token_{name}": row["bytes_per_token"] for name, row in list(compression["languages"].items())[:4]
    }
    if "entries" in figures:
        found["unused_entries_share"] = figures["entries"]["unused_share"]
        found["single_byte_share"] = figures["entries"]["single_byte_share"]
    return found
