"""Promises of PPO's losses, KL estimators, controllers and best-of-n: identities at the start, finite, unbiased."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch

from chatloom.objectives.best_of_n import best_of_n_curve, best_of_n_kl, best_of_n_weights
from chatloom.objectives.kl import AdaptiveKL, FixedKL, approx_kl, policy_moved_too_far
from chatloom.objectives.policy_gradient import policy_loss, value_loss


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_where_nothing_has_moved_ratio_is_one_and_nothing_is_clipped() -> None:
    logprobs = -normal(3, 4).abs().requires_grad_()
    advantages = normal(3, 4, seed=1)
    terms = policy_loss(logprobs, logprobs.detach().clone(), advantages)
    assert (terms.ratio == 1).all()
    assert (terms.log_ratio == 0).all()
    assert (terms.clipped == 0).all()
    torch.testing.assert_close(terms.losses, -advantages)
    (grad,) = torch.autograd.grad(terms.losses.sum(), logprobs)
    torch.testing.assert_close(grad, -advantages)  # the plain policy gradient


def test_outside_the_clip_range_the_gradient_is_zero_only_where_moving_on_would_help() -> None:
    old = torch.zeros(4, dtype=torch.float64)
    logprobs = torch.tensor([0.5, 0.5, -0.5, -0.5], dtype=torch.float64, requires_grad=True)
    terms = policy_loss(logprobs, old, torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64))
    (grad,) = torch.autograd.grad(terms.losses.sum(), logprobs)
    assert terms.clipped.tolist() == [1.0, 0.0, 0.0, 1.0]
    assert (grad != 0).tolist() == [False, True, True, False]


def test_policy_and_value_gradients_pass_a_numerical_check() -> None:
    logprobs, old = normal(12).requires_grad_(), normal(12, seed=1)
    advantages, returns = normal(12, seed=2), normal(12, seed=3)
    assert torch.autograd.gradcheck(lambda x: policy_loss(x, old, advantages, dual_clip=2.0).losses, (logprobs,))
    assert torch.autograd.gradcheck(lambda x: value_loss(x, old, returns)[0], (logprobs,))


def test_extreme_ratios_stay_finite_forward_and_backward() -> None:
    logprobs = torch.tensor([0.0, -500.0], requires_grad=True)
    terms = policy_loss(logprobs, torch.tensor([-500.0, 0.0]), torch.tensor([-1.0, 1.0]))
    assert torch.isfinite(terms.losses).all()
    (grad,) = torch.autograd.grad(terms.losses.sum(), logprobs)
    assert torch.isfinite(grad).all()


def test_neither_old_values_nor_advantages_get_a_gradient() -> None:
    inputs = [normal(3, seed=s).requires_grad_() for s in range(3)]
    policy_loss(*inputs).losses.sum().backward()
    assert inputs[0].grad is not None
    assert inputs[1].grad is inputs[2].grad is None
    inputs = [normal(3, seed=s).requires_grad_() for s in range(3)]
    value_loss(*inputs)[0].sum().backward()
    assert inputs[1].grad is inputs[2].grad is None


def test_arguments_without_meaning_are_refused() -> None:
    x = torch.zeros(3)
    with pytest.raises(ValueError, match="one shape"):
        policy_loss(x, x, x[:2])
    with pytest.raises(ValueError, match="clip_low"):
        policy_loss(x, x, x, clip_low=1.0)
    with pytest.raises(ValueError, match="dual_clip"):
        policy_loss(x, x, x, dual_clip=1.0)
    with pytest.raises(ValueError, match="one shape"):
        value_loss(x, x, x[:2])
    with pytest.raises(ValueError, match="k1, k2 and k3"):
        approx_kl(x, x, "k4")


def test_k1_and_k3_are_unbiased_k3_is_never_negative_and_all_vanish_at_the_reference() -> None:
    p, q = normal(6).softmax(0), normal(6, seed=1).softmax(0)
    exact = float((p * (p / q).log()).sum())
    for estimator in ("k1", "k3"):
        assert float((p * approx_kl(p.log(), q.log(), estimator)).sum()) == pytest.approx(exact)
    assert (approx_kl(p.log(), q.log(), "k3") > 0).all()
    for estimator in ("k1", "k2", "k3"):
        assert (approx_kl(p.log(), p.log(), estimator) == 0).all()


def test_the_mean_gradient_of_k2_is_that_of_the_kl() -> None:
    logits, q = normal(6).requires_grad_(), normal(6, seed=1).log_softmax(0)
    logp = logits.log_softmax(0)
    (exact,) = torch.autograd.grad((logp.exp() * (logp - q)).sum(), logits, retain_graph=True)
    (mine,) = torch.autograd.grad((logp.exp().detach() * approx_kl(logp, q, "k2")).sum(), logits)
    torch.testing.assert_close(mine, exact)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_estimators_stay_finite_where_a_token_is_all_but_impossible(estimator: str) -> None:
    logprobs = torch.tensor([-1e4, -1e-8], requires_grad=True)
    got = approx_kl(logprobs, torch.tensor([-1e-8, -1e4]), estimator)
    assert torch.isfinite(got).all()
    (grad,) = torch.autograd.grad(got.sum(), logprobs)
    assert torch.isfinite(grad).all()


def test_adaptive_kl_moves_as_published_and_its_state_survives() -> None:
    controller = AdaptiveKL(0.1, target=6.0, horizon=100)
    controller.update(12.0, 10)  # error 1, held at .2
    assert controller.coefficient == pytest.approx(0.1 * 1.02)
    controller.update(5.4, 10)  # error -.1
    assert controller.coefficient == pytest.approx(0.1 * 1.02 * 0.99)
    controller.update(-3.0, 100)  # held at -.2
    assert controller.coefficient == pytest.approx(0.1 * 1.02 * 0.99 * 0.8)
    again = AdaptiveKL(0.1, target=6.0, horizon=100)
    again.load_state_dict(json.loads(json.dumps(controller.state_dict())))
    assert again == controller
    with pytest.raises(ValueError, match="measured KL is nan"):
        controller.update(math.nan, 1)
    with pytest.raises(ValueError, match="raise the horizon"):
        controller.update(1.0, 101)
    with pytest.raises(ValueError, match="expected above 0"):
        AdaptiveKL(0.1, target=0.0)


def test_fixed_kl_never_moves() -> None:
    controller = FixedKL(0.05)
    controller.update(100.0, 512)
    assert controller.state_dict() == {"coefficient": 0.05}
    controller.load_state_dict({"coefficient": 0.02})
    assert controller.coefficient == 0.02


def test_the_early_stop_fires_beyond_the_limit_and_on_what_is_no_number() -> None:
    assert not policy_moved_too_far(2.0, 10, 0.1)  # .5 * 2 / 10 = .1 is allowed
    assert policy_moved_too_far(2.1, 10, 0.1)
    assert not policy_moved_too_far(1e9, 10, None)
    assert policy_moved_too_far(math.nan, 10, 0.1)
    assert policy_moved_too_far(0.0, 0, 0.1)


def test_best_of_n_curve_equals_the_mean_over_all_draws_also_with_ties() -> None:
    proxy = torch.tensor([[3.0, 1.0, 2.0, 5.0, 4.0, 0.0], [1.0, 1.0, 2.0, 2.0, 0.0, 2.0]])
    gold = normal(2, 6)
    ns = range(1, 7)
    got = best_of_n_curve(proxy, gold, list(ns))
    for row, n in enumerate(ns):
        for prompt in range(2):
            picks = []
            for draw in itertools.combinations(range(6), n):
                best = max(float(proxy[prompt, i]) for i in draw)
                ties = [float(gold[prompt, i]) for i in draw if float(proxy[prompt, i]) == best]
                picks.append(sum(ties) / len(ties))
            assert float(got[row, prompt]) == pytest.approx(sum(picks) / len(picks))


def test_weights_of_best_of_n_are_a_distribution_even_for_large_pools() -> None:
    for pool, n in ((1, 1), (5, 2), (1000, 16), (2000, 1000)):
        weights = best_of_n_weights(pool, n)
        assert float(weights.sum()) == pytest.approx(1)
        assert (weights >= 0).all()
        assert float(weights[-1]) == pytest.approx(n / pool)  # the best of the pool is in n of pool draws
    with pytest.raises(ValueError, match="1 <= n <= pool"):
        best_of_n_weights(4, 5)
    with pytest.raises(ValueError, match="at least 1"):
        best_of_n_kl(0)
    with pytest.raises(ValueError, match="prompts, pool"):
        best_of_n_curve(torch.zeros(2, 3), torch.zeros(2, 4), [1])


def test_the_best_of_n_kl_is_that_of_the_density_of_the_largest_of_n() -> None:
    # The best of n has density n u^(n-1) in the quantile u; its KL to the uniform density, by the midpoint rule.
    for n in (2, 5, 16):
        u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
        density = n * u ** (n - 1)
        assert float((density * density.log()).mean()) == pytest.approx(best_of_n_kl(n), abs=1e-4)
