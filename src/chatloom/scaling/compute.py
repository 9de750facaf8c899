"""What a model costs before it is run: parameters, FLOPs, memory, disk and time; pure functions of plain numbers.

Parameters, FLOPs of matrix products and bytes of states are exact; activations and seconds are estimates and named
so. Units: FLOPs count a multiplication and an addition as two; memory and disk are in bytes; time in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from chatloom.errors import ChatloomError


class ComputeError(ChatloomError):
    """A size or rate that cannot be: zero, negative, or heads that do not divide."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama-layout decoder (grouped-query attention, SwiGLU, RMSNorm, RoPE)."""

    vocab_size: int
    hidden_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    intermediate_size: int
    tie_embeddings: bool = True
    attention_bias: bool = False

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "n_layers", "n_heads", "n_kv_heads", "head_dim", "intermediate_size")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ComputeError(f"{name} = {getattr(self, name)}: expected at least 1")
        if self.n_heads % self.n_kv_heads:
            raise ComputeError(f"n_heads = {self.n_heads} is no multiple of n_kv_heads = {self.n_kv_heads}")

    @property
    def layer_matrices(self) -> int:
        """Weights of one layer's matrices: q, k, v, o projections and gate, up, down of the feed-forward."""
        attention = 2 * self.hidden_size * self.head_dim * (self.n_heads + self.n_kv_heads)
        return attention + 3 * self.hidden_size * self.intermediate_size

    @property
    def parameters(self) -> int:
        """All parameters; a tied embedding counts once."""
        biases = self.head_dim * (self.n_heads + 2 * self.n_kv_heads) + self.hidden_size if self.attention_bias else 0
        layer = self.layer_matrices + 2 * self.hidden_size + biases
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)
        return self.n_layers * layer + self.hidden_size + embeddings

    @property
    def parameters_non_embedding(self) -> int:
        """Parameters without the input embedding and the output matrix: N of Kaplan et al. 2020."""
        return self.parameters - self.vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)


@dataclass(frozen=True)
class Memory:
    """Bytes that training holds at once."""

    parameters: int
    gradients: int
    optimizer: int
    frozen_models: int
    activations_estimate: int

    @property
    def total(self) -> int:
        """Sum of all parts; an estimate, as the activations are one."""
        return self.parameters + self.gradients + self.optimizer + self.frozen_models + self.activations_estimate


def training_flops_6nd(n_parameters: int, n_tokens: int) -> int:
    """C = 6 N D: 2 N a token forward, 4 N backward (Kaplan et al. 2020, arXiv 2001.08361, section 2.1)."""
    return 6 * n_parameters * n_tokens


def forward_flops_per_token(shape: Shape, context: int) -> float:
    """FLOPs of one token's forward pass in a causal sequence of `context` tokens, the mean over its positions.

    2 per weight of every matrix that a token meets (the output matrix too; looking up an embedding costs nothing),
    and for attention 2 * n_heads * head_dim for scores and as much for the weighted sum per position attended to, of
    which a causal token has (context + 1) / 2 on average (Hoffmann et al. 2022, arXiv 2203.15556, appendix F, with
    causality counted).
    """
    if context < 1:
        raise ComputeError(f"context = {context}: expected at least 1 token")
    matrices = 2 * (shape.n_layers * shape.layer_matrices + shape.hidden_size * shape.vocab_size)
    attention = shape.n_layers * 4 * shape.n_heads * shape.head_dim * (context + 1) / 2
    return matrices + attention


def training_flops(shape: Shape, context: int, n_tokens: int) -> float:
    """FLOPs of training on n_tokens in sequences of `context`: forward, and twice as much backward."""
    return 3 * forward_flops_per_token(shape, context) * n_tokens


def generation_flops(shape: Shape, prompt_tokens: int, new_tokens: int) -> float:
    """FLOPs of reading a prompt and generating with a key-value cache, for one sequence."""
    length = prompt_tokens + new_tokens
    return forward_flops_per_token(shape, max(1, length)) * length


def training_memory(
    shape: Shape,
    micro_batch_tokens: int,
    *,
    bytes_per_parameter: int = 4,
    bytes_per_activation: int = 4,
    trained_copies: int = 1,
    frozen_copies: int = 0,
    logprob_chunk: int = 1024,
    recompute: bool = False,
) -> Memory:
    """Bytes for one training step with AdamW on micro-batches of that many tokens.

    trained_copies: models with gradients and states (PPO: actor and critic = 2); frozen_copies: models only read
    (reference, reward). States are two fp32 moments a parameter (Loshchilov & Hutter 2019), and an fp32 master copy
    when parameters are kept smaller. recompute: only layer inputs are kept and one layer is live at a time (Chen et
    al. 2016, arXiv 1604.06174).
    """
    if micro_batch_tokens < 1:
        raise ComputeError(f"micro_batch_tokens = {micro_batch_tokens}: expected at least 1")
    n = shape.parameters
    states = 8 + (4 if bytes_per_parameter < 4 else 0)
    layer = layer_activations(shape) * bytes_per_activation
    kept = shape.n_layers * shape.hidden_size * bytes_per_activation + layer if recompute else shape.n_layers * layer
    chunk = 3 * min(logprob_chunk, micro_batch_tokens) * shape.vocab_size * 4  # logits, their softmax, their gradient
    return Memory(
        parameters=trained_copies * n * bytes_per_parameter,
        gradients=trained_copies * n * bytes_per_parameter,
        optimizer=trained_copies * n * states,
        frozen_models=frozen_copies * n * bytes_per_parameter,
        activations_estimate=micro_batch_tokens * kept + chunk,
    )


def layer_activations(shape: Shape) -> int:
    """Numbers that one layer keeps per token for its backward pass, with attention that stores no score matrix.

    Counted tensor by tensor as Korthikanti et al. 2022 (arXiv 2205.05198, section 4) do for GPT: residual and
    normalised input twice (4 h), q and k before and after rotation, v, attention output, gate, up, silu(gate) and
    their product.
    """
    heads = shape.head_dim * (3 * shape.n_heads + 3 * shape.n_kv_heads)
    return 4 * shape.hidden_size + heads + 4 * shape.intermediate_size


def kv_cache_bytes(shape: Shape, tokens: int, *, sequences: int = 1, bytes_per_value: int = 4) -> int:
    """Bytes of keys and values for `sequences` of `tokens` each: 2 * layers * kv heads * head_dim values a token."""
    return 2 * shape.n_layers * shape.n_kv_heads * shape.head_dim * bytes_per_value * tokens * sequences


def checkpoint_bytes(n_parameters: int, *, bytes_per_parameter: int = 4, with_optimizer: bool = True) -> int:
    """Bytes of one checkpoint on disk: weights, and two fp32 moments a parameter if training is to go on from it."""
    return n_parameters * (bytes_per_parameter + (8 if with_optimizer else 0))


def seconds_estimate(flops: float, flops_per_second: float, *, utilisation: float = 0.4) -> float:
    """Seconds for that many FLOPs on a machine with that matrix-product rate.

    utilisation: share of the rate that training reaches; 0.4 is usual on one device, small models on a CPU reach 0.2
    to 0.5.
    """
    if flops_per_second <= 0 or not 0 < utilisation <= 1:
        raise ComputeError(f"rate {flops_per_second}, utilisation {utilisation}: expected above 0, the latter up to 1")
    return flops / (flops_per_second * utilisation)


def matmul_flops(rows: int, inner: int, columns: int) -> int:
    """FLOPs of a [rows, inner] x [inner, columns] matrix product."""
    return 2 * rows * inner * columns


def compute_optimal_tokens(n_parameters: int, *, tokens_per_parameter: float = 20.0) -> int:
    """Tokens to train a model of this size on, when compute limits: about 20 a parameter (Hoffmann et al. 2022)."""
    return round(n_parameters * tokens_per_parameter)
