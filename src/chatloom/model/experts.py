"""Mixture of experts: a router sends each token through a few of many feed-forward layers.

    p = softmax(router(x));   y = sum over the k largest p_i of g_i * expert_i(x)

g_i = p_i (Switch, Fedus et al. 2021, eq. 2: k = 1) or p_i / (sum of the k) (Mixtral, Jiang et al. 2024). With a
capacity an expert takes at most capacity * tokens * k / experts tokens, in their order, and the rest lose it: their
block adds what their other experts give, or nothing. That is for training; without one, and in evaluation, nothing is
dropped. The router runs in fp32.

Two losses keep routing in order, both over the tokens of a whole optimizer step:

    balance = experts * sum_i f_i P_i           (Switch, eq. 4; f_i: share of all choices on expert i, P_i: mean of p_i)
    z       = mean of logsumexp(router(x))^2    (Zoph et al. 2022, ST-MoE, eq. 5)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatloom.model.config import TransformerConfig
from chatloom.model.feedforward import activate


class Routing(NamedTuple):
    """What one layer's router did with n tokens, padding left out.

    probabilities [experts]: sum of p over the tokens, with gradient; z: sum of logsumexp^2, with gradient; choices
    float [experts]: how many choices fell on each expert, before any was dropped; dropped: choices that found no place.
    """

    probabilities: Tensor
    z: Tensor
    choices: Tensor
    dropped: Tensor
    n_tokens: int


class Experts(nn.Module):
    """Router and experts; the experts' matrices are stacked, [experts, out, in]."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        wide = 2 * inner if config.gated else inner
        self.kind = config.feedforward
        self.n_experts = config.n_experts
        self.per_token = config.experts_per_token
        self.capacity = config.expert_capacity
        self.normalise = config.normalise_gates
        self.fused_rows = {"up": (inner, inner)} if config.gated else {}
        self.router = nn.utils.skip_init(nn.Linear, hidden, config.n_experts, bias=False)
        self.up = nn.Parameter(torch.empty(config.n_experts, wide, hidden))
        self.down = nn.Parameter(torch.empty(config.n_experts, hidden, inner))

    def forward(self, x: Tensor, present: Tensor | None = None) -> tuple[Tensor, Routing]:
        """x [batch, time, hidden] -> the same; present bool [batch, time]: False in padding, which goes nowhere."""
        flat = x.flatten(0, -2)
        index = None if present is None else present.flatten().nonzero().squeeze(1)
        tokens = flat if index is None else flat.index_select(0, index)
        with torch.autocast(x.device.type, enabled=False):
            scores = F.linear(tokens.float(), self.router.weight.float())
            norms = scores.logsumexp(-1)
            probabilities = (scores - norms.unsqueeze(-1)).exp()
        gates, chosen = probabilities.topk(self.per_token, dim=-1)
        if self.normalise:
            gates = gates / gates.sum(-1, keepdim=True)
        mixed, choices, dropped = self._mix(tokens, gates, chosen)
        routing = Routing(probabilities.sum(0), norms.square().sum(), choices, dropped, len(tokens))
        if index is not None:
            mixed = torch.zeros_like(flat).index_copy(0, index, mixed)
        return mixed.view(x.shape), routing

    def _mix(self, tokens: Tensor, gates: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """tokens [n, hidden], gates and chosen [n, k] -> mixed [n, hidden], choices [experts], dropped [1 number]."""
        n, k = chosen.shape
        # First choices come before second ones, tokens in their order: who comes late loses the place.
        experts = chosen.t().flatten()
        order = experts.argsort(stable=True)
        counts = torch.bincount(experts, minlength=self.n_experts)
        capacity = self.capacity if self.training else None
        places = None if capacity is None else max(1, math.ceil(capacity * n * k / self.n_experts))
        mixed = torch.zeros_like(tokens)
        weights = gates.t().flatten()
        start = 0
        for expert, count in enumerate(counts.tolist()):
            taken = order[start : start + (count if places is None else min(count, places))]
            start += count
            if not len(taken):
                continue
            rows = taken % n
            inner = activate(F.linear(tokens.index_select(0, rows), self.up[expert]), self.kind)
            out = F.linear(inner, self.down[expert])
            mixed = mixed.index_add(0, rows, (out * weights[taken].unsqueeze(-1)).to(mixed.dtype))
        dropped = counts.new_zeros(()) if places is None else (counts - places).clamp_min(0).sum()
        return mixed, counts.float(), dropped.float()


def balance_loss(routing: Routing, choices: Tensor, n_tokens: Tensor) -> Tensor:
    """This micro-batch's part of experts * sum_i f_i P_i over a step: its parts add up to it.

    choices [experts] and n_tokens are the whole step's, so that f does not depend on how the step is cut.
    """
    shares = choices / choices.sum()
    return len(choices) * (shares * routing.probabilities).sum() / n_tokens
