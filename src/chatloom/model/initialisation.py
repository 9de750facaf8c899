"""How the weights of a new decoder are drawn.

| weights | drawn from |
|---|---|
| writing to the residual stream: attention output, feed-forward down | N(0, s / sqrt(2 n_layers)) |
| every other matrix, embeddings included | N(0, s) |
| norms | 1 |
| biases | 0 |

with s = config.initializer_range, as GPT-2 (Radford et al. 2019, section 2.3): 2 n_layers additions then keep the
variance of the residual stream independent of depth. With norm_place `post` and `sandwich` a norm stands after each
addition or before it, so nothing is divided. With `deep` (DeepNet, figure 2) matrices of the blocks are Xavier-normal,
N(0, gain * sqrt(2 / (in + out))), with gain beta for values, attention output and the feed-forward layer, 1 for
queries and keys; embeddings as above.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from chatloom.model.block import deep_gain
from chatloom.model.config import TransformerConfig

_RESIDUAL = ("attention.output.weight", "feedforward.down.weight", "feedforward.down")


@torch.no_grad()
def initialise(model: nn.Module, config: TransformerConfig, generator: torch.Generator | None) -> None:
    """Draw all weights anew, in fp32 on CPU, so that a seed gives the same weights on every device."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif parameter.dim() == 1:
            parameter.fill_(1.0)
        else:
            spread = _spread(name, parameter.shape, config)
            common = spread if isinstance(spread, float) else 1.0
            values = torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, common, generator=generator)
            parameter.copy_(values if isinstance(spread, float) else values * spread)


def _spread(name: str, shape: torch.Size, config: TransformerConfig) -> float | Tensor:
    """Standard deviation of a matrix [out, in] or stacked [experts, out, in], or of each of its rows [out, 1]."""
    spread = config.initializer_range
    if config.norm_place != "deep" or not name.startswith("layers."):
        divided = config.norm_place == "pre" and name.endswith(_RESIDUAL)
        return spread / math.sqrt(2 * config.n_layers) if divided else spread
    gain, columns = deep_gain(config.n_layers), shape[-1]

    def xavier(rows: int, scale: float) -> float:
        return scale * math.sqrt(2.0 / (rows + columns))

    if name.endswith("attention.qkv.weight"):
        turned, value = config.attention_size + config.kv_size, config.kv_size
        parts = [
            torch.full((config.attention_size, 1), xavier(config.attention_size, 1.0)),
            torch.full((turned - config.attention_size, 1), xavier(value, 1.0)),
            torch.full((value, 1), xavier(value, gain)),
        ]
        return torch.cat(parts)
    rows = shape[-2] // (2 if config.gated and name.endswith(("gate_up.weight", "feedforward.up")) else 1)
    return xavier(rows, 1.0 if name.endswith("router.weight") else gain)
