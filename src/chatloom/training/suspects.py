"""The documents of a micro-batch that training stumbled over, worst first, with the beginning of their text."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from chatloom.model.transformer import Transformer
from chatloom.tokens.joined import JoinedStores
from chatloom.tokens.packing import Batch
from chatloom.tokens.vocabulary import Vocabulary
from chatloom.training.forward import segment_logprobs

SHOWN = 8  # pieces of documents
HEAD = 64  # tokens of each


def suspects(
    model: Transformer, documents: JoinedStores, vocabulary: Vocabulary
) -> Callable[[Batch], list[dict[str, Any]]]:
    """A function that tells of a packed batch of documents its worst pieces.

    For each: document id and number, tokens, loss (nats a token, by the weights that the step was not taken
    with), and its first tokens as text. Pieces without a finite loss come first, then those with the highest.
    """

    @torch.no_grad()
    def describe(batch: Batch) -> list[dict[str, Any]]:
        sums, counts = segment_logprobs(model, batch)
        losses = (-sums / counts.clamp(min=1.0)).tolist()
        order = sorted(range(len(losses)), key=lambda i: -losses[i] if math.isfinite(losses[i]) else -math.inf)[:SHOWN]
        numbers = batch.group.tolist()
        entries = documents.describe([numbers[i] for i in order])
        found = []
        for i, entry in zip(order, entries, strict=True):
            row, start, last = (int(place[i]) for place in (batch.segment_row, batch.segment_start, batch.segment_end))
            ids = batch.tokens[row, start : last + 1].tolist()
            found.append(
                {
                    "document": entry["id"],
                    "number": numbers[i],
                    "tokens": len(ids),
                    "loss": losses[i],
                    "text": vocabulary.decode(ids[:HEAD]),
                }
            )
        return found

    return describe
