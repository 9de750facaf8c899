"""The decoder: embedding, blocks of attention and feed-forward, final norm; its output is the hidden states.

Logits are not made here: `[batch, time, vocab]` is the largest tensor of a small model, so losses and the generator
make them for the positions they need, from `Transformer.unembedding`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatloom.model.attention import Attention, KeyValueCache, boundaries_of, packed_mask, takes_boundaries
from chatloom.model.config import TransformerConfig
from chatloom.model.feedforward import FeedForward
from chatloom.model.norms import RMSNorm
from chatloom.model.positions import RotaryTable
from chatloom.tokens.packing import Batch


class Block(nn.Module):
    """x + attention(norm(x)), then x + feedforward(norm(x)): the residual stream itself is never scaled."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = Attention(config, layer)
        self.feedforward_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.feedforward = FeedForward(config)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
        boundaries: Tensor | None,
        cache: KeyValueCache | None,
    ) -> Tensor:
        """[batch, time, hidden] -> [batch, time, hidden]."""
        x = x + self.attention(self.attention_norm(x), cos, sin, mask, boundaries, cache)
        return x + self.feedforward(self.feedforward_norm(x))


def _through(block: nn.Module, *inputs: Tensor | None) -> Tensor:
    """One block on x, cos, sin, mask, boundaries: what is compiled, once for all blocks, as their shapes are equal."""
    result: Tensor = block(*inputs, None)
    return result


class Transformer(nn.Module):
    """Llama-layout decoder (Touvron et al. 2023, section 2.2). Weights are drawn at once; see `initialise`."""

    def __init__(
        self, config: TransformerConfig, *, generator: torch.Generator | None = None, initialise: bool = True
    ) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.utils.skip_init(nn.Embedding, config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.output_embedding = (
            None
            if config.tie_embeddings
            else nn.utils.skip_init(nn.Linear, config.hidden_size, config.vocab_size, bias=False)
        )
        self._rotary = RotaryTable(config.head_dim, config.max_positions, config.rope_theta)
        self._through: Callable[..., Tensor] = _through
        if initialise:
            self.initialise(generator)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights anew; `generator` is a CPU generator, torch's global one when None.

        | weights | drawn from |
        |---|---|
        | writing to the residual stream: attention output, feed-forward down | N(0, s / sqrt(2 n_layers)) |
        | every other matrix, embeddings included | N(0, s) |
        | norms | 1 |
        | biases | 0 |

        with s = config.initializer_range, as GPT-2 (Radford et al. 2019, section 2.3): 2 n_layers additions then keep
        the variance of the residual stream independent of depth.
        """
        spread = self.config.initializer_range
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.dim() == 1:
                parameter.fill_(1.0)
            else:
                writes_residual = name.endswith(("attention.output.weight", "feedforward.down.weight"))
                std = spread / math.sqrt(2 * self.config.n_layers) if writes_residual else spread
                values = torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, std, generator=generator)
                parameter.copy_(values)

    @property
    def unembedding(self) -> Tensor:
        """Weight [vocab, hidden] that turns hidden states into logits; the embedding itself when tied."""
        return self.embedding.weight if self.output_embedding is None else self.output_embedding.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., hidden] -> [..., vocab]; for a few positions only (see the top of this file)."""
        return F.linear(hidden, self.unembedding)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        cache: KeyValueCache | None = None,
        boundaries: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [batch, time, hidden] after the final norm, of tokens [batch, time].

        positions [batch, time]: place of each token in its own segment (counted from 0, or from the cache's end, when
        None). segments [batch, time]: attention is causal and stays inside a segment; -1 is padding, whose hidden
        states are finite and mean nothing. With None the row is one segment. boundaries: what `boundaries_of(segments)`
        gives, where it is known already. Under autocast the residual stream has autocast's dtype. Raises ValueError
        when segments and cache are both given, IndexError for a token or position outside the model's range.
        """
        if segments is not None and cache is not None:
            raise ValueError("segments and cache are both given; a cache knows its own padding, so pass segments=None")
        time = tokens.shape[1]
        if positions is None:
            positions = (
                torch.arange(time, device=tokens.device).unsqueeze(0) if cache is None else cache.positions(time)
            )
        x = self.embedding(tokens)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        cos, sin = self._rotary(positions, x.dtype)
        if cache is not None:
            mask = cache.mask(time, x.dtype)
            for block in self.layers:
                x = block(x, cos, sin, mask, None, cache)
            cache.advance(time)
            return self.norm(x)
        mask = None
        if segments is None:
            boundaries = None
        elif takes_boundaries(x.device, x.dtype):
            boundaries = boundaries_of(segments) if boundaries is None else boundaries
        else:
            mask, boundaries = packed_mask(segments, x.dtype), None
        for block in self.layers:
            x = self._through(block, x, cos, sin, mask, boundaries)
        return self.norm(x)

    def over(self, batch: Batch) -> Tensor:
        """Hidden states [rows, time, hidden] of a packed batch."""
        if batch.is_plain and batch.tokens.device.type == "cuda":  # plainly causal kernels take half the time there
            hidden: Tensor = self(batch.tokens, batch.positions)
        else:
            hidden = self(batch.tokens, batch.positions, batch.segments, boundaries=batch.boundaries)
        return hidden

    def compile_blocks(self) -> None:
        """From now on passes without a cache run each block as compiled code: made at the first one, for all blocks.

        Results differ from the uncompiled ones by rounding.
        """
        self._through = torch.compile(_through, fullgraph=True)
