"""Settings that every training stage shares: optimizer, loop, machine."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from chatloom.settings import Settings, runtime
from chatloom.training.parallel.settings import ParallelSettings
from chatloom.training.schedules import Decay, Schedule, Shape


class OptimizerSettings(Settings):
    """An optimizer with a warm-up and a decay."""

    name: Literal["adamw", "lamb", "muon"] = Field(
        "adamw", description="muon: of the matrices inside blocks, AdamW for all else"
    )
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    betas: tuple[float, float] = Field((0.9, 0.95), description="decay rates of the moments (LLaMA: 0.9, 0.95)")
    momentum: float = Field(0.95, ge=0, lt=1, description="decay rate of Muon's momentum")
    eps: float = Field(1e-8, gt=0, description="added to the root of the second moment (LAMB: 1e-6)")
    eps_style: Literal["torch", "tf"] = Field(
        "torch", description="tf: epsilon outside the bias correction, as in OpenAI's RLHF code"
    )
    weight_decay: float = Field(
        0.1, ge=0, description="decoupled decay of matrices; norms, biases, embeddings have none"
    )
    clip: float = Field(1.0, ge=0, description="largest gradient norm; 0 turns clipping off")
    schedule: Shape = Field("cosine", description="shape of the rate after the warm-up (see docs/training.md)")
    warmup: float = Field(0.02, ge=0, lt=1, description="share of the steps in which the rate rises to its peak")
    warmup_steps: int | None = Field(None, ge=0, description="the same in steps, instead of the share")
    warmup_from: float = Field(0.0, ge=0, le=1, description="where the rise begins, as a share of the peak")
    final_share: float = Field(0.1, ge=0, le=1, description="last learning rate as a share of the peak")
    cycles: int = Field(1, ge=1, description="of cosine: how often it begins anew at the peak, the first counted")
    cycle_growth: float = Field(1.0, gt=0, description="length of a cycle as a multiple of the one before")
    decay: float = Field(0.1, ge=0, le=1, description="of wsd and wcsd: share of the steps that the last decay takes")
    decay_shape: Decay = Field("one_minus_sqrt", description="of wsd and wcsd: shape of the last decay")
    stable_from: float = Field(0.5, ge=0, le=1, description="of wcsd: share of the steps before it is level")
    stable_share: float = Field(0.5, gt=0, le=1, description="of wcsd: the level, as a share of the peak")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        """Phases that do not fit after one another are refused here, where they are shares."""
        if self.schedule in ("wsd", "wcsd") and self.warmup_steps is None and self.warmup + self.decay > 1:
            raise ValueError(f"warmup {self.warmup:g} and decay {self.decay:g} are more than all steps; lower one")
        if self.schedule == "wcsd" and self.warmup_steps is None and self.warmup > self.stable_from:
            raise ValueError(f"warmup {self.warmup:g} is longer than stable_from {self.stable_from:g}; lower it")
        if self.schedule == "wcsd" and self.stable_from + self.decay > 1:
            raise ValueError(
                f"stable_from {self.stable_from:g} leaves no room for a decay of {self.decay:g}; lower one of them"
            )
        return self


def schedule_of(choice: OptimizerSettings, total: int) -> Schedule:
    """The schedule of a run of `total` steps; raises ChatloomError when a warm-up in steps is longer than the run."""
    warmup = round(choice.warmup * total) if choice.warmup_steps is None else choice.warmup_steps
    decay = round(choice.decay * total)
    if choice.warmup_steps is None:
        decay = min(decay, total - warmup)  # two shares that make up the whole may both be rounded up
    return Schedule(
        peak=choice.lr,
        total=total,
        shape=choice.schedule,
        warmup=warmup,
        warmup_from=choice.warmup_from,
        final_share=choice.final_share,
        cycles=choice.cycles,
        cycle_growth=choice.cycle_growth,
        decay=decay,
        decay_shape=choice.decay_shape,
        stable_from=min(round(choice.stable_from * total), total - decay),
        stable_share=choice.stable_share,
    )


class AnomalySettings(Settings):
    """What counts as a step gone wrong, beside a loss or gradient that is no finite number, and what then happens."""

    spike: float = Field(
        10.0,
        ge=0,
        description="robust deviations above the median of 128 steps from which a step is not taken; 0: none",
    )
    rollback_after: int = Field(3, ge=1, description="skipped steps in a row that lead back to an earlier checkpoint")
    rollback_every: int = Field(250, ge=1, description="steps between the checkpoints that are gone back to")
    rollbacks: int = Field(2, ge=0, description="how often a run goes back before it stops; 0: never")


class LoopSettings(Settings):
    """How a run is cut into pieces and where it runs; nothing here changes the result."""

    device: str = runtime("auto", description="auto, cpu, cuda, cuda:N or mps")
    micro_batch_tokens: int = runtime(8192, ge=1, description="tokens in one forward and backward pass")
    checkpoint_every: int = runtime(0, ge=0, description="checkpoint after this many steps; 0: by time alone")
    checkpoint_seconds: float = runtime(60.0, gt=0, description="checkpoint at least this often")
    keep_checkpoints: int = runtime(2, ge=2, description="how many of the newest checkpoints stay")
    keep_every: int = runtime(0, ge=0, description="checkpoints after multiples of this many steps stay; 0: none")
    keep_best: str = runtime(
        "", pattern=r"^((max )?\w+)?$", description="metric whose best checkpoint stays: `loss`, or `max reward`"
    )
    checkpoint_in_background: bool = runtime(True, description="a thread writes checkpoints while training goes on")
    compile: Literal["auto", "on", "off"] = runtime(
        "auto", description="compiled blocks: from the first pass faster, which takes seconds; auto: on CUDA"
    )
    sinks: list[Literal["tensorboard", "wandb", "trackio"]] = runtime(
        [], description="where metrics go besides metrics.jsonl; each is an extra package"
    )
    recompute: Literal["none", "selective", "block"] = runtime(
        "none", description="what of a block is computed again in the backward pass, to save memory"
    )
    max_skips: int = runtime(5, ge=0, description="stop after this many skipped steps in a row")
    parallel: ParallelSettings = runtime(ParallelSettings(), description="how several processes share it out")

    @field_validator("compile", mode="before")
    @classmethod
    def _yaml_words(cls, value: Any) -> Any:
        """YAML reads `on` and `off` as true and false."""
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value
