"""Promises of sampled answers as tables: every token's number in its place, the sampler and the trainer of one mind."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chatloom.generation.engine import generate
from chatloom.generation.sampling import Sampling
from chatloom.model.config import TransformerConfig
from chatloom.model.heads import RewardModel, ValueModel
from chatloom.model.transformer import Transformer
from chatloom.training.forward import score, segment_logprobs
from chatloom.training.rollouts import Answers, answers, batches_of, logprob_table, reward_scores, value_table

CONFIG = TransformerConfig(
    vocab_size=50, hidden_size=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, intermediate_size=48,
    max_positions=32, initializer_range=0.4,
)  # fmt: skip
STOPS = list(range(6, 9))


@pytest.fixture(scope="module")
def model() -> Transformer:
    return Transformer(CONFIG, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def reward() -> RewardModel:
    body = Transformer(CONFIG, generator=torch.Generator().manual_seed(1))
    model = RewardModel(body, generator=torch.Generator().manual_seed(2))
    model.normalise(1.3, -0.4)
    return model


def rolled_out(model: Transformer, temperature: float) -> Answers:
    draw = np.random.default_rng(0)
    prompts = [draw.integers(14, 50, int(n)).tolist() for n in draw.integers(2, 12, 24)]
    samples = generate(
        model, prompts, max_new_tokens=16, sampling=Sampling(temperature=temperature), seed=3, stop_ids=STOPS
    )
    drawn = [pool[0] for pool in samples]
    return answers(prompts, [s.tokens for s in drawn], [s.logprobs for s in drawn], [s.finished for s in drawn])


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.5])
@pytest.mark.parametrize("micro_tokens", [32, 4096])
def test_the_samplers_logprobs_are_the_trainers(model: Transformer, temperature: float, micro_tokens: int) -> None:
    rolled = rolled_out(model, temperature)
    assert 0 < int(rolled.ended.sum()) < len(rolled)  # both sorts of answers
    assert len(set(rolled.lengths.tolist())) > 3
    table, entropies = logprob_table(
        model, rolled, batches_of(rolled.segments, 32, micro_tokens, 0, "cpu"), temperature
    )
    assert float((table - rolled.sampler_logprobs).abs().max()) < 1e-4
    assert float(table[rolled.mask == 0].abs().max()) == 0.0
    assert float(entropies[rolled.mask == 1].min()) > 0.0
    # Negative control: another temperature is another policy.
    other, _ = logprob_table(model, rolled, batches_of(rolled.segments, 32, 4096, 0, "cpu"), 1.1 * temperature)
    assert float((other - rolled.sampler_logprobs).abs().max()) > 1e-2


def test_a_cell_holds_the_number_of_that_very_token(model: Transformer) -> None:
    rolled = rolled_out(model, 1.0)
    table, _ = logprob_table(model, rolled, batches_of(rolled.segments, 32, 64, 0, "cpu"), 1.0)
    for i, segment in enumerate(rolled.segments):
        ids = torch.from_numpy(segment.tokens)[None]
        with torch.no_grad():
            logprobs = model.logits(model(ids)).log_softmax(-1)[0]
        start = int(rolled.prompt_lengths[i])
        for j in range(int(rolled.lengths[i])):
            token = int(segment.tokens[start + j])
            assert float(table[i, j]) == pytest.approx(float(logprobs[start + j - 1, token]), abs=1e-4)


def test_values_are_read_at_the_state_before_each_token(model: Transformer, reward: RewardModel) -> None:
    rolled = rolled_out(model, 1.0)
    critic = ValueModel.from_reward_model(reward)
    table = value_table(critic, rolled, batches_of(rolled.segments, 32, 64, 0, "cpu"))
    for i, segment in enumerate(rolled.segments):
        with torch.no_grad():
            values = critic(torch.from_numpy(segment.tokens)[None])[0]
        start, length = int(rolled.prompt_lengths[i]) - 1, int(rolled.lengths[i])
        torch.testing.assert_close(table[i, :length], values[start : start + length], atol=1e-4, rtol=0)
        assert not table[i, length:].any()


def test_the_reward_is_read_at_the_last_real_token_whatever_the_padding(
    model: Transformer, reward: RewardModel
) -> None:
    rolled = rolled_out(model, 1.0)
    for micro_tokens in (32, 4096):
        scores = reward_scores(reward, batches_of(rolled.segments, 32, micro_tokens, 0, "cpu"), len(rolled))
        for i, segment in enumerate(rolled.segments):
            tokens = torch.from_numpy(segment.tokens)[None]
            last = len(segment) - 1
            with torch.no_grad():
                alone = reward(tokens, torch.arange(len(segment))[None], None, torch.tensor([0]), torch.tensor([last]))
            assert float(scores[i]) == pytest.approx(float(alone), abs=1e-4)


def test_a_critic_starts_as_the_reward_model(model: Transformer, reward: RewardModel) -> None:
    rolled = rolled_out(model, 1.0)
    critic = ValueModel.from_reward_model(reward)
    [batch] = batches_of(rolled.segments, 32, 4096, 0, "cpu")
    with torch.no_grad():
        values = critic(batch.tokens, batch.positions, batch.segments)[batch.segment_row, batch.segment_end]
        torch.testing.assert_close(values, reward.rewards(batch), atol=1e-5, rtol=0)
    before = reward.rewards(batch).detach()
    with torch.no_grad():
        for p in critic.parameters():
            p.add_(0.1)
    assert torch.equal(reward.rewards(batch).detach(), before)  # its weights are its own


def test_a_segments_logprob_is_the_sum_over_its_answer(model: Transformer) -> None:
    rolled = rolled_out(model, 1.0)
    [batch] = batches_of(rolled.segments, 32, 4096, 0, "cpu")
    with torch.no_grad():
        sums, lengths = segment_logprobs(model, batch)
        scored = score(model, batch)
    order = batch.group
    torch.testing.assert_close(sums, rolled.sampler_logprobs.sum(1)[order], atol=1e-3, rtol=0)
    assert torch.equal(lengths.long(), rolled.lengths[order])
    assert scored.entropies is None
    assert len(scored.logprobs) == int(rolled.lengths.sum())
