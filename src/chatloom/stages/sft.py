"""Stage `sft`: a base model and conversations -> a chat model; loss only on the assistant's tokens and end token."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field

from chatloom.artifact import write_json
from chatloom.dialogue.record import Conversation
from chatloom.dialogue.storage import read_conversations
from chatloom.dialogue.template import ChatTemplate
from chatloom.errors import ChatloomError
from chatloom.settings import Settings
from chatloom.stage import Context, Input, Plan, PlanContext, Stage
from chatloom.training.adapters import ADAPTER_ABOUT, FREEZE_ABOUT, AdapterSettings, Tuning
from chatloom.training.bundle import Bundle, load_for_conversations
from chatloom.training.costs import model_plan, texts_of
from chatloom.training.data import ExampleStream, check_rejected, conversation_examples
from chatloom.training.next_token_loss import NextTokenLoss
from chatloom.training.optimizers import ScheduledOptimizer
from chatloom.training.parallel.team import Team
from chatloom.training.schedule_note import schedule_note
from chatloom.training.session import noise_seed, resolve_device, train
from chatloom.training.settings import LoopSettings, OptimizerSettings
from chatloom.training.trainer import Trainer


class SftSettings(Settings):
    """How to instruction-tune."""

    epochs: float = Field(3.0, gt=0, description="passes over the conversations")
    batch_conversations: int = Field(32, ge=1, description="conversations in one optimizer step")
    init: Literal["model", "random"] = Field(
        "model", description="random: draw the weights anew, to show what pretraining is worth"
    )
    max_rejected_share: float = Field(
        0.05, ge=0, le=1, description="stop when more conversations than this do not fit the context"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="bf16, fp16: autocast, fp32 weights; fp16 with a scaled loss"
    )
    optimizer: OptimizerSettings = Field(
        OptimizerSettings(lr=1e-4, weight_decay=0.0), description="optimizer, rate and schedule"
    )
    adapter: AdapterSettings | None = Field(None, description=ADAPTER_ABOUT)
    freeze: tuple[str, ...] = Field((), description=FREEZE_ABOUT)
    loop: LoopSettings = Field(LoopSettings(), description="how it runs")


def run(context: Context) -> None:
    """Train on `sft.parquet` of the conversations; `sft_heldout.parquet`, where present, gives the held-out loss."""
    settings: SftSettings = context.settings
    device = resolve_device(settings.loop.device)
    team = Team.of(settings.loop.parallel, device)
    base = load_for_conversations(context.artifact("model").path)
    vocabulary, template = base.vocabulary, base.template or ChatTemplate()
    if settings.init == "random":
        if settings.adapter is not None:
            raise ChatloomError(f"stage `{context.name}`: an adapter on random weights learns nothing; use init: model")
        base.model.initialise(torch.Generator().manual_seed(context.seed))
    tuning = Tuning(Bundle(base.model, vocabulary, template), settings.adapter, settings.freeze, context.seed, team)
    bundle = tuning.bundle
    model = bundle.model
    row_length = model.config.max_positions
    conversations = _conversations(context, "sft.parquet")
    examples, rejected = conversation_examples(conversations, template, vocabulary, row_length)
    check_rejected(rejected, len(conversations), settings.max_rejected_share, "conversations")
    write_json(context.path / "rejected.json", [vars(item) for item in rejected])
    stream = ExampleStream(
        examples,
        per_step=settings.batch_conversations,
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
    loss = NextTokenLoss(model, reduce=team.reduce)

    def step(index: int) -> dict[str, float]:
        batches = [batch.to(device) for batch in stream.step(index)]
        return {**trainer.update(batches, loss), "tokens": team.counted(batches)["tokens"]}

    model.train()
    train(
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
    model.eval()
    context.metrics.update(
        trained_parameters=tuning.n_trained,
        conversations=len(examples),
        rejected=len(rejected),
        supervised_share=round(_supervised_share(stream), 4),
        heldout_loss=heldout_loss(context, bundle, settings, device),
    )


def heldout_loss(context: Context, bundle: Bundle, settings: SftSettings, device: torch.device) -> float | None:
    """Mean nats per supervised token on held-out conversations, or None where there are none."""
    conversations = _conversations(context, "sft_heldout.parquet")
    template = bundle.chat
    examples, _ = conversation_examples(conversations, template, bundle.vocabulary, bundle.model.config.max_positions)
    if not examples:
        return None
    stream = ExampleStream(
        examples,
        per_step=len(examples),
        seed=0,
        row_length=bundle.model.config.max_positions,
        micro_tokens=settings.loop.micro_batch_tokens,
        pad_id=bundle.vocabulary.pad_id,
    )
    batches = stream.step(0)
    loss = NextTokenLoss(bundle.model)
    with torch.inference_mode():
        total = sum(float(loss(batch.to(device)).total) for batch in batches)
    return total / sum(batch.total_weight for batch in batches)


def _supervised_share(stream: ExampleStream) -> float:
    supervised = sum(float((s.supervised[1:] > 0).sum()) for e in stream.examples for s in e.segments)
    return supervised / max(1, sum(example.n_tokens for example in stream.examples))


def _conversations(context: Context, name: str) -> list[Conversation]:
    found: list[Conversation] = []
    for artifact in context.artifacts("conversations"):
        if (artifact.path / name).is_file():
            found += read_conversations(artifact.file(name))
    return found


def plan(context: PlanContext) -> Plan:
    """Passes over the conversations; the model learns to answer at their length."""
    settings: SftSettings = context.settings
    texts = texts_of(context, "conversations", "records")
    tokens = settings.epochs * texts.count * texts.tokens
    adapted = settings.adapter is not None
    costs = model_plan(context, tokens=tokens, answer_tokens=texts.answer_tokens, adapted=adapted)
    steps = settings.epochs * texts.count / settings.batch_conversations
    return replace(costs, notes=schedule_note(settings.optimizer, steps))


STAGE = Stage(
    kind="sft",
    about="base model + conversations -> chat model",
    version=1,
    settings=SftSettings,
    inputs={
        "model": Input("model to start from", kinds=("model", "checkpoint")),
        "conversations": Input("conversations to learn from", kinds=("conversations",), many=True),
    },
    output="model",
    run=run,
    plan=plan,
)
