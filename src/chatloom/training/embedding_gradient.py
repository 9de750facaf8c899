"""A smaller gradient for the embedding, where the gradients of a large model first become unstable."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def shrink_embedding_gradient(embedding: nn.Embedding, share: float) -> None:
    """From now on only `share` of the gradient of what is looked up in `embedding` reaches its weights.

    GLM-130B (Zeng et al. 2022, section 3; share 0.1) writes e = share * e + (1 - share) * stop_gradient(e). Here the
    gradient itself is multiplied, so that the values are not rounded. A weight that is also the output matrix (tied
    embeddings) has its gradient from the logits in full: the share is of what comes through the look-up alone.
    """

    def scaled(_module: nn.Module, _inputs: Any, looked_up: Tensor) -> None:
        if looked_up.requires_grad:
            looked_up.register_hook(lambda gradient: gradient * share)

    embedding.register_forward_hook(scaled)
