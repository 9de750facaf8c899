"""Grouped-query causal self-attention (Vaswani et al. 2017; Ainslie et al. 2023), with and without a KV cache.

Which tokens see which is told in one of two ways, made once per forward pass and shared by all layers: an additive mask
(`packed_mask`), or for the kernels of CUDA the places where segments begin (`boundaries_of`), whose cost does not grow
with the square of the row.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatloom.model.config import TransformerConfig
from chatloom.model.norms import make_norm
from chatloom.model.positions import rotate


class KeyValueCache(Protocol):
    """What attention asks of a cache; `chatloom.generation.kv_cache.KVCache` is one."""

    def positions(self, n_tokens: int) -> Tensor:
        """Positions [batch, n_tokens] of the next tokens."""

    @property
    def length(self) -> int:
        """Slots filled so far."""

    def mask(
        self, n_tokens: int, dtype: torch.dtype, *, window: int | None = None, both_ways: bool = False
    ) -> Tensor | None:
        """Additive mask [batch, 1, n_tokens, n_keys], or None when every earlier key is visible and no other."""

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keep keys and values [batch, kv_heads, n_tokens, head_dim]; return all so far."""

    def advance(self, n_tokens: int) -> None:
        """Count the tokens just appended in every layer."""


def packed_mask(
    segments: Tensor, dtype: torch.dtype, *, window: int | None = None, prefix: Tensor | None = None
) -> Tensor:
    """Additive mask [batch, 1, time, time]: 0 where a token may look, -inf elsewhere.

    A token sees itself and the earlier tokens of its own segment, the newest `window` of them if given. Where prefix
    bool [batch, time] marks tokens, those of one segment see each other both ways. Padding (-1) sees padding: a row of
    only -inf would become NaN.
    """
    visible = (segments.unsqueeze(2) == segments.unsqueeze(1)) & _causal(segments.shape[1], window, segments.device)
    if prefix is not None:
        visible |= (segments.unsqueeze(2) == segments.unsqueeze(1)) & (prefix.unsqueeze(2) & prefix.unsqueeze(1))
    return additive(visible, dtype).unsqueeze(1)


def causal_mask(time: int, dtype: torch.dtype, device: torch.device, window: int | None = None) -> Tensor:
    """Additive mask [1, 1, time, time] of rows that are one segment each."""
    return additive(_causal(time, window, device), dtype)[None, None]


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where `visible`, -inf elsewhere."""
    mask = torch.full(visible.shape, float("-inf"), dtype=dtype, device=visible.device)
    return mask.masked_fill_(visible, 0.0)


def _causal(time: int, window: int | None, device: torch.device) -> Tensor:
    visible = torch.ones(time, time, dtype=torch.bool, device=device).tril_()
    return visible if window is None else visible.triu_(1 - window)


def boundaries_of(segments: Tensor) -> Tensor:
    """int32 [n + 1]: where each run of equal segment ids of [batch, time] begins in the flattened rows, then their end.

    Padding is a run like any other. Waits for the device; `Batch.boundaries` holds the same, made beforehand.
    """
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    starts = begins.flatten().nonzero().squeeze(1)
    return torch.cat((starts, starts.new_tensor([segments.numel()]))).to(torch.int32)


def takes_boundaries(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether attention runs by boundaries there: FlashAttention's kernels, which are for CUDA and half precision."""
    return device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)


def attend_within(
    queries: Tensor, keys: Tensor, values: Tensor, boundaries: Tensor, longest: int, window: int | None = None
) -> Tensor:
    """Causal attention inside the runs that `boundaries` int32 [n + 1] parts; runs of no length are allowed.

    queries [total, heads, head_dim], keys and values [total, kv_heads, head_dim] in half precision on CUDA; no run is
    longer than `longest`; a token sees the newest `window` tokens, all when None. Dao 2023, FlashAttention-2, through
    torch.
    """
    from torch.nn.attention.varlen import varlen_attn

    shared = queries.shape[1] // keys.shape[1]
    if shared > 1:
        keys, values = (item.repeat_interleave(shared, dim=1) for item in (keys, values))
    behind = -1 if window is None else window - 1
    mixed = varlen_attn(queries, keys, values, boundaries, boundaries, longest, longest, window_size=(behind, 0))
    assert isinstance(mixed, Tensor)  # a pair only where more than the result is asked for
    return mixed


class Frame(NamedTuple):
    """What the blocks of one forward pass share.

    rotation  cosines and signed sines [batch, time, 1, head_dim], and xPos's scales; empty where nothing is turned
    mask      additive [batch or 1, heads or 1, time, keys], or None: plainly causal, or by `boundaries`
    boundaries  int32 [n + 1], see `boundaries_of`
    present   bool [batch, time], False in padding, for routers; None: no padding
    """

    rotation: tuple[Tensor, ...] = ()
    mask: Tensor | None = None
    boundaries: Tensor | None = None
    present: Tensor | None = None


class Attention(nn.Module):
    """Queries, keys and values from one matrix, turned, attended, projected back to the residual stream."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_heads = config.n_heads
        self.n_kv_heads = config.n_kv_heads
        self.head_dim = config.head_dim
        self.window = config.window_of(layer)
        self.dropout = config.attention_dropout
        width = config.attention_size + 2 * config.kv_size
        self.qkv = nn.utils.skip_init(nn.Linear, config.hidden_size, width, bias=config.qkv_bias)
        # queries, keys, values: matrices of their own for an optimizer that looks at matrices
        self.fused_rows = {"qkv.weight": (config.attention_size, config.kv_size, config.kv_size)}
        self.query_norm = make_norm(config, config.head_dim) if config.qk_norm else None
        self.key_norm = make_norm(config, config.head_dim) if config.qk_norm else None
        self.output = nn.utils.skip_init(nn.Linear, config.attention_size, config.hidden_size, bias=config.output_bias)

    def forward(self, x: Tensor, frame: Frame, cache: KeyValueCache | None) -> Tensor:
        """[batch, time, hidden] -> [batch, time, hidden]. Without mask and boundaries attention is plainly causal."""
        batch, time, _ = x.shape
        n_turned = self.n_heads + self.n_kv_heads
        heads = self.qkv(x).view(batch, time, n_turned + self.n_kv_heads, self.head_dim)
        turned, values = heads.split((n_turned, self.n_kv_heads), dim=2)
        turned = self._turn(turned, frame.rotation)
        if frame.boundaries is not None:
            queries, keys = turned.flatten(0, 1).split((self.n_heads, self.n_kv_heads), dim=1)
            mixed = attend_within(queries, keys, values.flatten(0, 1), frame.boundaries, time, self.window)
            return self.output(mixed.view(batch, time, -1))
        queries, keys = turned.transpose(1, 2).split((self.n_heads, self.n_kv_heads), dim=1)
        values = values.transpose(1, 2)
        if cache is not None:
            keys, values = cache.append(self.layer, keys, values)
        mixed = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=frame.mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=frame.mask is None and time > 1,
            enable_gqa=self.n_heads != self.n_kv_heads,
        )
        return self.output(mixed.transpose(1, 2).reshape(batch, time, -1))

    def _turn(self, heads: Tensor, rotation: tuple[Tensor, ...]) -> Tensor:
        """Queries and keys [batch, time, heads + kv_heads, head_dim], normalised and turned as the config says."""
        if self.query_norm is not None and self.key_norm is not None:
            queries, keys = heads.split((self.n_heads, self.n_kv_heads), dim=2)
            heads = torch.cat((self.query_norm(queries), self.key_norm(keys)), dim=2)
        if not rotation:
            return heads
        heads = rotate(heads, rotation[0], rotation[1])
        if len(rotation) == 3:
            scale = rotation[2]
            queries, keys = heads.split((self.n_heads, self.n_kv_heads), dim=2)
            heads = torch.cat((queries * scale, keys / scale), dim=2)
        return heads
