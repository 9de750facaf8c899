"""Stage `ngram-model`: reference text -> an n-gram language model for each language, with head, middle and tail limits.

It reads the training side of the reference text; the held-out side measures it, and a sample of what will be labelled
(the crawl), where one is given, decides the limits.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from pydantic import Field

from chatloom.artifact import write_json
from chatloom.corpus.ngrams.buckets import Terciles, folder_of, write_bundle
from chatloom.corpus.ngrams.model import F64, NgramModel
from chatloom.corpus.ngrams.training import NgramSettings, NgramTrainer
from chatloom.corpus.ngrams.units import PIECES, Pieces, Words
from chatloom.corpus.quality.separation import auc
from chatloom.corpus.reference_texts import Sample, TextSource, planned_bytes, source_of
from chatloom.corpus.split import HELD_OUT
from chatloom.errors import ChatloomError
from chatloom.progress import Progress, progress, say
from chatloom.reporting import blocks
from chatloom.reporting.bars import histogram
from chatloom.reporting.html import Html
from chatloom.reporting.report import Section, flatten, render_report
from chatloom.reporting.tables import Column, render_html
from chatloom.settings import Settings, runtime
from chatloom.stage import Context, Input, Line, Plan, PlanContext, Stage
from chatloom.tokens.vocabulary import Vocabulary

PAGE = "model.html"
BUFFER_CHARACTERS = 1 << 20


class NgramModelSettings(Settings):
    """What the models look like and what they learn from."""

    ngrams: NgramSettings = Field(default_factory=NgramSettings, description="order, vocabulary and pruning")
    units: Literal["words", "pieces"] = Field(
        "words", description="words (characters where words are not spaced), or pieces of the input `vocabulary`"
    )
    language: str = Field(
        "", description="language of all texts; empty: each document's label `language`, else the detector's answer"
    )
    languages: tuple[str, ...] = Field((), description="train these only; empty: every language with enough text")
    min_units: int = Field(10_000, ge=1, description="a language with fewer units than this gets no model")
    held_out_share: float = Field(
        0.0, ge=0, lt=1, description="of texts without a label `split`, this share only measures the model"
    )
    sample_texts: int = Field(
        5_000, ge=1, description="texts of a language that are measured, and that the limits are fitted on"
    )
    memory_bytes: int = runtime(256 << 20, ge=1 << 20, description="memory for sorting n-grams")


def run(context: Context) -> None:
    """Read and count the reference text, write the models, then measure them."""
    settings: NgramModelSettings = context.settings
    vocabulary = _vocabulary(context)
    source = source_of(context, "reference", language=settings.language, held_out_share=settings.held_out_share)
    held_out = Sample(settings.sample_texts, context.seed)
    with contextlib.ExitStack() as stack:
        trainers = _read(context, source, held_out, vocabulary, stack)
        described = _finish(context, trainers)
    if vocabulary is not None:
        vocabulary.save(context.path)
    crawl = Sample(settings.sample_texts, context.seed)
    sample = source_of(context, "sample", language=settings.language, labels="sample_labels")
    for text in sample:
        crawl.add(text)
    figures, values = {}, {}
    terciles: dict[str, Terciles | None] = {}
    for language, description in described.items():
        model = NgramModel.load(folder_of(context.path, language), vocabulary)
        texts = {"held out": held_out.texts(language), "sample": crawl.texts(language)}
        values[language] = _scored(model, texts, context.seed)
        fitted_on = next((name for name in ("sample", "held out") if name in values[language]), None)
        limits = Terciles.fit(values[language][fitted_on]) if fitted_on else None
        terciles[language] = limits
        figures[language] = _figures(description, model, values[language], limits)
    write_bundle(context.path, settings.units, terciles)
    unreadable = [asdict(item) for item in [*source.bad, *sample.bad]]
    write_json(context.path / "quarantine.json", unreadable)
    write_json(context.path / "report.json", figures)
    context.metrics.update(figures, unreadable=len(unreadable))
    (context.path / PAGE).write_text(_page(context, figures, values), encoding="utf-8")
    for language in sorted(described):
        if terciles[language] is None and not context.quiet:
            say(
                f"{context.name}: {language}: no limits of head, middle and tail: give a sample of what will be "
                "labelled as `sample`, or hold out at least 30 reference texts"
            )


def _vocabulary(context: Context) -> Vocabulary | None:
    artifact = context.optional("vocabulary")
    if (artifact is not None) != (context.settings.units == PIECES):
        raise ChatloomError(
            f"stage `{context.name}`: `units: pieces` counts the pieces of the input `vocabulary`; give both or neither"
        )
    return None if artifact is None else Vocabulary.load(artifact.path)


def _read(
    context: Context, source: TextSource, held_out: Sample, vocabulary: Vocabulary | None, stack: contextlib.ExitStack
) -> dict[str, NgramTrainer]:
    settings: NgramModelSettings = context.settings
    trainers: dict[str, NgramTrainer] = {}
    waiting: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    with progress(None, unit="texts", label=f"{context.name}: reading", quiet=context.quiet) as bar:
        for text in source:
            bar.advance(1)
            language = text.language
            if settings.languages and language not in settings.languages:
                continue
            if text.side == HELD_OUT:
                held_out.add(text)
                continue
            waiting.setdefault(language, []).append(text.text)
            sizes[language] = sizes.get(language, 0) + len(text.text)
            if sizes[language] >= BUFFER_CHARACTERS:
                _trainer(context, trainers, language, vocabulary, stack).add(waiting.pop(language))
                sizes[language] = 0
    for language, texts in sorted(waiting.items()):
        _trainer(context, trainers, language, vocabulary, stack).add(texts)
    return trainers


def _trainer(
    context: Context,
    trainers: dict[str, NgramTrainer],
    language: str,
    vocabulary: Vocabulary | None,
    stack: contextlib.ExitStack,
) -> NgramTrainer:
    if language not in trainers:
        settings: NgramModelSettings = context.settings
        cutter = Words() if vocabulary is None else Pieces(vocabulary)
        folder = folder_of(context.path, language)
        trainers[language] = stack.enter_context(
            NgramTrainer(folder, settings.ngrams, cutter, memory_bytes=settings.memory_bytes)
        )
    return trainers[language]


def _finish(context: Context, trainers: Mapping[str, NgramTrainer]) -> dict[str, dict[str, Any]]:
    """Write the models of all languages with enough text; their descriptions."""
    least = context.settings.min_units
    enough = {name: trainer for name, trainer in sorted(trainers.items()) if trainer.n_units >= least}
    small = {name: trainer.n_units for name, trainer in sorted(trainers.items()) if name not in enough}
    if not enough:
        found = ", ".join(f"{name}: {count:,}" for name, count in small.items()) or "no text on the training side"
        raise ChatloomError(
            f"stage `{context.name}`: no language has the {least:,} units that a model needs ({found}); give more "
            "reference text, or lower `min_units`"
        )
    described = {}
    total = sum(trainer.n_units for trainer in enough.values())
    with progress(total, unit="units", label=f"{context.name}: counting", quiet=context.quiet) as bar:
        for name, trainer in enough.items():
            described[name] = trainer.finish(_advance(bar))
    context.metrics["too_little_text"] = small
    for name in small:  # an empty folder of a language would look like a model
        trainers[name].discard()
    return described


def _advance(bar: Progress) -> Any:
    return lambda count: bar.advance(count)


def _scored(model: NgramModel, texts: Mapping[str, Sequence[str]], seed: int) -> dict[str, Any]:
    """Perplexities of each group of texts, of the held-out one also in random order, and its sums."""
    found: dict[str, Any] = {}
    for name, group in texts.items():
        if group:
            scores = model.score(group)
            found[name] = scores.perplexity
            if name == "held out":
                found["shuffled"] = model.score(group, shuffle=seed).perplexity
                found["sums"] = [int(scores.n_units.sum()), int(scores.n_bytes.sum()), int(scores.n_unknown.sum())]
                found["nats"] = float(scores.nats.sum())
    return found


def _figures(
    description: Mapping[str, Any], model: NgramModel, values: Mapping[str, Any], limits: Terciles | None
) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "training_texts": description["n_texts"],
        "training_units": description["n_units"],
        "types": description["types"],
        "n_grams": description["n_grams"],
        "bytes": model.n_bytes,
        "bytes_per_training_unit": round(model.n_bytes / description["n_units"], 3),
    }
    if "sums" in values:
        n_units, n_bytes, n_unknown = values["sums"]
        figures |= {
            "held_out_texts": len(values["held out"]),
            "nats_per_unit": round(values["nats"] / max(n_units, 1), 4),
            "bits_per_byte": round(values["nats"] / max(n_bytes, 1) / math.log(2), 4),
            "unknown_share": round(n_unknown / max(n_units, 1), 5),
            "auc_against_shuffled": round(auc(values["shuffled"], values["held out"]), 5),
        }
    if limits is not None:
        figures["limits"] = {**asdict(limits), "fitted_on": "sample" if "sample" in values else "held out"}
    return figures


def _page(context: Context, figures: Mapping[str, Mapping[str, Any]], values: Mapping[str, Mapping[str, F64]]) -> str:
    """The models' own page: one table, and for each language how perplexities are spread."""
    columns = [
        Column("language", "language"), Column("training_texts", "texts"), Column("training_units", "units"),
        Column("types", "different units"), Column("megabytes", "MB", ".1f"),
        Column("nats_per_unit", "held-out nats/unit", ".3f"), Column("bits_per_byte", "bits/byte", ".3f"),
        Column("unknown_share", "unknown", ".2%"), Column("auc_against_shuffled", "AUC against shuffled", ".4f"),
    ]  # fmt: skip
    rows = [{"language": name, "megabytes": row["bytes"] / 1e6, **row} for name, row in figures.items()]
    pictures: list[Html] = []
    for name in figures:
        groups = {key: values[name][key] for key in ("sample", "held out", "shuffled") if key in values[name]}
        if not groups:
            continue
        limits = figures[name].get("limits")
        told = (
            f"Head up to {limits['head']:,.0f}, tail above {limits['tail']:,.0f} (fitted on {limits['n_texts']:,} "
            f"texts: {limits['fitted_on']}). " if limits else ""
        )  # fmt: skip
        drawn = histogram(
            {key: [math.log10(value) for value in group if math.isfinite(value)] for key, group in groups.items()},
            description=f"perplexities, {name}",
            x="log10 of the perplexity",
        )
        caption = told + (
            "Held-out text in random order (shuffled) should lie far to the right of itself. A crawl that lies much "
            "further right than held-out text is of another kind than the reference."
        )
        pictures.append(blocks.figure(drawn, f"Perplexity: {name} · 困惑度", caption))
    sections = [
        Section("Models", "模型", [render_html(columns, rows)]),
        Section("Perplexity", "困惑度", [blocks.side_by_side(*pictures)] if pictures else ["No text was held out."]),
        Section("Settings", "设置", [blocks.pairs(flatten(context.settings.everything()))]),
    ]
    lead = "N-gram language models of the reference text, one a language. Lower perplexity: more like that text."
    return render_report(sections, context.name, lead, eyebrow="chatloom stage")


def plan(context: PlanContext) -> Plan:
    """Disk and time from the bytes of the reference text: 4.5 bytes a unit, 1.2 million units a second and order."""
    units = planned_bytes(context, "reference") / 4.5
    order = context.settings.ngrams.order
    return Plan(
        (
            Line("units", units, "units"),
            Line("disk", units * (8 + 60 * (order - 1)), "bytes"),
            Line("time", units * order / 1.2e6, "s"),
        )
    )


STAGE = Stage(
    kind="ngram-model",
    about="reference text -> n-gram language models, for perplexity",
    version=1,
    settings=NgramModelSettings,
    inputs={
        "reference": Input("good text to learn from", kinds=("documents", "selection"), many=True, files=True),
        "labels": Input(
            "labels of the reference documents (language, split)",
            kinds=("labels", "duplicates"),
            required=False,
            many=True,
        ),
        "sample": Input(
            "what will be labelled: decides head, middle and tail",
            kinds=("documents", "selection"),
            required=False,
            many=True,
            files=True,
        ),
        "sample_labels": Input(
            "labels of the sample's documents", kinds=("labels", "duplicates"), required=False, many=True
        ),
        "vocabulary": Input("vocabulary whose pieces are counted", kinds=("vocabulary",), required=False),
    },
    output="ngram-model",
    run=run,
    plan=plan,
)
