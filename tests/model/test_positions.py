"""Promises of positions: each formula against its paper or transformers' own, and what it is meant to give."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from chatloom.errors import ChatloomError
from chatloom.model.config import TransformerConfig
from chatloom.model.position_bias import alibi_slopes, distances, t5_buckets
from chatloom.model.positions import RotaryTable, rotate, sinusoids, xpos_scales
from chatloom.model.rope_scaling import RopeScaling, attention_factor, inverse_frequencies
from chatloom.model.transformer import Transformer

CONFIG = TransformerConfig(
    vocab_size=40,
    hidden_size=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    intermediate_size=48,
    max_positions=64,
    initializer_range=0.3,
)
TOKENS = torch.randint(0, 40, (1, 12), generator=torch.Generator().manual_seed(0))


def products(positions_q: torch.Tensor, positions_k: torch.Tensor, kind: str) -> torch.Tensor:
    """Scores of one query and one key vector placed at pairs of positions."""
    generator = torch.Generator().manual_seed(1)
    q, k = (torch.randn(1, 1, 1, 16, generator=generator, dtype=torch.float64) for _ in range(2))
    table = RotaryTable(16, 512, 10000.0)
    turned = []
    for vector, positions, sign in ((q, positions_q, 1), (k, positions_k, -1)):
        cos, sin = table(positions[None], torch.float64)
        x = rotate(vector.expand(1, len(positions), 1, 16), cos, sin)
        if kind == "xpos":
            x = x * xpos_scales(positions[None], 16, torch.float64) ** sign
        turned.append(x[0, :, 0])
    return (turned[0] * turned[1]).sum(-1)


@pytest.mark.parametrize("kind", ["rope", "xpos"])
def test_a_score_depends_on_the_distance_alone(kind: str) -> None:
    near = products(torch.tensor([3, 40, 200]), torch.tensor([1, 38, 198]), kind)
    torch.testing.assert_close(near, near[:1].expand(3), atol=1e-4, rtol=1e-4)
    far = products(torch.tensor([90, 200]), torch.tensor([10, 120]), kind)
    torch.testing.assert_close(far[0], far[1], atol=1e-4, rtol=1e-4)
    assert abs(float(near[0] - far[0])) > 1e-2


def test_xpos_shrinks_each_pair_with_distance() -> None:
    """Sun et al. 2022, section 3: pair i of a score at distance n is multiplied by zeta_i^(n / 512)."""
    queries, keys = (
        xpos_scales(torch.tensor([[300]]), 8, torch.float64),
        xpos_scales(torch.tensor([[44]]), 8, torch.float64),
    )
    zeta = np.array([(2 * i / 8 + 0.4) / 1.4 for i in range(4)])
    np.testing.assert_allclose((queries / keys)[0, 0, 0, :4].numpy(), zeta ** (256 / 512), rtol=1e-5)
    assert (queries / keys)[0, 0, 0, 3] > (queries / keys)[0, 0, 0, 0]


def test_alibi_slopes_are_the_published_ones() -> None:
    """Press et al. 2022, section 3: for 8 heads 1/2 ... 1/256; for 16 the square root of one half as first ratio."""
    assert alibi_slopes(8).tolist() == [2.0**-h for h in range(1, 9)]
    torch.testing.assert_close(alibi_slopes(16)[:2], torch.tensor([2**-0.5, 2**-1.0]))
    twelve = [2.0**-h for h in range(1, 9)] + [2 ** -(0.5 + h) for h in range(4)]
    torch.testing.assert_close(alibi_slopes(12), torch.tensor(twelve))


def test_alibi_adds_minus_slope_times_distance() -> None:
    model = Transformer(replace(CONFIG, positions="alibi"))
    assert model.position_bias is not None
    bias = model.position_bias(3, 5, torch.device("cpu"))
    for head, slope in enumerate(2.0 ** -(2 * h) for h in range(1, 5)):
        expected = [[-slope * abs(i + 2 - j) for j in range(5)] for i in range(3)]
        torch.testing.assert_close(bias[head], torch.tensor(expected))


def test_t5_buckets_equal_those_of_transformers() -> None:
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    relative = torch.arange(-40, 300).neg()  # theirs is key - query
    theirs = t5.T5Attention._relative_position_bucket(relative, bidirectional=False, num_buckets=32, max_distance=128)
    assert torch.equal(t5_buckets(relative.neg()), theirs)
    assert distances(2, 4, torch.device("cpu")).tolist() == [[2, 1, 0, -1], [3, 2, 1, 0]]


def test_sinusoids_are_vaswanis() -> None:
    found = sinusoids(torch.tensor([[0, 7]]), 6)[0]
    for place, position in enumerate((0, 7)):
        for i in range(3):
            angle = position / 10000 ** (2 * i / 6)
            assert found[place, 2 * i] == pytest.approx(math.sin(angle), abs=1e-6)
            assert found[place, 2 * i + 1] == pytest.approx(math.cos(angle), abs=1e-6)


SCALINGS: dict[str, tuple[RopeScaling, dict[str, Any]]] = {
    "linear": (RopeScaling("linear", 4.0), {"rope_type": "linear", "factor": 4.0}),
    "llama3": (
        RopeScaling("llama3", 8.0, original=64),
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 64},
    ),
    "yarn": (
        RopeScaling("yarn", 4.0, original=64),
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    ),
    "yarn, fast": (
        RopeScaling("yarn", 4.0, original=256, beta_fast=8.0, beta_slow=2.0, attention_factor=1.1),
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256, "beta_fast": 8.0,
         "beta_slow": 2.0, "attention_factor": 1.1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCALINGS)
def test_scaled_angles_equal_those_of_transformers(name: str) -> None:
    rope = pytest.importorskip("transformers.modeling_rope_utils")
    from transformers import LlamaConfig

    ours, theirs = SCALINGS[name]
    config = LlamaConfig(
        hidden_size=128, num_attention_heads=4, max_position_embeddings=256,
        rope_parameters={"rope_theta": 500.0, **theirs},
    )  # fmt: skip
    frequencies, factor = rope.ROPE_INIT_FUNCTIONS[theirs["rope_type"]](config, torch.device("cpu"))
    torch.testing.assert_close(inverse_frequencies(32, 500.0, ours), frequencies)
    assert attention_factor(ours) == pytest.approx(factor)


def test_ntk_scaling_divides_the_slowest_angle_by_the_factor_and_keeps_the_fastest() -> None:
    plain, scaled = inverse_frequencies(32, 1e4, None), inverse_frequencies(32, 1e4, RopeScaling("ntk", 4.0))
    assert scaled[0] == plain[0] == 1.0
    assert float(scaled[-1]) == pytest.approx(float(plain[-1]) / 4, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"factor": 0.5}, "factor is 0.5"),
        ({"kind": "dynamic"}, "kind is 'dynamic'"),
        ({"original": None}, "original is None"),
        ({"low": 4.0}, "low is 4.0"),
        ({"beta_fast": -1.0}, "beta_fast is -1.0"),
    ],
)
def test_a_scaling_that_cannot_work_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ChatloomError, match=words):
        RopeScaling(**{"kind": "llama3", "factor": 2.0, "original": 64, **change})


@pytest.mark.parametrize("positions", ["rope", "xpos", "learned", "sinusoidal", "t5", "alibi"])
def test_order_matters_with_every_kind_of_positions(positions: str) -> None:
    model = Transformer(replace(CONFIG, positions=positions), generator=torch.Generator().manual_seed(0))
    swapped = TOKENS[:, [1, 0, *range(2, 12)]]
    assert (model(TOKENS)[0, -1] - model(swapped)[0, -1]).abs().max() > 1e-4


def test_without_positions_only_the_causal_order_is_left() -> None:
    """One layer without positions sees a set: the last token's state does not depend on the order of the others."""
    model = Transformer(replace(CONFIG, positions="none", n_layers=1), generator=torch.Generator().manual_seed(0))
    swapped = TOKENS[:, [5, 1, 0, *range(3, 5), 2, *range(6, 12)]]
    torch.testing.assert_close(model(TOKENS)[0, -1], model(swapped)[0, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", ["xpos", "sinusoidal", "t5", "alibi", "none"])
def test_positions_without_a_table_go_on_beyond_the_context(positions: str) -> None:
    model = Transformer(replace(CONFIG, positions=positions, max_positions=12 if positions != "xpos" else 64))
    assert model(TOKENS.repeat(1, 4)).isfinite().all()


@pytest.mark.parametrize("positions", ["rope", "xpos"])
def test_a_text_further_on_is_read_alike(positions: str) -> None:
    """Only distances count, in the whole decoder: every place moved by as much changes nothing."""
    model = Transformer(replace(CONFIG, positions=positions), generator=torch.Generator().manual_seed(0))
    moved = torch.arange(12)[None] + 40
    torch.testing.assert_close(model(TOKENS), model(TOKENS, moved), atol=1e-4, rtol=1e-4)
    far = torch.arange(12)[None] * 4
    assert (model(TOKENS) - model(TOKENS, far)).abs().max() > 1e-2


def test_sinusoids_are_added_to_embeddings_times_the_root_of_the_width() -> None:
    """Vaswani et al. 2017, 3.4 and 3.5."""
    model = Transformer(replace(CONFIG, positions="sinusoidal"))
    found = model._embed(TOKENS, torch.arange(12)[None])
    expected = math.sqrt(32) * model.embedding.weight[TOKENS] + sinusoids(torch.arange(12)[None], 32)
    torch.testing.assert_close(found, expected)


def test_in_attention_xpos_shrinks_queries_and_stretches_keys() -> None:
    attention = Transformer(replace(CONFIG, positions="xpos")).layers[0].attention
    positions = torch.tensor([[300]])
    cos, sin = RotaryTable(8, 512, 10000.0)(positions, torch.float32)
    scale = xpos_scales(positions, 8, torch.float32)
    heads = torch.randn(1, 1, 6, 8, generator=torch.Generator().manual_seed(0))
    plain, scaled = attention._turn(heads, (cos, sin)), attention._turn(heads, (cos, sin, scale))
    torch.testing.assert_close(scaled[:, :, :4], plain[:, :, :4] * scale)
    torch.testing.assert_close(scaled[:, :, 4:], plain[:, :, 4:] / scale)
