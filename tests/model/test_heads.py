"""Promises of the reward and value heads."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from chatloom.errors import ChatloomError
from chatloom.model.config import TransformerConfig
from chatloom.model.heads import RewardModel, ValueModel
from chatloom.model.transformer import Transformer
from chatloom.tokens.packing import Segment, pack

CONFIG = TransformerConfig(
    vocab_size=60,
    hidden_size=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    intermediate_size=48,
    max_positions=64,
    initializer_range=0.2,
)


def make(config: TransformerConfig = CONFIG, seed: int = 0) -> RewardModel:
    generator = torch.Generator().manual_seed(seed)
    return RewardModel(Transformer(config, generator=generator), generator=generator)


def two_packed() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    a, b = (torch.randint(0, 60, (n,), generator=torch.Generator().manual_seed(n)) for n in (5, 8))
    pad = torch.zeros(3, dtype=torch.int64)
    tokens = torch.cat([a, b, pad])[None]
    positions = torch.cat([torch.arange(5), torch.arange(8), pad])[None]
    segments = torch.tensor([[0] * 5 + [1] * 8 + [-1] * 3])
    return tokens, positions, segments, [a, b]


def test_rewards_are_read_at_the_last_real_token_of_each_segment() -> None:
    model = make()
    tokens, positions, segments, pieces = two_packed()
    rows, ends = torch.tensor([0, 0]), torch.tensor([4, 12])
    packed = model(tokens, positions, segments, rows, ends)
    apart = torch.cat(
        [
            model(p[None], torch.arange(len(p))[None], None, torch.tensor([0]), torch.tensor([len(p) - 1]))
            for p in pieces
        ]
    )
    torch.testing.assert_close(packed, apart, atol=1e-5, rtol=1e-5)
    batch = pack([Segment(piece.numpy(), np.ones(len(piece))) for piece in pieces], 16, pad_id=0, trim=False)
    torch.testing.assert_close(model.rewards(batch), packed, atol=1e-5, rtol=1e-5)


def test_normalisation_is_folded_into_the_weights_and_composes() -> None:
    model = make()
    hidden = torch.randn(200, 32, generator=torch.Generator().manual_seed(1))
    raw = model.rewards_from_hidden(hidden).detach()
    mean, std = raw.mean().item(), raw.std().item()
    model.normalise(1 / std, -mean / std)
    rewards = model.rewards_from_hidden(hidden)
    assert rewards.mean().item() == pytest.approx(0, abs=1e-5)
    assert rewards.std().item() == pytest.approx(1, abs=1e-5)
    model.normalise(2.0, 3.0)
    torch.testing.assert_close(model.rewards_from_hidden(hidden), 2 * rewards + 3, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("gain", "bias"), [(0.0, 0.0), (-1.0, 0.0), (math.inf, 0.0), (1.0, math.nan)])
def test_a_normalisation_that_breaks_rankings_is_refused(gain: float, bias: float) -> None:
    with pytest.raises(ChatloomError, match="positive gain"):
        make().normalise(gain, bias)


def test_the_score_starts_at_its_published_spread() -> None:
    model = make(replace(CONFIG, hidden_size=4096, intermediate_size=8, n_layers=1))
    assert model.score.weight.std().item() == pytest.approx(1 / math.sqrt(4097), rel=0.05)
    assert model.score.bias is None
    assert torch.equal(make(seed=5).score.weight, make(seed=5).score.weight)


def test_the_bias_is_not_trained_and_travels_with_the_state() -> None:
    model = make()
    model.normalise(1.0, 0.75)
    assert "bias" not in dict(model.named_parameters())
    other = make(seed=9)
    other.load_state_dict(model.state_dict())
    assert other.bias.item() == 0.75


def test_an_output_matrix_of_its_own_is_left_behind() -> None:
    body = Transformer(replace(CONFIG, tie_embeddings=False))
    model = RewardModel(body)
    assert body.output_embedding is not None, "the caller's network must stay whole"
    assert all("output_embedding" not in name for name, _ in model.named_parameters())
    assert model.config.tie_embeddings
    tokens = torch.tensor([[3, 4, 5]])
    assert torch.equal(model.body(tokens), body(tokens))


def test_values_start_at_zero_and_are_made_for_every_position() -> None:
    tokens, positions, segments, _ = two_packed()
    values = ValueModel(make().body)(tokens, positions, segments)
    assert values.shape == tokens.shape
    assert values.eq(0).all()


def test_a_value_model_from_a_reward_model_starts_as_it_with_weights_of_its_own() -> None:
    reward = make()
    reward.normalise(0.5, 1.5)
    value = ValueModel.from_reward_model(reward)
    tokens, positions, segments, _ = two_packed()
    rows, ends = torch.tensor([0, 0]), torch.tensor([4, 12])
    expected = reward(tokens, positions, segments, rows, ends)
    torch.testing.assert_close(value(tokens, positions, segments)[rows, ends], expected)
    with torch.no_grad():
        for parameter in value.parameters():
            parameter.zero_()
    assert torch.equal(reward(tokens, positions, segments, rows, ends), expected)
