"""Stage `pretrain`: token stores -> base model, with held-out bits per byte beside a unigram and a trigram baseline."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from chatloom.artifact import Artifact, write_json
from chatloom.corpus.selection.expressions import Expression
from chatloom.errors import ChatloomError
from chatloom.evaluation.heldout import heldout_scores, objective_scores
from chatloom.model.config import TransformerConfig
from chatloom.progress import say
from chatloom.settings import Settings
from chatloom.stage import Context, Input, Line, Note, Plan, PlanContext, Stage
from chatloom.tokens.batch_sizes import NO_RAMP, BatchRamp, BatchSizes, batch_sizes
from chatloom.tokens.mixture_plan import MixtureError, MixtureSettings, check_names
from chatloom.tokens.objective import Denoising, ObjectiveSettings
from chatloom.tokens.packing import Batch
from chatloom.tokens.vocabulary import Vocabulary
from chatloom.training.adapters import ADAPTER_ABOUT, FREEZE_ABOUT, AdapterSettings, Tuning
from chatloom.training.ahead import Ahead
from chatloom.training.anomalies import Watch
from chatloom.training.checkpoints import State
from chatloom.training.costs import ADAPTED_PASSES, UNKNOWN_MODEL, planned_config, training_plan
from chatloom.training.embedding_gradient import shrink_embedding_gradient
from chatloom.training.meter import Meter
from chatloom.training.model_settings import ModelSettings
from chatloom.training.next_token_loss import NextTokenLoss
from chatloom.training.objective_plan import planned_objective
from chatloom.training.optimizers import ScheduledOptimizer
from chatloom.training.parallel.team import Team
from chatloom.training.pretraining_data import PretrainingData, open_stores, pretraining_data
from chatloom.training.schedule_note import batch_note, schedule_note
from chatloom.training.session import n_parameters, noise_seed, resolve_device, train, wants_compiled
from chatloom.training.settings import AnomalySettings, LoopSettings, OptimizerSettings
from chatloom.training.start import NewRowsFirst, beginning, moments_of_start
from chatloom.training.suspects import suspects
from chatloom.training.trainer import Trainer


class PretrainSettings(Settings):
    """How to pretrain."""

    model: ModelSettings = Field(ModelSettings(), description="shape of the model")
    epochs: float = Field(1.0, gt=0, description="passes over all documents, where no mixture is given")
    mixture: MixtureSettings = Field(MixtureSettings(), description="sources and stages")
    objective: ObjectiveSettings = Field(ObjectiveSettings(), description="what is learnt of a text")
    batch_rows: int = Field(32, ge=1, description="rows of `model.context` tokens in one optimizer step")
    batch_ramp: BatchRamp = Field(NO_RAMP, description="a batch that grows to `batch_rows`")
    train_new_rows_first: int = Field(
        0, ge=0, description="steps at the beginning in which only the rows that `extend-model` added are trained"
    )
    start_moments: bool = Field(
        False, description="go on with the optimizer's moments that `start` left, not with empty ones"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="bf16, fp16: autocast, fp32 weights; fp16 with a scaled loss"
    )
    optimizer: OptimizerSettings = Field(OptimizerSettings(lr=1e-3), description="optimizer, rate and schedule")
    z_loss: float = Field(
        0.0, ge=0, description="factor of the square of the logits' log-normaliser in the loss (PaLM: 1e-4)"
    )
    embedding_gradient_share: float = Field(
        1.0, gt=0, le=1, description="share of the gradient of looked-up embeddings that is used (GLM-130B: 0.1)"
    )
    anomalies: AnomalySettings = Field(AnomalySettings(), description="steps that are not taken, and going back")
    adapter: AdapterSettings | None = Field(None, description=f"{ADAPTER_ABOUT}; needs a `start`")
    freeze: tuple[str, ...] = Field((), description=FREEZE_ABOUT)
    loop: LoopSettings = Field(LoopSettings(), description="how it runs")


def run(context: Context) -> None:
    """Train on `train.*` of all stores, measure on `held_out.*`."""
    settings: PretrainSettings = context.settings
    device = resolve_device(settings.loop.device)
    folders = [item.path for item in context.artifacts("tokens")]
    vocabulary = Vocabulary.load(folders[0])
    _check_partial(context)
    team = Team.of(settings.loop.parallel, device)
    start = beginning(context, vocabulary)
    tuning = Tuning(start, settings.adapter, settings.freeze, context.seed, team)
    bundle = tuning.bundle
    model = bundle.model
    config = model.config
    data = read_data(
        folders, vocabulary, settings, config.max_positions, context.seed, prefix_decoder=config.prefix_decoder
    )
    _check_team(context, team, data.sizes.sizes)
    _show(context, data)
    if settings.embedding_gradient_share < 1:
        shrink_embedding_gradient(model.embedding, settings.embedding_gradient_share)
    team.spread({"model": model}, device)
    optimizer = ScheduledOptimizer({"model": model}, {"model": settings.optimizer}, data.n_steps)
    trainer = Trainer(
        {"model": model},
        optimizer,
        settings.loop.max_skips,
        settings.precision,
        watch=Watch(settings.anomalies.spike),
        rollbacks=settings.anomalies.rollbacks,
        rollback_after=settings.anomalies.rollback_after,
        describe=suspects(model, data.documents, vocabulary),
        noise_seed=noise_seed(model, context.seed),
        team=team,
    )
    if settings.start_moments:
        trainer.begin_with(moments_of_start(context, optimizer))
    new_rows_first = NewRowsFirst(context, model, optimizer)
    loss = NextTokenLoss(model, settings.z_loss, team.reduce)
    compiled = wants_compiled(settings.loop, device, config)
    if compiled:
        model.compile_blocks(hooked=team.sharded)
    rows_at_once = _rows_at_once(settings, config.max_positions, equal=compiled, sizes=data.sizes.sizes)
    meter = Meter(device, settings.precision, config, processes=team.world.size)

    def read(index: int) -> list[Batch]:
        if team.world.data.size == 1:
            batches = data.batches(index, rows_at_once, vocabulary.pad_id, trim=not compiled)
        else:
            most = max(1, settings.loop.micro_batch_tokens // config.max_positions)
            batches = data.share(index, most, vocabulary.pad_id, team.world.data, trim=not compiled, equal=compiled)
        return [batch.pinned() for batch in batches] if device.type == "cuda" else batches

    def load_extra(state: State) -> None:
        data.check_state(trainer.updates, state.values["data"])
        tuning.load_state(state)

    model.train()
    with Ahead(read, data.n_steps) as ahead:

        def step(index: int) -> dict[str, float]:
            started = time.perf_counter()
            new_rows_first(index)
            trainer.watch.enter(f"{data.stage(index)}, {'new rows' if new_rows_first.alone else 'all'}")
            batches, waited = ahead.take(index)
            metrics = trainer.update([batch.to(device) for batch in batches], loss)
            done = team.counted(batches)
            metrics["loss_share"] = done["losses"] / done["tokens"]
            if data.sizes.ramp:
                metrics["batch_rows"] = data.sizes.rows(index)
            rates = meter.rates(done["tokens"], done["keys"], time.perf_counter() - started, waited)
            return {**metrics, "tokens": done["tokens"], **rates}

        train(
            context,
            trainer,
            data.n_steps,
            step,
            loop=settings.loop,
            kind="model",
            anchor_every=settings.anomalies.rollback_every if settings.anomalies.rollbacks else 0,
            write_model=tuning.save,
            load_model=tuning.load,
            extra_state=lambda: State({"data": data.state(trainer.updates)}, tuning.state().tensors),
            load_extra=load_extra,
        )
    model.eval()
    context.metrics.update(
        parameters=n_parameters({"model": model}),
        trained_parameters=tuning.n_trained,
        rows=data.n_rows,
        row_padding=round(data.padding, 5),
        loss_share=round(data.loss_share, 5),
        heldout=heldout_scores(folders, data.documents, bundle, device),
    )
    write_json(context.path / "heldout.json", context.metrics["heldout"])
    if data.denoising is not None:
        context.metrics["heldout_objective"] = objective_scores(folders, bundle, data.denoising, device)
        write_json(context.path / "heldout_objective.json", context.metrics["heldout_objective"])


def _rows_at_once(settings: PretrainSettings, row_length: int, *, sizes: Sequence[int], equal: bool) -> int:
    """Rows of a micro-batch in steps of these sizes; with `equal` all have as many, as each size is compiled apart."""
    most = max(1, settings.loop.micro_batch_tokens // row_length)
    common = math.gcd(*sizes)
    if not equal or (len(sizes) == 1 and most >= common):
        return most
    return next(n for n in range(min(most, common), 0, -1) if common % n == 0)


def _check_team(context: Context, team: Team, sizes: Sequence[int]) -> None:
    settings: PretrainSettings = context.settings
    if min(sizes) < team.world.data.size:
        raise ChatloomError(
            f"stage `{context.name}`: a step of {min(sizes)} rows cannot be shared among "
            f"{team.world.data.size} processes; raise batch_rows or start fewer of them"
        )
    if settings.train_new_rows_first and (team.sharded or team.world.pipeline.size > 1):
        raise ChatloomError(
            f"stage `{context.name}`: train_new_rows_first trains some rows of whole embeddings; use loop.parallel."
            "data replicate or zero1, and no pipeline"
        )


def read_data(
    folders: Sequence[Path],
    vocabulary: Vocabulary,
    settings: PretrainSettings,
    row_length: int,
    seed: int,
    *,
    prefix_decoder: bool = False,
) -> PretrainingData:
    """The documents and the order in which a run with these settings reads them, in rows of the model's context.

    For a prefix decoder the input of a denoised text is marked as a prefix; that changes no token.
    """
    return pretraining_data(
        open_stores(folders, vocabulary),
        settings.mixture,
        row_length=row_length,
        batch_rows=settings.batch_rows,
        epochs=settings.epochs,
        seed=seed,
        denoising=Denoising.of(settings.objective, vocabulary, row_length, seed, bidirectional=prefix_decoder),
        ramp=settings.batch_ramp,
    )


def _show(context: Context, data: PretrainingData) -> None:
    """Print a mixture's plan and keep it, with exact counts, beside the model."""
    if data.plan is None:
        return
    table = data.table()
    if not context.quiet:
        say(table)
    (context.path / "mixture.txt").write_text(table + "\n", encoding="utf-8")
    counts: list[dict[str, Any]] = data.mixture.counts()
    write_json(context.path / "mixture.json", counts)
    context.metrics["mixture"] = counts


def _check_partial(context: Context) -> None:
    """Refuse settings of which one trains what the other keeps still."""
    settings: PretrainSettings = context.settings
    partial = "adapter" if settings.adapter is not None else "freeze" if settings.freeze else None
    if settings.adapter is not None and context.optional("start") is None:
        raise ChatloomError(f"stage `{context.name}`: an adapter on random weights learns nothing; give a `start`")
    if partial and settings.train_new_rows_first:
        raise ChatloomError(
            f"stage `{context.name}`: `{partial}` and `train_new_rows_first` both say what stays as it is; use one"
        )
    if settings.adapter is not None and settings.embedding_gradient_share < 1:
        raise ChatloomError(
            f"stage `{context.name}`: an adapter leaves the embedding as it is, so embedding_gradient_share has no "
            "meaning; leave it out"
        )


def plan(context: PlanContext) -> Plan:
    """Cost of the training tokens; sizes that cannot work are refused by the model config, mixtures by their plan."""
    settings: PretrainSettings = context.settings
    _check_mixture(settings)
    made = [item for item in context.inputs.get("tokens", []) if isinstance(item, Artifact)]
    coming = [plan for name, plan in context.plans.items() if name.startswith("tokens.")]
    size = sum(float(item.metrics["train"]["tokens"]) for item in made)
    size += sum(plan.value("corpus_tokens") for plan in coming)
    vocab_size = Vocabulary.load(made[0].path).size if made else 0
    vocab_size = vocab_size or next((int(plan.value("vocabulary", 4096)) for plan in coming), 4096)
    starting = "start" in context.inputs or "start" in context.plans
    if starting and "model" in settings.model_fields_set:
        return Plan(refusals=("`start` has a shape of its own; leave `model` out",))
    config = planned_config(context, "start") if starting else settings.model.config(vocab_size)
    if config is None:
        return UNKNOWN_MODEL
    objective = planned_objective(settings.objective, config.max_positions, made, coming)
    if isinstance(objective, str):
        return Plan(refusals=(objective,))
    tokens = settings.epochs * size
    counted = bool(made) and not coming
    notes: tuple[Note, ...] = ()
    if counted:
        folders = [item.path for item in made]
        data = read_data(folders, Vocabulary.load(folders[0]), settings, config.max_positions, 0)
        if data.plan is not None:
            tokens, notes = data.plan.n_tokens, (Note("reads", data.table()),)
    elif settings.mixture.stages:
        tokens = sum(stage.tokens or 0.0 for stage in settings.mixture.stages) or size
    if objective is not None:
        tokens *= objective.growth
        notes += (Note("makes of its texts", objective.table),)
    sizes, warnings = (data.sizes, ()) if counted else _estimated_sizes(settings, tokens / config.max_positions)
    steps = data.n_steps if counted else sizes.n_steps(sizes.nearest(tokens / config.max_positions))
    if tokens:
        notes += batch_note(sizes, steps) + schedule_note(settings.optimizer, steps, exact=counted, height=4)
    costs = training_plan(
        config,
        context,
        tokens=tokens,
        exact_tokens=counted and objective is None,
        passes=3.0 if settings.adapter is None else ADAPTED_PASSES,
        adapted=settings.adapter is not None,
        micro_batch_tokens=settings.loop.micro_batch_tokens,
    )
    share = Line("loss_share", 1.0 if objective is None else objective.loss_share, "")
    warnings += _warnings(config, settings.objective)
    return replace(costs, lines=(*costs.lines, share), notes=notes, warnings=warnings)


def _estimated_sizes(settings: PretrainSettings, n_rows: float) -> tuple[BatchSizes, tuple[str, ...]]:
    """Sizes of the batch in a run of about so many rows, and warnings: by an estimate nothing is refused."""
    try:
        return batch_sizes(settings.batch_rows, settings.batch_ramp, n_rows), ()
    except ChatloomError as error:
        return BatchSizes(settings.batch_rows), (str(error),)


def _warnings(config: TransformerConfig, objective: ObjectiveSettings) -> tuple[str, ...]:
    if config.prefix_decoder and not objective.is_denoising:
        return (
            "`model.prefix_decoder` reads prompts both ways, and language modelling never trains that; choose "
            "`objective.kind: prefix-lm` or another with an input part",
        )
    return ()


def _check_mixture(settings: PretrainSettings) -> None:
    check_names(settings.mixture)
    if settings.mixture.stages and "epochs" in settings.model_fields_set and settings.epochs != 1:
        raise MixtureError("`epochs` is for a run without `mixture`; leave it out, its stages say how much is read")
    for source in settings.mixture.sources:
        if source.where.strip():
            Expression.parse(source.where)


STAGE = Stage(
    kind="pretrain",
    about="token store -> base model",
    version=1,
    settings=PretrainSettings,
    inputs={
        "tokens": Input("token stores", kinds=("tokens",), many=True),
        "start": Input("model to go on from, instead of new weights", kinds=("model", "checkpoint"), required=False),
    },
    output="model",
    run=run,
    plan=plan,
)
