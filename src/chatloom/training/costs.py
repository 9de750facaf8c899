"""What a training stage will cost, as lines of a plan: parameters, tokens, FLOPs, memory, disk, time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chatloom.artifact import Artifact
from chatloom.errors import ChatloomError
from chatloom.model import weight_files
from chatloom.model.config import TransformerConfig
from chatloom.model.huggingface_layout import from_llama_config
from chatloom.scaling.compute import (
    Shape,
    checkpoint_bytes,
    forward_flops_per_token,
    seconds_estimate,
    training_memory,
)
from chatloom.stage import Line, Plan, PlanContext

# Share of the measured matrix-product rate that training reached with models of 1-3 M parameters on 2 CPU cores.
UTILISATION = 0.3
# The demo's conversations take about 40 tokens, ordinary instruction data 100 to 300: a guess used before they are
# made.
TOKENS_A_RECORD = 50


def shape_of(config: TransformerConfig) -> Shape:
    """The sizes that costs follow from."""
    return Shape(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        head_dim=config.head_dim,
        intermediate_size=config.intermediate_size,
        tie_embeddings=config.tie_embeddings,
        attention_bias=config.attention_bias,
    )


def training_plan(
    config: TransformerConfig,
    context: PlanContext,
    *,
    tokens: float,
    exact_tokens: bool = False,
    passes: float = 3.0,
    trained: int = 1,
    frozen: int = 0,
    micro_batch_tokens: int = 8192,
) -> Plan:
    """Lines for training on `tokens` tokens; `passes`: forward passes' worth of FLOPs a token (3: forward and
    backward).
    """
    shape = shape_of(config)
    flops = passes * forward_flops_per_token(shape, config.max_positions) * tokens
    memory = training_memory(shape, micro_batch_tokens, trained_copies=trained, frozen_copies=frozen)
    return Plan(
        (
            Line("parameters", shape.parameters, "", exact=True),
            Line("tokens", tokens, "tokens", exact=exact_tokens),
            Line("flops", flops, "FLOP", exact=exact_tokens),
            Line("memory", memory.total, "bytes"),
            Line("disk", 4 * trained * checkpoint_bytes(shape.parameters), "bytes"),
            Line("time", seconds_estimate(flops, context.flops_per_second, utilisation=UTILISATION), "s"),
            *config_lines(config),
        )
    )


def config_lines(config: TransformerConfig) -> tuple[Line, ...]:
    """The model's sizes, so that the plans of later stages can be made before the model is."""
    fields = ("vocab_size", "hidden_size", "n_layers", "n_heads", "n_kv_heads", "head_dim", "intermediate_size")
    return tuple(Line(f"model.{name}", getattr(config, name), "", exact=True) for name in (*fields, "max_positions"))


def planned_config(context: PlanContext, name: str) -> TransformerConfig | None:
    """The model config of an input: read from its folder when it is there, else from its own plan; None when
    unknown.
    """
    value = context.inputs.get(name)
    folder = value.path if isinstance(value, Artifact) else value if isinstance(value, Path) else None
    if folder is not None:
        try:
            return from_llama_config(weight_files.read_json(folder, "config.json"), str(folder))[0]
        except ChatloomError:
            return None
    known = context.plans.get(name)
    if known is None or not known.value("model.hidden_size"):
        return None
    sizes: dict[str, Any] = {
        line.name.removeprefix("model."): int(line.value) for line in known.lines if line.name.startswith("model.")
    }
    return TransformerConfig(**sizes)


def model_plan(
    context: PlanContext,
    *,
    passes: float,
    data: str,
    count: str = "records",
    factor: float = 3.0,
    trained: int = 1,
    frozen: int = 0,
) -> Plan:
    """Plan of a stage that goes over what the plan of input `data` counts as `count`, starting from its input
    `model`.
    """
    config = planned_config(context, "model")
    if config is None:
        return Plan(warnings=("the model is not known yet, so its cost is not either",))
    records = context.plans[data].value(count) if data in context.plans else 0.0
    settings = context.settings
    return training_plan(
        config,
        context,
        tokens=passes * records * TOKENS_A_RECORD,
        passes=factor,
        trained=trained,
        frozen=frozen,
        micro_batch_tokens=settings.loop.micro_batch_tokens,
    )
