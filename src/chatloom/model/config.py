"""Shape of a Llama-layout decoder, and what follows from it: parameters, FLOPs, bytes of KV cache.

`TransformerConfig` is a value: made once, checked once, saved with every model.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from chatloom.errors import ChatloomError


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a decoder-only transformer (RMSNorm, RoPE, SwiGLU, grouped-query attention).

    `attention_bias` adds a bias to the query, key, value and output projections, as Hugging Face's Llama does.
    Raises ChatloomError naming the field when a size cannot work.
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
    attention_bias: bool = False
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ChatloomError(f"model.{field.name} is {value!r}; expected a whole number of at least 1")
            if field.type == "bool" and not isinstance(value, bool):
                raise ChatloomError(f"model.{field.name} is {value!r}; expected true or false")
            if field.type == "float" and (
                not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf")
            ):
                raise ChatloomError(f"model.{field.name} is {value!r}; expected a positive number")
        if self.n_heads % self.n_kv_heads:
            raise ChatloomError(
                f"model.n_heads is {self.n_heads} and model.n_kv_heads is {self.n_kv_heads}; "
                "each key-value head serves equally many query heads, so n_heads must be a multiple of n_kv_heads"
            )
        if self.head_dim % 2:
            raise ChatloomError(
                f"model.head_dim is {self.head_dim}; rotary positions turn pairs of numbers, so it must be even"
            )

    @property
    def attention_size(self) -> int:
        """Width of all query heads together: n_heads * head_dim."""
        return self.n_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key (or value) heads together: n_kv_heads * head_dim."""
        return self.n_kv_heads * self.head_dim

    def n_parameters(self) -> int:
        """Number of trained numbers; a tied embedding is counted once."""
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)
        return embeddings + self.n_parameters_non_embedding()

    def n_parameters_non_embedding(self) -> int:
        """Number of trained numbers outside the embedding and unembedding matrices (N of Kaplan et al. 2020, 2.1)."""
        attention = self.hidden_size * (2 * self.attention_size + 2 * self.kv_size)
        if self.attention_bias:
            attention += self.attention_size + 2 * self.kv_size + self.hidden_size
        feedforward = 3 * self.hidden_size * self.intermediate_size
        norms = 2 * self.hidden_size
        return self.n_layers * (attention + feedforward + norms) + self.hidden_size

    def forward_flops_per_token(self, context: float) -> float:
        """FLOPs of one token's forward pass, averaged over a causal row of `context` tokens.

        Two FLOPs (multiply, add) for each entry of every weight matrix used, the unembedding included, and for each
        number of the attention scores and of their weighted sum; the token at place t attends to t + 1 keys.
        """
        matrices = self.n_layers * (
            self.hidden_size * (2 * self.attention_size + 2 * self.kv_size)
            + 3 * self.hidden_size * self.intermediate_size
        )
        matrices += self.vocab_size * self.hidden_size
        mean_keys = (context + 1) / 2
        attention = self.n_layers * 2 * self.attention_size * mean_keys
        return 2.0 * (matrices + attention)

    def flops_per_token(self, context: float) -> float:
        """FLOPs of training on one token: forward once, backward twice as much (Kaplan et al. 2020, 2.1)."""
        return 3.0 * self.forward_flops_per_token(context)

    def kv_bytes_per_token(self, bytes_per_number: int = 4) -> int:
        """Bytes of KV cache one token takes in all layers; 4 bytes a number for fp32, 2 for bf16."""
        return 2 * self.n_layers * self.kv_size * bytes_per_number
