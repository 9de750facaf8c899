"""Stage `reward`: a chat model and ranked answers -> a reward model, normalised and with a held-out report."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from chatloom.artifact import write_json
from chatloom.dialogue.record import Preference
from chatloom.dialogue.storage import read_preferences, read_prompts
from chatloom.errors import ChatloomError
from chatloom.evaluation.calibration import judge_pairs
from chatloom.generation.engine import generate
from chatloom.generation.sampling import Sampling
from chatloom.model.heads import RewardModel
from chatloom.objectives.language_modeling import language_model_loss
from chatloom.objectives.ranking import k_wise_loss, ordered_pairs, ranked_right
from chatloom.settings import Settings
from chatloom.stage import Context, Input, Plan, PlanContext, Stage
from chatloom.tokens.packing import Batch
from chatloom.training.adapters import ADAPTER_ABOUT, FREEZE_ABOUT, AdapterSettings, Tuning, only_lora
from chatloom.training.bundle import Bundle, live_adapter, load_bundle, load_for_conversations
from chatloom.training.costs import model_plan, texts_of
from chatloom.training.data import Example, ExampleStream, check_rejected, pack_examples, preference_examples
from chatloom.training.optimizers import ScheduledOptimizer
from chatloom.training.parallel.team import Team
from chatloom.training.rollouts import answers, batches_of, reward_scores
from chatloom.training.schedule_note import schedule_note
from chatloom.training.session import noise_seed, resolve_device, train
from chatloom.training.settings import LoopSettings, OptimizerSettings
from chatloom.training.trainer import Terms, Trainer


class RewardSettings(Settings):
    """How to train a reward model."""

    epochs: float = Field(1.0, gt=0, description="passes over the prompts; more than one overfits (InstructGPT)")
    batch_prompts: int = Field(32, ge=1, description="prompts, with all their ranked answers, in one optimizer step")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="share of labels taken to be wrong")
    centering: float = Field(0.0, ge=0, description="pull of the scores' sum to 0 (0.01 in Eisenstein 2023)")
    lm_weight: float = Field(
        0.0, ge=0, description="adds this times the nats a token of the best answer, which keeps what the model knows"
    )
    normalise: bool = Field(
        True, description="mean 0 on the chosen answers, standard deviation 1 on the chat model's own samples"
    )
    normalise_samples: int = Field(256, ge=16, description="answers sampled for the standard deviation (OpenAI: 256)")
    max_new_tokens: int = Field(64, ge=1, description="longest sampled answer, in tokens")
    temperature: float = Field(1.0, gt=0, description="of those samples")
    max_rejected_share: float = Field(
        0.05, ge=0, le=1, description="stop when more preferences than this do not fit the context"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="bf16, fp16: autocast, fp32 weights; fp16 with a scaled loss"
    )
    optimizer: OptimizerSettings = Field(
        OptimizerSettings(lr=1e-5, weight_decay=0.0, schedule="linear", final_share=0.0),
        description="optimizer, rate and schedule; to 0",
    )
    adapter: AdapterSettings | None = Field(None, description=f"{ADAPTER_ABOUT}; here lora only, and the score")
    freeze: tuple[str, ...] = Field((), description=FREEZE_ABOUT)
    loop: LoopSettings = Field(LoopSettings(), description="how it runs")


class RankingLoss:
    """Pairwise (or K-wise) ranking loss, a mean over prompts; all answers of a prompt are scored in one pass."""

    def __init__(self, model: RewardModel, settings: RewardSettings) -> None:
        self.model, self.settings = model, settings

    def weight(self, batch: Batch) -> float:
        """Prompts with at least one ordered pair."""
        better, _ = ordered_pairs(_ranks(batch), batch.group)
        return float(len(batch.group[better].unique()))

    def __call__(self, batch: Batch) -> Terms:
        """Sum of the prompts' losses in nats, and how many pairs were ranked right."""
        hidden = self.model.body.over(batch)
        scores = self.model.rewards_from_hidden(hidden[batch.segment_row, batch.segment_end])
        ranks = _ranks(batch)
        margin = batch.scalars.get("margin")
        losses, pairs = k_wise_loss(
            scores,
            ranks,
            batch.group,
            margin=0.0 if margin is None else torch.nan_to_num(margin),
            label_smoothing=self.settings.label_smoothing,
            centering=self.settings.centering,
        )
        better, worse = ordered_pairs(ranks, batch.group)
        gap = (scores[better] - scores[worse]).detach()
        sums: dict[str, tuple[Tensor | float, Tensor | float]] = {
            "accuracy": (ranked_right(scores[better], scores[worse]).detach().sum(), len(gap)),
            "margin": (gap.sum(), len(gap)),
        }
        total = (losses * (pairs > 0)).sum()
        if self.settings.lm_weight:
            nll = self._best_answers_nll(batch, hidden, ranks)
            total = total + self.settings.lm_weight * nll
            sums["best_answer_nll"] = (nll.detach(), self.weight(batch))
        return Terms(total, sums)

    def _best_answers_nll(self, batch: Batch, hidden: Tensor, ranks: Tensor) -> Tensor:
        """Sum over prompts of the mean nats a token of the best answer (regulariser of N+ and of InstructGPT's ptx)."""
        index = batch.supervised
        segments = batch.segments.flatten().index_select(0, index)
        best = ranks.index_select(0, segments) == 0
        index, segments = index[best], segments[best]
        lengths = torch.bincount(segments, minlength=batch.n_segments).clamp(min=1).float()
        sums = language_model_loss(
            hidden.flatten(0, 1).index_select(0, index),
            self.model.body.unembedding,
            batch.targets.flatten().index_select(0, index),
            1.0 / lengths.index_select(0, segments),
            softcap=self.model.config.logit_softcap,
        )
        return sums.total


def _ranks(batch: Batch) -> Tensor:
    return torch.tensor([int(role.removeprefix("rank")) for role in batch.role], device=batch.group.device)


def run(context: Context) -> None:
    """Train on `pairs.parquet`, normalise, report on `pairs_heldout.parquet`."""
    settings: RewardSettings = context.settings
    device = resolve_device(settings.loop.device)
    team = Team.of(settings.loop.parallel, device)
    if live_adapter(context.artifact("model").path) is not None:
        raise ChatloomError(f"stage `{context.name}`: a reward model of a model with virtual tokens is not supported")
    only_lora(settings.adapter, "reward")
    start = load_for_conversations(context.artifact("model").path)
    vocabulary, template = start.vocabulary, start.chat
    if settings.lm_weight and not start.model.config.tie_embeddings:
        raise ChatloomError(
            f"stage `{context.name}`: lm_weight needs tied embeddings, as a reward model keeps no "
            "output matrix; set it to 0"
        )
    model = RewardModel(start.model, generator=torch.Generator().manual_seed(context.seed))
    tuning = Tuning(Bundle(model, vocabulary, template), settings.adapter, settings.freeze, context.seed, team)
    bundle = tuning.bundle
    row_length = model.config.max_positions
    preferences = _preferences(context, "pairs.parquet")
    examples, rejected = preference_examples(preferences, template, vocabulary, row_length)
    check_rejected(rejected, len(preferences), settings.max_rejected_share, "preferences")
    write_json(context.path / "rejected.json", [vars(item) for item in rejected])
    stream = ExampleStream(
        examples,
        per_step=settings.batch_prompts,
        seed=context.seed,
        row_length=row_length,
        micro_tokens=settings.loop.micro_batch_tokens,
        pad_id=vocabulary.pad_id,
        axis=team.world.data,
    )
    total = stream.steps(settings.epochs)
    team.spread({"reward": model}, device)
    trainer = Trainer(
        {"reward": model},
        ScheduledOptimizer({"reward": model}, {"reward": settings.optimizer}, total),
        settings.loop.max_skips,
        settings.precision,
        noise_seed=noise_seed(model, context.seed),
        team=team,
    )
    loss = RankingLoss(model, settings)

    def step(index: int) -> dict[str, float]:
        batches = [batch.to(device) for batch in stream.step(index)]
        with tuning.dropping():
            metrics = trainer.update(batches, loss)
        return {**metrics, "tokens": team.counted(batches)["tokens"]}

    train(
        context,
        trainer,
        total,
        step,
        loop=settings.loop,
        kind="reward-model",
        write_model=tuning.save,
        load_model=tuning.load,
        extra_state=tuning.state,
        load_extra=tuning.load_state,
        finish=lambda: normalise(context, bundle, examples, settings, device) if settings.normalise else {},
    )
    context.metrics.update(
        trained_parameters=tuning.n_trained,
        prompts=len(examples),
        rejected=len(rejected),
        normalised=settings.normalise,
    )
    report = heldout_report(context, bundle, settings, device)
    if report is not None:
        write_json(context.path / "heldout.json", report)
        context.metrics.update(
            heldout_accuracy=report["accuracy"],
            heldout_accuracy_by_kind={kind: row["accuracy"] for kind, row in report["by_kind"].items()},
            heldout_brier=report["brier"],
            heldout_ece=report["ece"],
        )


@torch.no_grad()
def normalise(
    context: Context, bundle: Bundle, examples: list[Example], settings: RewardSettings, device: torch.device
) -> dict[str, float]:
    """Fold gain = 1 / std(samples) and bias = -gain * mean(chosen) into the model (Ziegler 2019; N+ detail 21).

    The standard deviation is of the chat model's own answers to the preferences' prompts, so that a reward of 1 means
    one spread of what the policy does before alignment.
    """
    model, vocabulary, template = bundle.reward, bundle.vocabulary, bundle.chat
    chosen = [Example(item.id, item.segments[:1]) for item in examples]
    chosen_scores = _scores(model, chosen, settings, vocabulary.pad_id, device)
    policy = load_bundle(context.artifact("model").path, device).model
    prompts = _prompts(context, bundle)[: settings.normalise_samples]
    keys = list(range(settings.normalise_samples))
    samples = generate(
        policy,
        [prompts[i % len(prompts)] for i in keys],
        n=1,
        max_new_tokens=min(settings.max_new_tokens, model.config.max_positions - max(len(p) for p in prompts)),
        sampling=Sampling(temperature=settings.temperature),
        seed=context.seed,
        stop_ids=template.stop_ids(vocabulary),
        prompt_keys=keys,
    )
    drawn = [item[0] for item in samples]
    rolled = answers(
        [prompts[i % len(prompts)] for i in keys],
        [s.tokens for s in drawn],
        [s.logprobs for s in drawn],
        [s.finished for s in drawn],
    )
    batches = batches_of(
        rolled.segments, model.config.max_positions, settings.loop.micro_batch_tokens, vocabulary.pad_id, device
    )
    sampled_scores = reward_scores(model, batches, len(rolled))
    spread = float(sampled_scores.std())
    gain = 1.0 / spread if spread > 0 else math.inf  # refused by `model.normalise` with its reason
    bias = -gain * float(chosen_scores.mean())
    model.normalise(gain, bias)
    return {"gain": gain, "bias": bias, "samples_mean_after": gain * float(sampled_scores.mean()) + bias}


def _prompts(context: Context, bundle: Bundle) -> list[list[int]]:
    """Prompts, short enough to answer, for the samples: `prompts.parquet` if present, else those of the preferences."""
    template, vocabulary = bundle.chat, bundle.vocabulary
    messages = [
        prompt.messages
        for item in context.artifacts("preferences")
        if (item.path / "prompts.parquet").is_file()
        for prompt in read_prompts(item.file("prompts.parquet"))
    ] or [item.prompt for item in _preferences(context, "pairs.parquet")]
    settings: RewardSettings = context.settings
    room = bundle.reward.config.max_positions - settings.max_new_tokens
    found = [ids for item in messages if len(ids := template.render(item, vocabulary, open_reply=True).ids) <= room]
    if not found:
        raise ChatloomError(
            f"stage `{context.name}`: no prompt leaves room for max_new_tokens = {settings.max_new_tokens} "
            f"in a context of {bundle.reward.config.max_positions}; lower max_new_tokens"
        )
    return found


@torch.no_grad()
def _scores(
    model: RewardModel, examples: list[Example], settings: RewardSettings, pad_id: int, device: torch.device
) -> Tensor:
    """Rewards of all segments of examples, in order."""
    singles = [Example(item.id, (segment,)) for item in examples for segment in item.segments]
    batches = pack_examples(singles, model.config.max_positions, settings.loop.micro_batch_tokens, pad_id)
    return reward_scores(model, [batch.to(device) for batch in batches], len(singles))


def heldout_report(
    context: Context, bundle: Bundle, settings: RewardSettings, device: torch.device
) -> dict[str, Any] | None:
    """Accuracy by kind and confidence, calibration and length bias on held-out pairs; None where there are none."""
    pairs = [pair for pair in _preferences(context, "pairs_heldout.parquet") if len(pair.answers) == 2]
    examples, _ = preference_examples(pairs, bundle.chat, bundle.vocabulary, bundle.reward.config.max_positions)
    if not examples:
        return None
    kinds = {pair.id: pair.kind for pair in pairs}
    # The normaliser's gain stretches margins; a pair's probability follows from the margin before it.
    gain = float(context.metrics.get("gain", 1.0))
    scores = _scores(bundle.reward, examples, settings, bundle.vocabulary.pad_id, device) / gain
    return judge_pairs(
        scores[0::2].numpy(),
        scores[1::2].numpy(),
        kinds=[kinds[item.id] for item in examples],
        chosen_lengths=[int(item.segments[0].supervised.sum()) for item in examples],
        rejected_lengths=[int(item.segments[1].supervised.sum()) for item in examples],
    )


def _preferences(context: Context, name: str) -> list[Preference]:
    found: list[Preference] = []
    for artifact in context.artifacts("preferences"):
        if (artifact.path / name).is_file():
            found += read_preferences(artifact.file(name))
    return found


def plan(context: PlanContext) -> Plan:
    """Passes over the pairs; for the scale, a look at every chosen answer and some samples."""
    settings: RewardSettings = context.settings
    texts = texts_of(context, "preferences", "pairs")
    seen = texts.count * texts.tokens
    sampled = settings.normalise_samples * texts.tokens
    scored, drawn = (seen + sampled, sampled) if settings.normalise else (0.0, 0.0)
    adapted = settings.adapter is not None
    costs = model_plan(context, tokens=2 * settings.epochs * seen, scored=scored, sampled=drawn, adapted=adapted)
    return replace(
        costs, notes=schedule_note(settings.optimizer, settings.epochs * texts.count / settings.batch_prompts)
    )


STAGE = Stage(
    kind="reward",
    about="chat model + ranked answers -> reward model",
    version=1,
    settings=RewardSettings,
    inputs={
        "model": Input("chat model to start from; its samples set the scale", kinds=("model", "checkpoint")),
        "preferences": Input("ranked answers", kinds=("conversations", "preferences", "rollouts"), many=True),
    },
    output="reward-model",
    run=run,
    plan=plan,
)
