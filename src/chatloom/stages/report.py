"""Stage `report`: every artifact of a run -> one self-contained `report.html` and `summary.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from chatloom.artifact import Artifact, write_json
from chatloom.dialogue.storage import read_conversations, read_preferences
from chatloom.evaluation.comparison import visible_columns
from chatloom.evaluation.seeds import COLUMNS as SEED_COLUMNS
from chatloom.evaluation.seeds import across_seeds
from chatloom.reporting import bars, blocks, plots
from chatloom.reporting.html import Html
from chatloom.reporting.panels import metric_figures
from chatloom.reporting.plots import Line
from chatloom.reporting.report import Section, render_report
from chatloom.reporting.synthetic import replies_funnel
from chatloom.reporting.tables import Column, render_html
from chatloom.settings import Settings
from chatloom.stage import Context, Input, Stage
from chatloom.training.bundle import load_bundle
from chatloom.training.metrics import read_metrics

CURVES = {
    "pretrain": ("loss", "nll", "z_loss", "lr", "batch_rows", "grad_norm", "tokens_per_second"),
    "sft": ("loss", "lr", "grad_norm", "tokens_per_second"),
    "reward": ("loss", "accuracy", "margin", "grad_norm"),
    "dpo": ("loss", "accuracy", "margin", "chosen_logprob"),
    "ppo": ("reward", "kl", "kl_coefficient", "sampled_entropy", "policy_kl", "clip_fraction", "explained_variance",
            "value_loss", "length", "ended", "grad_norm", "tokens_per_second"),
}  # fmt: skip
TITLES = {
    "pretrain": ("Pretraining", "预训练"),
    "sft": ("Instruction tuning", "指令微调"),
    "reward": ("Reward model", "奖励模型"),
    "dpo": ("Direct preference optimization", "直接偏好优化"),
    "ppo": ("Proximal policy optimization", "近端策略优化"),
}


class ReportSettings(Settings):
    """What the page says of itself."""

    title: str = Field("From raw pages to an aligned chat model", description="heading of the page")
    lead: str = Field("", description="first paragraph")
    n_token_views: int = Field(2, ge=0, description="training conversations shown token by token")


class Run:
    """The run's artifacts, found by the kind of stage that made them."""

    def __init__(self, artifacts: Sequence[Artifact]) -> None:
        self.all = list(artifacts)

    def of(self, stage: str) -> list[Artifact]:
        """All artifacts of a kind of stage, in the order given."""
        return [item for item in self.all if item.manifest.get("stage") == stage]

    def first(self, stage: str) -> Artifact | None:
        """The first of them."""
        return next(iter(self.of(stage)), None)


def run(context: Context) -> None:
    """Write the page; every number on it is also in `summary.json`."""
    settings: ReportSettings = context.settings
    run_ = Run(context.artifacts("stages"))
    sections = [
        section
        for section in (
            _results(run_),
            _alignment(run_),
            _answers(run_),
            _corpus(run_),
            _synthetic(run_),
            *(_training(run_, stage) for stage in ("pretrain", "sft")),
            _tokens(run_, settings.n_token_views),
            _pairs(run_),
            *(_training(run_, stage) for stage in ("reward", "dpo", "ppo")),
            _time(run_),
        )
        if section is not None
    ]
    facts = [f"{len(run_.all)} stages", f"seed {context.seed}"]
    page = render_report(sections, settings.title, settings.lead, facts=facts)
    (context.path / "report.html").write_text(page, encoding="utf-8")
    write_json(context.path / "summary.json", summary(run_))
    context.metrics.update(sections=len(sections), stages=len(run_.all))


def summary(run_: Run) -> dict[str, Any]:
    """Every stage's metrics, wall seconds and peak memory, by name."""
    return {
        item.name: {
            "stage": item.manifest.get("stage"),
            "fingerprint": item.fingerprint,
            "seed": item.manifest.get("seed"),
            "wall_seconds": item.manifest.get("wall_seconds"),
            "peak_memory_bytes": item.manifest.get("peak_memory_bytes"),
            "metrics": dict(item.metrics),
        }
        for item in run_.all
    }


def _results(run_: Run) -> Section | None:
    evaluations = run_.of("evaluate")
    if not evaluations:
        return None
    shown: list[Html | str] = [blocks.cards(_cards(run_, evaluations[0]))]
    if len(evaluations) > 1:
        rows = across_seeds([_json(item, "table.json")["sampled"] for item in evaluations])
        caption = f"{len(evaluations)} seeds, sampled answers"
        shown.append(render_html(visible_columns(rows, SEED_COLUMNS), rows, caption=caption))
    for item in evaluations:
        tables = _json(item, "table.json")
        if len(evaluations) > 1:
            shown.append(blocks.heading(item.name))
        for name, rows in sorted(tables.items(), reverse=True):  # sampled before greedy
            caption = (
                "Sampled answers, at the policy's own temperature. Best-of-n picks among the first model's samples."
                if name == "sampled"
                else "Greedy answers: the likeliest token at every step."
            )
            shown.append(render_html(visible_columns(rows), rows, group="group_title", caption=caption))
    return Section("Results", "结果", shown)


def _cards(run_: Run, evaluation: Artifact) -> list[dict[str, Any]]:
    rows = _json(evaluation, "table.json")["sampled"]
    headline = [row for row in rows if row["group"] == rows[0]["group"]]
    # Without true answers the plain word rule is the only score that no model was trained on.
    known = headline[0].get("exact") is not None
    key, title = ("exact", "exactly right") if known else ("polite", "polite by the word rule")
    best = max(headline, key=lambda row: row[key])
    cards: list[dict[str, Any]] = [
        {"label": f"{title}: {headline[0]['method']}", "value": f"{headline[0][key]:.0%}"},
        {"label": f"{title}: {best['method']}", "value": f"{best[key]:.0%}", "tone": "good"},
    ]
    reward = run_.first("reward")
    if reward is not None and "heldout_accuracy" in reward.metrics:
        cards.append({"label": "reward model, held-out pairs", "value": f"{reward.metrics['heldout_accuracy']:.1%}"})
    pretrain = run_.first("pretrain")
    if pretrain is not None and pretrain.metrics.get("heldout"):
        score = pretrain.metrics["heldout"]
        note = f"trigram {score['trigram']['bits_per_byte']:.2f}, unigram {score['unigram']['bits_per_byte']:.2f}"
        cards.append({"label": "bits per byte", "value": f"{score['model']['bits_per_byte']:.2f}", "note": note})
    seconds = sum(item.manifest.get("wall_seconds") or 0.0 for item in run_.all)
    memory = max(item.manifest.get("peak_memory_bytes") or 0 for item in run_.all)
    cards.append({"label": "time", "value": f"{seconds / 60:.1f} min", "note": f"peak memory {memory / 1e9:.1f} GB"})
    return cards


def _alignment(run_: Run) -> Section | None:
    shown: list[Html | str] = []
    evaluation, ppo, pool = run_.first("evaluate"), run_.first("ppo"), run_.first("best-of-n")
    paths = []
    if pool is not None:
        curve = pool.metrics["curve"]
        paths.append({"name": "best-of-n", "kl": [row["kl"] for row in curve], "y": [row["reward"] for row in curve]})
    if ppo is not None:
        rows = read_metrics(ppo.path / "metrics.jsonl").rows
        paths.append({"name": "ppo", "kl": [row["kl"] for row in rows], "y": [row["reward"] for row in rows]})
    if evaluation is not None:
        table = _json(evaluation, "table.json")["sampled"]
        for row in table:
            if row["group"] == table[0]["group"] and row["method"] == "dpo" and row.get("kl") is not None:
                paths.append({"name": "dpo", "kl": [0.0, row["kl"]], "y": [table[0]["reward"], row["reward"]]})
    if paths:
        caption = (
            "Each path starts at the instruction-tuned model (KL 0). Further up is a better reward, further right a "
            "larger departure from that model; a path that turns down would be over-optimisation. DPO is measured "
            "on the test prompts, the others on the alignment prompts: compare shapes, not heights."
        )
        shown.append(
            blocks.figure(
                plots.against_kl(paths, description="reward against KL of every method"),
                "Reward against KL",
                caption,
                wide=True,
            )
        )
    if evaluation is not None and (evaluation.path / "curve.json").is_file():
        curve = _json(evaluation, "curve.json")
        names = {"exact": "exactly right", "f1": "token F1", "polite": "politeness"}
        lines = [
            Line(title, [row["n"] for row in curve], [row[name] for row in curve])
            for name, title in names.items()
            if name in curve[0]
        ]
        svg = plots.best_of_n([row["n"] for row in curve], lines, description="gold score of best-of-n", y="gold score")
        caption = (
            "Test prompts, answered by the instruction-tuned model n times; the reward model picks. An "
            "unbiased estimate from one pool of samples."
        )
        shown.append(blocks.figure(svg, "Best of n", caption))
    return Section("Reward, KL and gold score", "奖励、KL 与真实得分", shown) if shown else None


def _answers(run_: Run) -> Section | None:
    evaluation = run_.first("evaluate")
    if evaluation is None:
        return None
    rows = _json(evaluation, "samples.json")
    if not rows:
        return None
    # From the table, because the samples' file has its keys sorted.
    methods = list(dict.fromkeys(row["method"] for row in _json(evaluation, "table.json")["sampled"]))
    shown = [
        {
            "prompt": "\n".join(f"{m['role']}: {m['content']}" for m in row["prompt"]),
            "truth": row["answer"] or "",
            "answers": {
                name: {"text": value["text"], "right": value["exact"] if row["answer"] is not None else None}
                for name, value in ((name, row["answers"][name]) for name in methods)
            },
        }
        for row in rows
    ]
    return Section("Answers side by side", "回答对比", [blocks.samples(shown, methods)])


def _corpus(run_: Run) -> Section | None:
    selection = run_.first("selection")
    if selection is None:
        return None
    metrics = selection.metrics
    steps = [
        {
            "name": step["step"],
            "kept": step["documents_out"],
            "dropped": step["documents_in"] - step["documents_out"],
        }
        for step in metrics["steps"]
    ]
    svg = bars.funnel(steps, description="documents left after each step of cleaning")
    reasons = [
        {"step": step["step"], "rule": rule, "documents": found["documents"], "characters": found["characters"]}
        for step in metrics["steps"]
        for rule, found in step["removed"].items()
    ]
    shown: list[Html | str] = [
        blocks.figure(
            svg,
            "What cleaning kept",
            "What was dropped is kept apart with its reason, in `dropped/` of the documents and of the selection.",
            wide=True,
        )
    ]
    if reasons:
        columns = [Column(key, key, "," if key in ("documents", "characters") else "") for key in reasons[0]]
        shown.append(render_html(columns, reasons, caption="What was removed, by rule"))
    tokenizer = run_.first("tokenizer")
    if tokenizer is not None:
        shown.append(blocks.details("Vocabulary", blocks.pairs(dict(tokenizer.metrics))))
    return Section("Corpus", "语料", shown)


def _synthetic(run_: Run) -> Section | None:
    shown = [replies_funnel(_json(item, "report.json"), item.name) for item in run_.of("synthetic")]
    return Section("Synthetic text", "合成文本", shown) if shown else None


def _training(run_: Run, stage: str) -> Section | None:
    item = run_.first(stage)
    if item is None:
        return None
    rows = read_metrics(item.path / "metrics.jsonl").rows
    shown: list[Html | str] = [blocks.side_by_side(*metric_figures(rows, only=CURVES[stage]))]
    if stage == "pretrain" and item.metrics.get("heldout"):
        scores = [{"model": name, **values} for name, values in item.metrics["heldout"].items()]
        columns = [
            Column("model", "model"),
            Column("bits_per_byte", "bits per byte", ".3f", best="min"),
            Column("perplexity", "perplexity", ",.1f"),
            Column("bytes", "bytes scored", ","),
        ]
        shown.insert(0, render_html(columns, scores, caption="Held-out documents"))
    if stage == "reward" and (item.path / "heldout.json").is_file():
        report = _json(item, "heldout.json")
        kinds = [
            {"name": name, "value": row["accuracy"], "low": row["low"], "high": row["high"]}
            for name, row in report["by_kind"].items()
        ]
        shown.insert(
            0,
            blocks.side_by_side(
                blocks.figure(
                    bars.calibration(report["reliability"], description="calibration of the reward model"),
                    "Calibration",
                    f"How often the model is right when it is this sure, on {report['n']:,} held-out pairs. "
                    f"Brier {report['brier']:.3f}, expected calibration error {report['ece']:.3f}.",
                ),
                blocks.figure(
                    bars.intervals(kinds, description="accuracy by kind of wrong answer", reference=0.5),
                    "Accuracy by kind of wrong answer",
                    "Dots with 95 % intervals; the line is a coin flip.",
                ),
            ),
        )
    title, other = TITLES[stage]
    return Section(title, other, shown)


def _tokens(run_: Run, count: int) -> Section | None:
    model = run_.first("sft")
    source = run_.first("questions") or run_.first("dialogues")
    if model is None or source is None or not count:
        return None
    bundle = load_bundle(model.path)
    vocabulary, template = bundle.vocabulary, bundle.chat
    views: list[Html | str] = [
        "What the model reads in one training conversation, token by token. Coloured tokens carry loss: the "
        "assistant's words and the token that ends its turn."
    ]
    conversations = sorted(read_conversations(source.file("sft.parquet")), key=lambda c: -len(c.messages))
    for conversation in [*conversations[:1], *conversations[-1:]][:count]:
        rendered = template.render(conversation.messages, vocabulary)
        pieces = [
            {
                "text": vocabulary.token_bytes(i).decode("utf-8", "backslashreplace"),
                "weight": weight,
                "id": i,
                "special": i < 6,
            }
            for i, weight in zip(rendered.ids, rendered.mask, strict=True)
        ]
        views.append(blocks.tokens(pieces))
    return Section("Which tokens carry loss", "哪些词元计入损失", views)


def _pairs(run_: Run) -> Section | None:
    """One pair of each kind that a reward model learned from."""
    rows: dict[str, dict[str, str]] = {}
    for item in (run_.first(stage) for stage in ("questions", "dialogues", "own-answers")):
        if item is None or not (item.path / "pairs.parquet").is_file():
            continue
        for pair in read_preferences(item.file("pairs.parquet")):
            if pair.ended[0]:
                unended = "" if pair.ended[-1] else " …"
                row = {"prompt": pair.prompt[-1].content, "right": pair.chosen, "wrong": pair.answers[-1] + unended}
                rows.setdefault(pair.kind or "given", {"kind": pair.kind or "given", **row})
    if not rows:
        return None
    columns = [Column(key, key) for key in ("kind", "prompt", "right", "wrong")]
    table = render_html(columns, list(rows.values()), caption="One of each kind; … marks an answer that never ended")
    return Section("What the reward model compares", "奖励模型比较的回答", [table])


def _time(run_: Run) -> Section:
    stages = [
        {
            "name": item.name,
            "seconds": item.manifest.get("wall_seconds") or 0.0,
            "memory_bytes": item.manifest.get("peak_memory_bytes"),
        }
        for item in run_.all
    ]
    return Section("Time and memory", "时间与内存", [blocks.timeline(stages)])


def _json(item: Artifact, name: str) -> Any:
    path: Path = item.file(name)
    return json.loads(path.read_text(encoding="utf-8"))


STAGE = Stage(
    kind="report",
    about="all of a run -> one self-contained HTML page",
    version=1,
    settings=ReportSettings,
    inputs={
        "stages": Input(
            "every artifact to report on, in order",
            kinds=(
                "documents",
                "labels",
                "duplicates",
                "selection",
                "ngram-model",
                "quality-model",
                "conversations",
                "vocabulary",
                "tokens",
                "model",
                "reward-model",
                "preferences",
                "rollouts",
                "evaluation",
            ),
            many=True,
        )
    },
    output="report",
    run=run,
)
