"""The loss of pretraining and SFT: next tokens, with what a mixture of experts needs to stay balanced."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from chatloom.model.experts import Routing, balance_loss
from chatloom.model.transformer import Transformer
from chatloom.objectives.language_modeling import language_model_loss
from chatloom.tokens.packing import Batch
from chatloom.training.trainer import Terms

MOSTLY = 0.9
Sums = dict[str, tuple[Tensor | float, Tensor | float]]


class NextTokenLoss:
    """Weighted negative log-likelihood of a language model, in nats: what pretraining and SFT minimise.

    They differ only in which tokens carry weight: all of them, or the assistant's. With a `z_loss` above 0 the loss
    holds that penalty too (`objectives/language_modeling.py`), and the two parts are reported as `nll` and `z_loss`.

    A mixture of experts adds, for every layer, router_balance * balance + router_z * z (`model/experts.py`). Their
    shares are those of the whole optimizer step: `begin` counts them in a pass without gradient where a step has
    several micro-batches, or `reduce` (the sum over ranks) joins several ranks; dropout and a capacity make that count
    differ a little from the choices of the pass that learns.
    """

    def __init__(
        self, model: Transformer, z_loss: float = 0.0, reduce: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.model, self.z_loss, self.reduce = model, z_loss, reduce
        self._choices: list[Tensor] = []
        self._step_weight = 0.0

    def weight(self, batch: Batch) -> float:
        """Sum of token weights."""
        return batch.total_weight

    @torch.no_grad()
    def begin(self, batches: Sequence[Batch], weight: float) -> None:
        """Know the whole step, of total `weight`, before its first micro-batch."""
        self._step_weight, self._choices = weight, []
        if not self.model.config.n_experts or (len(batches) == 1 and self.reduce is None):
            return
        for batch in batches:
            routings: list[Routing] = []
            self.model.over(batch, routings)
            found = [torch.cat((r.choices, r.choices.new_tensor([r.n_tokens]))) for r in routings]
            self._choices = [a + b for a, b in zip(self._choices, found, strict=True)] if self._choices else found
        if self.reduce is not None:
            self._choices = [self.reduce(item) for item in self._choices]

    def __call__(self, batch: Batch) -> Terms:
        """Weighted sum over one micro-batch."""
        routings: list[Routing] = []
        hidden = self.model.over(batch, routings).flatten(0, 1)
        targets, weights = batch.targets.flatten(), batch.weights.flatten()
        index = batch.supervised
        # A weight of 0 adds nothing, so where it is rare all places are taken, and every batch has the same shapes.
        if hidden.device.type == "cpu" or len(index) < MOSTLY * len(hidden):
            hidden = hidden.index_select(0, index)
            targets, weights = targets.index_select(0, index), weights.index_select(0, index)
        found = language_model_loss(
            hidden,
            self.model.unembedding,
            targets,
            weights,
            z_loss=self.z_loss,
            softcap=self.model.config.logit_softcap,
        )
        if not self.z_loss and not routings:
            return Terms(found.total)
        penalty = found.total.detach() - found.nll
        sums: Sums = {"nll": (found.nll, found.weight)}
        if self.z_loss:
            sums["z_loss"] = (penalty, found.weight)
        if not routings:
            return Terms(found.total, sums)
        return self._with_routers(found.total, sums, routings, found.weight)

    def _with_routers(self, total: Tensor, sums: Sums, routings: list[Routing], share: Tensor) -> Terms:
        """Adds the routers' losses, times the step's weight, by which the trainer divides."""
        config = self.model.config
        balance, z = total.new_zeros(()), total.new_zeros(())
        dropped, chosen = total.new_zeros(()), total.new_zeros(())
        for layer, routing in enumerate(routings):
            choices, n_tokens = routing.choices, torch.as_tensor(float(routing.n_tokens))
            if self._choices:
                choices, n_tokens = self._choices[layer][:-1], self._choices[layer][-1]
            balance = balance + balance_loss(routing, choices, n_tokens)
            z = z + routing.z / n_tokens
            dropped, chosen = dropped + routing.dropped, chosen + routing.choices.sum()
        weight = self._step_weight
        total = total + weight * (config.router_balance * balance + config.router_z * z)
        n = len(routings)
        # The parts of a step's micro-batches add up to its mean over layers, so the shares have to as well.
        sums["expert_balance"] = (balance.detach() * weight / n, share)
        sums["router_z"] = (z.detach() * weight / n, share)
        sums["dropped_tokens"] = (dropped, chosen)
        return Terms(total, sums)
