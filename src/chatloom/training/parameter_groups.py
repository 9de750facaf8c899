"""Which parameters are treated how: what decays, what Muon may orthogonalise, and which share one tensor."""

from __future__ import annotations

from torch import nn

from chatloom.model.block import Block
from chatloom.model.experts import Experts


def split_parameters(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trainable parameters that decay (matrices of linear layers) and that do not (norms, biases, embeddings)."""
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in module.parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim >= 2 and id(parameter) not in embeddings
            (decayed if matrix else plain).append(parameter)
    return decayed, plain


def hidden_matrices(module: nn.Module) -> list[nn.Parameter]:
    """Trainable weights of the linear layers and experts inside blocks: what maps hidden states to hidden states.

    Neither embeddings and output matrices, whose rows are tokens, nor heads, which have one row, nor routers, whose
    rows are experts: what turns hidden states into scores wants each row's own scale.
    """
    found: dict[nn.Parameter, None] = {}
    routers: set[nn.Parameter] = set()
    for block in module.modules():
        if isinstance(block, Block):
            for layer in block.modules():
                if isinstance(layer, Experts):
                    routers.add(layer.router.weight)
                if isinstance(layer, nn.Linear | Experts):
                    found.update((p, None) for n, p in layer.named_parameters(recurse=False) if n != "bias")
    return [parameter for parameter in found if parameter.requires_grad and parameter not in routers]


def matrices_in(module: nn.Module) -> dict[nn.Parameter, tuple[int, ...]]:
    """Of each parameter that holds several matrices, one below the other, how many rows each has.

    Queries, keys and values lie in one tensor because one product is faster than three; mathematically they are three.
    Modules say so themselves, in `fused_rows`.
    """
    found: dict[nn.Parameter, tuple[int, ...]] = {}
    for layer in module.modules():
        named = dict(layer.named_parameters()) if getattr(layer, "fused_rows", None) else {}
        for name, rows in getattr(layer, "fused_rows", {}).items():
            if name in named:
                found[named[name]] = tuple(rows)
    return found
