"""Activations made anew in the backward pass instead of kept (Chen et al. 2016): less memory for more time.

| how | kept of a block for its backward pass | computed again |
|---|---|---|
| none | all that its operations want | nothing |
| selective | outputs of matrix products and of attention (Korthikanti et al. 2022 leave out what is cheap) | the rest |
| block | its input | everything |

Results are the same to the bit: the same operations run again on the same numbers, dropout included.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

How = Literal["none", "selective", "block"]
_ATEN = torch.ops.aten
# What costs most to make again for the memory it takes.
KEPT = frozenset(
    {
        _ATEN.mm.default,
        _ATEN.addmm.default,
        _ATEN.bmm.default,
        _ATEN.baddbmm.default,
        _ATEN._scaled_dot_product_flash_attention.default,
        _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
        _ATEN._scaled_dot_product_efficient_attention.default,
        _ATEN._scaled_dot_product_cudnn_attention.default,
        _ATEN._flash_attention_forward.default,
        _ATEN._efficient_attention_forward.default,
    }
)


def _policy(_context: Any, operation: Any, *_arguments: Any, **_named: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE


def recomputing(through: Callable[..., Any], how: How, *, random: bool) -> Callable[..., Any]:
    """`through(...)` whose activations are not kept where a gradient is wanted; random: it draws (dropout)."""
    if how == "none":
        return through
    contexts: dict[str, Any] = {}
    if how == "selective":
        contexts["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)

    def run(*arguments: Any) -> Any:
        if not torch.is_grad_enabled():
            return through(*arguments)
        return checkpoint(through, *arguments, use_reentrant=False, preserve_rng_state=random, **contexts)

    return run
