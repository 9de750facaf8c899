"""Direct preference optimisation and its relatives: losses on log-probabilities of whole answers, without sampling.

    h = (log p(chosen) - log ref(chosen)) - (log p(rejected) - log ref(rejected))

Every kind is a function of h alone and declares its value at h = 0, that is where policy = reference: what the very
first step of a run must give. A name means what its paper means; variants have names of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

LN2 = math.log(2.0)


@dataclass(frozen=True)
class Kind:
    """One loss: `losses(h, beta, smoothing)` [n] -> [n] in nats, and its declared value at h = 0."""

    about: str
    losses: Callable[[Tensor, float, float], Tensor]
    value_at_reference: Callable[[float, float], float]
    averages: bool = False  # h from log-probabilities per token instead of per answer
    smooths: bool = False  # label_smoothing has a meaning


def _sigmoid(h: Tensor, beta: float, _: float) -> Tensor:
    return -F.logsigmoid(beta * h)


def _conservative(h: Tensor, beta: float, smoothing: float) -> Tensor:
    return -(1 - smoothing) * F.logsigmoid(beta * h) - smoothing * F.logsigmoid(-beta * h)


def _robust(h: Tensor, beta: float, smoothing: float) -> Tensor:
    return (-(1 - smoothing) * F.logsigmoid(beta * h) + smoothing * F.logsigmoid(-beta * h)) / (1 - 2 * smoothing)


def _hinge(h: Tensor, beta: float, _: float) -> Tensor:
    return F.relu(1 - beta * h)


def _ipo(h: Tensor, beta: float, _: float) -> Tensor:
    return (h - 1 / (2 * beta)) ** 2


def _ln2(_beta: float, _smoothing: float) -> float:
    return LN2


def _one(_beta: float, _smoothing: float) -> float:
    return 1.0


def _ipo_start(beta: float, _smoothing: float) -> float:
    return 1 / (4 * beta**2)


KINDS: dict[str, Kind] = {
    "sigmoid": Kind("-log sigmoid(beta h): Rafailov et al. 2023 (DPO) eq. 7", _sigmoid, _ln2),
    "cdpo": Kind(
        "-(1-e) log sigmoid(beta h) - e log sigmoid(-beta h): Mitchell 2023 (conservative DPO)",
        _conservative,
        _ln2,
        smooths=True,
    ),
    "robust": Kind(
        "[-(1-e) log sigmoid(beta h) + e log sigmoid(-beta h)] / (1-2e): Chowdhury et al. 2024 (rDPO)",
        _robust,
        _ln2,
        smooths=True,
    ),
    "hinge": Kind("max(0, 1 - beta h): Zhao et al. 2023 (SLiC-HF), on the DPO reward difference", _hinge, _one),
    "ipo": Kind("(h - 1/(2 beta))^2, h summed over tokens: Azar et al. 2023 (IPO) eq. 17", _ipo, _ipo_start),
    "ipo_avg": Kind("as ipo, h averaged over tokens (a later variant of the paper's)", _ipo, _ipo_start, averages=True),
    "sigmoid_avg": Kind(
        "-log sigmoid(beta h), h averaged over tokens (length-normalised DPO, Lambert et al. 2024, Tulu 3); "
        "beta is ten times that of sigmoid or more",
        _sigmoid,
        _ln2,
        averages=True,
    ),
}


@dataclass(frozen=True)
class PreferenceTerms:
    """Per pair, each [n]: the loss to weight and sum, its parts, and the implicit rewards beta (log p - log ref)."""

    losses: Tensor
    preference: Tensor
    nll: Tensor | None
    chosen_rewards: Tensor
    rejected_rewards: Tensor


@dataclass(frozen=True)
class PreferenceLoss:
    """One kind with its numbers.

    kind             a key of KINDS
    beta             strength of the pull to the reference
    label_smoothing  e: share of preferences taken to be swapped, 0 <= e < 0.5; for cdpo and robust only
    nll_weight       adds nll_weight * (-log p(chosen) / tokens of chosen), which keeps the chosen answer likely
                     (Pang et al. 2024, iterative RPO); not part of `value_at_reference`

    Raises ValueError on a number that its kind has no meaning for.
    """

    kind: str = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    nll_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no preference loss named {self.kind!r}; there are {', '.join(KINDS)}")
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}; expected above 0")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; expected 0 <= label_smoothing < 0.5")
        if self.label_smoothing and not KINDS[self.kind].smooths:
            smoothing = [name for name, kind in KINDS.items() if kind.smooths]
            raise ValueError(f"{self.kind} has no label_smoothing; the kinds that have are {', '.join(smoothing)}")
        if self.nll_weight < 0:
            raise ValueError(f"nll_weight is {self.nll_weight}; expected at least 0")

    @property
    def value_at_reference(self) -> float:
        """Value of `preference` where policy = reference, in nats; sigmoid: ln 2."""
        return KINDS[self.kind].value_at_reference(self.beta, self.label_smoothing)

    @property
    def needs_lengths(self) -> bool:
        """Whether calls must give the number of tokens of each answer."""
        return KINDS[self.kind].averages or self.nll_weight > 0

    def __call__(
        self,
        policy_chosen: Tensor,
        policy_rejected: Tensor,
        reference_chosen: Tensor,
        reference_rejected: Tensor,
        *,
        chosen_lengths: Tensor | None = None,
        rejected_lengths: Tensor | None = None,
    ) -> PreferenceTerms:
        """Losses of pairs from summed log-probabilities of answers (nats), all [n]; lengths [n] in tokens.

        Raises ValueError on unequal shapes, or where lengths are needed and not given.
        """
        shapes = {tuple(x.shape) for x in (policy_chosen, policy_rejected, reference_chosen, reference_rejected)}
        if len(shapes) > 1:
            raise ValueError(f"log-probabilities have shapes {sorted(shapes)}; expected one shape [n]")
        kind = KINDS[self.kind]
        if self.needs_lengths and (chosen_lengths is None or rejected_lengths is None):
            raise ValueError(f"{self.kind} with nll_weight {self.nll_weight:g} needs chosen_lengths, rejected_lengths")
        chosen, rejected = policy_chosen - reference_chosen, policy_rejected - reference_rejected
        if kind.averages:
            chosen, rejected = chosen / chosen_lengths, rejected / rejected_lengths  # type: ignore[operator]
        preference = kind.losses(chosen - rejected, self.beta, self.label_smoothing)
        nll = -policy_chosen / chosen_lengths if self.nll_weight and chosen_lengths is not None else None
        losses = preference if nll is None else preference + self.nll_weight * nll
        return PreferenceTerms(losses, preference, nll, (self.beta * chosen).detach(), (self.beta * rejected).detach())
