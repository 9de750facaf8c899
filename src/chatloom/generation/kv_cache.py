"""Keys and values of all layers for a batch of sequences that grow together.

Sequences are aligned at their newest token: shorter prompts start later, with `padding` empty slots before them. So
every step writes one slot for the whole batch, and no row ever needs an index of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chatloom.model.config import TransformerConfig


class KVCache:
    """Static slots: keys and values [layers, batch, kv_heads, max_length, head_dim], of which `length` are filled.

    `padding` [batch] counts the empty slots before each row's first token; None when no row has any.
    """

    def __init__(self, keys: Tensor, values: Tensor, *, length: int = 0, padding: Tensor | None = None) -> None:
        self._keys = keys
        self._values = values
        self.length = length
        self.padding = padding
        self._padding_mask: Tensor | None = None

    @classmethod
    def empty(
        cls,
        config: TransformerConfig,
        batch: int,
        max_length: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        padding: Tensor | None = None,
    ) -> KVCache:
        """Room for `batch` sequences of `max_length` tokens, padding included."""
        shape = (config.n_layers, batch, config.n_kv_heads, max_length, config.head_dim)
        return cls(
            torch.empty(shape, dtype=dtype, device=device),
            torch.empty(shape, dtype=dtype, device=device),
            padding=padding,
        )

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return self._keys.shape[1]

    @property
    def max_length(self) -> int:
        """Slots a sequence has, filled or not."""
        return self._keys.shape[3]

    @property
    def n_bytes(self) -> int:
        """Bytes of all slots."""
        return 2 * self._keys.numel() * self._keys.element_size()

    def positions(self, n_tokens: int) -> Tensor:
        """Positions of the next tokens: [1, n_tokens], or [batch, n_tokens] with padding (0 in the padding itself)."""
        slots = torch.arange(self.length, self.length + n_tokens, device=self._keys.device).unsqueeze(0)
        return slots if self.padding is None else (slots - self.padding.unsqueeze(1)).clamp_min_(0)

    def mask(
        self, n_tokens: int, dtype: torch.dtype, *, window: int | None = None, both_ways: bool = False
    ) -> Tensor | None:
        """Additive mask for the next tokens, broadcastable to [batch, 1, n_tokens, length + n_tokens].

        A token sees the newest `window` tokens, itself included, or all when None; with `both_ways` the next tokens see
        each other whatever their order. None when the tokens may see all keys before them and no other: one token
        without padding, or a first causal block.
        """
        end = self.length + n_tokens
        narrow = window is not None and end > window
        if not narrow and not (both_ways and n_tokens > 1):
            if self.padding is None and (n_tokens == 1 or self.length == 0):
                return None
            if n_tokens == 1:
                return self._single_token_mask(dtype)[..., :end]
        keys = torch.arange(end, device=self._keys.device)
        queries = keys[self.length :].unsqueeze(1)
        visible = (keys < end if both_ways else keys <= queries).unsqueeze(0).expand(1, n_tokens, end)
        if narrow:
            assert window is not None
            visible = visible & (keys > queries - window)
        if self.padding is not None:
            # A padding slot sees itself: a row without any key would become NaN.
            visible = (visible & (keys >= self.padding.view(-1, 1, 1))) | (keys == queries)
        mask = torch.full(visible.shape, float("-inf"), dtype=dtype, device=visible.device)
        return mask.masked_fill_(visible, 0.0).unsqueeze(1)

    def _single_token_mask(self, dtype: torch.dtype) -> Tensor:
        """[batch, 1, 1, max_length], made once: what one new token sees depends on the padding only."""
        assert self.padding is not None
        if self._padding_mask is None or self._padding_mask.dtype != dtype:
            hidden = torch.arange(self.max_length, device=self._keys.device) < self.padding.unsqueeze(1)
            mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))
            self._padding_mask = mask[:, None, None, :]
        return self._padding_mask

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keep keys and values [batch, kv_heads, n, head_dim] of one layer; all of its filled slots come back.

        `length` moves with `advance`, once all layers have appended. Raises ValueError when the slots are used up.
        """
        end = self.length + keys.shape[2]
        if end > self.max_length:
            raise ValueError(f"{end} tokens do not fit a cache of {self.max_length} slots")
        self._keys[layer, :, :, self.length : end] = keys
        self._values[layer, :, :, self.length : end] = values
        return self._keys[layer, :, :, :end], self._values[layer, :, :, :end]

    def advance(self, n_tokens: int) -> None:
        """Count tokens that every layer has appended."""
        self.length += n_tokens

    def rows(self, start: int, stop: int) -> KVCache:
        """The rows start..stop as a cache over the same memory; its `length` is its own."""
        padding = None if self.padding is None else self.padding[start:stop]
        return KVCache(self._keys[:, start:stop], self._values[:, start:stop], length=self.length, padding=padding)

    def expand(self, counts: Tensor) -> KVCache:
        """A copy with row i repeated counts[i] times: a prompt is read once for all of its samples."""
        rows = torch.repeat_interleave(counts.to(self._keys.device))
        layers, _, heads, slots, dim = self._keys.shape
        shape = (layers, len(rows), heads, slots, dim)
        copy = KVCache(
            self._keys.new_empty(shape),
            self._values.new_empty(shape),
            length=self.length,
            padding=None if self.padding is None else self.padding[rows],
        )
        for layer in range(layers):
            for source, target in ((self._keys, copy._keys), (self._values, copy._values)):
                target[layer, :, :, : self.length] = source[layer, :, :, : self.length].index_select(0, rows)
        return copy

    def keep(self, rows: Tensor) -> Tensor:
        """Keep only these rows [n] (distinct); returns the order in which they now lie.

        Rows behind place n move into the holes before it, in place, so over a whole generation no row moves often and
        the work of a step shrinks with the number of rows.
        """
        n = len(rows)
        stay = rows[rows < n]
        movers = rows[rows >= n]
        free = torch.ones(n, dtype=torch.bool, device=rows.device)
        free[stay] = False
        holes = free.nonzero().squeeze(1)
        for store in (self._keys, self._values):
            for layer in store:
                layer[holes, :, : self.length] = layer[movers, :, : self.length]
        order = torch.arange(n, device=rows.device)
        order[holes] = movers
        self._keys, self._values = self._keys[:, :n], self._values[:, :n]
        if self.padding is not None:
            self.padding = self.padding[order]
            self._padding_mask = None if self._padding_mask is None else self._padding_mask[order]
        return order
