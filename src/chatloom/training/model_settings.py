"""Settings of a new model: what a recipe may say about its shape and parts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from chatloom.model.config import TransformerConfig
from chatloom.model.rope_scaling import RopeScaling
from chatloom.settings import Settings


class RopeScalingSettings(Settings):
    """Rotary angles stretched for a longer context (docs/model.md)."""

    kind: Literal["linear", "ntk", "llama3", "yarn"] = Field("yarn", description="how angles are stretched")
    factor: float = Field(2.0, ge=1, description="context now / context trained")
    original: int | None = Field(None, description="positions the model was trained on; llama3 and yarn need it")


class ModelSettings(Settings):
    """Shape and parts of the decoder; the defaults are Llama's: RMSNorm before each half, RoPE, SwiGLU."""

    hidden_size: int = Field(128, ge=2, description="width of the residual stream")
    n_layers: int = Field(4, ge=1, description="blocks")
    n_heads: int = Field(4, ge=1, description="query heads")
    n_kv_heads: int | None = Field(None, description="key-value heads; as many as query heads when null")
    head_dim: int | None = Field(None, description="width of a head; hidden_size / n_heads when null")
    intermediate_size: int | None = Field(
        None,
        description="inner width of the feed-forward layer; 8/3 hidden_size, up to 8, when null (4 without a gate)",
    )
    context: int = Field(256, ge=8, description="longest sequence, in tokens")
    tie_embeddings: bool = Field(True, description="one matrix for reading and predicting tokens")
    norm: Literal["rms", "layer"] = Field("rms", description="RMSNorm or LayerNorm")
    norm_place: Literal["pre", "post", "sandwich", "deep"] = Field(
        "pre", description="where norms stand; deep: DeepNorm, with its initialisation"
    )
    norm_bias: bool = Field(False, description="LayerNorm's bias")
    qk_norm: bool = Field(False, description="normalise each head's queries and keys")
    feedforward: Literal["swiglu", "geglu", "gelu", "gelu_tanh", "relu2"] = Field(
        "swiglu", description="activation of the feed-forward layer; swiglu and geglu are gated"
    )
    feedforward_bias: bool = Field(False, description="biases of the feed-forward layer")
    positions: Literal["rope", "xpos", "learned", "sinusoidal", "t5", "alibi", "none"] = Field(
        "rope", description="how a token knows its place"
    )
    rope_theta: float = Field(10000.0, gt=0, description="base of the rotary angles")
    rope_scaling: RopeScalingSettings | None = Field(None, description="stretched angles; null: none")
    qkv_bias: bool = Field(False, description="biases of queries, keys and values")
    output_bias: bool = Field(False, description="bias of attention's output")
    window: int | None = Field(None, ge=1, description="tokens that attention sees, itself included; null: all")
    full_every: int = Field(0, ge=0, description="every so manieth layer sees all in spite of `window`; 0: none")
    prefix_decoder: bool = Field(False, description="tokens of a prefix see each other both ways")
    logit_softcap: float | None = Field(
        None, gt=0, description="c tanh(logits / c) instead of logits; null: as they are"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="share dropped of embeddings and of what a block adds")
    attention_dropout: float = Field(0.0, ge=0, lt=1, description="share dropped of attention's weights")
    n_experts: int = Field(0, ge=0, description="feed-forward layers to choose from; 0: one, and no router")
    experts_per_token: int = Field(2, ge=1, description="experts that a token goes through; 1: Switch")
    expert_capacity: float | None = Field(
        None, gt=0, description="places of an expert in training, as a multiple of its even share; null: no limit"
    )
    normalise_gates: bool = Field(True, description="weights of a token's experts add up to 1; false with one expert")
    router_balance: float = Field(0.01, ge=0, description="factor of the load-balancing loss (Switch: 0.01)")
    router_z: float = Field(0.001, ge=0, description="factor of the router's z loss (ST-MoE: 0.001)")

    def config(self, vocab_size: int) -> TransformerConfig:
        """The complete config for a vocabulary."""
        own = {"n_kv_heads", "head_dim", "intermediate_size", "context", "rope_scaling"}
        same = {name: getattr(self, name) for name in type(self).model_fields if name not in own}
        gated = self.feedforward in ("swiglu", "geglu")
        scaling = self.rope_scaling
        return TransformerConfig(
            vocab_size=vocab_size,
            n_kv_heads=self.n_kv_heads or self.n_heads,
            head_dim=self.head_dim or self.hidden_size // self.n_heads,
            intermediate_size=self.intermediate_size
            or (-(-self.hidden_size // 3) * 8 if gated else 4 * self.hidden_size),
            max_positions=self.context,
            rope_scaling=None if scaling is None else RopeScaling(scaling.kind, scaling.factor, scaling.original),
            **same,
        )
