"""Shape of a decoder and the parts it is made of, and what follows: parameters, FLOPs, bytes of KV cache.

`TransformerConfig` is a value: made once, checked once, saved with every model. Its defaults are Llama's choices.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args, get_origin, get_type_hints

from chatloom.errors import ChatloomError
from chatloom.model.combinations import COMBINATIONS
from chatloom.model.rope_scaling import RopeScaling

NormKind = Literal["rms", "layer"]
NormPlace = Literal["pre", "post", "sandwich", "deep"]
FeedForwardKind = Literal["swiglu", "geglu", "gelu", "gelu_tanh", "relu2"]
PositionKind = Literal["rope", "xpos", "learned", "sinusoidal", "t5", "alibi", "none"]

# Kinds whose first matrix holds a gate beside what it gates.
GATED = ("swiglu", "geglu")
# Kinds that turn queries and keys; kinds that add to attention's scores.
ROTARY, BIASED = ("rope", "xpos"), ("t5", "alibi")
T5_BUCKETS = 32


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes and parts of a decoder-only transformer.

    norm, norm_place      kind of normalisation and where it stands in a block (model/norms.py, model/transformer.py)
    norm_bias             LayerNorm's bias
    qk_norm               normalise each head's query and key (Henry et al. 2020; Qwen3)
    feedforward           activation of the feed-forward layer, gated (`swiglu`, `geglu`) or not (model/feedforward.py)
    positions             how a token knows its place (model/positions.py, model/position_bias.py)
    rope_scaling          rotary angles stretched for a longer context (model/rope_scaling.py)
    qkv_bias, output_bias biases of attention's projections; Llama has none, Qwen2 the former, GPT-2 both
    window, full_every    a token sees the `window` newest tokens, itself included; every `full_every`-th layer sees all
                          (0: none does)
    prefix_decoder        tokens of a prompt see each other both ways (Raffel et al. 2020, figure 4)
    logit_softcap         c * tanh(logits / c) instead of logits (Gemma 2)
    dropout               of the embedding and of what a block adds; attention_dropout: of attention's weights
    n_experts             0: one feed-forward layer a block; else a mixture of that many (model/experts.py), of which a
                          token goes through `experts_per_token`
    expert_capacity       places of an expert as a multiple of its even share; beyond it tokens are dropped; None: never
    normalise_gates       the weights of a token's experts add up to 1 (Mixtral), or are shares of all experts (Switch)
    router_balance, router_z   weights of the load-balancing and of the z loss

    Raises ChatloomError naming the field when a size cannot work or a combination makes no sense.
    """

    vocab_size: int
    hidden_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_positions: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    initializer_range: float = 0.02
    norm: NormKind = "rms"
    norm_place: NormPlace = "pre"
    norm_bias: bool = False
    qk_norm: bool = False
    feedforward: FeedForwardKind = "swiglu"
    feedforward_bias: bool = False
    positions: PositionKind = "rope"
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    window: int | None = None
    full_every: int = 0
    prefix_decoder: bool = False
    logit_softcap: float | None = None
    dropout: float = 0.0
    attention_dropout: float = 0.0
    n_experts: int = 0
    experts_per_token: int = 2
    expert_capacity: float | None = None
    normalise_gates: bool = True
    router_balance: float = 0.01
    router_z: float = 0.001

    def __post_init__(self) -> None:
        for field, kind in _HINTS.items():
            _check(field, getattr(self, field), kind)
        for problem in COMBINATIONS:
            if problem.found(self):
                raise ChatloomError(problem.message(self))

    @property
    def attention_size(self) -> int:
        """Width of all query heads together: n_heads * head_dim."""
        return self.n_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key (or value) heads together: n_kv_heads * head_dim."""
        return self.n_kv_heads * self.head_dim

    @property
    def gated(self) -> bool:
        """Whether the feed-forward layer has a gate."""
        return self.feedforward in GATED

    @property
    def has_final_norm(self) -> bool:
        """Whether a norm stands before the unembedding: not where every block ends with one."""
        return self.norm_place in ("pre", "sandwich")

    def window_of(self, layer: int) -> int | None:
        """Tokens that layer number `layer` (from 0) sees, or None for all."""
        if self.window is None or (self.full_every and (layer + 1) % self.full_every == 0):
            return None
        return self.window

    def n_parameters(self) -> int:
        """Number of trained numbers; a tied embedding is counted once."""
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)
        return embeddings + self.n_parameters_non_embedding()

    def n_parameters_non_embedding(self) -> int:
        """Number of trained numbers outside the embedding and unembedding matrices (N of Kaplan et al. 2020, 2.1)."""
        hidden, norm = self.hidden_size, (2 if self.norm_bias else 1)
        attention = self._attention_matrices
        attention += (self.attention_size + 2 * self.kv_size) * self.qkv_bias + hidden * self.output_bias
        attention += 2 * self.head_dim * norm * self.qk_norm
        inner = self.intermediate_size * (2 if self.gated else 1)
        feedforward = max(self.n_experts, 1) * self._feedforward_matrices + hidden * self.n_experts
        feedforward += (inner + hidden) * self.feedforward_bias
        norms = (4 if self.norm_place == "sandwich" else 2) * hidden * norm
        once = hidden * norm * self.has_final_norm
        once += self.max_positions * hidden * (self.positions == "learned")
        once += T5_BUCKETS * self.n_heads * (self.positions == "t5")
        return self.n_layers * (attention + feedforward + norms) + once

    @property
    def _attention_matrices(self) -> int:
        return self.hidden_size * (2 * self.attention_size + 2 * self.kv_size)

    @property
    def _feedforward_matrices(self) -> int:
        """Weights of one feed-forward layer, or of one expert."""
        return (3 if self.gated else 2) * self.hidden_size * self.intermediate_size

    def layer_matrices_used(self) -> int:
        """Entries of the weight matrices of one layer that one token goes through."""
        used = self.experts_per_token if self.n_experts else 1
        return self._attention_matrices + used * self._feedforward_matrices + self.n_experts * self.hidden_size

    def forward_flops_per_token(self, context: float) -> float:
        """FLOPs of one token's forward pass, averaged over a causal row of `context` tokens.

        Two FLOPs (multiply, add) for each entry of every weight matrix used, the unembedding included (looking up an
        embedding costs nothing), and for each number of the attention scores and of their weighted sum; the token at
        place t attends to t + 1 keys, or to the window if that is less (Hoffmann et al. 2022, appendix F, with
        causality counted).
        """
        matrices = self.n_layers * self.layer_matrices_used() + self.vocab_size * self.hidden_size
        keys = sum(_mean_keys(context, self.window_of(layer)) for layer in range(self.n_layers))
        return 2.0 * (matrices + 2 * self.attention_size * keys)

    def flops_per_token(self, context: float) -> float:
        """FLOPs of training on one token: forward once, backward twice as much (Kaplan et al. 2020, 2.1)."""
        return 3.0 * self.forward_flops_per_token(context)

    def kv_bytes_per_token(self, bytes_per_number: int = 4) -> int:
        """Bytes of KV cache one token takes in all layers; 4 bytes a number for fp32, 2 for bf16."""
        return 2 * self.n_layers * self.kv_size * bytes_per_number


def _mean_keys(context: float, window: int | None) -> float:
    """Keys that a token sees on average in a causal row: (context + 1) / 2 without a window that is shorter."""
    if window is None or window >= context:
        return (context + 1) / 2
    return (window * (window + 1) / 2 + (context - window) * window) / context


# Sizes may not be 0, but these numbers may.
_MAY_BE_ZERO = ("full_every", "n_experts", "dropout", "attention_dropout", "router_balance", "router_z")


def _check(name: str, value: object, kind: object) -> None:
    """Raise ChatloomError unless a value is of the field's kind and in its range."""
    options = [option for option in get_args(kind) if option is not type(None)]
    if get_origin(kind) is Literal:
        if value not in options:
            raise ChatloomError(f"model.{name} is {value!r}; expected one of {', '.join(map(str, options))}")
    elif options and len(options) < len(get_args(kind)):
        if value is not None:
            _check(name, value, options[0])
    elif kind is RopeScaling:
        if not isinstance(value, RopeScaling):
            raise ChatloomError(f"model.{name} is {value!r}; expected a RopeScaling")
    elif kind is bool:
        if not isinstance(value, bool):
            raise ChatloomError(f"model.{name} is {value!r}; expected true or false")
    elif kind is int:
        least = 0 if name in _MAY_BE_ZERO else 1
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ChatloomError(f"model.{name} is {value!r}; expected a whole number of at least {least}")
    elif kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool) and value < float("inf")
        if not number or not (value > 0 or (value == 0 and name in _MAY_BE_ZERO)):  # type: ignore[operator]
            expected = "number of at least 0" if name in _MAY_BE_ZERO else "positive number"
            raise ChatloomError(f"model.{name} is {value!r}; expected a {expected}")


_HINTS = {field.name: get_type_hints(TransformerConfig)[field.name] for field in fields(TransformerConfig)}
