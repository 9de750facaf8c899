"""A model for an extended vocabulary: rows for the new tokens, made of the rows of what they used to be.

A new token stands where a few old ones stood, so its first row is their mean: the model then reads and predicts nearly
what it did before, and training has a place to start from. With tied embeddings there is one matrix, else two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from chatloom.errors import ChatloomError
from chatloom.model.transformer import Transformer


def extended_embeddings(weight: Tensor, pieces: Sequence[Sequence[int]], first_new_id: int | None = None) -> Tensor:
    """Weight [vocab, hidden] with rows for new tokens: row first_new_id + i is the mean of the rows `pieces[i]`.

    `first_new_id` defaults to the number of rows; where a matrix has spare rows beyond its tokens (many are padded to a
    round number), give the number of tokens, and spare rows are used first. Means are taken in fp32. The old rows are
    bit for bit the same. Raises ChatloomError for a piece that is not below `first_new_id`.
    """
    first = weight.shape[0] if first_new_id is None else first_new_id
    if not 0 < first <= weight.shape[0]:
        raise ChatloomError(f"the first new token is {first}; the matrix has rows 0..{weight.shape[0] - 1}")
    for i, part in enumerate(pieces):
        if not part or min(part) < 0 or max(part) >= first:
            raise ChatloomError(
                f"new token {first + i} is said to consist of {list(part)}; expected ids 0..{first - 1}"
            )
    grown = weight.new_empty((max(weight.shape[0], first + len(pieces)), weight.shape[1]))
    grown[: weight.shape[0]] = weight
    if pieces:
        lengths = torch.tensor([len(part) for part in pieces], device=weight.device)
        flat = torch.tensor([i for part in pieces for i in part], device=weight.device)
        rows = torch.arange(len(pieces), device=weight.device).repeat_interleave(lengths)
        sums = torch.zeros((len(pieces), weight.shape[1]), dtype=torch.float32, device=weight.device)
        sums.index_add_(0, rows, weight[flat].float())
        grown[first : first + len(pieces)] = (sums / lengths.unsqueeze(1)).to(weight.dtype)
    return grown


@torch.no_grad()
def extend_model(model: Transformer, pieces: Sequence[Sequence[int]], first_new_id: int | None = None) -> Transformer:
    """The same model with rows for new tokens in its embedding and, unless tied, in its output matrix.

    All other weights are copied. Raises ChatloomError as `extended_embeddings`.
    """
    rows = extended_embeddings(model.embedding.weight, pieces, first_new_id)
    config = replace(model.config, vocab_size=rows.shape[0])
    grown = Transformer(config, initialise=False).to(device=rows.device, dtype=rows.dtype)
    weights = dict(model.state_dict())
    weights["embedding.weight"] = rows
    if model.output_embedding is not None:
        weights["output_embedding.weight"] = extended_embeddings(model.output_embedding.weight, pieces, first_new_id)
    grown.load_state_dict(weights)
    return grown.train(model.training)


def train_new_rows_only(model: Transformer, first_new_id: int) -> Callable[[], None]:
    """Leave nothing trainable but the embedding's (and output matrix's) rows from `first_new_id` on.

    Call it before the optimizer is made. The gradient of the old rows is 0, so an optimizer without weight decay leaves
    them as they are bit for bit; the other weights have no gradient at all. Returns what makes all trainable again.
    """
    if not 0 < first_new_id < model.config.vocab_size:
        raise ChatloomError(
            f"the first new token is {first_new_id} and the model has {model.config.vocab_size}: there are no new rows "
            "to train; extend the model first (stage `extend-model`)"
        )
    matrices: list[nn.Parameter] = [model.embedding.weight]
    if model.output_embedding is not None:
        matrices.append(model.output_embedding.weight)
    chosen = {id(matrix) for matrix in matrices}
    frozen = [p for p in model.parameters() if id(p) not in chosen and p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)

    def only_new(gradient: Tensor) -> Tensor:
        kept = gradient.clone()
        kept[:first_new_id] = 0
        return kept

    handles = [matrix.register_hook(only_new) for matrix in matrices]

    def undo() -> None:
        for handle in handles:
            handle.remove()
        for parameter in frozen:
            parameter.requires_grad_(True)

    return undo
