"""Stage `best-of-n`: sample n answers to each prompt, score them by the reward model, keep all, pair best with worst.

The rollouts are what DPO learns from (the policy's own answers ranked by the reward model), and what the curve of
reward over n is estimated from.
"""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field

from chatloom.artifact import write_json
from chatloom.dialogue.record import Preference
from chatloom.dialogue.storage import Prompt, read_prompts, write_preferences
from chatloom.errors import ChatloomError
from chatloom.evaluation.sampling import Scored, answerable, rewarded, sample_and_score
from chatloom.objectives.best_of_n import best_of_n_curve, best_of_n_kl
from chatloom.settings import Settings, runtime
from chatloom.stage import Context, Input, Line, Plan, PlanContext, Stage
from chatloom.training.bundle import load_bundle
from chatloom.training.costs import UNKNOWN_MODEL, answer_tokens, planned_config, texts_of, training_plan
from chatloom.training.session import resolve_device

ROLLOUTS = pa.schema(
    [
        ("prompt", pa.string()),
        ("sample", pa.int32()),
        ("text", pa.string()),
        ("reward", pa.float64()),
        ("logprob", pa.float64()),
        ("tokens", pa.int32()),
        ("ended", pa.bool_()),
    ]
)


class BestOfNSettings(Settings):
    """How many answers, how long, and which become pairs."""

    n: int = Field(16, ge=2, description="answers sampled for each prompt")
    max_prompts: int = Field(1024, ge=1, description="use at most this many prompts, in their order")
    max_new_tokens: int = Field(64, ge=1, description="longest answer, in tokens")
    temperature: float = Field(1.0, gt=0, description="of the policy")
    pairs_per_prompt: int = Field(
        1, ge=0, description="pairs made of each prompt's answers: best with worst, and inwards"
    )
    min_gap: float = Field(
        0.5, ge=0, description="a pair's rewards differ by at least this (in the normalised reward's unit)"
    )
    missing_end_penalty: float = Field(1.0, ge=0, description="taken off the score of an answer that never ended")
    device: str = runtime("auto", description="auto, cpu, cuda, cuda:N or mps")
    micro_batch_tokens: int = runtime(16384, ge=1, description="tokens in one forward pass")


def run(context: Context) -> None:
    """Write `rollouts.parquet`, `pairs.parquet` and `curve.json`."""
    settings: BestOfNSettings = context.settings
    device = resolve_device(settings.device)
    policy = load_bundle(context.artifact("model").path, device)
    reward = load_bundle(context.artifact("reward").path, device)
    prompts: list[Prompt] = []
    for artifact in context.artifacts("prompts"):
        prompts += read_prompts(artifact.file("prompts.parquet"))
    if not prompts:
        raise ChatloomError(f"stage `{context.name}`: there is no prompt to answer")
    prompts, too_long = answerable(policy, prompts[: settings.max_prompts], settings.max_new_tokens)
    pools = sample_and_score(
        policy,
        reward,
        prompts,
        n=settings.n,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        missing_end_penalty=settings.missing_end_penalty,
        seed=context.seed,
        micro_batch_tokens=settings.micro_batch_tokens,
        device=device,
        label=context.name,
        quiet=context.quiet,
    )
    rows = [
        {
            "prompt": prompt.id,
            "sample": number,
            "text": item.text,
            "reward": item.reward,
            "logprob": item.logprob,
            "tokens": item.tokens,
            "ended": item.ended,
        }
        for prompt, pool in zip(prompts, pools, strict=True)
        for number, item in enumerate(pool)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=ROLLOUTS), context.path / "rollouts.parquet", compression="zstd")
    pairs = [
        pair
        for prompt, pool in zip(prompts, pools, strict=True)
        for pair in ranked_pairs(prompt, pool, settings.pairs_per_prompt, settings.min_gap)
    ]
    write_preferences(context.path / "pairs.parquet", pairs)
    curve = reward_curve(pools)
    write_json(context.path / "curve.json", curve)
    context.metrics.update(
        prompts=len(prompts),
        prompts_too_long=too_long,
        answers=len(rows),
        pairs=len(pairs),
        mean_reward=curve[0]["reward"],
        best_reward=curve[-1]["reward"],
        ended=sum(item.ended for pool in pools for item in pool) / len(rows),
        curve=curve,
    )


def ranked_pairs(prompt: Prompt, pool: list[Scored], count: int, min_gap: float) -> list[Preference]:
    """Up to `count` pairs of different answers: best with worst, second best with second worst, ..."""
    distinct = {(item.text, item.ended): item for item in pool}
    ranked = sorted(distinct.values(), key=lambda item: (-rewarded(item), item.text))
    found = []
    for place in range(min(count, len(ranked) // 2)):
        best, worst = ranked[place], ranked[-1 - place]
        if rewarded(best) - rewarded(worst) < min_gap:
            break
        found.append(
            Preference(
                id=f"{prompt.id}/{place}",
                prompt=prompt.messages,
                answers=[best.text, worst.text],
                ended=[best.ended, worst.ended],
                kind="sampled",
                source="best-of-n",
            )
        )
    return found


def reward_curve(pools: list[list[Scored]]) -> list[dict[str, float]]:
    """Mean reward of the best of n for n = 1, 2, 4, ... pool, with the analytic KL (nats); unbiased over the pool."""
    rewards = torch.tensor([[item.reward for item in pool] for pool in pools], dtype=torch.float64)
    size = rewards.shape[1]
    ns = [n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256) if n < size] + [size]
    means = best_of_n_curve(rewards, rewards, ns).mean(1)
    return [{"n": n, "kl": best_of_n_kl(n), "reward": float(mean)} for n, mean in zip(ns, means, strict=True)]


def plan(context: PlanContext) -> Plan:
    """One generation and one scoring pass for every answer."""
    settings: BestOfNSettings = context.settings
    config = planned_config(context, "model")
    if config is None:
        return UNKNOWN_MODEL
    if settings.max_new_tokens >= config.max_positions:
        return Plan(
            refusals=(f"max_new_tokens ({settings.max_new_tokens}) fills the whole context ({config.max_positions})",)
        )
    known = texts_of(context, "prompts", "prompts")
    prompts = min(settings.max_prompts, known.count or settings.max_prompts)
    texts = replace(known, answer_tokens=answer_tokens(context, "model", settings.max_new_tokens))
    answers = prompts * settings.n
    costs = training_plan(
        config,
        context,
        tokens=answers * texts.tokens,
        passes=1.0,
        sampled=prompts * texts.prompt_tokens + answers * texts.answer_tokens,
        row_tokens=texts.prompt_tokens + settings.max_new_tokens,
        trained=0,
        frozen=2,
        micro_batch_tokens=settings.micro_batch_tokens,
    )
    # A prompt whose answers are equal, or equally good, makes no pair: between none and all that are asked for.
    pairs = Line("pairs", 0.5 * prompts * settings.pairs_per_prompt, "pairs")
    text = Line("disk", answers * texts.answer_tokens, "bytes")  # a byte a token, packed
    return Plan((*(line for line in costs.lines if line.name != "disk"), text, pairs, *texts.lines()))


STAGE = Stage(
    kind="best-of-n",
    about="chat model + reward model + prompts -> sampled answers with rewards, and pairs of them",
    version=1,
    settings=BestOfNSettings,
    inputs={
        "model": Input("chat model that answers", kinds=("model", "checkpoint")),
        "reward": Input("reward model that ranks", kinds=("reward-model",)),
        "prompts": Input("prompts to answer", kinds=("conversations",), many=True),
    },
    output="rollouts",
    run=run,
    plan=plan,
)
