"""How well a base model predicts held-out documents, in bits per byte, beside a unigram and a trigram of its text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from chatloom.evaluation.ngram import NgramModel
from chatloom.evaluation.perplexity import TextScore, score_text, total
from chatloom.tokens.joined import JoinedStores
from chatloom.tokens.language_model_rows import Plain, rows_batch
from chatloom.tokens.packing_index import PackingIndex
from chatloom.training.bundle import Bundle
from chatloom.training.forward import score
from chatloom.training.pretraining_data import open_stores

HELD_OUT = "held_out"
BASELINE_TOKENS = 20_000_000  # of training text that the n-gram baselines count at most


def heldout_scores(
    folders: Sequence[Path], training: JoinedStores, bundle: Bundle, device: torch.device
) -> dict[str, dict[str, object]]:
    """Bits per byte on held-out documents: the model, a unigram and a trigram baseline; empty without such documents.

    The model reads each document in pieces of its context that share one token, so every token is predicted once. The
    baselines have counted the same training text, up to BASELINE_TOKENS of it.
    """
    vocabulary = bundle.vocabulary
    there = [folder for folder in folders if (folder / f"{HELD_OUT}.json").is_file()]
    if not there:
        return {}
    documents = [ids for store in open_stores(there, vocabulary, HELD_OUT).stores for ids in store]
    counted = list(baseline_documents(training, BASELINE_TOKENS))
    scores: dict[str, TextScore] = {
        "model": total(
            score_text(documents, lambda part: model_logprobs(bundle, part, device), vocabulary.bytes_per_id)
        )
    }
    for name, order in (("unigram", 1), ("trigram", 3)):
        ngram = NgramModel.fit(counted, vocabulary.size, order=order)
        scores[name] = total(score_text(documents, ngram.document_logprobs, vocabulary.bytes_per_id))
    return {name: score.as_dict() for name, score in scores.items()}


def baseline_documents(training: JoinedStores, limit: int) -> Iterable[np.ndarray]:
    """All documents or, of more than `limit` tokens, an even choice of them that holds about so many."""
    share = min(1.0, limit / int(training.lengths.sum()))
    count = max(1, round(share * len(training)))
    return (training.read(number * len(training) // count) for number in range(count))


@torch.no_grad()
def model_logprobs(bundle: Bundle, documents: Sequence[np.ndarray], device: torch.device) -> Iterable[np.ndarray]:
    """Log-probabilities (nats) of ids[1:] of each document, read in pieces of at most the model's context."""
    context = bundle.model.config.max_positions
    plain = Plain(documents)
    index = PackingIndex(plain.lengths, context)
    found = [np.zeros(len(item) - 1) for item in documents]
    for first in range(0, index.n_rows, 32):
        chosen = [index.pieces(row) for row in range(first, min(first + 32, index.n_rows))]
        batch = rows_batch(plain, chosen, context, bundle.vocabulary.pad_id).to(device)
        scored = score(bundle.model, batch)
        segments = scored.segments.cpu().numpy()
        values = scored.logprobs.float().cpu().numpy()
        places = batch.positions.flatten().index_select(0, scored.index).cpu().numpy()
        for number, piece in enumerate(piece for pieces in chosen for piece in pieces):
            mine = segments == number
            found[piece.document][piece.start + places[mine]] = values[mine]
    return found
