"""How well a base model predicts held-out documents, in bits per byte, beside a unigram and a trigram of its text.

A model of a denoising objective is measured so too, as a language model, for comparison with others; and by the loss of
its own objective.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chatloom.evaluation.ngram import NgramModel
from chatloom.evaluation.perplexity import TextScore, score_text, total
from chatloom.tokens.joined import JoinedStores
from chatloom.tokens.language_model_rows import Plain, rows_batch, segments_batch
from chatloom.tokens.mixture import Row
from chatloom.tokens.mixture_plan import MixtureSettings
from chatloom.tokens.objective import Denoising
from chatloom.tokens.packing_index import PackingIndex
from chatloom.training.bundle import Bundle
from chatloom.training.forward import score
from chatloom.training.pretraining_data import open_stores, pretraining_data

HELD_OUT = "held_out"
ROWS_AT_ONCE = 32
BASELINE_TOKENS = 20_000_000  # of training text that the n-gram baselines count at most


def heldout_scores(
    folders: Sequence[Path], training: JoinedStores, bundle: Bundle, device: torch.device
) -> dict[str, dict[str, object]]:
    """Bits per byte on held-out documents: the model, a unigram and a trigram baseline; empty without such documents.

    The model reads each document in pieces of its context that share one token, so every token is predicted once. The
    baselines have counted the same training text, up to BASELINE_TOKENS of it.
    """
    vocabulary = bundle.vocabulary
    there = _with_held_out(folders)
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


def _with_held_out(folders: Sequence[Path]) -> list[Path]:
    return [folder for folder in folders if (folder / f"{HELD_OUT}.json").is_file()]


@torch.no_grad()
def objective_scores(
    folders: Sequence[Path], bundle: Bundle, denoising: Denoising, device: torch.device
) -> dict[str, dict[str, float]]:
    """Loss of a denoising objective on held-out documents, `together` and of each denoiser; empty without documents.

    Of each: `nats_per_token` over the tokens that carry loss, their number `tokens`, and their `share` of all tokens.
    The noise is that of a first pass under the run's seed.
    """
    there = _with_held_out(folders)
    if not there:
        return {}
    data = pretraining_data(
        open_stores(there, bundle.vocabulary, HELD_OUT),
        MixtureSettings(),
        row_length=denoising.row_length,
        batch_rows=ROWS_AT_ONCE,
        epochs=1.0,
        seed=denoising.seed,
        denoising=denoising,
    )
    sums: dict[str, Any] = defaultdict(lambda: np.zeros(3))  # nats, weight, tokens of the sequences
    for first in range(0, data.n_rows, ROWS_AT_ONCE):
        rows = [Row(0, 0, 0, n, n) for n in range(first, min(first + ROWS_AT_ONCE, data.n_rows))]
        batch = segments_batch([data.segments(row) for row in rows], data.row_length, bundle.vocabulary.pad_id)
        scored = score(bundle.model, batch.to(device))
        nats = scored.per_segment(-scored.logprobs.float() * scored.weights, batch.n_segments).cpu().double()
        weights = scored.per_segment(scored.weights, batch.n_segments).cpu().double()
        lengths = batch.segment_end - batch.segment_start + 1
        for role, *values in zip(batch.role, nats.tolist(), weights.tolist(), lengths.tolist(), strict=True):
            for name in ("together", role):
                sums[name] += values
    return {
        name: {"nats_per_token": float(nats / weight) if weight else float("nan"), "tokens": float(weight),
               "share": float(weight / length)}
        for name, (nats, weight, length) in sums.items()
    }  # fmt: skip


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
    for first in range(0, index.n_rows, ROWS_AT_ONCE):
        chosen = [index.pieces(row) for row in range(first, min(first + ROWS_AT_ONCE, index.n_rows))]
        batch = rows_batch(plain, chosen, context, bundle.vocabulary.pad_id).to(device)
        scored = score(bundle.model, batch)
        segments = scored.segments.cpu().numpy()
        values = scored.logprobs.float().cpu().numpy()
        places = batch.positions.flatten().index_select(0, scored.index).cpu().numpy()
        for number, piece in enumerate(piece for pieces in chosen for piece in pieces):
            mine = segments == number
            found[piece.document][piece.start + places[mine]] = values[mine]
    return found
