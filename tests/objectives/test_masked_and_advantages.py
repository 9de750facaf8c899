"""Promises of the token statistics: padding never counts, whatever it holds, and answers do not see each other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from chatloom.objectives import masked
from chatloom.objectives.advantages import (
    discounted_returns,
    explained_variance,
    generalized_advantages,
    kl_shaped_rewards,
)


def laid_out(rows: list[list[float]], time: int, offset: int, filler: float) -> tuple[Tensor, Tensor]:
    """Rows as [batch, time] after `offset` places of filler, and the mask."""
    values = torch.full((len(rows), time), filler, dtype=torch.float64)
    mask = torch.zeros_like(values)
    for i, row in enumerate(rows):
        values[i, offset : offset + len(row)] = torch.tensor(row, dtype=torch.float64)
        mask[i, offset : offset + len(row)] = 1
    return values, mask


ROWS = st.lists(st.lists(st.floats(-5, 5), min_size=1, max_size=6), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, extra=st.integers(0, 3), offset=st.integers(0, 3), filler=st.sampled_from([0.0, 1e30, float("nan")]))
def test_results_do_not_depend_on_padding_side_amount_or_content(
    rows: list[list[float]], extra: int, offset: int, filler: float
) -> None:
    time = max(len(row) for row in rows)
    plain, plain_mask = laid_out(rows, time, 0, 0.0)
    padded, padded_mask = laid_out(rows, time + offset + extra, offset, filler)
    real, plain_real = padded_mask.bool(), plain_mask.bool()

    def same(got: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(got[real], expected[plain_real], atol=1e-9, rtol=1e-9)
        assert (got[~real] == 0).all()

    for shift in (True, False):
        same(
            masked.whiten(padded, padded_mask, shift_mean=shift),
            masked.whiten(plain, plain_mask, shift_mean=shift),
        )
    torch.testing.assert_close(masked.masked_mean(padded, padded_mask), plain[plain_real].mean())
    torch.testing.assert_close(
        masked.masked_mean(padded, padded_mask, dim=1), torch.tensor([sum(r) / len(r) for r in rows]).double()
    )
    for got, expected in zip(
        generalized_advantages(padded, padded.roll(1, 0), padded_mask * padded_mask.roll(1, 0)),
        generalized_advantages(plain, plain.roll(1, 0), plain_mask * plain_mask.roll(1, 0)),
    ):
        both, plain_both = (padded_mask * padded_mask.roll(1, 0)).bool(), (plain_mask * plain_mask.roll(1, 0)).bool()
        torch.testing.assert_close(got[both], expected[plain_both], atol=1e-9, rtol=1e-9)
    same(discounted_returns(padded, padded_mask, gamma=0.9), discounted_returns(plain, plain_mask, gamma=0.9))
    scores = torch.arange(len(rows), dtype=torch.float64)
    same(
        kl_shaped_rewards(scores, padded, padded_mask, kl_coef=0.1),
        kl_shaped_rewards(scores, plain, plain_mask, kl_coef=0.1),
    )


@settings(max_examples=40, deadline=None)
@given(rows=ROWS)
def test_advantages_of_an_answer_do_not_depend_on_the_batch(rows: list[list[float]]) -> None:
    rewards, mask = laid_out(rows, 6, 0, 0.0)
    values = rewards.flip(1).cumsum(1) * mask
    together, _ = generalized_advantages(rewards, values, mask, gamma=0.97, lam=0.8)
    for i in range(len(rows)):
        alone, _ = generalized_advantages(rewards[i : i + 1], values[i : i + 1], mask[i : i + 1], gamma=0.97, lam=0.8)
        torch.testing.assert_close(alone[0], together[i])


def test_lambda_one_gives_return_minus_value_and_lambda_zero_the_one_step_error() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards, values = (torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 1, 1, 0]])
    a, returns = generalized_advantages(rewards, values, mask, gamma=0.9, lam=1.0)
    expected = discounted_returns(rewards, mask, gamma=0.9)
    torch.testing.assert_close(returns, expected)
    torch.testing.assert_close(a, (expected - values) * mask)
    a, _ = generalized_advantages(rewards, values, mask, gamma=0.9, lam=0.0)
    assert a[0, 4] == pytest.approx(float(rewards[0, 4] - values[0, 4]))
    assert a[1, 0] == pytest.approx(float(rewards[1, 0] + 0.9 * values[1, 1] - values[1, 0]))


def test_a_perfect_critic_has_zero_advantage_and_explains_everything() -> None:
    rewards = torch.tensor([[0.0, 0.0, 1.0], [0.0, 3.0, 0.0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    values = discounted_returns(rewards, mask)
    advantages, returns = generalized_advantages(rewards, values, mask)
    assert advantages.abs().max() == 0
    assert explained_variance(values, returns, mask) == 1
    assert explained_variance(torch.full_like(returns, float(masked.masked_mean(returns, mask))), returns, mask) == 0
    assert torch.isnan(explained_variance(values, torch.ones_like(values), mask))


def test_no_gradient_flows_through_advantages() -> None:
    values = torch.randn(2, 3, requires_grad=True)
    advantages, returns = generalized_advantages(torch.ones(2, 3), values, torch.ones(2, 3))
    assert not advantages.requires_grad
    assert not returns.requires_grad


def test_the_score_of_an_answer_adds_up_once_whether_it_ended_or_was_cut() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0]])
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0])
    rewards = kl_shaped_rewards(scores, torch.zeros(4, 4), mask, kl_coef=1.0)
    assert rewards.sum(1).tolist() == [1.0, 2.0, 3.0, 0.0]
    assert [rewards[0, 1], rewards[1, 3], rewards[2, 2]] == [1.0, 2.0, 3.0]
    assert masked.last_real(mask).tolist() == [1, 3, 2, -1]


def test_whitened_values_have_mean_zero_and_variance_one() -> None:
    values, mask = torch.randn(4, 6, dtype=torch.float64) * 3 + 7, torch.ones(4, 6)
    mask[:, 4:] = 0
    white = masked.whiten(values, mask)
    assert abs(float(masked.masked_mean(white, mask))) < 1e-12
    assert float(masked.masked_variance(white, mask)) == pytest.approx(1, abs=1e-6)
    kept = masked.whiten(values, mask, shift_mean=False)
    assert float(masked.masked_mean(kept, mask)) == pytest.approx(float(masked.masked_mean(values, mask)))


def test_variance_of_large_close_numbers_does_not_cancel() -> None:
    values = torch.tensor([10000.0, 10000.5, 10001.0])
    assert float(masked.masked_variance(values, torch.ones(3))) == pytest.approx(0.25)
    assert float(masked.masked_variance(torch.tensor([3.0]), torch.ones(1))) == 0


def test_an_empty_mask_gives_zeros_not_nan() -> None:
    values, mask = torch.full((2, 3), torch.nan), torch.zeros(2, 3)
    assert float(masked.masked_mean(values, mask)) == 0
    assert masked.whiten(values, mask).tolist() == [[0.0] * 3] * 2
    assert masked.sequence_mean_weights(mask).tolist() == [[0.0] * 3] * 2


def test_sequence_mean_weights_give_every_answer_the_same_say() -> None:
    values, mask = torch.tensor([[1.0, 9.0], [4.0, 6.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    weights = masked.sequence_mean_weights(mask)
    assert float((values * weights).sum() / weights.sum()) == pytest.approx((1 + 5) / 2)
