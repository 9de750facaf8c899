"""Losses that teach a reward model which answer is better: by pairs, or by all pairs of K ranked answers.

Scores are the outputs of the reward head, one an answer; only their differences inside one prompt carry meaning.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def pairwise_loss(
    chosen: Tensor,
    rejected: Tensor,
    *,
    margin: Tensor | float = 0.0,
    label_smoothing: float = 0.0,
    centering: float = 0.0,
) -> Tensor:
    """Ranking loss of each pair, in nats: chosen [n], rejected [n], margin [n] or a number -> [n].

        d = chosen - rejected - margin
        loss = -(1 - e) log sigmoid(d) - e log sigmoid(-d) + c (chosen + rejected)^2

    Bradley-Terry as in Ouyang et al. 2022 (InstructGPT) eq. 1; margin: Touvron et al. 2023 (Llama 2) eq. 2;
    e = label_smoothing: the share of labels taken to be wrong; c = centering (0.01 in Eisenstein et al. 2023), which
    keeps the mean of the scores near 0. Raises ValueError on unequal shapes or e outside [0, 0.5).
    """
    if chosen.shape != rejected.shape:
        raise ValueError(f"chosen {list(chosen.shape)}, rejected {list(rejected.shape)}: expected one shape")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing is {label_smoothing}; expected 0 <= label_smoothing < 0.5")
    difference = chosen - rejected - margin
    losses = -(1 - label_smoothing) * F.logsigmoid(difference) - label_smoothing * F.logsigmoid(-difference)
    return losses + centering * (chosen + rejected) ** 2 if centering else losses


def pairwise_value_at_equal_scores(margin: float = 0.0, label_smoothing: float = 0.0) -> float:
    """Value of `pairwise_loss` where both scores are 0 (ln 2 without a margin): what an untrained head should give."""
    return (1 - label_smoothing) * math.log1p(math.exp(margin)) + label_smoothing * math.log1p(math.exp(-margin))


def ordered_pairs(ranks: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """All pairs of one group in which one answer is ranked above the other: indices (better, worse), [pairs] each.

    ranks [n] (0 is best; equal ranks make no pair), groups int64 [n].
    """
    better, worse = ((groups[:, None] == groups) & (ranks[:, None] < ranks)).nonzero(as_tuple=True)
    return better, worse


def k_wise_loss(
    scores: Tensor,
    ranks: Tensor,
    groups: Tensor,
    *,
    margin: Tensor | float = 0.0,
    label_smoothing: float = 0.0,
    centering: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Ranking loss of each prompt with K ranked answers, and the number of ordered pairs it is the mean of.

        loss_g = 1 / #pairs * sum over the ordered pairs of g of pairwise_loss(score of better, score of worse)

    scores [n], ranks [n] (0 is best; equal ranks are not compared), groups int64 [n] -> ([n_groups], [n_groups]), the
    groups in ascending order; margin: a number, or [n], of which the better answer's counts. With K = 2 this is
    `pairwise_loss`. A group without ordered pair has loss 0 and 0 pairs, so weight it by `pairs > 0`. All pairs of one
    prompt in one batch element: Ouyang et al. 2022 eq. 1 and its comment on overfitting.
    """
    if not scores.shape == ranks.shape == groups.shape or scores.ndim != 1:
        raise ValueError(
            f"scores {list(scores.shape)}, ranks {list(ranks.shape)}, groups {list(groups.shape)}: expected [n] each"
        )
    numbers, group = torch.unique(groups, return_inverse=True)
    better, worse = ordered_pairs(ranks, groups)
    losses = pairwise_loss(
        scores[better],
        scores[worse],
        margin=margin[better] if isinstance(margin, Tensor) else margin,
        label_smoothing=label_smoothing,
        centering=centering,
    )
    sums = scores.new_zeros(len(numbers)).index_add(0, group[better], losses)
    pairs = scores.new_zeros(len(numbers)).index_add(0, group[better], torch.ones_like(losses))
    return sums / pairs.clamp(min=1), pairs


def ranked_right(chosen: Tensor, rejected: Tensor) -> Tensor:
    """1 where the chosen answer has the higher score, 0.5 where both are equal, else 0: [n] and [n] -> [n]."""
    return 0.5 * (1 + torch.sign(chosen - rejected))
