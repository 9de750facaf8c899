"""Which weights stay as they are: patterns over names of our parameters, and a few words for groups of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from chatloom.errors import ChatloomError

# Word -> glob patterns of parameter names (without the `body.` of a reward model).
GROUPS = {
    "embeddings": ("embedding.*", "position_embedding.*"),
    "unembedding": ("output_embedding.*",),
    "norms": ("*norm.*",),
    "biases": ("*.bias",),
    "attention": ("layers.*.attention.*",),
    "feedforward": ("layers.*.feedforward.*",),
}
_LAYERS = re.compile(r"layers\.(\d+)(?:-(\d+))?")


def frozen_names(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The parameter names that `patterns` freeze, in order.

    A pattern is one of `GROUPS`, `layers.3`, `layers.0-5` (both ends frozen), or a glob over whole names such as
    `layers.*.attention.qkv.weight`. Raises ChatloomError for a pattern that matches nothing.
    """
    found: set[str] = set()
    for pattern in patterns:
        _check_range(names, pattern)
        matched = [name for name in names if _matches(name.removeprefix("body."), pattern)]
        if not matched:
            raise ChatloomError(
                f"freeze: `{pattern}` matches no weight of this model; there are {', '.join(GROUPS)}, layers.N, "
                f"layers.N-M, and globs over names such as {names[-1]}"
            )
        found.update(matched)
    return [name for name in names if name in found]


def freeze(network: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Take gradients from what the patterns name; call it before the optimizer is made. Returns the frozen names.

    Raises ChatloomError when a pattern matches nothing or no trainable weight is left.
    """
    parameters = dict(network.named_parameters())
    frozen = frozen_names(list(parameters), patterns)
    if not any(p.requires_grad for name, p in parameters.items() if name not in set(frozen)):
        raise ChatloomError(f"freeze: {', '.join(patterns)} leave no weight to train; freeze less")
    for name in frozen:
        parameters[name].requires_grad_(False)
    return frozen


def _check_range(names: Sequence[str], pattern: str) -> None:
    """Refuse a range that ends behind the last layer or before its start: it was meant for another model."""
    layers = _LAYERS.fullmatch(pattern)
    if not layers:
        return
    numbers = [int(found[1]) for name in names if (found := re.match(r"(?:body\.)?layers\.(\d+)\.", name))]
    first, last = int(layers[1]), int(layers[2] or layers[1])
    if not first <= last <= max(numbers, default=-1):
        raise ChatloomError(f"freeze: `{pattern}`, but this model's layers are 0 to {max(numbers, default=-1)}")


def _matches(name: str, pattern: str) -> bool:
    layers = _LAYERS.fullmatch(pattern)
    if layers:
        first = int(layers[1])
        last = int(layers[2] or first)
        inside = re.match(r"layers\.(\d+)\.", name)
        return inside is not None and first <= int(inside[1]) <= last
    return any(fnmatchcase(name, glob) for glob in GROUPS.get(pattern, (pattern,)))
