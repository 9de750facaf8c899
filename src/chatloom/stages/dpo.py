"""Stage `dpo`: a chat model and pairs of answers -> an aligned model, by direct preference optimization.

The reference is the model it starts from; its log-probabilities of every answer are computed once, before training.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from chatloom.artifact import write_json
from chatloom.dialogue.record import Preference
from chatloom.dialogue.storage import read_preferences
from chatloom.errors import ChatloomError
from chatloom.model.transformer import Transformer
from chatloom.objectives.preference import KINDS, PreferenceLoss
from chatloom.settings import Settings
from chatloom.stage import Context, Input, Plan, PlanContext, Stage
from chatloom.tokens.packing import Batch
from chatloom.training.adapters import ADAPTER_ABOUT, FREEZE_ABOUT, AdapterSettings, Tuning, only_lora
from chatloom.training.bundle import load_for_conversations
from chatloom.training.costs import model_plan, texts_of
from chatloom.training.data import Example, ExampleStream, check_rejected, pack_examples, preference_examples
from chatloom.training.forward import segment_logprobs
from chatloom.training.optimizers import ScheduledOptimizer
from chatloom.training.parallel.team import Team
from chatloom.training.schedule_note import schedule_note
from chatloom.training.session import noise_seed, resolve_device, train
from chatloom.training.settings import LoopSettings, OptimizerSettings
from chatloom.training.trainer import Terms, Trainer


class DpoSettings(Settings):
    """How to align from pairs."""

    epochs: float = Field(1.0, gt=0, description="passes over the pairs")
    batch_pairs: int = Field(64, ge=1, description="pairs in one optimizer step (Rafailov 2023: 64)")
    loss: Literal["sigmoid", "cdpo", "robust", "hinge", "ipo", "ipo_avg", "sigmoid_avg"] = Field(
        "sigmoid", description="; ".join(f"{name}: {kind.about}" for name, kind in KINDS.items())
    )
    beta: float = Field(0.1, gt=0, description="strength of the pull to the reference (Rafailov 2023: 0.1)")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="share of pairs taken to be swapped; cdpo and robust")
    nll_weight: float = Field(
        0.0, ge=0, description="adds -log p(chosen) a token, which keeps the chosen answer likely"
    )
    max_rejected_share: float = Field(0.05, ge=0, le=1, description="stop when more pairs than this do not fit")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="bf16, fp16: autocast, fp32 weights; fp16 with a scaled loss"
    )
    optimizer: OptimizerSettings = Field(
        OptimizerSettings(lr=1e-6, weight_decay=0.0, warmup=0.1, schedule="linear", final_share=0.0),
        description="AdamW (Rafailov 2023: 1e-6 with warm-up)",
    )
    adapter: AdapterSettings | None = Field(None, description=f"{ADAPTER_ABOUT}; here lora only")
    freeze: tuple[str, ...] = Field((), description=FREEZE_ABOUT)
    loop: LoopSettings = Field(LoopSettings(), description="how it runs")


class DpoLoss:
    """Preference loss of each pair against stored reference log-probabilities; a mean over pairs."""

    def __init__(self, model: Transformer, loss: PreferenceLoss) -> None:
        self.model, self.loss = model, loss
        self.first_value: float | None = None

    def weight(self, batch: Batch) -> float:
        """Pairs."""
        return batch.n_segments / 2

    def __call__(self, batch: Batch) -> Terms:
        """Sum of the pairs' losses; segments 2i and 2i+1 of a micro-batch are one pair, chosen first."""
        chosen, rejected = pair_indices(batch)
        logps, lengths = segment_logprobs(self.model, batch)
        reference = batch.scalars["reference"]
        terms = self.loss(
            logps[chosen],
            logps[rejected],
            reference[chosen],
            reference[rejected],
            chosen_lengths=lengths[chosen],
            rejected_lengths=lengths[rejected],
        )
        if self.first_value is None:
            self.first_value = float(terms.preference.detach().mean())
        count = len(chosen)
        sums: dict[str, tuple[Tensor | float, Tensor | float]] = {
            "accuracy": ((terms.chosen_rewards > terms.rejected_rewards).float().sum(), count),
            "margin": ((terms.chosen_rewards - terms.rejected_rewards).detach().sum(), count),
            "chosen_reward": (terms.chosen_rewards.detach().sum(), count),
            "rejected_reward": (terms.rejected_rewards.detach().sum(), count),
            "chosen_logprob": (logps[chosen].detach().sum(), lengths[chosen].sum()),
            "rejected_logprob": (logps[rejected].detach().sum(), lengths[rejected].sum()),
        }
        return Terms(terms.losses.sum(), sums)


def pair_indices(batch: Batch) -> tuple[Tensor, Tensor]:
    """Segment indices of chosen (rank0) and rejected (rank1) answers, pair by pair."""
    ranks = torch.tensor([int(role.removeprefix("rank")) for role in batch.role], device=batch.group.device)
    order = torch.argsort(batch.group * 2 + ranks, stable=True)
    return order[0::2], order[1::2]


# Packing may differ between the reference pass and training, so equality holds up to rounding.
START_TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 2e-2}


def run(context: Context) -> None:
    """Train on `pairs.parquet` of the preferences."""
    settings: DpoSettings = context.settings
    device = resolve_device(settings.loop.device)
    team = Team.of(settings.loop.parallel, device)
    start = load_for_conversations(context.artifact("model").path, device)
    vocabulary, template = start.vocabulary, start.chat
    # A fresh LoRA changes nothing, so this one network is the reference until the first step, and then the policy.
    only_lora(settings.adapter, "dpo")
    tuning = Tuning(start, settings.adapter, settings.freeze, context.seed, team)
    model = tuning.bundle.model
    row_length = model.config.max_positions
    try:
        loss = PreferenceLoss(settings.loss, settings.beta, settings.label_smoothing, settings.nll_weight)
    except ValueError as error:
        raise ChatloomError(f"stage `{context.name}`: {error}") from None
    preferences = _pairs(context)
    examples, rejected = preference_examples(preferences, template, vocabulary, row_length)
    check_rejected(rejected, len(preferences), settings.max_rejected_share, "pairs")
    write_json(context.path / "rejected.json", [vars(item) for item in rejected])
    with_reference(model, examples, settings.loop.micro_batch_tokens, vocabulary.pad_id, device)
    stream = ExampleStream(
        examples,
        per_step=settings.batch_pairs,
        seed=context.seed,
        row_length=row_length,
        micro_tokens=settings.loop.micro_batch_tokens,
        pad_id=vocabulary.pad_id,
        axis=team.world.data,
    )
    total = stream.steps(settings.epochs)
    team.spread({"model": model}, device)
    optimizer = ScheduledOptimizer({"model": model}, {"model": settings.optimizer}, total)
    trainer = Trainer(
        {"model": model},
        optimizer,
        settings.loop.max_skips,
        settings.precision,
        noise_seed=noise_seed(model, context.seed),
        team=team,
    )
    objective = DpoLoss(model, loss)

    def step(index: int) -> dict[str, float]:
        batches = [batch.to(device) for batch in stream.step(index)]
        with tuning.dropping():
            metrics = trainer.update(batches, objective)
        if index == 0 and team.world.speaks:
            check_start(objective, loss, settings.precision)
        return {**metrics, "tokens": team.counted(batches)["tokens"]}

    rows = train(
        context,
        trainer,
        total,
        step,
        loop=settings.loop,
        kind="model",
        write_model=tuning.save,
        load_model=tuning.load,
        extra_state=tuning.state,
        load_extra=tuning.load_state,
    )
    last = rows[-1]
    context.metrics.update(
        trained_parameters=tuning.n_trained,
        pairs=len(examples),
        rejected=len(rejected),
        value_at_reference=loss.value_at_reference,
        last_accuracy=last.get("accuracy"),
        last_margin=last.get("margin"),
    )


def check_start(objective: DpoLoss, loss: PreferenceLoss, precision: str) -> None:
    """Stop unless the first loss is the value that the loss declares for policy = reference."""
    found, expected = objective.first_value, loss.value_at_reference
    if found is None or not abs(found - expected) < START_TOLERANCE[precision] * max(1.0, abs(expected)):
        raise ChatloomError(
            f"the first {loss.kind} loss is {found}, but policy and reference are equal, where it must be "
            f"{expected:.6f}. "
            "Likely causes: reference log-probabilities of another model, template or data; dropout left on; "
            "answers cut differently in the two passes; a precision too low (try fp32)."
        )


@torch.no_grad()
def with_reference(
    model: Transformer, examples: list[Example], micro_tokens: int, pad_id: int, device: torch.device
) -> None:
    """Store each answer's summed log-probability (nats) under the reference as its segment's scalar `reference`."""
    for batch in pack_examples(examples, model.config.max_positions, micro_tokens, pad_id):
        sums, _ = segment_logprobs(model, batch.to(device))
        for group, role, value in zip(batch.group.tolist(), batch.role, sums.tolist(), strict=True):
            examples[group].segments[int(role.removeprefix("rank"))].scalars["reference"] = value


def _pairs(context: Context) -> list[Preference]:
    """Every pair; a ranking of K answers gives its best and its worst."""
    found: list[Preference] = []
    for artifact in context.artifacts("preferences"):
        for item in read_preferences(artifact.file("pairs.parquet")):
            ends = [item.ended[0], item.ended[-1]]
            found.append(Preference(item.id, item.prompt, [item.chosen, item.rejected], item.kind, item.margin, ends))
    if not found:
        raise ChatloomError(f"stage `{context.name}`: there is no pair to learn from")
    return found


def plan(context: PlanContext) -> Plan:
    """Passes over the pairs, and one by the reference before them."""
    settings: DpoSettings = context.settings
    texts = texts_of(context, "preferences", "pairs")
    both = 2 * texts.count * texts.tokens
    costs = model_plan(context, tokens=settings.epochs * both, scored=both, adapted=settings.adapter is not None)
    return replace(costs, notes=schedule_note(settings.optimizer, settings.epochs * texts.count / settings.batch_pairs))


STAGE = Stage(
    kind="dpo",
    about="chat model + pairs of answers -> aligned model, without a sampler in the loop",
    version=1,
    settings=DpoSettings,
    inputs={
        "model": Input("chat model to align; also the reference", kinds=("model", "checkpoint")),
        "preferences": Input("pairs of answers", kinds=("conversations", "preferences", "rollouts"), many=True),
    },
    output="model",
    run=run,
    plan=plan,
)
