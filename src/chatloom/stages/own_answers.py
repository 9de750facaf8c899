"""Stage `own-answers`: sample the chat model where the right answer is known, and rank its own wrong answers below.

A reward model is later asked about what the policy samples, so it should have met such answers in training (InstructGPT
and Llama 2 rank samples of the model itself). Where no person ranks them, a right answer stands above every sampled one
that differs from it: for facts that is the truth, for open answers it is the assumption of SPIN (Chen et al. 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from pydantic import Field

from chatloom.dialogue.record import Preference
from chatloom.dialogue.storage import Prompt, read_preferences, write_preferences
from chatloom.errors import ChatloomError
from chatloom.evaluation.sampling import Scored, answerable, sample_and_score
from chatloom.settings import Settings, runtime
from chatloom.stage import Context, Input, Line, Plan, PlanContext, Stage
from chatloom.training.bundle import Bundle, load_bundle
from chatloom.training.costs import answer_tokens, planned_config, texts_of, training_plan
from chatloom.training.session import resolve_device

KIND = "own_answer"
# What a plan takes for granted, from the demo: prompts for each pair, and the share of answers that make a new pair.
PROMPTS_PER_PAIR, WRONG_SHARE = 0.5, 0.2
FILES = ("pairs.parquet", "pairs_heldout.parquet")


class OwnAnswersSettings(Settings):
    """How many answers and how long."""

    n: int = Field(2, ge=1, description="answers sampled for each prompt; equal ones make one pair")
    max_new_tokens: int = Field(64, ge=1, description="longest answer, in tokens")
    temperature: float = Field(1.0, gt=0, description="of the policy")
    device: str = runtime("auto", description="auto, cpu, cuda, cuda:N or mps")


def run(context: Context) -> None:
    """Write `pairs.parquet` and `pairs_heldout.parquet`: the same prompts, the model's own wrong answers rejected."""
    settings: OwnAnswersSettings = context.settings
    device = resolve_device(settings.device)
    policy = load_bundle(context.artifact("model").path, device)
    for name in FILES:
        given = [
            preference
            for artifact in context.artifacts("preferences")
            if (artifact.path / name).is_file()
            for preference in read_preferences(artifact.file(name))
        ]
        if not given and name == FILES[0]:
            raise ChatloomError(f"stage `{context.name}`: its preferences hold no pair, so there is no right answer")
        pairs, counts = _own_pairs(context, policy, given, device) if given else ([], {})
        write_preferences(context.path / name, pairs)
        prefix = "" if name == FILES[0] else "heldout_"
        context.metrics.update({f"{prefix}pairs": len(pairs), **{f"{prefix}{key}": n for key, n in counts.items()}})
    if not context.metrics["pairs"]:
        raise ChatloomError(
            f"stage `{context.name}`: every sampled answer equals the right one, so nothing is left to rank; "
            "raise `temperature` or `n`, or leave the stage out"
        )


def _own_pairs(
    context: Context, policy: Bundle, given: Sequence[Preference], device: torch.device
) -> tuple[list[Preference], dict[str, int]]:
    settings: OwnAnswersSettings = context.settings
    prompts, right = distinct_prompts(given)
    prompts, too_long = answerable(policy, prompts, settings.max_new_tokens)
    pools = sample_and_score(
        policy,
        None,
        prompts,
        n=settings.n,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        seed=context.seed,
        device=device,
        label=context.name,
        quiet=context.quiet,
    )
    pairs = [
        pair
        for prompt, pool in zip(prompts, pools, strict=True)
        for pair in wrong_answers(prompt, right[prompt.id], pool)
    ]
    counts = {"prompts": len(prompts), "prompts_too_long": too_long, "answers": len(prompts) * settings.n}
    return pairs, counts


def distinct_prompts(preferences: Sequence[Preference]) -> tuple[list[Prompt], dict[str, list[str]]]:
    """Each prompt once, named by its first preference, and by that name all best answers given to it."""
    first: dict[tuple[tuple[str, str], ...], Prompt] = {}
    right: dict[str, list[str]] = {}
    for preference in preferences:
        key = tuple((message.role, message.content) for message in preference.prompt)
        prompt = first.setdefault(
            key, Prompt(preference.id, preference.prompt, kind=preference.kind, metadata=preference.metadata)
        )
        answers = right.setdefault(prompt.id, [])
        if preference.chosen not in answers:
            answers.append(preference.chosen)
    return list(first.values()), right


def wrong_answers(prompt: Prompt, right: Sequence[str], pool: Sequence[Scored]) -> list[Preference]:
    """A pair for each different answer of the pool that is none of the right ones, white space around it aside."""
    accepted = {text.strip() for text in right}
    wrong = {(item.text, item.ended): None for item in pool if not (item.ended and item.text.strip() in accepted)}
    return [
        Preference(
            id=f"{prompt.id}/own{place}",
            prompt=prompt.messages,
            answers=[right[0], text],
            ended=[True, ended],
            kind=KIND,
            source="own-answers",
            metadata=prompt.metadata,
        )
        for place, (text, ended) in enumerate(wrong)
    ]


def plan(context: PlanContext) -> Plan:
    """One generation of every answer to every prompt; some of them make pairs."""
    settings: OwnAnswersSettings = context.settings
    config = planned_config(context, "model")
    if config is None:
        return Plan(warnings=("the model is not known yet, so its cost is not either",))
    if settings.max_new_tokens >= config.max_positions:
        return Plan(
            refusals=(f"max_new_tokens ({settings.max_new_tokens}) fills the whole context ({config.max_positions})",)
        )
    texts = texts_of(context, "preferences", "pairs")
    length = answer_tokens(context, "model", settings.max_new_tokens)
    prompts = PROMPTS_PER_PAIR * texts.count
    answers = prompts * settings.n
    costs = training_plan(
        config,
        context,
        tokens=answers * (texts.prompt_tokens + length),
        passes=0.0,
        sampled=prompts * texts.prompt_tokens + answers * length,
        row_tokens=texts.prompt_tokens + settings.max_new_tokens,
        trained=0,
        frozen=1,
    )
    pairs = Line("pairs", WRONG_SHARE * answers, "pairs")
    return Plan((*costs.lines, pairs, *replace(texts, answer_tokens=length).lines()))


STAGE = Stage(
    kind="own-answers",
    about="chat model + ranked answers -> the same prompts with the model's own wrong answers ranked below",
    version=1,
    settings=OwnAnswersSettings,
    inputs={
        "model": Input("chat model that answers", kinds=("model", "checkpoint")),
        "preferences": Input(
            "ranked answers whose best one is right", kinds=("conversations", "preferences"), many=True
        ),
    },
    output="preferences",
    run=run,
    plan=plan,
)
