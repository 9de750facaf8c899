"""Losses and estimators equal the numbers of published implementations (OpenRLHF, TRL): 144 recorded cases."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from chatloom.objectives import advantages, kl, logprobs, masked, policy_gradient, preference, ranking
from chatloom.objectives.language_modeling import language_model_loss

CASES = {
    "pairwise_reward_loss": 12, "dpo_loss": 18, "approx_kl": 18, "kl_shaped_reward": 12, "gae": 18,
    "discounted_returns": 6, "masked_whiten": 12, "ppo_policy_loss": 24, "ppo_value_loss": 12,
    "lm_loss_shifted_ignore_index": 6, "token_logprobs_entropy": 6,
}  # fmt: skip


@pytest.fixture(scope="module")
def cases(shared_data: Path) -> list[dict[str, Any]]:
    with gzip.open(shared_data / "rlhf_reference" / "numeric_fixtures.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def mean_and_grad(losses: Tensor, weights: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """sum(weight * loss) / sum(weight), as the training loop takes it, and its gradients."""
    loss = (losses * weights).sum() / weights.sum()
    return loss.detach(), *torch.autograd.grad(loss, inputs)


def pairwise_reward_loss(p: dict[str, Any], chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0):
    losses = ranking.pairwise_loss(chosen, rejected, margin=margin)
    return dict(
        zip(("loss", "grad_chosen", "grad_rejected"), mean_and_grad(losses, torch.ones_like(losses), chosen, rejected))
    )


def dpo_loss(p: dict[str, Any], policy_chosen_logps: Tensor, policy_rejected_logps: Tensor, **reference: Tensor):
    kind = "ipo" if p["ipo"] else "cdpo" if p["label_smoothing"] else "sigmoid"
    terms = preference.PreferenceLoss(kind, p["beta"], p["label_smoothing"])(
        policy_chosen_logps,
        policy_rejected_logps,
        reference["reference_chosen_logps"],
        reference["reference_rejected_logps"],
    )
    loss, *grads = mean_and_grad(
        terms.losses, torch.ones_like(terms.losses), policy_chosen_logps, policy_rejected_logps
    )
    return {"loss": loss, "chosen_rewards": terms.chosen_rewards, "rejected_rewards": terms.rejected_rewards,
            "grad_policy_chosen": grads[0], "grad_policy_rejected": grads[1]}  # fmt: skip


def approx_kl(p: dict[str, Any], log_probs: Tensor, log_probs_base: Tensor):
    return {"kl": kl.approx_kl(log_probs, log_probs_base, p["estimator"])}


def kl_shaped_reward(p: dict[str, Any], score: Tensor, kl: Tensor, action_mask: Tensor):
    clip = tuple(p["reward_clip_range"]) if p["reward_clip_range"] else None
    return {"reward": advantages.kl_shaped_rewards(score, kl, action_mask, kl_coef=p["kl_coef"], score_clip=clip)}


def gae(p: dict[str, Any], values: Tensor, rewards: Tensor, action_mask: Tensor):
    got = advantages.generalized_advantages(rewards, values, action_mask, gamma=p["gamma"], lam=p["lam"])
    return dict(zip(("advantages", "returns"), got))


def discounted_returns(p: dict[str, Any], rewards: Tensor, action_mask: Tensor):
    return {"returns": advantages.discounted_returns(rewards, action_mask, gamma=p["gamma"])}


def masked_whiten(p: dict[str, Any], values: Tensor, mask: Tensor):
    return {"whitened": masked.whiten(values, mask, shift_mean=p["shift_mean"])}


def ppo_policy_loss(p: dict[str, Any], log_probs: Tensor, action_mask: Tensor, **fixed: Tensor):
    terms = policy_gradient.policy_loss(
        log_probs,
        fixed["old_log_probs"],
        fixed["advantages"],
        clip_low=p["clip_eps_low"],
        clip_high=p["clip_eps_high"],
        dual_clip=p.get("dual_clip"),
    )
    by_token = p.get("token_level_loss", True)
    weights = action_mask if by_token else masked.sequence_mean_weights(action_mask)
    loss, grad = mean_and_grad(terms.losses, weights, log_probs)
    return {"loss": loss, "grad_log_probs": grad, "clip_fraction": masked.masked_mean(terms.clipped, action_mask),
            "approx_kl_k1": masked.masked_mean(-terms.log_ratio, action_mask)}  # fmt: skip


def ppo_value_loss(p: dict[str, Any], values: Tensor, old_values: Tensor, returns: Tensor, action_mask: Tensor):
    losses, _ = policy_gradient.value_loss(values, old_values, returns, clip=p["clip_eps"])
    return dict(zip(("loss", "grad_values"), mean_and_grad(losses, action_mask, values)))


def lm_loss_shifted_ignore_index(p: dict[str, Any], logits: Tensor, labels: Tensor):
    labels = labels.long()[:, 1:].flatten()
    weights = (labels != p["ignore_index"]).double()
    vocab = logits.shape[-1]
    sums = language_model_loss(  # logits as hidden states of an identity unembedding
        logits[:, :-1].reshape(-1, vocab), torch.eye(vocab, dtype=torch.float64), labels.clamp(min=0), weights
    )
    return {"loss": (sums.total / sums.weight).detach()}


def token_logprobs_entropy(p: dict[str, Any], logits: Tensor, labels: Tensor):
    eye = torch.eye(logits.shape[-1], dtype=torch.float64)
    got = logprobs.token_logprobs(logits.flatten(0, 1), eye, labels.long().flatten(), with_entropy=True)
    return {name: value.reshape(labels.shape) for name, value in zip(("log_probs", "entropy"), got)}


def test_all_published_cases_are_there(cases: list[dict[str, Any]]) -> None:
    assert Counter(case["fn"] for case in cases) == CASES
    assert len(cases) == 144


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_equal_the_published_ones(name: str, cases: list[dict[str, Any]]) -> None:
    function: Callable[..., dict[str, Tensor]] = globals()[name]
    tolerance = 1e-5 if name == "approx_kl" else 1e-6
    compared = 0
    for case in cases:
        if case["fn"] != name:
            continue
        inputs = {key: torch.tensor(value, dtype=torch.float64) for key, value in case["inputs"].items()}
        for key, value in inputs.items():
            value.requires_grad_("mask" not in key and key != "labels")
        got = function(case["params"], **inputs)
        assert got.keys() == case["outputs"].keys()
        for key, expected in case["outputs"].items():
            expected = torch.tensor(expected, dtype=torch.float64)
            value = got[key].detach()
            if name == "masked_whiten":  # what TRL leaves in padding has no meaning; ours is 0 there
                expected = expected * inputs["mask"]
            error = (value - expected).abs().max().item()
            assert error <= tolerance, f"{name} case {case['case']} {case['params']} {key}: off by {error:.2e}"
            compared += 1
    assert compared >= CASES[name]
