"""Promises of the shrunken embedding gradient: GLM-130B's formula, values untouched, the output matrix left alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from chatloom.model.config import TransformerConfig
from chatloom.model.transformer import Transformer
from chatloom.objectives.language_modeling import language_model_loss
from chatloom.training.embedding_gradient import shrink_embedding_gradient

CONFIG = TransformerConfig(
    vocab_size=31, hidden_size=16, n_layers=2, n_heads=2, n_kv_heads=2, head_dim=8, intermediate_size=24,
    max_positions=12,
)  # fmt: skip
SHARE = 0.1


def gradients(tied: bool, share: float) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
    """Loss, gradients by name, and the embedding's gradient from the look-up alone (by plain autograd)."""
    model = Transformer(replace(CONFIG, tie_embeddings=tied), generator=torch.Generator().manual_seed(0))
    looked_up: list[torch.Tensor] = []
    model.embedding.register_forward_hook(lambda _m, _i, out: looked_up.append(out))
    if share < 1:
        shrink_embedding_gradient(model.embedding, share)
    tokens = torch.randint(31, (3, 12), generator=torch.Generator().manual_seed(1))
    looked_up.clear()
    hidden = model(tokens)
    looked_up[0].retain_grad()
    targets = tokens.roll(-1, 1).flatten()
    loss = language_model_loss(hidden.flatten(0, 1), model.unembedding, targets, torch.ones(36)).total
    loss.backward()
    through = torch.zeros(31, 16).index_add_(0, tokens.flatten(), looked_up[0].grad.flatten(0, 1))
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}, through


@pytest.mark.parametrize("tied", [False, True])
def test_only_the_look_ups_part_of_the_gradient_shrinks(tied: bool) -> None:
    plain_loss, plain, through = gradients(tied, 1.0)
    loss, shrunk, _ = gradients(tied, SHARE)
    assert torch.equal(loss, plain_loss)  # no value is rounded
    rest = plain["embedding.weight"] - through  # 0, or with tied embeddings what comes from the logits
    assert (float(rest.abs().max()) > 0.1) == tied
    torch.testing.assert_close(shrunk.pop("embedding.weight"), SHARE * through + rest, rtol=1e-4, atol=1e-5)
    for name, gradient in shrunk.items():
        assert torch.equal(gradient, plain[name]), name


def test_it_is_the_formula_of_glm() -> None:
    embedding = torch.nn.Embedding(5, 4)
    tokens = torch.tensor([0, 3, 3])
    factors = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    looked_up = embedding(tokens)
    (factors * (SHARE * looked_up + (1 - SHARE) * looked_up.detach())).sum().backward()
    expected, embedding.weight.grad = embedding.weight.grad, None
    shrink_embedding_gradient(embedding, SHARE)
    (factors * embedding(tokens)).sum().backward()
    torch.testing.assert_close(embedding.weight.grad, expected)
    with torch.no_grad():
        embedding(tokens)  # nothing to scale, and no error
