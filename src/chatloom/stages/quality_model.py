"""Stage `quality-model`: good texts and raw texts -> a classifier for each language, with what it is worth.

GPT-3's filter: curated texts as `good`, a raw crawl as `raw`. LLaMA's: pages that Wikipedia cites against random pages.
The classifier sees the training side only; what it is worth is measured on the held-out side, and a classifier that
cannot tell the classes apart there is refused.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from pydantic import Field

from chatloom.artifact import write_json
from chatloom.corpus.ngrams.buckets import folder_of
from chatloom.corpus.quality.classifier import F64, write_languages
from chatloom.corpus.quality.evidence import evidence
from chatloom.corpus.quality.separation import auc, auc_error, brier, calibration_error, log_loss, reliability
from chatloom.corpus.quality.training import ClassifierSettings, QualityTrainer, Trained
from chatloom.corpus.reference_texts import Sample, TextSource, planned_bytes, source_of
from chatloom.corpus.split import HELD_OUT
from chatloom.errors import ChatloomError
from chatloom.progress import progress, say
from chatloom.reporting import blocks
from chatloom.reporting.bars import histogram
from chatloom.reporting.html import Html
from chatloom.reporting.plots import Line as Curve
from chatloom.reporting.plots import curves
from chatloom.reporting.report import Section, flatten, render_report
from chatloom.reporting.tables import Column, render_html
from chatloom.settings import Settings
from chatloom.stage import Context, Input, Line, Plan, PlanContext, Stage

PAGE, SCRATCH = "model.html", "scratch"
GOOD, RAW = "good", "raw"
BUFFER_CHARACTERS = 1 << 20
EVIDENCE_TEXTS = 500
Groups = dict[tuple[str, str], Sample]


class QualityModelSettings(Settings):
    """What the classifiers look at and what they learn from."""

    classifier: ClassifierSettings = Field(default_factory=ClassifierSettings, description="n-grams and training")
    language: str = Field(
        "", description="language of all texts; empty: each document's label `language`, else the detector's answer"
    )
    languages: tuple[str, ...] = Field((), description="train these only; empty: every language with enough texts")
    held_out_share: float = Field(
        0.1, ge=0, lt=1, description="of texts without a label `split`, this share only measures the classifier"
    )
    held_out_texts: int = Field(2_000, ge=10, description="held-out texts of a class and language at most")
    min_held_out: int = Field(
        10, ge=2, description="with fewer held-out texts of a class, the cross-fitted scores are the check"
    )


def run(context: Context) -> None:
    """Read both classes, train a classifier for each language, measure and show it."""
    settings: QualityModelSettings = context.settings
    held_out: Groups = {}
    shown: Groups = {}
    with contextlib.ExitStack() as stack:
        trainers, unreadable = _read(context, held_out, shown, stack)
        trained = _train(context, trainers)
    shutil.rmtree(context.path / SCRATCH, ignore_errors=True)
    figures, pictures = {}, {}
    for language, result in trained.items():
        result.classifier.save(folder_of(context.path, language))
        groups = [_texts(held_out, name, language) for name in (GOOD, RAW)]
        enough = min(map(len, groups)) >= settings.min_held_out
        scores, truths = _check(result, groups) if enough else (result.cross_scores, result.truths)
        known = np.isfinite(scores)
        scores, truths = scores[known], truths[known]
        figures[language] = _figures(result, scores, truths, "held-out side" if enough else "cross-fitting")
        _refuse_useless(context.name, language, figures[language])
        told = evidence(result.classifier, _texts(shown, GOOD, language), _texts(shown, RAW, language))
        pictures[language] = (scores, truths, told)
    write_languages(context.path, list(trained))
    write_json(context.path / "quarantine.json", unreadable)
    write_json(
        context.path / "report.json",
        {name: {**figures[name], "evidence": pictures[name][2]} for name in trained},
    )
    flat = {name: {key: value for key, value in row.items() if key != "reliability"} for name, row in figures.items()}
    context.metrics.update(flat, unreadable=len(unreadable))
    (context.path / PAGE).write_text(_page(context, figures, pictures), encoding="utf-8")


def _read(
    context: Context, held_out: Groups, shown: Groups, stack: contextlib.ExitStack
) -> tuple[dict[str, QualityTrainer], list[dict[str, Any]]]:
    settings: QualityModelSettings = context.settings
    trainers: dict[str, QualityTrainer] = {}
    bad: list[dict[str, Any]] = []
    with progress(None, unit="texts", label=f"{context.name}: reading", quiet=context.quiet) as bar:
        for name in (GOOD, RAW):
            source = source_of(
                context,
                name,
                language=settings.language,
                held_out_share=settings.held_out_share,
                labels=f"{name}_labels",
            )
            waiting: dict[str, list[tuple[str, str]]] = {}
            sizes: dict[str, int] = {}
            for text in _of_languages(source, settings.languages):
                bar.advance(1)
                language = text.language
                if text.side == HELD_OUT:
                    held_out.setdefault((name, language), Sample(settings.held_out_texts, context.seed)).add(text)
                    continue
                shown.setdefault((name, language), Sample(EVIDENCE_TEXTS, context.seed)).add(text)
                waiting.setdefault(language, []).append((text.id, text.text))
                sizes[language] = sizes.get(language, 0) + len(text.text)
                if sizes[language] >= BUFFER_CHARACTERS:
                    _learn(context, trainers, language, waiting.pop(language), name, stack)
                    sizes[language] = 0
            for language, texts in sorted(waiting.items()):
                _learn(context, trainers, language, texts, name, stack)
            bad += [asdict(item) for item in source.bad]
    return trainers, bad


def _of_languages(source: TextSource, languages: Sequence[str]) -> Any:
    return (text for text in source if not languages or text.language in languages)


def _learn(
    context: Context,
    trainers: dict[str, QualityTrainer],
    language: str,
    texts: Sequence[tuple[str, str]],
    name: str,
    stack: contextlib.ExitStack,
) -> None:
    if language not in trainers:
        folder = folder_of(context.path / SCRATCH, language)
        trainers[language] = stack.enter_context(QualityTrainer(folder, context.settings.classifier, seed=context.seed))
    trainers[language].add([key for key, _ in texts], [text for _, text in texts], good=name == GOOD)


def _train(context: Context, trainers: Mapping[str, QualityTrainer]) -> dict[str, Trained]:
    """Classifiers of all languages with enough texts of both classes."""
    least = context.settings.classifier.min_texts
    enough = {name: trainer for name, trainer in sorted(trainers.items()) if min(trainer.n_texts) >= least}
    if not enough:
        found = "; ".join(
            f"{name}: {good:,} good and {raw:,} raw"
            for name, (good, raw) in sorted((name, trainer.n_texts) for name, trainer in trainers.items())
        )
        raise ChatloomError(
            f"stage `{context.name}`: no language has the {least:,} texts of each class that a classifier needs "
            f"({found or 'no text at all'}); give more texts, or lower `classifier.min_texts`"
        )
    trained = {}
    n_fits = len(enough) * (context.settings.classifier.folds + 1)
    with progress(n_fits, unit="fits", label=f"{context.name}: training", quiet=context.quiet) as bar:
        for language, trainer in enough.items():
            try:
                trained[language] = trainer.finish(lambda fits, loss: bar.advance(fits, loss=loss))
            except ChatloomError as error:
                raise ChatloomError(f"stage `{context.name}`: {language}: {error}") from None
    left_out = {name: list(trainer.n_texts) for name, trainer in sorted(trainers.items()) if name not in enough}
    context.metrics["too_few_texts"] = left_out
    if left_out and not context.quiet:
        say(f"{context.name}: too few texts, so no classifier: {', '.join(left_out)}")
    return trained


def _texts(groups: Groups, name: str, language: str) -> list[str]:
    return groups[name, language].texts(language) if (name, language) in groups else []


def _check(result: Trained, groups: Sequence[Sequence[str]]) -> tuple[F64, Any]:
    scores = [result.classifier.score(texts) for texts in groups]
    return np.concatenate(scores), np.repeat([True, False], [len(part) for part in scores])


def _figures(result: Trained, scores: F64, truths: Any, checked_on: str) -> dict[str, Any]:
    n_good, n_raw = int(truths.sum()), int((~truths).sum())
    weights = np.where(truths, 0.5 / max(n_good, 1), 0.5 / max(n_raw, 1))
    area = auc(scores[truths], scores[~truths])
    rows = reliability(scores, truths, weights)
    return {
        "training_good": int(result.truths.sum()),
        "training_raw": int((~result.truths).sum()),
        "training_windows": result.n_windows,
        "in_both_classes": result.n_shared,
        "checked_on": checked_on,
        "checked_good": n_good,
        "checked_raw": n_raw,
        "auc": round(area, 5),
        "auc_error": round(auc_error(area, max(n_good, 1), max(n_raw, 1)), 5),
        "auc_cross_fitted": round(auc(result.cross_scores[result.truths], result.cross_scores[~result.truths]), 5),
        "log_loss": round(log_loss(scores, truths, weights), 5),
        "brier": round(brier(scores, truths, weights), 5),
        "calibration_error": round(calibration_error(rows), 5),
        "kept_by_pareto_good": round(float(((2 - scores[truths]) ** -9).mean()), 5),
        "kept_by_pareto_raw": round(float(((2 - scores[~truths]) ** -9).mean()), 5),
        "reliability": rows,
    }


def _refuse_useless(name: str, language: str, figures: Mapping[str, Any]) -> None:
    area, error = figures["auc"], figures["auc_error"]
    if not area - 1.96 * error > 0.5:
        raise ChatloomError(
            f"stage `{name}`: {language}: the classifier cannot tell good from raw texts: area under the curve "
            f"{area:.3f} +- {1.96 * error:.3f} on {figures['checked_good']:,} good and {figures['checked_raw']:,} raw "
            f"texts ({figures['checked_on']}), where 0.5 is a coin; give classes that differ, or more texts"
        )


def _page(
    context: Context, figures: Mapping[str, Mapping[str, Any]], pictures: Mapping[str, tuple[F64, Any, Any]]
) -> str:
    """The classifiers' own page: one table, the spread of scores, whether they can be believed, what they go by."""
    columns = [
        Column("language", "language"), Column("training_good", "good texts"), Column("training_raw", "raw texts"),
        Column("auc", "AUC", ".4f"), Column("auc_cross_fitted", "cross-fitted", ".4f"),
        Column("checked_on", "checked on"), Column("brier", "Brier", ".3f"),
        Column("calibration_error", "ECE", ".3f"),
        Column("kept_by_pareto_good", "good drawn", ".1%"),
        Column("kept_by_pareto_raw", "raw drawn", ".1%"),
    ]  # fmt: skip
    rows = [{"language": name, **row} for name, row in figures.items()]
    caption = (
        "AUC: share of pairs in which the good text scores higher; ECE: mean distance between score and truth; drawn: "
        "share of each class that the rule quality_pareto > 1 - quality keeps."
    )
    sections = [Section("Classifiers", "质量分类器", [render_html(columns, rows, caption=caption)])]
    for language, (scores, truths, told) in pictures.items():
        drawn = [
            _spread_figure(scores, truths, language),
            _believed_figure(figures[language]["reliability"], language),
        ]
        sections.append(Section(f"Scores: {language}", "分数", [blocks.side_by_side(*drawn)]))
        sections.append(Section(f"What it goes by: {language}", "依据", [_evidence_table(told)]))
    sections.append(Section("Settings", "设置", [blocks.pairs(flatten(context.settings.everything()))]))
    lead = "How much a text reads like the good texts and not like the raw ones; a label, to be used by the selection."
    return render_report(sections, context.name, lead, eyebrow="chatloom stage")


def _spread_figure(scores: F64, truths: Any, language: str) -> Html:
    drawn = histogram(
        {GOOD: scores[truths], RAW: scores[~truths]}, description=f"scores of both classes, {language}", x="quality"
    )
    caption = "Texts that the classifier was not trained on. The less the two overlap, the better it tells them apart."
    return blocks.figure(drawn, f"Scores: {language} · 分数分布", caption)


def _believed_figure(rows: Sequence[Mapping[str, Any]], language: str) -> Html:
    x = [row["score"] for row in rows]
    drawn = curves(
        [
            Curve("honest", [0.0, 1.0], [0.0, 1.0], dashed=True),
            Curve("share", x, [row["share"] for row in rows]),
            Curve("low", x, [row["low"] for row in rows], dashed=True),
            Curve("high", x, [row["high"] for row in rows], dashed=True),
        ],
        description=f"share of good texts by score, {language}",
        x="quality",
        y="share that is good",
    )
    caption = (
        "Share of good texts among those of a score, both classes weighing the same, with its 95 % interval; on the "
        "diagonal the score is a probability that can be believed."
    )
    return blocks.figure(drawn, f"Calibration: {language} · 校准", caption)


def _evidence_table(rows: Sequence[Mapping[str, Any]]) -> Html:
    columns = [
        Column("text", "n-gram"), Column("pull", "pull", "+.3f"), Column("weight", "weight", "+.2f"),
        Column("in_good", "windows of good texts", ".1%"), Column("in_raw", "windows of raw texts", ".1%"),
    ]  # fmt: skip
    caption = (
        "N-grams that pull the classes furthest apart (mean logit of good less that of raw texts). If they are a "
        "site's boilerplate or a format's marks, the classifier has learned the source and not the quality."
    )
    grouped = [{**row, "towards": f"speaks for {row['towards']}"} for row in rows]
    return render_html(columns, grouped, group="towards", caption=caption)


def plan(context: PlanContext) -> Plan:
    """Time of reading both classes, and of six trainings; a weight has four bytes."""
    size = planned_bytes(context, GOOD, RAW)
    settings: QualityModelSettings = context.settings
    buckets = float(1 << settings.classifier.bits)
    return Plan(
        (
            Line("weights", buckets, "weights", exact=True),
            Line("disk", 4 * buckets + size, "bytes"),
            Line("time", size / 20e6 + (settings.classifier.folds + 1) * (2.0 + size * 5e-7), "s"),
        )
    )


STAGE = Stage(
    kind="quality-model",
    about="good text and raw text -> a classifier of quality",
    version=1,
    settings=QualityModelSettings,
    inputs={
        GOOD: Input(
            "good texts: curated, or cited by Wikipedia", kinds=("documents", "selection"), many=True, files=True
        ),
        RAW: Input("raw or random texts", kinds=("documents", "selection"), many=True, files=True),
        "good_labels": Input("labels of the good documents", kinds=("labels", "duplicates"), required=False, many=True),
        "raw_labels": Input("labels of the raw documents", kinds=("labels", "duplicates"), required=False, many=True),
    },
    output="quality-model",
    run=run,
    plan=plan,
)
