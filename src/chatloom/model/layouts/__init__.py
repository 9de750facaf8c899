"""Model folders of other families: which configs they can hold, and how their settings and names map to ours.

Our fused matrices are theirs stacked along the first dimension (`attention.qkv` is q_proj, k_proj, v_proj;
`feedforward.gate_up` is gate_proj, up_proj; stacked experts are one expert below the other), so splitting and joining
are exact. A config goes into the first family that computes the same; what none computes becomes a folder of our own,
which `transformers` refuses instead of computing something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chatloom.errors import ChatloomError
from chatloom.model.config import TransformerConfig
from chatloom.model.layouts.gpt2 import GPT2
from chatloom.model.layouts.llama import FAMILIES
from chatloom.model.layouts.own import OWN
from chatloom.model.layouts.values import Layout, Piece, Values

__all__ = ["Piece", "config_json", "known_name", "layout", "layout_of", "read_config"]

LAYOUTS: tuple[Layout, ...] = (*FAMILIES, GPT2, OWN)
# Keys that name code to run or weights in another form.
_REFUSED = ("auto_map", "custom_pipelines", "quantization_config", "compression_config")
# What only training asks for; it has no place in most families and changes no logits.
_TRAINING_ONLY = ("dropout", "expert_capacity", "router_balance", "router_z")
EXTRAS = "chatloom"


def layout_of(config: TransformerConfig) -> Layout:
    """The family whose folder a config is saved in."""
    return next(item for item in LAYOUTS if item.holds(config))


def layout(config: TransformerConfig, kind: str) -> dict[str, list[Piece]]:
    """Our parameter name -> the folder's tensors, stacked along dimension 0 to make ours.

    `kind` is "language" or "reward"; a reward model's names are those of its body and `score.weight`.
    """
    family = layout_of(config)
    names = family.pieces(config)
    if kind == "reward":
        names.pop("output_embedding.weight", None)
        names = {f"body.{name}": pieces for name, pieces in names.items()}
        names["score.weight"] = [Piece("score.weight", (1, config.hidden_size))]
    return names


def config_json(
    config: TransformerConfig, kind: str, *, dtype: str, pad_id: int | None, stop_ids: Sequence[int]
) -> dict[str, Any]:
    """Contents of config.json."""
    family = layout_of(config)
    values: dict[str, Any] = {
        "architectures": [family.architectures[kind]],
        "model_type": family.model_type,
        **family.settings(config),
        "bos_token_id": None,
        "eos_token_id": list(stop_ids) if len(stop_ids) > 1 else (stop_ids[0] if stop_ids else None),
        "pad_token_id": pad_id,
        "dtype": dtype,
        "use_cache": True,
    }
    if family is not OWN:
        plain = TransformerConfig.__dataclass_fields__
        extras = {name: getattr(config, name) for name in _TRAINING_ONLY}
        extras = {name: value for name, value in extras.items() if value != plain[name].default}
        if extras:
            values[EXTRAS] = extras
    if kind == "reward":
        values["id2label"] = {"0": "reward"}
        values["label2id"] = {"reward": 0}
    return values


def known_name(config: TransformerConfig, name: str) -> str | None:
    """What `layout` calls a tensor of a folder of that family; None for what follows from the config anyway."""
    return layout_of(config).known_name(name)


def read_config(values: dict[str, Any], where: str) -> tuple[TransformerConfig, str]:
    """Our configuration and the kind ("language" or "reward") of a config.json; `where` names the file in errors.

    Raises ChatloomError for another architecture, code to run, or anything this decoder would compute differently.
    """
    for key in _REFUSED:
        if values.get(key):
            raise ChatloomError(f"{where}: has `{key}`; code named by a folder and quantised weights are not loaded")
    known = {name: (family, kind) for family in LAYOUTS for kind, name in family.architectures.items()}
    named = values.get("architectures")
    if not isinstance(named, list) or len(named) != 1 or not isinstance(named[0], str) or named[0] not in known:
        raise ChatloomError(f"{where}: architectures is {named!r}; expected one of {', '.join(sorted(known))}")
    family, kind = known[named[0]]
    if values.get("model_type") != family.model_type:
        raise ChatloomError(f"{where}: model_type is {values.get('model_type')!r}; expected {family.model_type!r}")
    labels = values.get("id2label")
    if kind == "reward" and labels is not None and (not isinstance(labels, dict) or len(labels) != 1):
        raise ChatloomError(f"{where}: id2label is {labels!r}; a reward model has one label")
    read = Values(values, where)
    fields = family.fields(read)
    if family is not OWN:
        extras = values.get(EXTRAS) or {}
        if not isinstance(extras, dict) or not set(extras) <= set(_TRAINING_ONLY):
            raise ChatloomError(f"{where}: {EXTRAS} is {extras!r}; expected some of {', '.join(_TRAINING_ONLY)}")
        fields |= extras
    if kind == "reward":  # it has no output matrix, so there is nothing to tie or to load
        fields["tie_embeddings"] = True
    try:
        config = TransformerConfig(**fields)
    except ChatloomError as error:
        raise ChatloomError(f"{where}: {error}") from None
    return config, kind
