"""GPT-2's folders: LayerNorm with biases, learned positions, GELU by tanh, matrices stored as [in, out]."""

from __future__ import annotations

from typing import Any

from chatloom.errors import ChatloomError
from chatloom.model.config import TransformerConfig
from chatloom.model.layouts.values import Layout, Piece, Values


def _holds(config: TransformerConfig) -> bool:
    norms = config.norm == "layer" and config.norm_bias and config.norm_place == "pre" and not config.qk_norm
    biases = config.qkv_bias and config.output_bias and config.feedforward_bias
    heads = config.n_heads == config.n_kv_heads and config.attention_size == config.hidden_size
    parts = config.feedforward == "gelu_tanh" and config.positions == "learned" and not config.n_experts
    plain = config.window is None and not config.prefix_decoder and config.logit_softcap is None
    return norms and biases and heads and parts and plain


def _settings(config: TransformerConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "n_embd": config.hidden_size,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": config.intermediate_size,
        "n_positions": config.max_positions,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.norm_eps,
        "initializer_range": config.initializer_range,
        "attn_pdrop": config.attention_dropout,
        "embd_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "tie_word_embeddings": config.tie_embeddings,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
    }


def _fields(read: Values) -> dict[str, Any]:
    read.only("activation_function", "gelu_new")
    read.only("scale_attn_weights", True)
    read.only("scale_attn_by_inverse_layer_idx", False)
    read.only("add_cross_attention", False)
    n_heads, head_dim = read.heads("n_head", "n_embd")
    hidden = read.size("n_embd")
    embedding, residual = (float(read.get(key, 0.1)) for key in ("embd_pdrop", "resid_pdrop"))
    if embedding != residual:
        raise ChatloomError(
            f"{read.where}: embd_pdrop is {embedding} and resid_pdrop {residual}; this decoder has one dropout for both"
        )
    return {
        "vocab_size": read.size("vocab_size"),
        "hidden_size": hidden,
        "n_layers": read.size("n_layer"),
        "n_heads": n_heads,
        "n_kv_heads": n_heads,
        "head_dim": head_dim,
        "intermediate_size": read.size("n_inner", 4 * hidden),
        "max_positions": read.size("n_positions", 1024),
        "norm_eps": read.get("layer_norm_epsilon", 1e-5),
        "tie_embeddings": read.get("tie_word_embeddings", True),
        "initializer_range": read.get("initializer_range", 0.02),
        "norm": "layer",
        "norm_bias": True,
        "feedforward": "gelu_tanh",
        "feedforward_bias": True,
        "positions": "learned",
        "qkv_bias": True,
        "output_bias": True,
        "dropout": residual,
        "attention_dropout": float(read.get("attn_pdrop", 0.1)),
    }


def _pieces(config: TransformerConfig) -> dict[str, list[Piece]]:
    hidden, middle = config.hidden_size, config.intermediate_size
    names = {
        "embedding.weight": [Piece("transformer.wte.weight", (config.vocab_size, hidden))],
        "position_embedding.weight": [Piece("transformer.wpe.weight", (config.max_positions, hidden))],
    }
    matrices = (
        ("attention.qkv", "attn.c_attn", 3 * hidden, hidden),
        ("attention.output", "attn.c_proj", hidden, hidden),
        ("feedforward.up", "mlp.c_fc", middle, hidden),
        ("feedforward.down", "mlp.c_proj", hidden, middle),
    )
    for i in range(config.n_layers):
        ours, theirs = f"layers.{i}.", f"transformer.h.{i}."
        for mine, other in (("attention_norm", "ln_1"), ("feedforward_norm", "ln_2")):
            for part in ("weight", "bias"):
                names[f"{ours}{mine}.{part}"] = [Piece(f"{theirs}{other}.{part}", (hidden,))]
        for mine, other, rows, columns in matrices:
            names[f"{ours}{mine}.weight"] = [Piece(f"{theirs}{other}.weight", (columns, rows), transposed=True)]
            names[f"{ours}{mine}.bias"] = [Piece(f"{theirs}{other}.bias", (rows,))]
    for part in ("weight", "bias"):
        names[f"norm.{part}"] = [Piece(f"transformer.ln_f.{part}", (hidden,))]
    if not config.tie_embeddings:
        names["output_embedding.weight"] = [Piece("lm_head.weight", (config.vocab_size, hidden))]
    return names


def _known_name(name: str) -> str | None:
    """Folders of the first GPT-2 models have no `transformer.` before names, and masks among the weights."""
    if name.endswith((".attn.bias", ".attn.masked_bias")):
        return None
    return name if name.startswith(("transformer.", "lm_head.", "score.")) else f"transformer.{name}"


GPT2 = Layout(
    "gpt2",
    {"language": "GPT2LMHeadModel", "reward": "GPT2ForSequenceClassification"},
    _holds,
    _settings,
    _fields,
    _pieces,
    _known_name,
)
