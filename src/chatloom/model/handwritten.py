"""Where the backward passes that are written by hand run, and where plain operations do."""

from __future__ import annotations

import torch
from torch import Tensor


def by_hand(x: Tensor) -> bool:
    """Whether an operation on x should take its hand-written form: on a CPU, uncompiled, with gradients wanted.

    A compiler sees through plain operations and chooses itself what to keep for the backward pass.
    """
    return torch.is_grad_enabled() and x.device.type == "cpu" and not torch.compiler.is_compiling()
