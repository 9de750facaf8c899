"""A decoder with virtual tokens before every text: prefix tuning, prompt tuning and P-tuning in one mechanism.

A causal model sees what stands before a text only through its keys and values in each layer. A prefix (Li & Liang 2021)
is such keys and values; a prompt's (Lester et al. 2021) are made by one pass over its vectors alone. Either way they
are put before the keys that attention sees, by a cache that stands between it and whatever keeps the real ones: so they
are visible to every segment of a packed row and to every row of a batch, and real tokens count their positions from
`n_tokens` on, as in PEFT.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.func import functional_call

from chatloom.errors import ChatloomError
from chatloom.model.adapters.encoders import Encoder
from chatloom.model.adapters.specs import Prefix, VirtualTokens
from chatloom.model.attention import KeyValueCache, causal_mask, packed_mask
from chatloom.model.config import TransformerConfig
from chatloom.model.experts import Routing
from chatloom.model.positions import RotaryTable
from chatloom.model.transformer import Transformer

# Keys and values [1, kv_heads, tokens, head_dim] of every layer.
KeysValues = list[tuple[Tensor, Tensor]]


class PromptedTransformer(Transformer):
    """A decoder that shares its parts with `body`, with an encoder's virtual tokens before every text.

    `config` is the body's: its context counts real tokens alone. Raises ChatloomError for a body whose parts leave
    virtual tokens without a meaning, and for a second set of them.
    """

    def __init__(self, body: Transformer, spec: VirtualTokens, encoder: Encoder) -> None:
        if isinstance(body, PromptedTransformer):
            raise ChatloomError("this model has virtual tokens already; a second set of them is not supported")
        check_body(body.config)
        # All that the body is, its containers copied so that what is added here is not added there.
        self.__dict__.update({k: copy.copy(v) if isinstance(v, dict) else v for k, v in vars(body).items()})
        if self._rotary is not None:
            longer = self._rotary.max_positions + encoder.n_tokens
            self._rotary = RotaryTable(self._rotary.head_dim, longer, self._rotary.theta, self._rotary.scaling)
        self._bodies = (body,)  # in a tuple, so that its parts are not counted twice
        self.spec = spec
        self.virtual = encoder
        self._made: tuple[object, KeysValues] | None = None
        self.train(body.training)

    @property
    def body(self) -> Transformer:
        """The decoder without virtual tokens; its parts are shared."""
        return self._bodies[0]

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
        """As `Transformer.forward`; the virtual tokens' own hidden states are not part of the result."""
        del boundaries, routings  # kernels that go by boundaries put nothing before segments, and there are no routers
        if isinstance(cache, _Recorder):
            return super().forward(tokens, positions, cache=cache)
        if segments is not None and cache is not None:
            raise ValueError("segments and cache are both given; a cache knows its own padding, so pass segments=None")
        if positions is None:
            time = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
            positions = time if cache is None else cache.positions(tokens.shape[1])
        before = _Before(self.keys_values(tokens.device), segments, prefix, cache)
        return super().forward(tokens, positions + self.virtual.n_tokens, cache=before)

    def keys_values(self, device: torch.device) -> KeysValues:
        """What the virtual tokens leave in every layer; kept from pass to pass while no weight is being trained."""
        if torch.is_grad_enabled() or any(p.grad is not None for p in self.parameters()):
            return self._keys_values()  # a fused optimizer's step, which leaves no trace, may come at any time
        # Any other change in place counts a weight's version up, and a move gives it another address.
        autocast = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
        state = (autocast, [(p.data_ptr(), p._version) for p in self.parameters()])
        if self._made is None or self._made[0] != state:
            self._made = (state, self._keys_values())
        return self._made[1]

    def _keys_values(self) -> KeysValues:
        vectors = self.virtual.vectors()
        if isinstance(self.spec, Prefix):
            return split_prefix(vectors, self.config.n_layers, self.config.n_kv_heads)
        recorder = _Recorder()
        ids = torch.arange(len(vectors), device=vectors.device).unsqueeze(0)
        # The vectors take the place of the embedding's rows, so that they go in exactly where a token's would.
        functional_call(self, {"embedding.weight": vectors}, (ids, ids), {"cache": recorder}, tie_weights=False)
        return recorder.found


def split_prefix(vectors: Tensor, n_layers: int, n_kv_heads: int) -> KeysValues:
    """Keys and values of each layer, in PEFT's order: vectors [tokens, layers * 2 * kv_heads * head_dim]."""
    parts = vectors.view(len(vectors), n_layers, 2, n_kv_heads, -1).permute(1, 2, 3, 0, 4).unsqueeze(2)
    return [(layer[0], layer[1]) for layer in parts]


def check_body(config: TransformerConfig) -> None:
    """Refuse, by name, what virtual tokens have no meaning for or no place in."""
    reasons = {
        f"positions: {config.positions}": config.positions not in ("rope", "sinusoidal", "none")
        and "a table of positions has no places for them, and distances are counted in packed rows",
        f"window: {config.window}": config.window is not None and "a text would leave them behind",
        f"n_experts: {config.n_experts}": config.n_experts > 0 and "padding would be counted by the routers",
    }
    for name, reason in reasons.items():
        if reason:
            raise ChatloomError(f"virtual tokens before a model with {name}: {reason}; use kind lora")


class _Recorder:
    """A cache for one pass over virtual tokens alone: it keeps what every layer makes of them."""

    length = 0

    def __init__(self) -> None:
        self.found: KeysValues = []

    def positions(self, n_tokens: int) -> Tensor:
        raise AssertionError(f"positions of {n_tokens} virtual tokens are given")

    def mask(
        self, n_tokens: int, dtype: torch.dtype, *, window: int | None = None, both_ways: bool = False
    ) -> Tensor | None:
        """None: causal, in prefix decoders too."""
        del n_tokens, dtype, window, both_ways
        return None

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        del layer
        self.found.append((keys, values))
        return keys, values

    def advance(self, n_tokens: int) -> None:
        del n_tokens


class _Before:
    """Puts the virtual tokens' keys before those of packed rows, or before those that `inner` keeps."""

    def __init__(
        self, made: KeysValues, segments: Tensor | None, prefix: Tensor | None, inner: KeyValueCache | None
    ) -> None:
        self.made, self.segments, self.prefix, self.inner = made, segments, prefix, inner
        self.n_virtual = made[0][0].shape[2]

    @property
    def length(self) -> int:
        """Real tokens kept so far."""
        return 0 if self.inner is None else self.inner.length

    def positions(self, n_tokens: int) -> Tensor:
        raise AssertionError(f"positions of {n_tokens} tokens are given")

    def mask(
        self, n_tokens: int, dtype: torch.dtype, *, window: int | None = None, both_ways: bool = False
    ) -> Tensor | None:
        """What the real tokens see of one another, and all virtual tokens before it."""
        assert window is None
        seen = self._among_real(n_tokens, dtype, both_ways)
        if seen is None:
            if n_tokens == 1:
                return None
            seen = causal_mask(n_tokens, dtype, self.made[0][0].device)
        return torch.cat((seen.new_zeros(*seen.shape[:-1], self.n_virtual), seen), dim=-1)

    def _among_real(self, n_tokens: int, dtype: torch.dtype, both_ways: bool) -> Tensor | None:
        if self.inner is not None:
            return self.inner.mask(n_tokens, dtype, both_ways=both_ways)
        segments, prefix = self.segments, self.prefix
        if segments is None and prefix is not None:
            segments = torch.zeros_like(prefix, dtype=torch.int64)
        return None if segments is None else packed_mask(segments, dtype, prefix=prefix)

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.inner is not None:
            keys, values = self.inner.append(layer, keys, values)
        before = (item.to(keys.dtype).expand(len(keys), -1, -1, -1) for item in self.made[layer])
        first, second = (torch.cat(pair, dim=2) for pair in zip(before, (keys, values), strict=True))
        return first, second

    def advance(self, n_tokens: int) -> None:
        if self.inner is not None:
            self.inner.advance(n_tokens)
