"""Grouped-query causal self-attention (Vaswani et al. 2017; Ainslie et al. 2023), with and without a KV cache.

Which tokens see which is told in one of two ways, made once per forward pass and shared by all layers: an additive mask
(`packed_mask`), or for the kernels of CUDA the places where segments begin (`boundaries_of`), whose cost does not grow
with the square of the row.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatloom.model.config import TransformerConfig
from chatloom.model.positions import rotate


class KeyValueCache(Protocol):
    """What attention asks of a cache; `chatloom.generation.kv_cache.KVCache` is one."""

    def positions(self, n_tokens: int) -> Tensor:
        """Positions [batch, n_tokens] of the next tokens."""

    def mask(self, n_tokens: int, dtype: torch.dtype) -> Tensor | None:
        """Additive mask [batch, 1, n_tokens, n_keys], or None when every earlier key is visible."""

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keep keys and values [batch, kv_heads, n_tokens, head_dim]; return all so far."""

    def advance(self, n_tokens: int) -> None:
        """Count the tokens just appended in every layer."""


def packed_mask(segments: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask [batch, 1, time, time]: 0 where a token may look, -inf elsewhere.

    A token sees itself and the earlier tokens of its own segment. Padding (-1) sees padding: a row of only -inf would
    become NaN.
    """
    time = segments.shape[1]
    causal = torch.ones(time, time, dtype=torch.bool, device=segments.device).tril_()
    visible = (segments.unsqueeze(2) == segments.unsqueeze(1)).logical_and_(causal)
    mask = torch.full(visible.shape, float("-inf"), dtype=dtype, device=segments.device)
    return mask.masked_fill_(visible, 0.0).unsqueeze(1)


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


def attend_within(queries: Tensor, keys: Tensor, values: Tensor, boundaries: Tensor, longest: int) -> Tensor:
    """Causal attention inside the runs that `boundaries` int32 [n + 1] parts; runs of no length are allowed.

    queries [total, heads, head_dim], keys and values [total, kv_heads, head_dim] in half precision on CUDA; no run is
    longer than `longest`. Dao 2023, FlashAttention-2, through torch.
    """
    from torch.nn.attention.varlen import varlen_attn

    shared = queries.shape[1] // keys.shape[1]
    if shared > 1:
        keys, values = (item.repeat_interleave(shared, dim=1) for item in (keys, values))
    mixed = varlen_attn(queries, keys, values, boundaries, boundaries, longest, longest, window_size=(-1, 0))
    assert isinstance(mixed, Tensor)  # a pair only where more than the result is asked for
    return mixed


class Attention(nn.Module):
    """Queries, keys and values from one matrix, rotated, attended, projected back to the residual stream."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_heads = config.n_heads
        self.n_kv_heads = config.n_kv_heads
        self.head_dim = config.head_dim
        bias = config.attention_bias
        self.qkv = nn.utils.skip_init(
            nn.Linear, config.hidden_size, config.attention_size + 2 * config.kv_size, bias=bias
        )
        self.output = nn.utils.skip_init(nn.Linear, config.attention_size, config.hidden_size, bias=bias)
        # queries, keys, values: matrices of their own for an optimizer that looks at matrices
        self.fused_rows = {"qkv.weight": (config.attention_size, config.kv_size, config.kv_size)}

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
        boundaries: Tensor | None,
        cache: KeyValueCache | None,
    ) -> Tensor:
        """[batch, time, hidden] -> [batch, time, hidden]. Without mask and boundaries attention is plainly causal."""
        batch, time, _ = x.shape
        n_turned = self.n_heads + self.n_kv_heads
        heads = self.qkv(x).view(batch, time, n_turned + self.n_kv_heads, self.head_dim)
        turned, values = heads.split((n_turned, self.n_kv_heads), dim=2)
        turned = rotate(turned, cos, sin)
        if boundaries is not None:
            queries, keys = turned.flatten(0, 1).split((self.n_heads, self.n_kv_heads), dim=1)
            mixed = attend_within(queries, keys, values.flatten(0, 1), boundaries, time)
            return self.output(mixed.view(batch, time, -1))
        queries, keys = turned.transpose(1, 2).split((self.n_heads, self.n_kv_heads), dim=1)
        values = values.transpose(1, 2)
        if cache is not None:
            keys, values = cache.append(self.layer, keys, values)
        mixed = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None and time > 1,
            enable_gqa=self.n_heads != self.n_kv_heads,
        )
        return self.output(mixed.transpose(1, 2).reshape(batch, time, -1))
