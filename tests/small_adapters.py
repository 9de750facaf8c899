"""A small decoder and adapters that do something, for tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from chatloom.model.adapters.encoders import make_encoder
from chatloom.model.adapters.lora import add_lora
from chatloom.model.adapters.specs import Lora, VirtualTokens
from chatloom.model.adapters.virtual_tokens import PromptedTransformer
from chatloom.model.config import TransformerConfig
from chatloom.model.transformer import Transformer
from chatloom.tokens.packing import Segment

CONFIG = TransformerConfig(
    vocab_size=90,
    hidden_size=32,
    n_layers=3,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    intermediate_size=40,
    max_positions=48,
    rope_theta=500.0,
    initializer_range=0.3,
)
TOKENS = torch.randint(0, 90, (3, 20), generator=torch.Generator().manual_seed(0))


def make(change: dict[str, Any] | None = None) -> Transformer:
    return Transformer(replace(CONFIG, **(change or {})), generator=torch.Generator().manual_seed(0))


def with_lora(spec: Lora, change: dict[str, Any] | None = None) -> Transformer:
    """B is drawn too, so that the adapter does something."""
    model = make(change)
    generator = torch.Generator().manual_seed(1)
    add_lora(model, spec, generator)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(".B"):
                p.normal_(0.0, 0.1, generator=generator)
    return model


def prompted(spec: VirtualTokens, change: dict[str, Any] | None = None) -> PromptedTransformer:
    body = make(change)
    encoder = make_encoder(spec, body.config, body.embedding.weight, torch.Generator().manual_seed(2))
    return PromptedTransformer(body, spec, encoder)


@torch.no_grad()
def logits(model: Transformer, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    return model.logits(model(tokens))


def segment(tokens: torch.Tensor) -> Segment:
    """All of its tokens are learnt from."""
    return Segment(tokens.numpy(), np.ones(len(tokens)))
