"""Stage `extend-tokenizer`: a vocabulary and new text -> the same with more entries, old text cut as before.

It also takes in vocabularies made elsewhere (`new_entries: 0` does only that).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from chatloom.artifact import Artifact, write_json
from chatloom.corpus.text_samples import document_texts
from chatloom.errors import ChatloomError
from chatloom.evaluation.vocabulary import (
    held_out_texts,
    other_vocabularies,
    sample_figures,
    write_vocabulary_report,
)
from chatloom.settings import Settings
from chatloom.stage import Context, Input, Line, Plan, PlanContext, Stage
from chatloom.tokens.extension import (
    Extension,
    SegmentationChanges,
    entries_sha256,
    extend_vocabulary,
    pieces_of_new_entries,
    segmentation_changes,
)
from chatloom.tokens.figures import vocabulary_figures
from chatloom.tokens.importing import Imported, read_foreign
from chatloom.tokens.reserved import SENTINELS, n_reserved, reserve
from chatloom.tokens.sampling import plan_sample
from chatloom.tokens.vocabulary import Vocabulary
from chatloom.training.costs import document_bytes

FILE = "extension.json"
BYTES_A_SECOND = 1e6


class ExtendTokenizerSettings(Settings):
    """How many entries are added, and what they may not change."""

    new_entries: int = Field(4096, ge=0, description="entries to add; 0: only take the vocabulary in")
    sentinels: int = Field(
        0,
        ge=0,
        description="sentinels that the vocabulary is to have for denoising objectives (T5: 100), with three "
        "mode tokens; those it lacks are added",
    )
    rename: dict[str, str] = Field(
        {}, description="special tokens of the file that chatloom is to use under its own names, old name to new"
    )
    min_count: int = Field(2, ge=1, description="a merge must be seen this often in the new text")
    max_token_bytes: int = Field(24, ge=2, description="no new entry is longer than this many bytes (8 Han characters)")
    ties: Literal["lower_ids", "greater_bytes"] = Field(
        "lower_ids", description="which of two pairs of equal count is merged first"
    )
    allow_smaller: bool = Field(False, description="accept fewer entries when the text supports no more")
    max_changed_share: float = Field(
        0.001, ge=0, le=1, description="refuse when more than this share of held-out old documents is cut otherwise"
    )
    sample_bytes: int = Field(200_000_000, ge=1, description="learn from at most this much new text")
    reference_bytes: int = Field(200_000_000, ge=1, description="no pair in this much old text is ever merged")
    smoothing: float = Field(
        0.7, ge=0, le=1, description="of larger texts, languages and sources share the room by bytes to this power"
    )
    report_bytes: int = Field(20_000_000, ge=1, description="measure on at most this much text")


def run(context: Context) -> None:
    """Take the vocabulary in, learn merges, check held-out old documents, write everything."""
    settings: ExtendTokenizerSettings = context.settings
    taken = read_foreign(_place(context), rename=settings.rename)
    if not settings.new_entries:
        vocabulary = reserve(taken.vocabulary, settings.sentinels)
        vocabulary.save(context.path)
        _write_extension(context.path, taken, vocabulary)
        context.metrics.update(vocab_size=vocabulary.size, first_new_id=taken.n_entries)
        return
    new, old = context.artifacts("documents"), context.artifacts("old_documents")
    for name, given in (("documents", new), ("old_documents", old)):
        if not given:
            raise ChatloomError(
                f"stage `{context.name}`: the input `{name}` is missing; new entries are learnt from `documents`, and "
                "`old_documents` (of the kind that the vocabulary was made for) say what may not change"
            )
    rule: dict[str, Any] = {"smoothing": settings.smoothing, "seed": context.seed}
    sample = plan_sample(document_texts(new, "train"), settings.sample_bytes, **rule)
    reference = plan_sample(document_texts(old, "train"), settings.reference_bytes, **rule)
    made = extend_vocabulary(
        taken.vocabulary,
        (item.text for item in sample.take(document_texts(new, "train"))),
        (item.text for item in reference.take(document_texts(old, "train"))),
        settings.new_entries,
        ties=settings.ties,
        min_count=settings.min_count,
        max_token_bytes=settings.max_token_bytes,
        allow_smaller=settings.allow_smaller,
    )
    made = replace(made, vocabulary=reserve(made.vocabulary, settings.sentinels))
    held = (item.text for item in document_texts(old, "held_out"))
    changes = segmentation_changes(taken.vocabulary, made.vocabulary, held)
    _check(context, changes, settings.max_changed_share)
    made.vocabulary.save(context.path)
    _write_extension(context.path, taken, made.vocabulary)
    measured = held_out_texts([*new, *old], settings.report_bytes, settings.smoothing, context.seed)
    others = {"before the extension": taken.vocabulary, **other_vocabularies(context)}
    figures = vocabulary_figures(made.vocabulary, measured, others, seed=context.seed)
    figures["sample"] = sample_figures(sample, settings.sample_bytes)
    figures["extension"] = _figures(made, changes, settings, sum(reference.quota.values()))
    write_vocabulary_report(context, figures)
    context.metrics.update(
        first_new_id=taken.n_entries,
        merges_added=made.merges,
        changed_documents=changes.changed,
        changed_documents_share=round(changes.share, 6),
    )


def _place(context: Context) -> Path:
    given = context.inputs.get("vocabulary")
    if isinstance(given, Artifact):
        return given.path
    return context.files("vocabulary")[0]


def _check(context: Context, changes: SegmentationChanges, limit: float) -> None:
    if not changes.documents:
        raise ChatloomError(
            f"stage `{context.name}`: none of the old documents is held out, so nothing can be checked; give documents "
            "with a split (the setting `held_out_share` of the stage that made them)"
        )
    if changes.share > limit:
        shown = "; ".join(f"{item['text']!r}: {item['before']} became {item['after']}" for item in changes.examples[:3])
        raise ChatloomError(
            f"stage `{context.name}`: {changes.changed} of {changes.documents} held-out old documents "
            f"({changes.share:.3%}) are cut otherwise than before, at most {limit:.3%} may be. {shown}. Give more old "
            "text to learn from what may not change (`reference_bytes`), add fewer entries, or raise "
            "`max_changed_share`"
        )


def _write_extension(folder: Path, taken: Imported, made: Vocabulary) -> None:
    """What `extend-model` needs: where new ids begin, and what every new entry used to be."""
    write_json(
        folder / FILE,
        {
            "first_new_id": taken.n_entries,
            "old_entries_sha256": entries_sha256(made, taken.n_entries),
            "pieces": pieces_of_new_entries(taken.n_entries, made),
        },
    )


def _figures(
    made: Extension, changes: SegmentationChanges, settings: ExtendTokenizerSettings, reference_bytes: int
) -> dict[str, Any]:
    return {
        "first_new_id": made.first_new_id,
        "merges": made.merges,
        "refused": made.refused,
        "reference_bytes": reference_bytes,
        "max_changed_share": settings.max_changed_share,
        "changes": {
            "documents": changes.documents,
            "changed": changes.changed,
            "share": round(changes.share, 6),
            "examples": changes.examples,
        },
    }


def plan(context: PlanContext) -> Plan:
    """Time of cutting old and new text into pieces, about 1 MB a second."""
    settings: ExtendTokenizerSettings = context.settings
    new = min(document_bytes(context, "documents"), settings.sample_bytes)
    old = min(document_bytes(context, "old_documents"), settings.reference_bytes)
    size = 0.0
    vocabulary = context.inputs.get("vocabulary")
    if isinstance(vocabulary, Artifact):
        size = float(vocabulary.metrics.get("vocab_size", 0))
    elif "vocabulary" in context.plans:
        size = context.plans["vocabulary"].value("vocabulary")
    lines = [Line("time", (new + old) / BYTES_A_SECOND, "s")]
    if size:
        added = settings.new_entries + n_reserved(settings.sentinels)
        lines.append(Line("vocabulary", size + added, "entries"))
    if settings.sentinels:
        lines.append(Line(SENTINELS, settings.sentinels, "entries", exact=True))
    return Plan(tuple(lines))


STAGE = Stage(
    kind="extend-tokenizer",
    about="vocabulary + new documents -> the same vocabulary with more entries",
    version=1,
    settings=ExtendTokenizerSettings,
    inputs={
        "vocabulary": Input(
            "what is extended: a vocabulary, a folder with tokenizer.json, or GPT-2's vocab.json and merges.txt",
            kinds=("vocabulary", "model"),
            files=True,
        ),
        "documents": Input("new text to learn from", kinds=("documents", "selection"), required=False, many=True),
        "old_documents": Input(
            "text of the kind that the vocabulary was made for", kinds=("documents", "selection"), required=False,
            many=True,
        ),
        "compare": Input(
            "vocabularies to compare with", kinds=("vocabulary", "model"), required=False, many=True, files=True
        ),
    },
    output="vocabulary",
    run=run,
    plan=plan,
)  # fmt: skip
