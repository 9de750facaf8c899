"""Stage `ppo`: a chat model and a reward model -> an aligned model, by proximal policy optimization.

Four models (Ouyang et al. 2022): actor, critic (starts as the reward model), reference (the actor's start, frozen),
reward (frozen). `Ppo.iterate` reads like the algorithm: roll out, score, shape, estimate advantages, update.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from chatloom.dialogue.storage import read_prompts
from chatloom.errors import ChatloomError
from chatloom.evaluation.sampling import answerable
from chatloom.generation.engine import generate
from chatloom.generation.sampling import Sampling
from chatloom.model.adapters.lora import switch
from chatloom.model.heads import RewardModel, ValueModel
from chatloom.model.transformer import Transformer
from chatloom.objectives.advantages import explained_variance, generalized_advantages, kl_shaped_rewards
from chatloom.objectives.kl import AdaptiveKL, FixedKL, policy_moved_too_far
from chatloom.objectives.masked import masked_mean, whiten
from chatloom.objectives.policy_gradient import policy_loss, value_loss
from chatloom.settings import Settings
from chatloom.stage import Context, Input, Line, Plan, PlanContext, Stage
from chatloom.tokens.order import Order
from chatloom.tokens.packing import Batch
from chatloom.training.adapters import ADAPTER_ABOUT, FREEZE_ABOUT, AdapterSettings, Tuning, only_lora
from chatloom.training.bundle import load_bundle, load_for_conversations
from chatloom.training.checkpoints import State
from chatloom.training.costs import (
    ADAPTED_PASSES,
    UNKNOWN_MODEL,
    all_made,
    answer_tokens,
    planned_config,
    texts_of,
    training_plan,
)
from chatloom.training.forward import score
from chatloom.training.optimizers import ScheduledOptimizer
from chatloom.training.rollouts import Answers, answers, batches_of, cells, logprob_table, reward_scores, value_table
from chatloom.training.schedule_note import schedule_note
from chatloom.training.session import resolve_device, train
from chatloom.training.settings import LoopSettings, OptimizerSettings
from chatloom.training.trainer import Terms, Trainer


class KlSettings(Settings):
    """How strongly the policy is held to the reference."""

    controller: Literal["adaptive", "fixed"] = Field("adaptive", description="adaptive: steered to `target`")
    coefficient: float = Field(0.05, gt=0, description="first (or fixed) weight of the KL in the reward (N+: 0.05)")
    target: float = Field(6.0, gt=0, description="nats an answer the adaptive controller aims at (Ziegler 2019: 6)")
    horizon: float = Field(10_000.0, gt=0, description="episodes over which the coefficient adapts (Ziegler 2019)")


class PpoSettings(Settings):
    """How to align by reinforcement learning; defaults name their source."""

    iterations: int = Field(40, ge=1, description="rounds of sampling and updating")
    batch_prompts: int = Field(256, ge=2, description="answers sampled in one iteration (InstructGPT: 512)")
    minibatches: int = Field(4, ge=1, description="optimizer steps in one pass over an iteration's answers")
    epochs: int = Field(2, ge=1, description="passes over an iteration's answers (N+: 4, InstructGPT: 1)")
    max_new_tokens: int = Field(64, ge=1, description="longest answer, in tokens")
    temperature: float = Field(1.0, gt=0, description="of the policy: in sampling and in every log-probability alike")
    kl: KlSettings = Field(KlSettings(), description="pull to the reference")
    clip_range: float = Field(0.2, gt=0, description="policy clipping (Schulman 2017: 0.2)")
    value_clip: float | None = Field(0.2, description="value clipping; null turns it off")
    value_coefficient: float = Field(0.1, gt=0, description="weight of the critic's loss (Ziegler 2019, TRL: 0.1)")
    entropy_coefficient: float = Field(0.0, ge=0, description="entropy bonus; 0 in the published recipes")
    gamma: float = Field(1.0, gt=0, le=1, description="discount a token")
    lam: float = Field(0.95, ge=0, le=1, description="GAE lambda")
    critic_warmup: int = Field(
        0, ge=0, description="first iterations in which only the critic learns, so that advantages are not its errors"
    )
    whiten_rewards: bool = Field(False, description="scale rewards to unit variance, mean kept (OpenAI: on, N+: off)")
    missing_end_penalty: float = Field(1.0, ge=0, description="taken off the score of an answer that never ended")
    reward_clip: float | None = Field(5.0, description="scores are clipped to +- this (DeepSpeed-Chat: 5)")
    policy_kl_limit: float | None = Field(
        0.1, description="leave the pass when 0.5 mean(log ratio^2) exceeds this (old TRL: 0.1); null: never"
    )
    actor: OptimizerSettings = Field(
        OptimizerSettings(lr=1e-5, eps=1e-5, eps_style="tf", weight_decay=0.0, schedule="linear", final_share=0.0),
        description="the policy's optimizer (TF-style epsilon: N+ detail on Adam)",
    )
    critic: OptimizerSettings = Field(
        OptimizerSettings(lr=1e-5, eps=1e-5, eps_style="tf", weight_decay=0.0, schedule="linear", final_share=0.0),
        description="the critic's optimizer",
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16: autocast, fp32 weights")
    adapter: AdapterSettings | None = Field(
        None, description=f"{ADAPTER_ABOUT}; of the policy, here lora without dropout; the critic is trained whole"
    )
    freeze: tuple[str, ...] = Field((), description=f"of the policy: {FREEZE_ABOUT}")
    loop: LoopSettings = Field(LoopSettings(), description="how it runs")


@dataclass
class Experience:
    """One iteration's answers and all that the update needs of them; tables are [answers, time]."""

    rolled: Answers
    old_logprobs: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor
    metrics: dict[str, float]


class PpoLoss:
    """Clipped policy loss + value loss (- entropy bonus), a mean over the real tokens of a minibatch.

    With `policy_weight` 0 (the critic's warm-up) the policy gets a gradient of exactly 0 and stays as it is.
    """

    def __init__(
        self,
        actor: Transformer,
        critic: ValueModel,
        settings: PpoSettings,
        data: Experience,
        policy_weight: float = 1.0,
    ) -> None:
        self.actor, self.critic, self.settings, self.data = actor, critic, settings, data
        self.policy_weight = policy_weight
        self.squares = self.tokens = self.largest = 0.0

    def weight(self, batch: Batch) -> float:
        """Answer tokens."""
        return batch.total_weight

    def __call__(self, batch: Batch) -> Terms:
        """Loss of one micro-batch; also notes how far the policy has moved from the one that sampled."""
        choice, data = self.settings, self.data
        scored = score(self.actor, batch, temperature=choice.temperature, with_entropy=True)
        assert scored.entropies is not None
        device = scored.logprobs.device
        where = tuple(item.cpu() for item in cells(batch, scored.index, data.rolled.prompt_lengths))
        old, advantages, returns, old_values = (
            table[where].to(device) for table in (data.old_logprobs, data.advantages, data.returns, data.old_values)
        )
        policy = policy_loss(scored.logprobs, old, advantages, clip_low=choice.clip_range, clip_high=choice.clip_range)
        values = self.critic.values(batch).flatten().index_select(0, scored.index)
        critic, clipped = value_loss(values, old_values, returns, clip=choice.value_clip)
        losses = choice.value_coefficient * critic + self.policy_weight * (
            policy.losses - choice.entropy_coefficient * scored.entropies
        )
        count = float(len(losses))
        with torch.no_grad():
            squares = float((policy.log_ratio**2).sum())
            self.squares += squares
            self.tokens += count
            self.largest = max(self.largest, float(policy.log_ratio.abs().max()))
        sums: dict[str, tuple[Tensor | float, Tensor | float]] = {
            "policy_loss": (policy.losses.detach().sum(), count),
            "value_loss": (critic.detach().sum(), count),
            "entropy": (scored.entropies.detach().sum(), count),
            "clip_fraction": (policy.clipped.sum(), count),
            "value_clip_fraction": (clipped.sum(), count),
            "ratio": (policy.ratio.detach().sum(), count),
            "policy_kl": (0.5 * squares, count),
        }
        return Terms(losses.sum(), sums)


RATIO_TOLERANCE = {"fp32": 1e-4, "bf16": 0.1}
SAMPLER_TOLERANCE = {"fp32": 1e-2, "bf16": 0.5}


class Ppo:
    """The four models and one iteration of the algorithm."""

    def __init__(self, context: Context) -> None:
        settings: PpoSettings = context.settings
        self.settings, self.seed = settings, context.seed
        self.device = resolve_device(settings.loop.device)
        bundle = load_for_conversations(context.artifact("model").path, self.device)
        self.vocabulary, self.template = bundle.vocabulary, bundle.chat
        _check_adapter(settings.adapter)
        self.tuning = Tuning(bundle, settings.adapter, settings.freeze, context.seed)
        self.bundle = self.tuning.bundle
        self.actor = self.bundle.model
        # With LoRA the actor's own weights never move: switched off, it is the reference, and no copy is needed.
        self.reference = None if settings.adapter is not None else copy.deepcopy(self.actor).requires_grad_(False)
        self.reward = _reward_model(context, self.vocabulary.sha256, self.device)
        self.critic = ValueModel.from_reward_model(self.reward)
        self.stops = self.template.stop_ids(self.vocabulary)
        self.prompts = self._prompts(context)
        self.order = Order(len(self.prompts), context.seed)
        self.kl = _controller(settings.kl)
        modules = {"actor": self.actor, "critic": self.critic}
        choices = {"actor": settings.actor, "critic": settings.critic}
        total = settings.iterations * settings.epochs * settings.minibatches
        self.trainer = Trainer(
            modules, ScheduledOptimizer(modules, choices, total), settings.loop.max_skips, settings.precision
        )

    def _prompts(self, context: Context) -> list[list[int]]:
        given = [
            item for source in context.artifacts("prompts") for item in read_prompts(source.file("prompts.parquet"))
        ]
        kept, too_long = answerable(self.bundle, given, self.settings.max_new_tokens)
        found = [self.template.render(item.messages, self.vocabulary, open_reply=True).ids for item in kept]
        context.metrics["prompts"], context.metrics["prompts_too_long"] = len(found), too_long
        if len(found) < self.settings.batch_prompts:
            raise ChatloomError(
                f"stage `{context.name}`: {len(found)} prompts fit the context, batch_prompts is "
                f"{self.settings.batch_prompts}; give more prompts or lower batch_prompts"
            )
        return found

    def iterate(self, iteration: int) -> dict[str, float]:
        """Roll out, score, shape, estimate advantages, update; returns the iteration's metrics."""
        data = self.experience(iteration)
        metrics = self.update(iteration, data)
        self.kl.update(data.metrics["kl"], self.settings.batch_prompts)
        return {**data.metrics, **metrics}

    @torch.no_grad()
    def experience(self, iteration: int) -> Experience:
        """Sample answers, score them, and turn scores and KL into advantages and returns."""
        choice = self.settings
        first = iteration * choice.batch_prompts
        prompts = [self.prompts[i] for i in self.order.items(first, choice.batch_prompts)]
        samples = generate(
            self.actor,
            prompts,
            n=1,
            max_new_tokens=choice.max_new_tokens,
            sampling=Sampling(temperature=choice.temperature),
            seed=self.seed,
            stop_ids=self.stops,
            prompt_keys=list(range(first, first + choice.batch_prompts)),
        )
        drawn = [item[0] for item in samples]
        rolled = answers(prompts, [s.tokens for s in drawn], [s.logprobs for s in drawn], [s.finished for s in drawn])
        batches = self.pack(rolled, range(len(rolled)))
        mask = rolled.mask
        old, entropies = logprob_table(self.actor, rolled, batches, choice.temperature)
        with self.as_reference() as network:
            reference, _ = logprob_table(network, rolled, batches, choice.temperature)
        values = value_table(self.critic, rolled, batches)
        scores = reward_scores(self.reward, batches, len(rolled))
        penalised = scores - choice.missing_end_penalty * (~rolled.ended).float()
        kl = (old - reference) * mask
        limits = None if choice.reward_clip is None else (-choice.reward_clip, choice.reward_clip)
        rewards = kl_shaped_rewards(penalised, kl, mask, kl_coef=self.kl.coefficient, score_clip=limits)
        if choice.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False)
        advantages, returns = generalized_advantages(rewards, values, mask, gamma=choice.gamma, lam=choice.lam)
        distance = ((old - rolled.sampler_logprobs).abs() * mask).max()
        self._check_sampler(float(distance))
        metrics = {
            "reward": float(scores.mean()),
            "reward_std": float(scores.std()),
            "kl": float(kl.sum(1).mean()),
            "kl_coefficient": self.kl.coefficient,
            "shaped_return": float(rewards.sum(1).mean()),
            "sampled_entropy": float(masked_mean(entropies, mask)),
            "length": float(rolled.lengths.float().mean()),
            "ended": float(rolled.ended.float().mean()),
            "explained_variance": float(explained_variance(values, returns, mask)),
            "advantage_std": float((advantages[mask.bool()]).std()),
            "sampler_distance": float(distance),
            "tokens": float(sum(len(segment) for segment in rolled.segments)),
        }
        return Experience(rolled, old, values, whiten(advantages, mask), returns, metrics)

    @contextmanager
    def as_reference(self) -> Iterator[Transformer]:
        """The network that gives the reference's log-probabilities meanwhile."""
        if self.reference is not None:
            yield self.reference
            return
        switch(self.actor, active=False)
        try:
            yield self.actor
        finally:
            switch(self.actor, active=True)

    def update(self, iteration: int, data: Experience) -> dict[str, float]:
        """Passes over the answers in fresh permutations, left early when the policy has moved too far."""
        choice = self.settings
        collected: list[dict[str, float]] = []
        largest, stopped = 0.0, False
        before = self.trainer.updates
        for epoch in range(choice.epochs):
            order = _permutation(self.seed, iteration, epoch, len(data.rolled))
            for part in np.array_split(order, choice.minibatches):
                loss = PpoLoss(self.actor, self.critic, choice, data, float(iteration >= choice.critic_warmup))
                collected.append(self.trainer.update(self.pack(data.rolled, part), loss))
                if not largest and epoch == 0 and len(collected) == 1:
                    self._check_first_ratio(loss.largest)
                    collected[0] = {**collected[0], "first_log_ratio": loss.largest}
                largest = max(largest, loss.largest)
                stopped = policy_moved_too_far(loss.squares, loss.tokens, choice.policy_kl_limit)
                if stopped:
                    break
            if stopped:
                break
        # The schedule counts planned updates, so that an early stop does not stretch the decay.
        self.trainer.updates = before + choice.epochs * choice.minibatches
        return {**_mean(collected), "largest_log_ratio": largest, "stopped_early": float(stopped)}

    def pack(self, rolled: Answers, chosen: range | np.ndarray) -> list[Batch]:
        """Packed micro-batches of some answers."""
        return batches_of(
            [rolled.segments[int(i)] for i in chosen],
            self.actor.config.max_positions,
            self.settings.loop.micro_batch_tokens,
            self.vocabulary.pad_id,
            self.device,
        )

    def _check_first_ratio(self, largest: float) -> None:
        limit = RATIO_TOLERANCE[self.settings.precision]
        if not largest < limit:
            raise ChatloomError(
                f"PPO's first minibatch has |log ratio| up to {largest:.2e}, expected under {limit:g}: the policy "
                "that is updated is not the one whose log-probabilities were stored. Likely causes: dropout left on; "
                "another temperature in one of the two passes; weights changed in between; a precision too low "
                "(try fp32)."
            )

    def _check_sampler(self, distance: float) -> None:
        limit = SAMPLER_TOLERANCE[self.settings.precision]
        if not distance < limit:
            raise ChatloomError(
                f"the sampler's log-probabilities differ from the trainer's by up to {distance:.2e} nats, expected "
                f"under {limit:g}. Likely causes: stale weights in the sampler; another temperature; a truncated "
                "distribution (top_k, top_p) in sampling; a precision too low."
            )

    def state(self) -> State:
        """What a resumed run needs beside actor and optimizer: the critic, the KL coefficient, an adapter."""
        tensors = {"critic": dict(self.critic.state_dict()), **self.tuning.state().tensors}
        return State({"kl": self.kl.state_dict()}, tensors)

    def load_state(self, state: State) -> None:
        """Put back what `state` gave."""
        self.kl.load_state_dict(state.values["kl"])
        self.critic.load_state_dict(state.tensors["critic"])
        self.tuning.load_state(state)


def run(context: Context) -> None:
    """Align; the result is the last policy, the critic stays in `state/`."""
    ppo = Ppo(context)
    rows = train(
        context,
        ppo.trainer,
        ppo.settings.iterations,
        ppo.iterate,
        loop=ppo.settings.loop,
        kind="model",
        noun="iterations",
        write_model=ppo.tuning.save,
        load_model=ppo.tuning.load,
        extra_state=ppo.state,
        load_extra=ppo.load_state,
    )
    first, last = rows[0], rows[-1]
    context.metrics.update(
        trained_parameters=ppo.tuning.n_trained,
        first_reward=first["reward"],
        last_reward=last["reward"],
        last_kl=last["kl"],
        last_kl_coefficient=last["kl_coefficient"],
        last_entropy=last["sampled_entropy"],
        last_ended=last["ended"],
        largest_first_log_ratio=max(row["first_log_ratio"] for row in rows if "first_log_ratio" in row),
        largest_sampler_distance=max(row["sampler_distance"] for row in rows),
        early_stops=int(sum(row["stopped_early"] for row in rows)),
    )


def _check_adapter(adapter: AdapterSettings | None) -> None:
    """Refuse what would make the policy that is updated another one than that which sampled."""
    only_lora(adapter, "ppo")
    if adapter is not None and adapter.dropout:
        raise ChatloomError(
            f"adapter.dropout is {adapter.dropout} in stage ppo: the policy that is updated must be the one that "
            "sampled, so nothing may be dropped; set it to 0"
        )


def _reward_model(context: Context, vocabulary: str, device: torch.device) -> RewardModel:
    bundle = load_bundle(context.artifact("reward").path, device)
    if bundle.vocabulary.sha256 != vocabulary:
        raise ChatloomError(
            f"stage `{context.name}`: the reward model reads another vocabulary than the policy; "
            "train it from the same chat model"
        )
    if not context.artifact("reward").metrics.get("normalised"):
        raise ChatloomError(
            f"stage `{context.name}`: the reward model is not normalised, so the KL coefficient has no meaning; "
            "train it with `normalise: true`"
        )
    return bundle.reward.requires_grad_(False)


def _controller(choice: KlSettings) -> AdaptiveKL | FixedKL:
    if choice.controller == "fixed":
        return FixedKL(choice.coefficient)
    return AdaptiveKL(choice.coefficient, choice.target, choice.horizon)


def _permutation(seed: int, iteration: int, epoch: int, size: int) -> np.ndarray:
    key = [seed & (2**64 - 1), (iteration << 8) + epoch + (1 << 62)]
    return np.random.Generator(np.random.Philox(key=key)).permutation(size)


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    names = {name for row in rows for name in row}
    return {
        name: sum(row[name] for row in rows if name in row) / sum(1 for row in rows if name in row)
        for name in sorted(names)
    }


def plan(context: PlanContext) -> Plan:
    """Sampling, four forward passes and `epochs` updates of actor and critic on every answer."""
    settings: PpoSettings = context.settings
    config = planned_config(context, "model")
    if config is None:
        return UNKNOWN_MODEL
    if settings.max_new_tokens >= config.max_positions:
        return Plan(
            refusals=(f"max_new_tokens ({settings.max_new_tokens}) fills the whole context ({config.max_positions})",)
        )
    if settings.critic_warmup >= settings.iterations:
        return Plan(
            refusals=(f"critic_warmup ({settings.critic_warmup}) leaves none of {settings.iterations} iterations",)
        )
    if settings.batch_prompts < settings.minibatches:
        return Plan(refusals=(f"minibatches ({settings.minibatches}) exceed batch_prompts ({settings.batch_prompts})",))
    if settings.kl.controller == "adaptive" and settings.batch_prompts > settings.kl.horizon:
        return Plan(refusals=(f"batch_prompts ({settings.batch_prompts}) exceed kl.horizon ({settings.kl.horizon:g})",))
    length = answer_tokens(context, "model", settings.max_new_tokens)
    texts = replace(texts_of(context, "prompts", "prompts"), answer_tokens=length)
    too_few: tuple[str, ...] = ()
    if 0 < texts.count < settings.batch_prompts:
        too_few = (f"batch_prompts ({settings.batch_prompts}) exceed the {texts.count:,.0f} prompts; lower it",)
        if all_made(context, "prompts"):
            return Plan(refusals=too_few)
    tokens = settings.iterations * settings.batch_prompts * texts.tokens
    costs = training_plan(
        config,
        context,
        tokens=tokens,
        passes=4 + (6 if settings.adapter is None else 3 + ADAPTED_PASSES) * settings.epochs,
        sampled=tokens,
        row_tokens=texts.prompt_tokens + settings.max_new_tokens,
        trained=2,
        frozen=2 if settings.adapter is None else 1,
        adapted=settings.adapter is not None,
        micro_batch_tokens=settings.loop.micro_batch_tokens,
    )
    steps = settings.iterations * settings.epochs * settings.minibatches
    notes = schedule_note(settings.actor, steps, exact=True, who="actor ")
    notes += schedule_note(settings.critic, steps, exact=True, who="critic ")
    lines = (*costs.lines, Line("answer_tokens", length, "tokens"))
    return replace(costs, lines=lines, warnings=too_few, notes=notes)


STAGE = Stage(
    kind="ppo",
    about="chat model + reward model + prompts -> aligned model, by reinforcement learning",
    version=1,
    settings=PpoSettings,
    inputs={
        "model": Input("chat model to align; also the reference", kinds=("model", "checkpoint")),
        "reward": Input("reward model", kinds=("reward-model",)),
        "prompts": Input("prompts to answer", kinds=("conversations",), many=True),
    },
    output="model",
    run=run,
    plan=plan,
)
