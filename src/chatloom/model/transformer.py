"""The decoder: embedding, blocks of attention and feed-forward, final norm; its output is the hidden states.

Logits are not made here: `[batch, time, vocab]` is the largest tensor of a small model, so losses and the generator
make them for the positions they need, from `Transformer.unembedding`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatloom.errors import ChatloomError
from chatloom.model.attention import (
    Frame,
    KeyValueCache,
    boundaries_of,
    causal_mask,
    packed_mask,
    takes_boundaries,
)
from chatloom.model.block import Block
from chatloom.model.config import ROTARY, TransformerConfig
from chatloom.model.experts import Routing
from chatloom.model.initialisation import initialise as draw
from chatloom.model.norms import make_norm
from chatloom.model.position_bias import position_bias
from chatloom.model.positions import RotaryTable, sinusoids, xpos_scales
from chatloom.model.recompute import How, recomputing
from chatloom.tokens.packing import Batch


def _through(block: nn.Module, x: Tensor, frame: Frame) -> tuple[Tensor, Routing | None]:
    """One block without a cache: what is compiled, once for all blocks, as their shapes are equal."""
    result: tuple[Tensor, Routing | None] = block(x, frame, None)
    return result


def _unless_cached(plain: Callable[..., Any], wrapped: Callable[..., Any]) -> Callable[..., Any]:
    """A block's forward: `wrapped`, or `plain` where there is a cache."""
    return lambda x, frame, cache: (wrapped if cache is None else plain)(x, frame, cache)


class Transformer(nn.Module):
    """Decoder made of the parts that its config names; the defaults are Llama's (Touvron et al. 2023, section 2.2).

    Weights are drawn at once; see model/initialisation.py.
    """

    def __init__(
        self, config: TransformerConfig, *, generator: torch.Generator | None = None, initialise: bool = True
    ) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.utils.skip_init(nn.Embedding, config.vocab_size, config.hidden_size)
        self.position_embedding = (
            nn.utils.skip_init(nn.Embedding, config.max_positions, config.hidden_size)
            if config.positions == "learned"
            else None
        )
        self.position_bias = position_bias(config)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = make_norm(config, config.hidden_size) if config.has_final_norm else nn.Identity()
        self.output_embedding = (
            None
            if config.tie_embeddings
            else nn.utils.skip_init(nn.Linear, config.hidden_size, config.vocab_size, bias=False)
        )
        self._rotary = (
            RotaryTable(config.head_dim, config.max_positions, config.rope_theta, config.rope_scaling)
            if config.positions in ROTARY
            else None
        )
        self._through: Callable[..., tuple[Tensor, Routing | None]] = _through
        if initialise:
            self.initialise(generator)

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights anew; `generator` is a CPU generator, torch's global one when None."""
        draw(self, self.config, generator)

    @property
    def unembedding(self) -> Tensor:
        """Weight [vocab, hidden] that turns hidden states into logits; the embedding itself when tied."""
        if self.output_embedding is None:
            return self.embedding.weight
        adapted = getattr(self.output_embedding, "effective_weight", None)  # with LoRA, which adds to it
        weight: Tensor = self.output_embedding.weight if adapted is None else adapted()
        return weight

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., hidden] -> [..., vocab]; for a few positions only (see the top of this file)."""
        logits = F.linear(hidden, self.unembedding)
        cap = self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        cache: KeyValueCache | None = None,
        boundaries: Tensor | None = None,
        prefix: Tensor | None = None,
        routings: list[Routing] | None = None,
    ) -> Tensor:
        """Hidden states [batch, time, hidden] after the final norm, of tokens [batch, time].

        positions [batch, time]: place of each token in its own segment (counted from 0, or from the cache's end, when
        None). segments [batch, time]: attention is causal and stays inside a segment; -1 is padding, whose hidden
        states are finite and mean nothing. With None the row is one segment. boundaries: what `boundaries_of(segments)`
        gives, where it is known already. prefix bool [batch, time]: tokens of a segment that see each other both ways;
        with a cache the first tokens of a prefix decoder do. routings: what each router did is appended. Under autocast
        the residual stream has autocast's dtype. Raises ValueError when segments and cache are both given, IndexError
        for a token or position outside the model's range.
        """
        if segments is not None and cache is not None:
            raise ValueError("segments and cache are both given; a cache knows its own padding, so pass segments=None")
        time = tokens.shape[1]
        if positions is None:
            positions = (
                torch.arange(time, device=tokens.device).unsqueeze(0) if cache is None else cache.positions(time)
            )
        x = self._embed(tokens, positions)
        frames = self._frames(x, positions, segments, cache, boundaries, prefix)
        for layer, block in enumerate(self.layers):
            frame = frames[self.config.window_of(layer)]
            x, routing = self._through(block, x, frame) if cache is None else block(x, frame, cache)
            if routing is not None and routings is not None:
                routings.append(routing)
        if cache is not None:
            cache.advance(time)
        hidden: Tensor = self.norm(x)
        return hidden

    def _embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """[batch, time, hidden]: token embeddings, with what tells the place where that is added to them."""
        x: Tensor = self.embedding(tokens)
        if self.position_embedding is not None:
            x = x + self.position_embedding(positions)
        elif self.config.positions == "sinusoidal":
            # Vaswani et al. 2017, 3.4: embeddings are multiplied so that places do not drown them.
            x = x * math.sqrt(self.config.hidden_size) + sinusoids(positions, self.config.hidden_size).to(x.dtype)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return F.dropout(x, self.config.dropout) if self.config.dropout and self.training else x

    def _frames(
        self,
        x: Tensor,
        positions: Tensor,
        segments: Tensor | None,
        cache: KeyValueCache | None,
        boundaries: Tensor | None,
        prefix: Tensor | None,
    ) -> dict[int | None, Frame]:
        """What the layers of each window share."""
        config, time = self.config, x.shape[1]
        rotation: tuple[Tensor, ...] = () if self._rotary is None else self._rotary(positions, x.dtype)
        if config.positions == "xpos":
            rotation = (*rotation, xpos_scales(positions, config.head_dim, x.dtype))
        bias = None
        if self.position_bias is not None:
            keys = time if cache is None else cache.length + time
            bias = self.position_bias(time, keys, x.device).to(x.dtype).unsqueeze(0)
        present = segments >= 0 if segments is not None and config.n_experts else None
        by_boundaries = (
            segments is not None
            and bias is None
            and prefix is None
            and not (config.attention_dropout and self.training)
            and takes_boundaries(x.device, x.dtype)
        )
        if segments is not None and by_boundaries:
            boundaries = boundaries_of(segments) if boundaries is None else boundaries
        else:
            boundaries = None
        frames: dict[int | None, Frame] = {}
        for window in {config.window_of(layer) for layer in range(config.n_layers)}:
            mask: Tensor | None = None
            narrow = None if window is None or (cache is None and window >= time) else window
            if cache is not None:
                both_ways = config.prefix_decoder and cache.length == 0
                mask = cache.mask(time, x.dtype, window=narrow, both_ways=both_ways)
            elif boundaries is None:
                if segments is not None:
                    mask = packed_mask(segments, x.dtype, window=narrow, prefix=prefix)
                elif prefix is not None:
                    mask = packed_mask(torch.zeros_like(prefix, dtype=torch.int64), x.dtype, prefix=prefix)
                elif narrow is not None:
                    mask = causal_mask(time, x.dtype, x.device, narrow)
            if bias is not None:
                if mask is None and time > 1:
                    mask = causal_mask(time, x.dtype, x.device)
                mask = bias if mask is None else mask + bias
            frames[window] = Frame(rotation, mask, boundaries, present)
        return frames

    def over(self, batch: Batch, routings: list[Routing] | None = None) -> Tensor:
        """Hidden states [rows, time, hidden] of a packed batch."""
        prefix = batch.prefix if self.config.prefix_decoder else None
        plain = batch.is_plain and prefix is None
        if plain and batch.tokens.device.type == "cuda":  # plainly causal kernels take half the time there
            hidden: Tensor = self(batch.tokens, batch.positions, routings=routings)
        else:
            hidden = self(
                batch.tokens,
                batch.positions,
                batch.segments,
                boundaries=batch.boundaries,
                prefix=prefix,
                routings=routings,
            )
        return hidden

    def recompute_blocks(self, how: How, *, hooked: bool = False) -> None:
        """From now on keep less of each block for the backward pass (see model/recompute.py); results stay the same.

        Call it after `compile_blocks`. A pass with a cache keeps everything. hooked: what is attached to a block (the
        gathering of weights) runs around the whole, once, and not again with it.
        """
        random = self.config.dropout > 0 or self.config.attention_dropout > 0
        random |= any(getattr(part, "drops", False) for part in self.modules())  # an adapter
        self._wrap(lambda run: recomputing(run, how, random=random), hooked=hooked)

    def _wrap(self, wrap: Callable[[Callable[..., Any]], Callable[..., Any]], *, hooked: bool) -> None:
        """Have every block's passes without a cache run as `wrap` makes them."""
        if not hooked:
            self._through = wrap(self._through)
            return
        for block in self.layers:
            block.forward = _unless_cached(block.forward, wrap(block.forward))

    def compile_blocks(self, *, hooked: bool = False) -> None:
        """From now on passes without a cache run each block as compiled code: made at the first one, for all blocks.

        Results differ from the uncompiled ones by rounding. hooked: as in `recompute_blocks`. Raises ChatloomError for
        a mixture of experts, whose shapes depend on the data.
        """
        if self.config.n_experts:
            raise ChatloomError(
                "a mixture of experts is not compiled: its shapes depend on the data; set compile to off"
            )
        self._wrap(lambda run: torch.compile(run, fullgraph=True), hooked=hooked)
