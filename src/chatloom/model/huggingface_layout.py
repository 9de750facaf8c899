"""How our configuration and parameter names map to Hugging Face's Llama, both ways; no files here.

Our fused matrices are Hugging Face's stacked along their first dimension: `attention.qkv` is q_proj, k_proj, v_proj;
`feedforward.gate_up` is gate_proj, up_proj. Nothing is permuted, so splitting and joining are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chatloom.errors import ChatloomError
from chatloom.model.config import TransformerConfig

ARCHITECTURES = {"language": "LlamaForCausalLM", "reward": "LlamaForSequenceClassification"}
# Keys that name code to run or weights in another form.
_REFUSED = ("auto_map", "custom_pipelines", "quantization_config", "compression_config")
# Keys of Llama configurations that change the mathematics, with the only values this decoder computes.
_ONLY = {
    "hidden_act": ("silu",),
    "mlp_bias": (False, None),
    "attention_dropout": (0, None),
    "sliding_window": (None,),
    "partial_rotary_factor": (1.0, None),
    "is_encoder_decoder": (False, None),
}
_INTEGERS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


Piece = tuple[str, tuple[int, ...]]


def layout(config: TransformerConfig, kind: str) -> dict[str, list[Piece]]:
    """Our parameter name -> Hugging Face names with shapes, stacked along dimension 0 to make ours.

    `kind` is "language" or "reward"; a reward model's names are those of its body and `score.weight`.
    """
    hidden, middle = config.hidden_size, config.intermediate_size
    heads = (("q", config.attention_size), ("k", config.kv_size), ("v", config.kv_size))
    names: dict[str, list[Piece]] = {"embedding.weight": [("model.embed_tokens.weight", (config.vocab_size, hidden))]}
    for i in range(config.n_layers):
        ours, theirs = f"layers.{i}.", f"model.layers.{i}."
        names[ours + "attention_norm.weight"] = [(theirs + "input_layernorm.weight", (hidden,))]
        names[ours + "attention.qkv.weight"] = [(f"{theirs}self_attn.{h}_proj.weight", (n, hidden)) for h, n in heads]
        names[ours + "attention.output.weight"] = [
            (theirs + "self_attn.o_proj.weight", (hidden, config.attention_size))
        ]
        if config.qkv_bias:
            names[ours + "attention.qkv.bias"] = [(f"{theirs}self_attn.{h}_proj.bias", (n,)) for h, n in heads]
            names[ours + "attention.output.bias"] = [(theirs + "self_attn.o_proj.bias", (hidden,))]
        names[ours + "feedforward_norm.weight"] = [(theirs + "post_attention_layernorm.weight", (hidden,))]
        names[ours + "feedforward.gate_up.weight"] = [
            (theirs + "mlp.gate_proj.weight", (middle, hidden)),
            (theirs + "mlp.up_proj.weight", (middle, hidden)),
        ]
        names[ours + "feedforward.down.weight"] = [(theirs + "mlp.down_proj.weight", (hidden, middle))]
    names["norm.weight"] = [("model.norm.weight", (hidden,))]
    if kind == "reward":
        names = {f"body.{name}": pieces for name, pieces in names.items()}
        names["score.weight"] = [("score.weight", (1, hidden))]
    elif not config.tie_embeddings:
        names["output_embedding.weight"] = [("lm_head.weight", (config.vocab_size, hidden))]
    return names


def to_llama_config(
    config: TransformerConfig, kind: str, *, dtype: str, pad_id: int | None, stop_ids: Sequence[int]
) -> dict[str, Any]:
    """Contents of config.json; rotary settings in the old and the new spelling, for transformers 4 and 5."""
    values: dict[str, Any] = {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_positions,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "rms_norm_eps": config.norm_eps,
        "initializer_range": config.initializer_range,
        "hidden_act": "silu",
        "attention_bias": config.qkv_bias,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": None,
        "eos_token_id": list(stop_ids) if len(stop_ids) > 1 else (stop_ids[0] if stop_ids else None),
        "pad_token_id": pad_id,
        "dtype": dtype,
        "use_cache": True,
    }
    if kind == "reward":
        values["id2label"] = {"0": "reward"}
        values["label2id"] = {"reward": 0}
    return values


def from_llama_config(values: dict[str, Any], where: str) -> tuple[TransformerConfig, str]:
    """Our configuration and the kind ("language" or "reward") of a config.json; `where` names the file in errors.

    Raises ChatloomError for another architecture, code to run, or anything this decoder would compute differently.
    """
    for key in _REFUSED:
        if values.get(key):
            raise ChatloomError(f"{where}: has `{key}`; code named by a folder and quantised weights are not loaded")
    kinds = {name: kind for kind, name in ARCHITECTURES.items()}
    architectures = values.get("architectures")
    if architectures not in [[name] for name in kinds]:
        raise ChatloomError(f"{where}: architectures is {architectures!r}; expected one of {', '.join(kinds)}")
    if values.get("model_type") != "llama":
        raise ChatloomError(f"{where}: model_type is {values.get('model_type')!r}; expected 'llama'")
    for key, allowed in _ONLY.items():
        if key in values and values[key] not in allowed:
            raise ChatloomError(f"{where}: {key} is {values[key]!r}; this decoder computes only {allowed[0]!r}")
    for key in _INTEGERS:
        if key not in values:
            raise ChatloomError(f"{where}: has no {key}")
        if type(values[key]) is not int or values[key] < 1:
            raise ChatloomError(f"{where}: {key} is {values[key]!r}; expected a whole number of at least 1")
    kind = kinds[architectures[0]]
    labels = values.get("id2label")
    if kind == "reward" and labels is not None and (not isinstance(labels, dict) or len(labels) != 1):
        raise ChatloomError(f"{where}: id2label is {labels!r}; a reward model has one label")
    n_heads = values["num_attention_heads"]
    head_dim = values.get("head_dim")
    if head_dim is None:
        if values["hidden_size"] % n_heads:
            raise ChatloomError(
                f"{where}: hidden_size {values['hidden_size']} is no multiple of num_attention_heads {n_heads}, "
                "and head_dim is not given"
            )
        head_dim = values["hidden_size"] // n_heads
    n_kv_heads = values.get("num_key_value_heads")
    try:
        config = TransformerConfig(
            vocab_size=values["vocab_size"],
            hidden_size=values["hidden_size"],
            n_layers=values["num_hidden_layers"],
            n_heads=n_heads,
            n_kv_heads=n_heads if n_kv_heads is None else n_kv_heads,
            head_dim=head_dim,
            intermediate_size=values["intermediate_size"],
            max_positions=values.get("max_position_embeddings", 2048),
            rope_theta=_rope_theta(values, where),
            norm_eps=values.get("rms_norm_eps", 1e-6),
            # A reward model has no output matrix, so there is nothing to tie or to load.
            tie_embeddings=True if kind == "reward" else values.get("tie_word_embeddings", False),
            qkv_bias=values.get("attention_bias", False),
            output_bias=values.get("attention_bias", False),
            initializer_range=values.get("initializer_range", 0.02),
        )
    except ChatloomError as error:
        raise ChatloomError(f"{where}: {error}") from None
    return config, kind


def _rope_theta(values: dict[str, Any], where: str) -> float:
    """Base of the rotary angles, from the old (rope_theta, rope_scaling) or new (rope_parameters) spelling."""
    theta = values.get("rope_theta")
    for key in ("rope_parameters", "rope_scaling"):
        rope = values.get(key)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            raise ChatloomError(f"{where}: {key} is {rope!r}; expected an object")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise ChatloomError(f"{where}: {key} asks for {kind!r} rotary positions; only 'default' is computed")
        if rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise ChatloomError(f"{where}: {key}.partial_rotary_factor is not 1; this decoder turns whole heads")
        inner = rope.get("rope_theta")
        if theta is not None and inner is not None and inner != theta:
            raise ChatloomError(f"{where}: rope_theta is {theta} at the top and {inner} in {key}")
        theta = inner if theta is None else theta
    return 10000.0 if theta is None else theta
