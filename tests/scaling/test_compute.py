"""Promises of the cost accounting: published parameter counts, FLOPs by hand, memory that adds up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chatloom.model.config import TransformerConfig
from chatloom.scaling.compute import (
    ComputeError,
    checkpoint_bytes,
    compute_optimal_tokens,
    generation_flops,
    kv_cache_bytes,
    seconds_estimate,
    training_flops,
    training_flops_6nd,
    training_memory,
)
from chatloom.scaling.speed import measured_matmul_rate

LLAMA_2_7B = TransformerConfig(32000, 4096, 32, 32, 32, 128, 11008, 4096, tie_embeddings=False)
LLAMA_3_8B = TransformerConfig(128256, 4096, 32, 32, 8, 128, 14336, 8192, tie_embeddings=False)
QWEN_2_05B = TransformerConfig(151936, 896, 24, 14, 2, 64, 4864, 32768, qkv_bias=True)
TINY = TransformerConfig(100, 8, 2, 2, 1, 4, 16, 64)


def test_parameter_counts_are_the_published_ones() -> None:
    assert LLAMA_2_7B.n_parameters() == 6_738_415_616
    assert LLAMA_3_8B.n_parameters() == 8_030_261_248
    assert QWEN_2_05B.n_parameters() == 494_032_768


def test_biases_and_tied_embeddings_are_counted() -> None:
    assert replace(TINY, qkv_bias=True, output_bias=True).n_parameters() - TINY.n_parameters() == 2 * (4 * (2 + 2) + 8)
    assert replace(TINY, tie_embeddings=False).n_parameters() - TINY.n_parameters() == 100 * 8
    assert replace(TINY, tie_embeddings=False).n_parameters_non_embedding() == TINY.n_parameters_non_embedding()


def test_flops_of_a_tiny_model_equal_those_counted_by_hand() -> None:
    # a layer: q 8x8, k and v 8x4, o 8x8 = 192; gate, up, down 3 * 8 * 16 = 384; output 8 * 100
    matrices = 2 * (2 * (192 + 384) + 800)
    # context 3: positions attend to 1, 2, 3; scores and weighted sum 2 * 2 * heads * head_dim each
    attention = 2 * 4 * 2 * 4 * (1 + 2 + 3) / 3
    assert TINY.forward_flops_per_token(3) == matrices + attention
    assert training_flops(TINY, 3, 10) == 30 * (matrices + attention)


def test_6nd_and_the_exact_count_agree_for_a_large_model_at_short_context() -> None:
    exact = training_flops(LLAMA_2_7B, 512, 10**9)
    assert training_flops_6nd(LLAMA_2_7B.n_parameters(), 10**9) == pytest.approx(exact, rel=0.03)


def test_longer_context_costs_more_by_attention_only() -> None:
    more = TINY.forward_flops_per_token(101) - TINY.forward_flops_per_token(1)
    assert more == 2 * 4 * 2 * 4 * 50
    assert generation_flops(TINY, 5, 5) == 10 * TINY.forward_flops_per_token(10)


def test_memory_parts_are_bytes_of_what_is_held() -> None:
    memory = training_memory(TINY, 64, trained_copies=2, frozen_copies=2)
    n = TINY.n_parameters()
    assert (memory.parameters, memory.gradients, memory.optimizer, memory.frozen_models) == (
        8 * n,
        8 * n,
        16 * n,
        8 * n,
    )
    assert memory.total == 40 * n + memory.activations_estimate
    mixed = training_memory(TINY, 64, bytes_per_parameter=2)
    assert mixed.optimizer == 12 * n  # two moments and a master copy


def test_recomputing_keeps_less_and_bigger_batches_keep_more() -> None:
    full, less = training_memory(LLAMA_2_7B, 2048), training_memory(LLAMA_2_7B, 2048, recompute=True)
    assert less.activations_estimate < 0.2 * full.activations_estimate
    assert training_memory(TINY, 4096).activations_estimate > 2 * training_memory(TINY, 1024).activations_estimate


def test_activation_estimate_is_near_what_a_layer_really_keeps() -> None:
    torch = pytest.importorskip("torch")
    from torch import nn

    hidden, heads, kv_heads, head_dim, inner, tokens = 96, 6, 3, 16, 256, 128
    shape = TransformerConfig(10, hidden, 1, heads, kv_heads, head_dim, inner, 64)
    saved: dict[int, int] = {}
    weights = [nn.Linear(a, b, bias=False) for a, b in (
        (hidden, heads * head_dim), (hidden, kv_heads * head_dim), (hidden, kv_heads * head_dim),
        (heads * head_dim, hidden), (hidden, inner), (hidden, inner), (inner, hidden))]  # fmt: skip
    ours = {weight.weight.untyped_storage().data_ptr() for weight in weights}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ours:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    q, k, v, o, gate, up, down = weights
    gain = nn.Parameter(torch.ones(hidden))
    angle = torch.randn(tokens, head_dim)
    x = torch.randn(tokens, hidden, requires_grad=True)
    alive = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        normed = nn.functional.rms_norm(x, (hidden,)) * gain
        parts = [m(normed).view(tokens, -1, head_dim) for m in (q, k, v)]
        rotated = [part.transpose(0, 1) * angle for part in parts[:2]]
        attended = nn.functional.scaled_dot_product_attention(
            rotated[0][None], rotated[1][None], parts[2].transpose(0, 1)[None], is_causal=True, enable_gqa=True
        )
        y = x + o(attended[0].transpose(0, 1).reshape(tokens, -1))
        normed2 = nn.functional.rms_norm(y, (hidden,)) * gain
        alive += [normed, parts, rotated, attended, y, normed2]
        z = y + down(nn.functional.silu(gate(normed2)) * up(normed2))
    from chatloom.scaling.compute import layer_activations

    assert 0.5 < sum(saved.values()) / (4 * tokens * layer_activations(shape)) < 1.6
    del z, alive


def test_cache_checkpoint_and_token_numbers() -> None:
    assert kv_cache_bytes(LLAMA_2_7B, 4096, bytes_per_value=2) == 2 * 1024**3  # the well-known 2 GiB at 4k tokens
    assert checkpoint_bytes(1_500_000) == 18_000_000
    assert checkpoint_bytes(1_500_000, with_optimizer=False) == 6_000_000
    assert compute_optimal_tokens(1_500_000) == 30_000_000


def test_impossible_rates_are_refused() -> None:
    with pytest.raises(ComputeError, match="rate 0"):
        seconds_estimate(1e9, 0)
    assert seconds_estimate(4e9, 1e10, utilisation=0.4) == pytest.approx(1.0)


def test_the_measured_rate_is_one_a_machine_can_have() -> None:
    assert 1e8 < measured_matmul_rate(size=128, seconds=0.02) < 1e16
