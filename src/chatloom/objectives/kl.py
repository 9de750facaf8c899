"""Distance of the policy from its reference: estimators from sampled tokens, coefficient controllers, early stop.

With x sampled from the policy p and lr = log p(x) - log ref(x), every estimator has the mean KL(p || ref) or nearly so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# exp(20) is finite; without a bound one token that the reference finds impossible turns k3 into inf and then NaN.
MAX_LOG_RATIO = 20.0


def approx_kl(logprobs: Tensor, reference: Tensor, estimator: str = "k1") -> Tensor:
    """Estimate of KL(policy || reference) at each sampled token, in nats; any shape -> same shape.

        lr = logprobs - reference
        k1 = lr                     unbiased, of either sign, large variance: for use inside a reward
        k2 = lr^2 / 2               biased value, right gradient: for use as a loss
        k3 = exp(-lr) - 1 + lr      unbiased and never negative, small variance: for reporting

    Schulman 2020, "Approximating KL divergence". In k2 and k3 lr is held within +-20, so the result is finite whenever
    the inputs are. Raises ValueError on another estimator's name.
    """
    log_ratio = logprobs - reference
    if estimator == "k1":
        return log_ratio
    log_ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if estimator == "k2":
        return 0.5 * log_ratio**2
    if estimator == "k3":
        return torch.expm1(-log_ratio) + log_ratio
    raise ValueError(f"no KL estimator named {estimator!r}; there are k1, k2 and k3")


def policy_moved_too_far(log_ratio_squares: float, n_tokens: float, limit: float | None) -> bool:
    """Whether to leave the PPO epoch: 0.5 mean((logprob - old)^2) over real tokens exceeds `limit` (nats a token).

    Sums over the whole batch (and all ranks) come in, so that every process decides alike; no limit, never.
    A step over no token at all, or with a sum that is not a number, also ends the epoch.
    """
    if limit is None:
        return False
    return not (n_tokens > 0 and 0.5 * log_ratio_squares / n_tokens <= limit)


@dataclass
class FixedKL:
    """A KL coefficient that stays as it is."""

    coefficient: float

    def update(self, kl: float, n_episodes: int) -> None:
        """Nothing to learn."""

    def state_dict(self) -> dict[str, float]:
        """JSON-ready state."""
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Put back what `state_dict` gave."""
        self.coefficient = float(state["coefficient"])


@dataclass
class AdaptiveKL:
    """A KL coefficient steered so that the KL of whole answers stays near a target.

        error = clip(kl / target - 1, -0.2, 0.2),   coefficient *= 1 + error * n_episodes / horizon

    target in nats an answer, horizon in episodes. Ziegler et al. 2019, section 2.2; their sentiment task: target 6,
    horizon 10,000, first coefficient 0.15.
    """

    coefficient: float
    target: float
    horizon: float = 10_000.0

    def __post_init__(self) -> None:
        if not (self.coefficient > 0 and self.target > 0 and self.horizon > 0):
            raise ValueError(
                f"coefficient {self.coefficient}, target {self.target}, horizon {self.horizon}: expected above 0"
            )

    def update(self, kl: float, n_episodes: int) -> None:
        """Move the coefficient after `n_episodes` answers with mean KL `kl` (nats an answer).

        Raises ValueError when the KL is not finite or the answers outnumber the horizon: one move would overshoot.
        """
        if not math.isfinite(kl):
            raise ValueError(f"the measured KL is {kl}; the coefficient would be lost")
        if n_episodes > self.horizon:
            raise ValueError(
                f"{n_episodes} answers an update exceed the horizon of {self.horizon:g}; raise the horizon"
            )
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        self.coefficient *= 1.0 + error * n_episodes / self.horizon

    def state_dict(self) -> dict[str, float]:
        """JSON-ready state; target and horizon are settings, not state."""
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Put back what `state_dict` gave."""
        self.coefficient = float(state["coefficient"])
