"""LoRA (Hu et al. 2021): y = W x + b, and on the rows of each adapted layer + scale * B A dropout(x).

`LoraLinear` takes the place of an nn.Linear and keeps its parameters and their names, so checkpoints of the base fit
and whoever reads `.weight` reads W. B starts at zero: a model with a fresh adapter is the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatloom.errors import ChatloomError
from chatloom.model.adapters.specs import Lora
from chatloom.model.adapters.targets import OUTPUT, Network, Rows, chosen


class LowRank(nn.Module):
    """A [rank, in] and B [rows, rank] of the rows `start` to `stop` of a matrix; `name` is Hugging Face's for them.

    `LoraLinear` computes with them, all those of a matrix at once.
    """

    def __init__(self, spec: Lora, rows: Rows, base: nn.Linear, generator: torch.Generator | None) -> None:
        super().__init__()
        self.spec = spec
        self.name, self.start, self.stop = rows.name, rows.start, rows.stop
        weight = base.weight
        # kaiming_uniform with a = sqrt(5), as Hu et al.'s and PEFT's code draw A: bound 1 / sqrt(in).
        bound = 1.0 / math.sqrt(base.in_features)
        drawn = torch.empty(spec.rank, base.in_features).uniform_(-bound, bound, generator=generator)
        self.A = nn.Parameter(drawn.to(weight.device, weight.dtype))
        self.B = nn.Parameter(weight.new_zeros(rows.stop - rows.start, spec.rank))

    def product(self) -> Tensor:
        """scale * B A [rows, in]: what merging adds to the weights."""
        return (self.B @ self.A) * self.spec.scale


class LoraLinear(nn.Linear):
    """An nn.Linear with low-rank updates of some of its rows, which never overlap."""

    def __init__(self, base: nn.Linear, lows: Sequence[LowRank]) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.lora = nn.ModuleDict({low.name.rpartition(".")[2]: low for low in lows})
        self.active = True
        self._originals: dict[str, Tensor] = {}

    @property
    def lows(self) -> list[LowRank]:
        """The updates, from the first row to the last."""
        return [low for low in self.lora.values() if isinstance(low, LowRank)]

    @property
    def drops(self) -> bool:
        """Whether training draws numbers here."""
        return any(low.spec.dropout > 0 for low in self.lows)

    @property
    def merged(self) -> bool:
        """Whether the updates are in the weights now."""
        return bool(self._originals)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        y = F.linear(x, self.weight, self.bias)
        if not self.active or self.merged:
            return y
        lows = self.lows
        spec = lows[0].spec
        # One product with all A: x is read once, and gets its gradient once.
        inner = F.linear(F.dropout(x, spec.dropout, self.training), torch.cat([low.A for low in lows])) * spec.scale
        parts, end = [], 0
        for low, part in zip(lows, inner.split(spec.rank, dim=-1), strict=True):
            if end < low.start:
                parts.append(part.new_zeros(*part.shape[:-1], low.start - end))
            parts.append(F.linear(part, low.B))
            end = low.stop
        if end < self.out_features:
            parts.append(inner.new_zeros(*inner.shape[:-1], self.out_features - end))
        # Not in place: y may be kept for the backward pass instead of being computed again.
        return y + (parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1))

    def effective_weight(self) -> Tensor:
        """W with every update added, [out, in]; differentiable. W itself when merged or switched off."""
        if not self.active or self.merged:
            return self.weight
        parts, end = [], 0
        for low in self.lows:
            if end < low.start:
                parts.append(self.weight[end : low.start])
            parts.append(self.weight[low.start : low.stop] + low.product().to(self.weight.dtype))
            end = low.stop
        if end < self.out_features:
            parts.append(self.weight[end:])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @torch.no_grad()
    def merge(self) -> None:
        """Add the updates to the weights, and keep the rows as they were."""
        for key, low in self.lora.items():
            assert isinstance(low, LowRank)
            rows = self.weight[low.start : low.stop]
            self._originals[key] = rows.clone()
            rows.add_(low.product().to(rows.dtype))

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the kept rows back, bit for bit."""
        for key, original in self._originals.items():
            low = self.lora[key]
            assert isinstance(low, LowRank)
            self.weight[low.start : low.stop] = original
        self._originals.clear()


def add_lora(network: Network, spec: Lora, generator: torch.Generator | None = None) -> None:
    """Give a network's linear layers updates as `spec` says; its own weights are neither changed nor frozen.

    `generator`: a CPU generator for A, torch's global one when None. Raises ChatloomError for a target that matches
    nothing, or a network that has LoRA already.
    """
    if has_lora(network):
        raise ChatloomError("this model has a LoRA adapter already; merge it before another is added")
    groups: dict[str, list[Rows]] = {}
    for rows in chosen(network, spec.targets):
        groups.setdefault(rows.module, []).append(rows)
    if spec.dropout and any(item.key == OUTPUT for group in groups.values() for item in group):
        raise ChatloomError(
            "LoRA on lm_head with dropout: losses take the output matrix as a whole, so its input cannot be dropped; "
            "set the dropout to 0 or leave lm_head out"
        )
    for module, group in groups.items():
        base = network.get_submodule(module)
        assert isinstance(base, nn.Linear)
        parent, _, name = module.rpartition(".")
        lows = [LowRank(spec, rows, base, generator) for rows in group]
        setattr(network.get_submodule(parent), name, LoraLinear(base, lows).train(base.training))


def remove_lora(network: Network) -> None:
    """Take every update out again; merged ones stay in the weights for good."""
    for name, layer in list(lora_layers(network)):
        plain = nn.utils.skip_init(nn.Linear, 1, 1, bias=layer.bias is not None, device="meta")
        plain.in_features, plain.out_features = layer.in_features, layer.out_features
        plain.weight, plain.bias = layer.weight, layer.bias
        parent, _, last = name.rpartition(".")
        setattr(network.get_submodule(parent), last, plain.train(layer.training))


def lora_layers(network: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """Names and adapted layers of a network."""
    return ((name, module) for name, module in network.named_modules() if isinstance(module, LoraLinear))


def has_lora(network: nn.Module) -> bool:
    """Whether any layer is adapted."""
    return any(True for _ in lora_layers(network))


def drops(network: nn.Module) -> bool:
    """Whether an adapter has dropout, so that its training draws numbers."""
    return any(layer.drops for _, layer in lora_layers(network))


def merge(network: nn.Module) -> None:
    """Add all updates to the weights: the network computes the same (up to rounding) as fast as without adapter.

    The rows that change are kept beside, so that `unmerge` is exact. Raises ChatloomError when merged already.
    """
    layers = [layer for _, layer in lora_layers(network)]
    if any(layer.merged for layer in layers):
        raise ChatloomError("the LoRA adapter is merged already")
    for layer in layers:
        layer.merge()


def unmerge(network: nn.Module) -> None:
    """Make the weights what they were before `merge`, bit for bit."""
    for _, layer in lora_layers(network):
        layer.unmerge()


def switch(network: nn.Module, active: bool) -> None:
    """Compute with the adapter or, as its base does, without it. Raises ChatloomError when it is merged."""
    for _, layer in lora_layers(network):
        if layer.merged:
            raise ChatloomError("the LoRA adapter is merged into the weights; unmerge it before it is switched off")
        layer.active = active
