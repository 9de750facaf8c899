"""The Llama family: Llama, Mistral, Qwen2, Qwen3, Mixtral, Qwen3-MoE. One set of names, few differences.

| family | heads normalised | biases | window | experts |
|---|---|---|---|---|
| llama | no | q, k, v and output, or none; feed-forward | no | no |
| mistral | no | none | every layer | no |
| qwen2 | no | q, k, v | some layers | no |
| qwen3 | yes | q, k, v and output, or none | some layers | no |
| mixtral | no | none | every layer | gates add up to 1 |
| qwen3_moe | yes | q, k, v and output, or none | no | gates add up to 1 or not |

Of layers with and without a window only "every n-th sees all" can be held here and in our config.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from chatloom.errors import ChatloomError
from chatloom.model.config import TransformerConfig
from chatloom.model.layouts.values import Layout, Piece, Values, rope_settings


def _family(config: TransformerConfig) -> bool:
    """What all of the family share."""
    same = config.norm == "rms" and config.norm_place == "pre" and config.feedforward == "swiglu"
    plain = not config.prefix_decoder and config.logit_softcap is None
    return same and plain and config.positions == "rope"


@dataclass(frozen=True)
class _Traits:
    """What a family holds: `biases` one of "all or none", "none", "qkv"; `window` one of "none", "every", "some"."""

    name: str
    title: str
    biases: str = "none"
    window: str = "none"
    qk_norm: bool = False
    experts: bool = False
    mlp_bias: bool = False
    free_gates: bool = False
    theta: float = 10000.0
    eps: float = 1e-6
    positions: int = 2048


_TRAITS = (
    _Traits("llama", "Llama", biases="all or none", mlp_bias=True),
    _Traits("mistral", "Mistral", window="every", positions=131072),
    _Traits("qwen2", "Qwen2", biases="qkv", window="some", positions=32768),
    _Traits("qwen3", "Qwen3", biases="all or none", window="some", qk_norm=True, positions=32768),
    _Traits("mixtral", "Mixtral", window="every", experts=True, theta=1e6, eps=1e-5, positions=131072),
    _Traits(
        "qwen3_moe", "Qwen3Moe", biases="all or none", qk_norm=True, experts=True, free_gates=True, positions=32768
    ),
)


def _holds(traits: _Traits) -> Callable[[TransformerConfig], bool]:
    def holds(config: TransformerConfig) -> bool:
        biases = {
            "all or none": config.qkv_bias == config.output_bias,
            "none": not config.qkv_bias and not config.output_bias,
            "qkv": config.qkv_bias and not config.output_bias,
        }[traits.biases]
        window = {
            "none": config.window is None,
            "every": config.full_every == 0 and (config.window is not None or traits.experts),
            "some": True,
        }[traits.window]
        experts = bool(config.n_experts) == traits.experts and (
            config.normalise_gates or traits.free_gates or not config.n_experts
        )
        feedforward = traits.mlp_bias or not config.feedforward_bias
        return _family(config) and biases and window and experts and feedforward and config.qk_norm == traits.qk_norm

    return holds


def _settings(traits: _Traits) -> Callable[[TransformerConfig], dict[str, Any]]:
    def settings(config: TransformerConfig) -> dict[str, Any]:
        values: dict[str, Any] = {
            "vocab_size": config.vocab_size,
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "num_hidden_layers": config.n_layers,
            "num_attention_heads": config.n_heads,
            "num_key_value_heads": config.n_kv_heads,
            "head_dim": config.head_dim,
            "max_position_embeddings": config.max_positions,
            **rope_settings(config),
            "rms_norm_eps": config.norm_eps,
            "initializer_range": config.initializer_range,
            "hidden_act": "silu",
            "attention_dropout": config.attention_dropout,
            "tie_word_embeddings": config.tie_embeddings,
        }
        if traits.biases == "all or none":
            values["attention_bias"] = config.qkv_bias
        if traits.mlp_bias:
            values["mlp_bias"] = config.feedforward_bias
        if traits.window == "every":
            values["sliding_window"] = config.window
        if traits.window == "some":
            slides = [config.window_of(layer) is not None for layer in range(config.n_layers)]
            values |= {
                "use_sliding_window": config.window is not None,
                "sliding_window": config.window,
                "max_window_layers": 0 if config.window is not None else config.n_layers,
                "layer_types": ["sliding_attention" if item else "full_attention" for item in slides],
            }
        if traits.name == "mixtral":
            values |= {"num_local_experts": config.n_experts, "num_experts_per_tok": config.experts_per_token}
            values["router_aux_loss_coef"] = config.router_balance
        if traits.name == "qwen3_moe":
            values |= {
                "num_experts": config.n_experts,  # transformers 4; 5 calls it as Mixtral does
                "num_local_experts": config.n_experts,
                "num_experts_per_tok": config.experts_per_token,
                "moe_intermediate_size": config.intermediate_size,
                "norm_topk_prob": config.normalise_gates,
                "decoder_sparse_step": 1,
                "mlp_only_layers": [],
                "router_aux_loss_coef": config.router_balance,
            }
        return values

    return settings


def _fields(traits: _Traits) -> Callable[[Values], dict[str, Any]]:
    def fields(read: Values) -> dict[str, Any]:
        read.only("hidden_act", "silu")
        read.only("partial_rotary_factor", 1.0, None)
        read.only("is_encoder_decoder", False, None)
        read.only("router_jitter_noise", 0.0, None)
        if not traits.mlp_bias:
            read.only("mlp_bias", False, None)
        if traits.biases != "all or none":
            read.only("attention_bias", traits.biases == "qkv", None)
        n_heads, head_dim = read.heads()
        theta, scaling = read.rope(traits.theta)
        bias = read.get("attention_bias", False)
        found: dict[str, Any] = {
            "vocab_size": read.size("vocab_size"),
            "hidden_size": read.size("hidden_size"),
            "n_layers": read.size("num_hidden_layers"),
            "n_heads": n_heads,
            "n_kv_heads": read.size("num_key_value_heads", n_heads),
            "head_dim": head_dim,
            "intermediate_size": read.size("moe_intermediate_size" if traits.free_gates else "intermediate_size"),
            "max_positions": read.size("max_position_embeddings", traits.positions),
            "rope_theta": theta,
            "rope_scaling": scaling,
            "norm_eps": read.get("rms_norm_eps", traits.eps),
            "tie_embeddings": read.get("tie_word_embeddings", False),
            "qkv_bias": bias if traits.biases == "all or none" else traits.biases == "qkv",
            "output_bias": bias if traits.biases == "all or none" else False,
            "feedforward_bias": read.get("mlp_bias", False),
            "initializer_range": read.get("initializer_range", 0.02),
            "attention_dropout": float(read.get("attention_dropout", 0.0)),
            "qk_norm": traits.qk_norm,
            **_window(traits, read),
        }
        if traits.experts:
            found |= _experts(traits, read)
        return found

    return fields


def _window(traits: _Traits, read: Values) -> dict[str, Any]:
    """`window` and `full_every`, from one number, or from a number and the kinds of the layers."""
    if traits.window == "none":
        read.only("sliding_window", None)
        return {}
    width = None if read.get("sliding_window") is None else read.size("sliding_window")
    if traits.window == "every":
        return {"window": width}
    if width is None or not read.get("use_sliding_window", False):
        if "sliding_attention" in read.get("layer_types", []):
            raise ChatloomError(f"{read.where}: layer_types names sliding layers, but there is no window in use")
        return {}
    n_layers, first = read.size("num_hidden_layers"), read.get("max_window_layers", 28)
    kinds = read.get("layer_types") or [
        "sliding_attention" if i >= first else "full_attention" for i in range(n_layers)
    ]
    full = [i + 1 for i, kind in enumerate(kinds) if kind == "full_attention"]
    if len(full) == n_layers:
        return {}
    every = full[0] if full else 0
    expected = [n for n in range(1, n_layers + 1) if every and n % every == 0]
    if len(kinds) != n_layers or full != expected or every == 1:
        raise ChatloomError(
            f"{read.where}: full attention in layers {full} of {n_layers}; this decoder has windows in all layers, or "
            "in all but every n-th"
        )
    return {"window": width, "full_every": every}


def _experts(traits: _Traits, read: Values) -> dict[str, Any]:
    if traits.free_gates:
        read.only("decoder_sparse_step", 1)
        read.only("mlp_only_layers", [], None)
    name = "num_experts" if traits.free_gates and read.get("num_experts") else "num_local_experts"
    return {
        "n_experts": read.size(name),
        "experts_per_token": read.size("num_experts_per_tok", 2),
        "normalise_gates": bool(read.get("norm_topk_prob", False)) if traits.free_gates else True,
        "router_balance": float(read.get("router_aux_loss_coef", 0.001)),
    }


def _pieces(traits: _Traits) -> Callable[[TransformerConfig], dict[str, list[Piece]]]:
    def pieces(config: TransformerConfig) -> dict[str, list[Piece]]:
        hidden, middle = config.hidden_size, config.intermediate_size
        heads = (("q", config.attention_size), ("k", config.kv_size), ("v", config.kv_size))
        names = {"embedding.weight": [Piece("model.embed_tokens.weight", (config.vocab_size, hidden))]}
        for i in range(config.n_layers):
            ours, theirs = f"layers.{i}.", f"model.layers.{i}."
            attention = theirs + "self_attn."
            names[ours + "attention_norm.weight"] = [Piece(theirs + "input_layernorm.weight", (hidden,))]
            names[ours + "attention.qkv.weight"] = [Piece(f"{attention}{h}_proj.weight", (n, hidden)) for h, n in heads]
            if config.qkv_bias:
                names[ours + "attention.qkv.bias"] = [Piece(f"{attention}{h}_proj.bias", (n,)) for h, n in heads]
            if config.qk_norm:
                names[ours + "attention.query_norm.weight"] = [Piece(attention + "q_norm.weight", (config.head_dim,))]
                names[ours + "attention.key_norm.weight"] = [Piece(attention + "k_norm.weight", (config.head_dim,))]
            names[ours + "attention.output.weight"] = [
                Piece(attention + "o_proj.weight", (hidden, config.attention_size))
            ]
            if config.output_bias:
                names[ours + "attention.output.bias"] = [Piece(attention + "o_proj.bias", (hidden,))]
            names[ours + "feedforward_norm.weight"] = [Piece(theirs + "post_attention_layernorm.weight", (hidden,))]
            if config.n_experts:
                names |= _expert_pieces(traits, config, i)
                continue
            names[ours + "feedforward.gate_up.weight"] = [
                Piece(theirs + "mlp.gate_proj.weight", (middle, hidden)),
                Piece(theirs + "mlp.up_proj.weight", (middle, hidden)),
            ]
            names[ours + "feedforward.down.weight"] = [Piece(theirs + "mlp.down_proj.weight", (hidden, middle))]
            if config.feedforward_bias:
                names[ours + "feedforward.gate_up.bias"] = [
                    Piece(theirs + "mlp.gate_proj.bias", (middle,)),
                    Piece(theirs + "mlp.up_proj.bias", (middle,)),
                ]
                names[ours + "feedforward.down.bias"] = [Piece(theirs + "mlp.down_proj.bias", (hidden,))]
        names["norm.weight"] = [Piece("model.norm.weight", (hidden,))]
        if not config.tie_embeddings:
            names["output_embedding.weight"] = [Piece("lm_head.weight", (config.vocab_size, hidden))]
        return names

    return pieces


def _expert_pieces(traits: _Traits, config: TransformerConfig, layer: int) -> dict[str, list[Piece]]:
    """Router and experts; a stacked matrix is gate and up of the first expert, then of the next."""
    hidden, middle = config.hidden_size, config.intermediate_size
    ours = f"layers.{layer}.feedforward."
    place = f"model.layers.{layer}." + ("block_sparse_moe." if traits.name == "mixtral" else "mlp.")
    gate, down, up = ("w1", "w2", "w3") if traits.name == "mixtral" else ("gate_proj", "down_proj", "up_proj")
    each = [f"{place}experts.{expert}." for expert in range(config.n_experts)]
    return {
        ours + "router.weight": [Piece(place + "gate.weight", (config.n_experts, hidden))],
        ours + "up": [Piece(f"{e}{name}.weight", (middle, hidden)) for e in each for name in (gate, up)],
        ours + "down": [Piece(f"{e}{down}.weight", (hidden, middle)) for e in each],
    }


FAMILIES = tuple(
    Layout(
        traits.name,
        {"language": f"{traits.title}ForCausalLM", "reward": f"{traits.title}ForSequenceClassification"},
        _holds(traits),
        _settings(traits),
        _fields(traits),
        _pieces(traits),
        # angles that old Llama files repeat
        known_name=lambda name: None if name.endswith("rotary_emb.inv_freq") else name,
    )
    for traits in _TRAITS
)
