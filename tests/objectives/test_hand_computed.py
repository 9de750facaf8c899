"""Every loss and estimator equals a number worked out on paper; the working is in the comments.

Used throughout: softplus(x) = ln(1 + e^x) = -log sigmoid(-x), and softplus(x) = softplus(-x) + x.
softplus(-2) = .126928011, softplus(-1) = .313261688, softplus(0) = ln 2 = .693147181, softplus(1) = 1.313261688.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from chatloom.objectives import advantages, best_of_n, kl, masked, policy_gradient, preference, ranking
from chatloom.objectives.language_modeling import language_model_loss

TABLE = json.loads(Path(__file__).with_name("hand_computed.json").read_text(encoding="utf-8"))


def tensors(inputs: dict[str, Any]) -> dict[str, Tensor]:
    whole = ("groups", "targets")
    return {k: torch.tensor(v, dtype=torch.int64 if k in whole else torch.float64) for k, v in inputs.items()}


def pairwise_loss(inputs: dict[str, Tensor], **settings: Any) -> tuple[Any, ...]:
    # d = 2 and 0: softplus(-2), ln 2.             margin 1: d = 1 and -1: softplus(-1), softplus(1)
    # smoothing .1 at d = 2: .9 softplus(-2) + .1 softplus(2) = softplus(-2) + .1 * 2
    # centering .01: (2 + 0)^2 * .01 = .04 and (3 + 3)^2 * .01 = .36 on top
    return (ranking.pairwise_loss(**inputs, **settings),)


def k_wise_loss(inputs: dict[str, Tensor], **settings: Any) -> tuple[Any, ...]:
    # group 7: scores 2 > 1 > 0 in the right order: d = 1, 1, 2: (2 * .313261688 + .126928011) / 3, 3 pairs
    # group 3: both answers have rank 0, so no pair
    return ranking.k_wise_loss(**inputs, **settings)


def preference_terms(inputs: dict[str, Tensor], **settings: Any) -> tuple[Any, ...]:
    # chosen -1 against reference -2: log ratio +1, 2 tokens; rejected -4 against -3: log ratio -1, 4 tokens; h = 2
    # sigmoid, beta .5: softplus(-1).                      cdpo, e .1: softplus(-1) + .1 * 1
    # robust, e .1: (.9 * .313261688 - .1 * 1.313261688) / .8 = .150609350 / .8
    # hinge, beta .25: 1 - .5.                             ipo, beta .5: (2 - 1)^2
    # ipo_avg, beta .5: h = 1/2 + 1/4 = .75: (.75 - 1)^2;  sigmoid_avg, beta 4: softplus(-3) = .048587352
    # nll_weight .2: softplus(-1) + .2 * 1/2.              rewards: beta * log ratio (averaged for the _avg kinds)
    one = lambda value: torch.tensor([value], dtype=torch.float64)
    terms = preference.PreferenceLoss(**settings)(
        one(-1.0), one(-4.0), one(-2.0), one(-3.0), chosen_lengths=one(2.0), rejected_lengths=one(4.0)
    )
    return terms.losses, terms.chosen_rewards, terms.rejected_rewards


def approx_kl(inputs: dict[str, Tensor], **settings: Any) -> tuple[Any, ...]:
    # lr = ln 2 and -ln 2.  k2: (ln 2)^2 / 2.  k3: 1/2 - 1 + ln 2 and 2 - 1 - ln 2
    return (kl.approx_kl(**inputs, **settings),)


def kl_shaped_rewards(inputs: dict[str, Tensor], **settings: Any) -> tuple[Any, ...]:
    # -.1 * kl, and the score on the last token under the mask: .05 + 1 at place 1; -.1 - 2 at place 2
    # clip: 3 becomes 1; an answer without any token gets nothing
    return (advantages.kl_shaped_rewards(**inputs, **settings),)


def generalized_advantages(inputs: dict[str, Tensor], **settings: Any) -> tuple[Any, ...]:
    # gamma 1, lam .5: delta = (.6 - .5, .7 - .6, 1 - .7) = (.1, .1, .3); A = .3, .1 + .5 * .3 = .25, .1 + .5 * .25
    # the same answer one place to the right gives the same; a 9 under the mask is never seen
    # gamma .5, lam 1, a gap: A_3 = 4 - 2 = 2; A_1 = 2 + .5 * 2 - 1 + .5 * 2 = 3; returns 3 + 1 and 2 + 2
    return advantages.generalized_advantages(**inputs, **settings)


def discounted_returns(inputs: dict[str, Tensor], **settings: Any) -> tuple[Any, ...]:
    return (advantages.discounted_returns(**inputs, **settings),)  # 4, 2 + .5 * 4, 1 + .5 * 4


def explained_variance(inputs: dict[str, Tensor], **settings: Any) -> tuple[Any, ...]:
    return (advantages.explained_variance(**inputs, **settings),)  # error (0 + 1) / 2, variance of (1, 3) = 1


def whiten(inputs: dict[str, Tensor], **settings: Any) -> tuple[Any, ...]:
    # 1, 2, 3: mean 2, variance 2/2 = 1 (unbiased), 2/3 (biased): 1 / sqrt(2/3) = 1.224744871
    # 2, 4, 6 without shift: variance 4: (-1, 0, 1) + 4
    return (masked.whiten(**inputs, **settings),)


def policy_loss(inputs: dict[str, Tensor], **settings: Any) -> tuple[Any, ...]:
    # ln 1.5 = .405465108, ln .5 = -.693147181, ln 5 = 1.609437912, so ratios 1.5, 1.5, .5, .5, 5
    # A 1: max(-1.5, -1.2); A -1: max(1.5, 1.2); A 1: max(-.5, -.8); A -1: max(.5, .8); A -1: max(5, 1.2) = 5, at most 3
    # high 1.28: A 2: max(-3, -2.56); A -1 at ratio 5 without dual clip: 5
    terms = policy_gradient.policy_loss(**inputs, **settings)
    return terms.losses, terms.clipped


def value_loss(inputs: dict[str, Tensor], **settings: Any) -> tuple[Any, ...]:
    # clipped value 1.5.  R 0: max(4, 2.25) / 2.  R 3: max(1, 2.25) / 2, clipping decided
    return policy_gradient.value_loss(**inputs, **settings)


def best_of_n_curve(inputs: dict[str, Tensor], **settings: Any) -> tuple[Any, ...]:
    # weights of n = 2 from 4: 0, 1/6, 2/6, 3/6: (2 + 6 + 12) / 6.  n = 1: mean; n = 4: the best
    # ties: gold (1.5, 1.5, 4, 4): 1.5 / 6 + 4 * 5/6
    return (best_of_n.best_of_n_curve(**inputs, **settings),)


def language_model(inputs: dict[str, Tensor], **settings: Any) -> tuple[Any, ...]:
    # logits (ln 3, 0): p = 3/4, 1/4: 1 * ln(4/3) + 2 * ln 4 = .287682072 + 2.772588722
    # z_loss .5: norm = ln 4, so 3 * .5 * (ln 4)^2 = 1.5 * 1.921812056 on top
    return tuple(language_model_loss(**inputs, **settings))


FUNCTIONS: dict[str, Callable[..., tuple[Any, ...]]] = {
    "preference": preference_terms, "language_model_loss": language_model, "pairwise_loss": pairwise_loss,
    "k_wise_loss": k_wise_loss, "approx_kl": approx_kl, "kl_shaped_rewards": kl_shaped_rewards,
    "generalized_advantages": generalized_advantages, "discounted_returns": discounted_returns,
    "explained_variance": explained_variance, "whiten": whiten, "policy_loss": policy_loss,
    "value_loss": value_loss, "best_of_n_curve": best_of_n_curve,
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE, ids=[f"{i}-{case['function']}" for i, case in enumerate(TABLE)])
def test_value_equals_the_hand_computed_one(case: dict[str, Any]) -> None:
    got = FUNCTIONS[case["function"]](tensors(case["inputs"]), **case["settings"])
    assert len(got) == len(case["outputs"])
    for value, expected in zip(got, case["outputs"]):
        torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64), atol=2e-8, rtol=0)


def test_every_function_has_a_hand_computed_value() -> None:
    assert {case["function"] for case in TABLE} == set(FUNCTIONS)


@pytest.mark.parametrize(
    ("n", "nats"),
    # log n - (n - 1) / n; the first seven as published by rounding, e.g. n = 4: 1.386294 - .75 = .636294
    [(1, 0.0), (2, 0.19), (4, 0.64), (8, 1.20), (16, 1.84), (64, 3.18), (128, 3.86), (1000, 5.91), (60_000, 10.0)],
)
def test_kl_of_best_of_n(n: int, nats: float) -> None:
    assert best_of_n.best_of_n_kl(n) == pytest.approx(nats, abs=0.006)
