"""Promises of the ranking losses: ln 2 at equal scores, order-free, K = 2 is a pair, exact gradients."""

from __future__ import annotations

import math

import pytest
import torch

from chatloom.objectives.ranking import (
    k_wise_loss,
    ordered_pairs,
    pairwise_loss,
    pairwise_value_at_equal_scores,
    ranked_right,
)


@pytest.mark.parametrize(("margin", "smoothing"), [(0.0, 0.0), (0.0, 0.2), (1.5, 0.0), (0.7, 0.1)])
def test_the_declared_value_holds_where_scores_are_equal(margin: float, smoothing: float) -> None:
    zero = torch.zeros(3, dtype=torch.float64)
    losses = pairwise_loss(zero, zero, margin=margin, label_smoothing=smoothing, centering=0.01)
    declared = pairwise_value_at_equal_scores(margin, smoothing)
    assert losses.tolist() == pytest.approx([declared] * 3, rel=1e-12)
    assert pairwise_value_at_equal_scores() == pytest.approx(math.log(2))


def test_a_shift_of_both_scores_changes_nothing_without_centering() -> None:
    a, b = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    torch.testing.assert_close(pairwise_loss(a + 3, b + 3), pairwise_loss(a, b))
    assert (pairwise_loss(a + 3, b + 3, centering=0.1) != pairwise_loss(a, b, centering=0.1)).all()


def test_pairs_far_apart_stay_finite() -> None:
    far = torch.tensor([1e4, -1e4])
    assert pairwise_loss(far, -far).tolist() == [0.0, 2e4]


def test_k_wise_with_two_answers_is_the_pairwise_loss() -> None:
    chosen, rejected = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    scores = torch.stack([chosen, rejected], 1).flatten()
    ranks = torch.tensor([0, 1] * 6)
    groups = torch.arange(6).repeat_interleave(2)
    losses, pairs = k_wise_loss(scores, ranks, groups)
    torch.testing.assert_close(losses, pairwise_loss(chosen, rejected))
    assert pairs.tolist() == [1.0] * 6
    margin = torch.rand(6, dtype=torch.float64)
    options = {"label_smoothing": 0.1, "centering": 0.02}
    losses, _ = k_wise_loss(scores, ranks, groups, margin=margin.repeat_interleave(2), **options)
    torch.testing.assert_close(losses, pairwise_loss(chosen, rejected, margin=margin, **options))


def test_ordered_pairs_are_those_of_one_group_with_unequal_ranks() -> None:
    ranks, groups = torch.tensor([0, 1, 0, 1, 1]), torch.tensor([4, 4, 8, 8, 8])
    better, worse = ordered_pairs(ranks, groups)
    assert list(zip(better.tolist(), worse.tolist())) == [(0, 1), (2, 3), (2, 4)]


def test_k_wise_does_not_depend_on_the_order_of_answers_or_on_other_groups() -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(12, generator=generator, dtype=torch.float64)
    ranks = torch.tensor([0, 1, 2, 3, 0, 1, 1, 2, 0, 1, 2, 2])
    groups = torch.tensor([5] * 4 + [2] * 4 + [9] * 4)
    losses, pairs = k_wise_loss(scores, ranks, groups)
    order = torch.randperm(12, generator=generator)
    shuffled, _ = k_wise_loss(scores[order], ranks[order], groups[order])
    torch.testing.assert_close(shuffled, losses)
    assert pairs.tolist() == [5.0, 6.0, 5.0]  # group 2 (0, 1, 1, 2), then group 5 with all 6, then group 9
    for place, group in enumerate([2, 5, 9]):
        mine = groups == group
        alone, _ = k_wise_loss(scores[mine], ranks[mine], groups[mine])
        torch.testing.assert_close(alone[0], losses[place])


def test_gradients_pass_a_numerical_check_and_sum_to_zero() -> None:
    scores = torch.randn(7, dtype=torch.float64, requires_grad=True)
    ranks, groups = torch.tensor([0, 1, 2, 0, 2, 1, 0]), torch.tensor([0, 0, 0, 1, 1, 1, 2])
    assert torch.autograd.gradcheck(lambda s: k_wise_loss(s, ranks, groups)[0], (scores,))
    (grad,) = torch.autograd.grad(k_wise_loss(scores, ranks, groups)[0].sum(), scores)
    assert grad.sum().abs() < 1e-12
    assert grad[6] == 0  # alone in its group
    assert grad[0] < 0 < grad[2]  # the best is pushed up, the worst down
    other = torch.randn(7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda a, b: pairwise_loss(a, b, margin=0.3, label_smoothing=0.1, centering=0.02), (scores, other)
    )


def test_ties_count_half() -> None:
    assert ranked_right(torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.0, 0.0, 3.0])).tolist() == [1.0, 0.5, 0.0]


def test_arguments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        pairwise_loss(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="label_smoothing"):
        pairwise_loss(torch.zeros(2), torch.zeros(2), label_smoothing=0.5)
    with pytest.raises(ValueError, match=r"expected \[n\] each"):
        k_wise_loss(torch.zeros(2), torch.zeros(2), torch.zeros(3))
