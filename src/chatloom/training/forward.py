"""Forward passes over packed batches: token log-probabilities and their sums over segments.

SFT, DPO, PPO and evaluation all score text here, so that the same text has the same log-probability everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chatloom.model.transformer import Transformer
from chatloom.objectives.logprobs import token_logprobs
from chatloom.tokens.packing import Batch


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
    cap = model.config.logit_softcap
    result = token_logprobs(
        rows, model.unembedding, targets, temperature=temperature, softcap=cap, with_entropy=with_entropy
    )
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
