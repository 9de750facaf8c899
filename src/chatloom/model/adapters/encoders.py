"""What makes virtual tokens: trained vectors, with or without a small network on them.

Each has `vectors()`, what PEFT saves as `prompt_embeddings`: keys and values of all layers for a prefix, input vectors
for a prompt. Networks only serve training (they tie the virtual tokens to one another); only what they make is kept.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from chatloom.model.adapters.specs import Prefix, Prompt, PTuning, VirtualTokens
from chatloom.model.config import TransformerConfig


class Encoder(nn.Module):
    """Trained vectors [tokens, width] and an optional network over them."""

    def __init__(self, n_tokens: int, width: int, network: nn.Module | None = None) -> None:
        super().__init__()
        self.embedding = nn.utils.skip_init(nn.Embedding, n_tokens, width)
        self.network = network

    @property
    def n_tokens(self) -> int:
        """How many virtual tokens there are."""
        return self.embedding.num_embeddings

    def vectors(self) -> Tensor:
        """[tokens, width of what the model takes]."""
        if self.network is None:
            return self.embedding.weight
        return cast(Tensor, self.network(self.embedding.weight))


class Recurrent(nn.Module):
    """Two-way LSTM, then two linear layers (Liu et al. 2021, section 3.2): [tokens, size] -> [tokens, size]."""

    def __init__(self, size: int, hidden_size: int, n_layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(size, hidden_size, n_layers, bidirectional=True, batch_first=True)
        self.head = nn.Sequential(
            nn.Linear(2 * hidden_size, 2 * hidden_size), nn.ReLU(), nn.Linear(2 * hidden_size, size)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[tokens, size] -> [tokens, size]."""
        return cast(Tensor, self.head(self.lstm(x.unsqueeze(0))[0].squeeze(0)))


def prefix_width(config: TransformerConfig) -> int:
    """Numbers of one virtual token of a prefix: a key and a value in every layer."""
    return 2 * config.n_layers * config.kv_size


def make_encoder(
    spec: VirtualTokens, config: TransformerConfig, embedding: Tensor, generator: torch.Generator | None = None
) -> Encoder:
    """A fresh encoder, on the device and in the type of the model's `embedding` [vocab, hidden].

    Prompts start as the vectors of tokens drawn at random (PEFT: SAMPLE_VOCAB), all else from N(0, 1) for vectors, as
    nn.Embedding, and U(+-1 / sqrt(in)) for networks, as nn.Linear and nn.LSTM. `generator`: a CPU generator, torch's
    global one when None.
    """
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)  # torch's own modules draw from the global generator
        if isinstance(spec, Prefix):
            encoder = _prefix(spec, config)
        elif isinstance(spec, PTuning):
            encoder = _p_tuning(spec, config)
        else:
            encoder = Encoder(spec.n_tokens, config.hidden_size)
            encoder.embedding.reset_parameters()
            rows = torch.randint(0, embedding.shape[0], (spec.n_tokens,)).to(embedding.device)
            with torch.no_grad():
                encoder.embedding.weight.copy_(embedding.detach()[rows])
    return encoder.to(embedding.device, embedding.dtype)


def _prefix(spec: Prefix, config: TransformerConfig) -> Encoder:
    network: nn.Module | None = None
    width = prefix_width(config)
    if spec.projection:
        inner = spec.hidden_size or config.kv_size
        network = nn.Sequential(nn.Linear(config.kv_size, inner), nn.Tanh(), nn.Linear(inner, width))
        width = config.kv_size
    encoder = Encoder(spec.n_tokens, width, network)
    encoder.embedding.reset_parameters()
    return encoder


def _p_tuning(spec: PTuning, config: TransformerConfig) -> Encoder:
    size = config.hidden_size
    inner = spec.hidden_size or size
    network: nn.Module
    if spec.network == "lstm":
        network = Recurrent(size, inner, spec.n_layers)
    else:
        network = nn.Sequential(
            nn.Linear(size, inner), nn.ReLU(), nn.Linear(inner, inner), nn.ReLU(), nn.Linear(inner, size)
        )
    encoder = Encoder(spec.n_tokens, size, network)
    encoder.embedding.reset_parameters()
    return encoder


def finished(spec: VirtualTokens, vectors: Tensor) -> tuple[VirtualTokens, Encoder]:
    """An encoder that holds what another one made, without its network; with the spec that describes it."""
    encoder = Encoder(vectors.shape[0], vectors.shape[1])
    with torch.no_grad():
        encoder.to(vectors.device, vectors.dtype).embedding.weight.copy_(vectors)
    plain: VirtualTokens = Prefix(len(vectors)) if isinstance(spec, Prefix) else Prompt(len(vectors))
    return plain, encoder
