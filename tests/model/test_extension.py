"""Promises of extending a model: old rows stay bit for bit, new rows are means, and they can be trained alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from chatloom.errors import ChatloomError
from chatloom.model.config import TransformerConfig
from chatloom.model.extension import extend_model, extended_embeddings, train_new_rows_only
from chatloom.model.transformer import Transformer

CONFIG = TransformerConfig(20, 16, 2, 2, 1, 8, 24, 32)
PIECES = [[3], [1, 2], [4, 4, 7]]


def model(tied: bool = True) -> Transformer:
    return Transformer(replace(CONFIG, tie_embeddings=tied), generator=torch.Generator().manual_seed(0))


def test_new_rows_are_means_of_old_ones_and_old_ones_stay() -> None:
    weight = torch.randn(20, 16)
    grown = extended_embeddings(weight, PIECES)
    assert grown.shape == (23, 16)
    assert torch.equal(grown[:20], weight)
    torch.testing.assert_close(grown[20], weight[3])
    torch.testing.assert_close(grown[21], (weight[1] + weight[2]) / 2)
    torch.testing.assert_close(grown[22], (2 * weight[4] + weight[7]) / 3)
    assert torch.equal(extended_embeddings(weight, []), weight)


def test_spare_rows_are_used_before_rows_are_added() -> None:
    weight = torch.randn(20, 16)
    grown = extended_embeddings(weight, PIECES, 18)  # 18 tokens in a matrix padded to 20
    assert grown.shape == (21, 16)
    assert torch.equal(grown[:18], weight[:18])
    torch.testing.assert_close(grown[18], weight[3])
    assert extended_embeddings(weight, PIECES, 10).shape == (20, 16)


def test_means_are_taken_in_fp32() -> None:
    weight = torch.full((2, 4), 1.0, dtype=torch.bfloat16)
    weight[1] = 2.0**-9  # lost when added to 1 in bf16 300 times
    grown = extended_embeddings(weight, [[0, *[1] * 511]])
    assert grown.dtype == torch.bfloat16
    assert grown[2, 0].item() == pytest.approx((1 + 511 / 512) / 512, rel=1e-2)


@pytest.mark.parametrize("pieces", [[[]], [[20]], [[-1]], [[0], [20, 1]]])
def test_pieces_that_are_no_old_tokens_are_refused(pieces: list[list[int]]) -> None:
    with pytest.raises(ChatloomError, match=r"is said to consist of .*expected ids 0\.\.19"):
        extended_embeddings(torch.zeros(20, 4), pieces)
    with pytest.raises(ChatloomError, match="the first new token is 21"):
        extended_embeddings(torch.zeros(20, 4), [[1]], 21)


@pytest.mark.parametrize("tied", [True, False])
def test_the_extended_model_computes_what_the_old_one_did(tied: bool) -> None:
    old = model(tied)
    new = extend_model(old, PIECES)
    assert new.config == replace(old.config, vocab_size=23)
    tokens = torch.randint(0, 20, (2, 9), generator=torch.Generator().manual_seed(1))
    before, after = old.logits(old(tokens)), new.logits(new(tokens))
    assert torch.equal(after[..., :20], before)
    # A new token that used to be one old token is read and predicted exactly as that one.
    torch.testing.assert_close(after[..., 20], after[..., 3])
    renamed = torch.where(tokens == 3, 20, tokens)
    assert torch.equal(new(renamed), old(tokens))
    assert (new.output_embedding is None) == tied


@pytest.mark.parametrize("tied", [True, False])
def test_only_new_rows_are_trained_until_it_is_undone(tied: bool) -> None:
    new = extend_model(model(tied), PIECES)
    before = {name: value.clone() for name, value in new.state_dict().items()}
    undo = train_new_rows_only(new, 20)
    trainable = [p for p in new.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=0.1, weight_decay=0.0)
    tokens = torch.tensor([[20, 1, 21, 22, 3, 4]])
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(new.logits(new(tokens))[0, :-1], tokens[0, 1:]).backward()
        optimizer.step()
    matrices = {"embedding.weight"} if tied else {"embedding.weight", "output_embedding.weight"}
    for name, value in new.state_dict().items():
        if name in matrices:
            assert torch.equal(value[:20], before[name][:20])
            assert (value[20:] != before[name][20:]).any(dim=1).all()
        else:
            assert torch.equal(value, before[name])
    undo()
    assert all(p.requires_grad for p in new.parameters())
    new.zero_grad()
    torch.nn.functional.cross_entropy(new.logits(new(tokens))[0, :-1], tokens[0, 1:]).backward()
    assert new.embedding.weight.grad is not None
    assert bool(new.embedding.weight.grad[:20].any())


def test_a_model_without_new_rows_says_so() -> None:
    with pytest.raises(ChatloomError, match=r"no new rows.*extend-model"):
        train_new_rows_only(model(), 20)
