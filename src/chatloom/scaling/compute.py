"""What a model costs before it is run: parameters, FLOPs, memory, disk and time; pure functions of plain numbers.

Parameters, FLOPs of matrix products and bytes of states are exact; activations and seconds are estimates and named
so. Units: FLOPs count a multiplication and an addition as two; memory and disk are in bytes; time in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from chatloom.errors import ChatloomError
from chatloom.model.config import TransformerConfig


class ComputeError(ChatloomError):
    """A size or rate that cannot be: zero, negative, or heads that do not divide."""


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


def training_flops(config: TransformerConfig, context: int, n_tokens: int) -> float:
    """FLOPs of training on n_tokens in sequences of `context`: forward, and twice as much backward."""
    return config.flops_per_token(context) * n_tokens


def generation_flops(config: TransformerConfig, prompt_tokens: int, new_tokens: int) -> float:
    """FLOPs of reading a prompt and generating with a key-value cache, for one sequence."""
    length = prompt_tokens + new_tokens
    return config.forward_flops_per_token(max(1, length)) * length


def training_memory(
    config: TransformerConfig,
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
    n = config.n_parameters()
    states = 8 + (4 if bytes_per_parameter < 4 else 0)
    layer = layer_activations(config) * bytes_per_activation
    kept = config.n_layers * config.hidden_size * bytes_per_activation + layer if recompute else config.n_layers * layer
    chunk = 3 * min(logprob_chunk, micro_batch_tokens) * config.vocab_size * 4  # logits, their softmax, their gradient
    return Memory(
        parameters=trained_copies * n * bytes_per_parameter,
        gradients=trained_copies * n * bytes_per_parameter,
        optimizer=trained_copies * n * states,
        frozen_models=frozen_copies * n * bytes_per_parameter,
        activations_estimate=micro_batch_tokens * kept + chunk,
    )


def layer_activations(config: TransformerConfig) -> int:
    """Numbers that one layer keeps per token for its backward pass, with attention that stores no score matrix.

    Counted tensor by tensor as Korthikanti et al. 2022 (arXiv 2205.05198, section 4) do for GPT: residual and
    normalised input twice (4 h), q and k before and after rotation, v, attention output; of each feed-forward layer
    that a token goes through gate, up, silu(gate) and their product, or the activation's input and output.
    """
    heads = config.head_dim * (3 * config.n_heads + 3 * config.n_kv_heads)
    inner = (
        (4 if config.gated else 2) * config.intermediate_size * (config.experts_per_token if config.n_experts else 1)
    )
    return 4 * config.hidden_size + heads + inner


def kv_cache_bytes(config: TransformerConfig, tokens: int, *, sequences: int = 1, bytes_per_value: int = 4) -> int:
    """Bytes of keys and values for `sequences` of `tokens` each: 2 * layers * kv heads * head_dim values a token."""
    return 2 * config.n_layers * config.n_kv_heads * config.head_dim * bytes_per_value * tokens * sequences


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
