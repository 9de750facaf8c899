"""Promises of TransformerConfig: what cannot work is refused by name, and the accounting equals the real model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from chatloom.errors import ChatloomError
from chatloom.generation.kv_cache import KVCache
from chatloom.model.config import TransformerConfig
from chatloom.model.transformer import Transformer

SMALL = TransformerConfig(
    vocab_size=50,
    hidden_size=32,
    n_layers=3,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    intermediate_size=48,
    max_positions=64,
)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"n_layers": 2.0}, "n_layers is 2.0"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"n_kv_heads": 3}, "multiple of n_kv_heads"),
        ({"head_dim": 7}, "head_dim is 7"),
        ({"rope_theta": -1.0}, "rope_theta is -1.0"),
        ({"norm_eps": float("nan")}, "norm_eps is nan"),
        ({"initializer_range": float("inf")}, "initializer_range is inf"),
        ({"tie_embeddings": 1}, "tie_embeddings is 1"),
    ],
)
def test_a_size_that_cannot_work_is_refused_by_name(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ChatloomError, match=words):
        replace(SMALL, **change)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"tie_embeddings": False},
        {"qkv_bias": True, "output_bias": True},
        {"head_dim": 12},
        {"n_kv_heads": 1},
        {"n_kv_heads": 4},
    ],
)
def test_parameter_counts_equal_the_built_model(change: dict[str, Any]) -> None:
    config = replace(SMALL, **change)
    model = Transformer(config)
    assert config.n_parameters() == sum(p.numel() for p in model.parameters())
    embeddings = {id(model.embedding.weight): model.embedding.weight, id(model.unembedding): model.unembedding}
    assert config.n_parameters_non_embedding() == config.n_parameters() - sum(p.numel() for p in embeddings.values())


def test_forward_flops_equal_two_per_multiplication_of_the_matrices() -> None:
    model = Transformer(SMALL)
    matrices = sum(p.numel() for p in model.parameters() if p.dim() == 2)  # the tied embedding is used once, as output
    context = 7
    pairs = sum(t + 1 for t in range(context)) / context
    attention = SMALL.n_layers * 2 * SMALL.attention_size * pairs
    assert SMALL.forward_flops_per_token(context) == pytest.approx(2 * (matrices + attention))
    assert SMALL.flops_per_token(context) == pytest.approx(3 * SMALL.forward_flops_per_token(context))


def test_kv_bytes_per_token_equal_the_cache() -> None:
    cache = KVCache.empty(SMALL, batch=3, max_length=5, dtype=torch.float32)
    assert cache.n_bytes == 3 * 5 * SMALL.kv_bytes_per_token()
    half = KVCache.empty(SMALL, batch=3, max_length=5, dtype=torch.bfloat16)
    assert half.n_bytes == 3 * 5 * SMALL.kv_bytes_per_token(2)
