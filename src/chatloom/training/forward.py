"""Forward passes over packed batches: token log-probabilities and their sums over segments.

SFT, DPO, PPO and evaluation all score text here, so that the same text has the same log-probability everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chatloom.model.transformer import Transformer
from chatloom.objectives.language_modeling import language_model_loss
from chatloom.objectives.logprobs import token_logprobs
from chatloom.tokens.packing import Batch
from chatloom.training.trainer import Terms

MOSTLY = 0.9


@dataclass
class Scored:
    """Log-probabilities of the supervised tokens of a batch, flat in row-major order.

    `logprobs` [n] in nats, fp32; `entropies` [n] or None; `weights` [n]; `segments` [n]: which segment each belongs to;
    `index` [n]: position in the flattened [rows * time].
    """

    logprobs: Tensor
    entropies: Tensor | None
    weights: Tensor
    segments: Tensor
    index: Tensor

    def per_segment(self, values: Tensor, n_segments: int) -> Tensor:
        """Sum [n] values into [n_segments]."""
        return torch.zeros(n_segments, dtype=values.dtype, device=values.device).index_add(0, self.segments, values)


def score(
    model: Transformer,
    batch: Batch,
    *,
    temperature: float = 1.0,
    with_entropy: bool = False,
    hidden: Tensor | None = None,
) -> Scored:
    """Log-probability of every supervised target of a batch under `logits / temperature`, in nats."""
    if hidden is None:
        hidden = model.over(batch)
    index = batch.supervised
    rows = hidden.flatten(0, 1).index_select(0, index)
    targets = batch.targets.flatten().index_select(0, index)
    result = token_logprobs(rows, model.unembedding, targets, temperature=temperature, with_entropy=with_entropy)
    logprobs, entropies = result if isinstance(result, tuple) else (result, None)
    return Scored(
        logprobs,
        entropies,
        batch.weights.flatten().index_select(0, index),
        batch.segments.flatten().index_select(0, index),
        index,
    )


def segment_logprobs(model: Transformer, batch: Batch, *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Sum of supervised log-probabilities and number of supervised tokens of each segment, both [n_segments]."""
    scored = score(model, batch, temperature=temperature)
    sums = scored.per_segment(scored.logprobs * scored.weights, batch.n_segments)
    return sums, scored.per_segment(scored.weights, batch.n_segments)


class NextTokenLoss:
    """Weighted negative log-likelihood of a language model, in nats: what pretraining and SFT minimise.

    They differ only in which tokens carry weight: all of them, or the assistant's. With a `z_loss` above 0 the loss
    holds that penalty too (`objectives/language_modeling.py`), and the two parts are reported as `nll` and `z_loss`.
    """

    def __init__(self, model: Transformer, z_loss: float = 0.0) -> None:
        self.model, self.z_loss = model, z_loss

    def weight(self, batch: Batch) -> float:
        """Sum of token weights."""
        return batch.total_weight

    def __call__(self, batch: Batch) -> Terms:
        """Weighted sum over one micro-batch."""
        hidden = self.model.over(batch).flatten(0, 1)
        targets, weights = batch.targets.flatten(), batch.weights.flatten()
        index = batch.supervised
        # A weight of 0 adds nothing, so where it is rare all places are taken, and every batch has the same shapes.
        if hidden.device.type == "cpu" or len(index) < MOSTLY * len(hidden):
            hidden = hidden.index_select(0, index)
            targets, weights = targets.index_select(0, index), weights.index_select(0, index)
        found = language_model_loss(hidden, self.model.unembedding, targets, weights, z_loss=self.z_loss)
        if not self.z_loss:
            return Terms(found.total)
        penalty = found.total.detach() - found.nll
        return Terms(found.total, {"nll": (found.nll, found.weight), "z_loss": (penalty, found.weight)})
