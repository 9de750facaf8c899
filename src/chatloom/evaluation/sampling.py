"""Sample answers to prompts and score them: what best-of-n, DPO's pairs and the final table are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from chatloom.dialogue.storage import Prompt
from chatloom.errors import ChatloomError
from chatloom.generation.engine import generate
from chatloom.generation.sampling import Sampling
from chatloom.objectives.logprobs import full_kl
from chatloom.progress import progress
from chatloom.training.bundle import Bundle
from chatloom.training.rollouts import Answers, answers, batches_of, cells, reward_scores

PROMPTS_AT_ONCE = 512


@dataclass(frozen=True)
class Scored:
    """One sampled answer: text, reward (None: no reward model), summed log-probability (nats), tokens with the end."""

    text: str
    reward: float | None
    logprob: float
    tokens: int
    ended: bool
    kl: float | None = None


def answerable(policy: Bundle, prompts: Sequence[Prompt], max_new_tokens: int) -> tuple[list[Prompt], int]:
    """The prompts that leave room for an answer in the model's context, and how many do not.

    Raises ChatloomError when none does.
    """
    room = policy.model.config.max_positions - max_new_tokens
    kept = [
        prompt
        for prompt in prompts
        if len(policy.chat.render(prompt.messages, policy.vocabulary, open_reply=True)) <= room
    ]
    if not kept:
        raise ChatloomError(
            f"none of {len(prompts)} prompts leaves room for max_new_tokens = {max_new_tokens} in a context of "
            f"{policy.model.config.max_positions}; lower max_new_tokens, or give shorter prompts"
        )
    return kept, len(prompts) - len(kept)


def sample_and_score(
    policy: Bundle,
    reward: Bundle | None,
    prompts: Sequence[Prompt],
    *,
    n: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    device: torch.device,
    micro_batch_tokens: int = 16384,
    missing_end_penalty: float = 0.0,
    reference: Bundle | None = None,
    label: str = "sampling",
    quiet: bool = False,
) -> list[list[Scored]]:
    """n answers to every prompt, in order; temperature 0 is greedy. (seed, prompt place, sample) decides each draw.

    With `reference`, each answer carries the KL of the policy to it: the exact KL over the vocabulary at every state
    the answer went through, summed (nats an answer) - unbiased as a mean over samples at temperature 1, and far less
    noisy than the difference of two log-probabilities. Raises ChatloomError for a prompt that leaves no room for an
    answer.
    """
    template, vocabulary = policy.chat, policy.vocabulary
    context = policy.model.config.max_positions
    ids = [template.render(prompt.messages, vocabulary, open_reply=True).ids for prompt in prompts]
    for prompt, item in zip(prompts, ids, strict=True):
        if len(item) + max_new_tokens > context:
            raise ChatloomError(
                f"prompt {prompt.id!r} takes {len(item)} tokens and max_new_tokens is {max_new_tokens}, together more "
                f"than the context of {context}; lower max_new_tokens or leave the prompt out"
            )
    pools: list[list[Scored]] = []
    step = max(1, PROMPTS_AT_ONCE // n)
    with progress(len(prompts), unit="prompts", label=label, quiet=quiet) as bar:
        for first in range(0, len(prompts), step):
            part = ids[first : first + step]
            samples = generate(
                policy.model,
                part,
                n=n,
                max_new_tokens=max_new_tokens,
                sampling=Sampling(temperature=temperature),
                seed=seed,
                stop_ids=template.stop_ids(vocabulary),
                prompt_keys=list(range(first, first + len(part))),
            )
            flat = [sample for pool in samples for sample in pool]
            rolled = answers(
                [item for item in part for _ in range(n)],
                [sample.tokens for sample in flat],
                [sample.logprobs for sample in flat],
                [sample.finished for sample in flat],
            )
            scores = _rewards(reward, rolled, micro_batch_tokens, missing_end_penalty, device)
            kls = _kls(policy, reference, rolled, micro_batch_tokens, temperature, device)
            stops = set(template.stop_ids(vocabulary))
            scored = [
                Scored(
                    text=vocabulary.decode([token for token in sample.tokens if token not in stops]),
                    reward=scores[i],
                    logprob=float(sum(sample.logprobs)),
                    tokens=len(sample.tokens),
                    ended=sample.finished,
                    kl=kls[i],
                )
                for i, sample in enumerate(flat)
            ]
            pools += [scored[i : i + n] for i in range(0, len(scored), n)]
            bar.advance(len(part))
    return pools


def rewarded(answer: Scored) -> float:
    """An answer's reward; raises ChatloomError when it was sampled without a reward model."""
    if answer.reward is None:
        raise ChatloomError("these answers were sampled without a reward model, so none of them is the best")
    return answer.reward


def best(pool: Sequence[Scored]) -> Scored:
    """The answer with the highest reward; the first among equals."""
    ranked = max(range(len(pool)), key=lambda i: (rewarded(pool[i]), -i))
    return replace(pool[ranked])


@torch.no_grad()
def _rewards(
    reward: Bundle | None, rolled: Answers, micro_tokens: int, penalty: float, device: torch.device
) -> list[float] | list[None]:
    if reward is None:
        return [None] * len(rolled)
    model = reward.reward
    batches = batches_of(rolled.segments, model.config.max_positions, micro_tokens, reward.vocabulary.pad_id, device)
    scores = reward_scores(model, batches, len(rolled)) - penalty * (~rolled.ended).float()
    return scores.tolist()


@torch.no_grad()
def _kls(
    policy: Bundle,
    reference: Bundle | None,
    rolled: Answers,
    micro_tokens: int,
    temperature: float,
    device: torch.device,
) -> list[float] | list[None]:
    if reference is None:
        return [None] * len(rolled)
    scale = temperature or 1.0
    sums = torch.zeros(len(rolled))
    p, q = policy.model, reference.model
    for batch in batches_of(rolled.segments, p.config.max_positions, micro_tokens, policy.vocabulary.pad_id, device):
        index = batch.supervised
        hidden = [model.over(batch).flatten(0, 1).index_select(0, index) for model in (p, q)]
        caps = (p.config.logit_softcap, q.config.logit_softcap)
        kl = full_kl(hidden[0], p.unembedding, hidden[1], q.unembedding, temperature=scale, softcaps=caps)
        where, _ = cells(batch, index, rolled.prompt_lengths)
        sums.index_add_(0, where.cpu(), kl.float().cpu())
    return sums.tolist()
