"""Stage `evaluate`: models answer the same test prompts; one table by gold score, reward, KL, length and ending.

Gold is the true answer, which no training stage saw as a score. Best-of-n answers with the baseline's samples and
the reward model's choice.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field
from rich.console import Console

from chatloom.artifact import write_json
from chatloom.dialogue.checks import exact_match, is_refusal, politeness, token_f1
from chatloom.dialogue.storage import Prompt, read_prompts
from chatloom.errors import ChatloomError
from chatloom.evaluation.comparison import compare, visible_columns
from chatloom.evaluation.sampling import Scored, answerable, best, sample_and_score
from chatloom.objectives.best_of_n import best_of_n_curve, best_of_n_kl
from chatloom.reporting.tables import render_rich
from chatloom.settings import Settings, runtime
from chatloom.stage import Context, Input, Line, Plan, PlanContext, Stage
from chatloom.training.bundle import Bundle, load_bundle
from chatloom.training.costs import UNKNOWN_MODEL, answer_tokens, n_sources, planned_config, texts_of, training_plan
from chatloom.training.session import resolve_device


class EvaluateSettings(Settings):
    """What is asked, how it is answered, and how the table is cut."""

    labels: list[str] = Field([], description="names of the models in the table; their folders' names when empty")
    best_of: int = Field(16, ge=0, description="best-of-n from the first model; 0 leaves the row out")
    samples: int = Field(1, ge=1, description="sampled answers a prompt, averaged")
    greedy: bool = Field(True, description="also a table of greedy answers")
    temperature: float = Field(1.0, gt=0, description="of the sampled answers")
    max_new_tokens: int = Field(64, ge=1, description="longest answer, in tokens")
    max_prompts: int = Field(2000, ge=1, description="use at most this many test prompts")
    headline_kinds: list[str] = Field([], description="kinds of prompts in the headline; all when empty")
    missing_end_penalty: float = Field(1.0, ge=0, description="taken off the reward of an answer that never ended")
    n_samples_shown: int = Field(12, ge=0, description="prompts whose answers are shown side by side")
    device: str = runtime("auto", description="auto, cpu, cuda, cuda:N or mps")
    micro_batch_tokens: int = runtime(16384, ge=1, description="tokens in one forward pass")


def run(context: Context) -> None:
    """Write `answers.parquet`, `table.json`, `curve.json` and `samples.json`."""
    settings: EvaluateSettings = context.settings
    device = resolve_device(settings.device)
    prompts = _prompts(context)
    reward = load_bundle(context.artifact("reward").path, device) if context.optional("reward") else None
    folders = [artifact.path for artifact in context.artifacts("models")]
    labels = settings.labels or [folder.name for folder in folders]
    if len(labels) != len(folders):
        raise ChatloomError(
            f"stage `{context.name}`: {len(labels)} labels for {len(folders)} models; give one for each"
        )
    if len(set(labels)) < len(labels):
        raise ChatloomError(
            f"stage `{context.name}`: two models are called the same ({', '.join(labels)}); give `labels` that differ"
        )
    baseline = load_bundle(folders[0], device)
    prompts, too_long = answerable(baseline, prompts, settings.max_new_tokens)
    sampled: dict[str, list[list[Scored]]] = {}
    greedy: dict[str, list[list[Scored]]] = {}
    for label, folder in zip(labels, folders, strict=True):
        policy = baseline if folder == folders[0] else load_bundle(folder, device)
        reference = None if policy is baseline else baseline
        n = max(settings.samples, settings.best_of) if policy is baseline else settings.samples
        sampled[label] = _answer(context, policy, reward, reference, prompts, n, settings.temperature, label, device)
        if settings.greedy:
            greedy[label] = _answer(context, policy, reward, None, prompts, 1, 0.0, f"{label} (greedy)", device)
    chosen = {label: [pool[: settings.samples] for pool in pools] for label, pools in sampled.items()}
    kl = {labels[0]: 0.0}
    if settings.best_of and reward is not None:
        name = f"best-of-{settings.best_of}"
        chosen[name] = [[best(pool[: settings.best_of])] for pool in sampled[labels[0]]]
        kl[name] = best_of_n_kl(settings.best_of)
        write_json(context.path / "curve.json", gold_curve(prompts, sampled[labels[0]], settings.best_of))
    tables = {"sampled": _table(prompts, chosen, labels[0], kl, settings)}
    if greedy:
        tables["greedy"] = _table(prompts, greedy, labels[0], {}, settings)
    write_json(context.path / "table.json", tables)
    (context.path / "table.txt").write_text(render_tables(tables), encoding="utf-8")
    write_json(context.path / "samples.json", side_by_side(prompts, chosen, settings.n_samples_shown))
    _write_answers(context, prompts, {**chosen, **{f"{label} (greedy)": pools for label, pools in greedy.items()}})
    context.metrics.update(prompts=len(prompts), prompts_too_long=too_long, table=tables)


def render_tables(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The tables as plain text, for the terminal."""
    out = Console(width=200, record=True, file=io.StringIO())
    for name, rows in tables.items():
        out.print(render_rich(visible_columns(rows), rows, group="group_title", title=f"{name} answers"))
    return out.export_text()


def _answer(
    context: Context,
    policy: Bundle,
    reward: Bundle | None,
    reference: Bundle | None,
    prompts: Sequence[Prompt],
    n: int,
    temperature: float,
    label: str,
    device: torch.device,
) -> list[list[Scored]]:
    settings: EvaluateSettings = context.settings
    return sample_and_score(
        policy,
        reward,
        prompts,
        n=n,
        max_new_tokens=settings.max_new_tokens,
        temperature=temperature,
        seed=context.seed,
        device=device,
        micro_batch_tokens=settings.micro_batch_tokens,
        missing_end_penalty=settings.missing_end_penalty,
        reference=reference,
        label=f"{context.name}: {label}",
        quiet=context.quiet,
    )


def judged(prompt: Prompt, answer: Scored) -> dict[str, Any]:
    """One answer with its gold scores (absent when the prompt has no true answer), as a plain row."""
    row: dict[str, Any] = {
        "prompt": prompt.id,
        "kind": prompt.kind or "prompt",
        "language": prompt.language,
        "reward": answer.reward,
        "length": answer.tokens,
        "ended": answer.ended,
        "kl": answer.kl,
        "refused": is_refusal(answer.text),
        "polite": politeness(answer.text) > 0 if prompt.answer is None else None,
        "cluster": prompt.metadata.get("name", prompt.id),
        "f1": None,
        "exact": None,
    }
    if prompt.answer is not None:
        # An answer that did not end is not the true answer, whatever its words.
        row["exact"] = answer.ended and exact_match(answer.text, prompt.answer)
        row["f1"] = token_f1(answer.text, prompt.answer)
    return row


def _table(
    prompts: Sequence[Prompt],
    answers: Mapping[str, Sequence[Sequence[Scored]]],
    baseline: str,
    kl: Mapping[str, float],
    settings: EvaluateSettings,
) -> list[dict[str, Any]]:
    rows = {
        label: [judged(prompt, answer) for prompt, pool in zip(prompts, pools, strict=True) for answer in pool]
        for label, pools in answers.items()
    }
    score = "f1" if any(prompt.answer is not None for prompt in prompts) else "polite"
    return compare(rows, baseline=baseline, headline_kinds=settings.headline_kinds or None, kl=kl, score=score)


def gold_curve(prompts: Sequence[Prompt], pools: Sequence[Sequence[Scored]], size: int) -> list[dict[str, float]]:
    """Best-of-n for n = 1, 2, 4, ... `size` on the test prompts: reward, gold (or politeness), analytic KL (nats)."""
    rewards = torch.tensor([[item.reward for item in pool[:size]] for pool in pools], dtype=torch.float64)
    rows = [[judged(prompt, item) for item in pool[:size]] for prompt, pool in zip(prompts, pools, strict=True)]
    ns = [n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256) if n < size] + [size]
    found: list[dict[str, float]] = [{"n": n, "kl": best_of_n_kl(n)} for n in ns]
    columns = {"reward": rewards}
    for name in ("f1", "exact") if all(prompt.answer is not None for prompt in prompts) else ("polite",):
        columns[name] = torch.tensor([[float(row[name]) for row in pool] for pool in rows], dtype=torch.float64)
    for name, values in columns.items():
        for entry, mean in zip(found, best_of_n_curve(rewards, values, ns).mean(1), strict=True):
            entry[name] = float(mean)
    return found


def side_by_side(
    prompts: Sequence[Prompt], answers: Mapping[str, Sequence[Sequence[Scored]]], count: int
) -> list[dict[str, Any]]:
    """Evenly spaced prompts with every method's first answer."""
    step = max(1, len(prompts) // max(count, 1))
    return [
        {
            "prompt": [message.to_dict() for message in prompts[i].messages],
            "kind": prompts[i].kind,
            "answer": prompts[i].answer,
            "answers": {
                label: {**asdict(pools[i][0]), "exact": judged(prompts[i], pools[i][0])["exact"]}
                for label, pools in answers.items()
            },
        }
        for i in range(0, len(prompts), step)
    ][:count]


def _write_answers(
    context: Context, prompts: Sequence[Prompt], answers: Mapping[str, Sequence[Sequence[Scored]]]
) -> None:
    rows = [
        {"method": label, "sample": number, "text": item.text, **judged(prompt, item)}
        for label, pools in answers.items()
        for prompt, pool in zip(prompts, pools, strict=True)
        for number, item in enumerate(pool)
    ]
    pq.write_table(pa.Table.from_pylist(rows), context.path / "answers.parquet", compression="zstd")


def _prompts(context: Context) -> list[Prompt]:
    settings: EvaluateSettings = context.settings
    found = [
        prompt for artifact in context.artifacts("tests") for prompt in read_prompts(artifact.file("test.parquet"))
    ]
    if not found:
        raise ChatloomError(f"stage `{context.name}`: there is no test prompt")
    if len(found) <= settings.max_prompts:
        return found
    return [found[i * len(found) // settings.max_prompts] for i in range(settings.max_prompts)]


def plan(context: PlanContext) -> Plan:
    """Answers of every model: sampled, scored by the reward model, and compared with the first model's."""
    settings: EvaluateSettings = context.settings
    config = planned_config(context, "models")
    if config is None:
        return UNKNOWN_MODEL
    known = texts_of(context, "tests", "tests")
    prompts = min(settings.max_prompts, known.count or settings.max_prompts)
    texts = replace(known, answer_tokens=answer_tokens(context, "models", settings.max_new_tokens))
    models = n_sources(context, "models")
    greedy = int(settings.greedy)
    pool = max(settings.samples, settings.best_of)
    answers = prompts * (pool + (models - 1) * settings.samples + models * greedy)
    judged = answers if n_sources(context, "reward") else 0
    compared = 2 * prompts * (models - 1) * settings.samples
    costs = training_plan(
        config,
        context,
        tokens=answers * texts.tokens,
        passes=0.0,
        scored=(judged + compared) * texts.tokens,
        sampled=prompts * models * (1 + greedy) * texts.prompt_tokens + answers * texts.answer_tokens,
        row_tokens=texts.prompt_tokens + settings.max_new_tokens,
        trained=0,
        frozen=3,
        micro_batch_tokens=settings.micro_batch_tokens,
    )
    text = Line("disk", answers * texts.answer_tokens, "bytes")  # a byte a token, packed
    return Plan((*(line for line in costs.lines if line.name != "disk"), text))


STAGE = Stage(
    kind="evaluate",
    about="models + test prompts -> one table of scores, and answers side by side",
    version=1,
    settings=EvaluateSettings,
    inputs={
        "models": Input("chat models; the first is the baseline", kinds=("model", "checkpoint"), many=True),
        "tests": Input("test prompts with true answers", kinds=("conversations",), many=True),
        "reward": Input("reward model", kinds=("reward-model",), required=False),
    },
    output="evaluation",
    run=run,
    plan=plan,
)
