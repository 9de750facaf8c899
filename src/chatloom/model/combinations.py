"""Every combination of a decoder's parts that makes no sense, each refused by name; all others can be built.

The covering-array test builds the rest and trains a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chatloom.model.config import TransformerConfig

XPOS_BASE, XPOS_GAMMA = 512.0, 0.4
# Where the smallest scale, ((gamma / (1 + gamma))^(p / base), reaches e^-60; fp32 ends at e^-87.
XPOS_REACH = int(-60 / math.log(XPOS_GAMMA / (1 + XPOS_GAMMA)) * XPOS_BASE)


@dataclass(frozen=True)
class Combination:
    """A name, when it is found in a config, and what to say then, with `{c.field}` for the config's values."""

    name: str
    found: Callable[[TransformerConfig], bool]
    words: str

    def message(self, config: TransformerConfig) -> str:
        """`words` with the config's own values."""
        return self.words.format(c=config)


COMBINATIONS = (
    Combination(
        "heads that cannot share keys",
        lambda c: bool(c.n_heads % c.n_kv_heads),
        "model.n_heads is {c.n_heads} and model.n_kv_heads is {c.n_kv_heads}; "
        "each key-value head serves equally many query heads, so n_heads must be a multiple of n_kv_heads",
    ),
    Combination(
        "an odd head that is turned",
        lambda c: c.positions in ("rope", "xpos") and bool(c.head_dim % 2),
        "model.head_dim is {c.head_dim}; rotary positions turn pairs of numbers, so it must be even",
    ),
    Combination(
        "an odd width for sines and cosines",
        lambda c: c.positions == "sinusoidal" and bool(c.hidden_size % 2),
        "model.hidden_size is {c.hidden_size}; sinusoidal positions come in pairs, so it must be even",
    ),
    Combination(
        "scaled angles without angles",
        lambda c: c.rope_scaling is not None and c.positions != "rope",
        "model.rope_scaling stretches rotary angles, and model.positions is {c.positions}; leave it out",
    ),
    Combination(
        "xPos further than its numbers reach",
        lambda c: c.positions == "xpos" and c.max_positions > XPOS_REACH,
        "model.positions is xpos with {c.max_positions} positions; its scales leave the range of fp32 beyond "
        f"{XPOS_REACH}, use rope",
    ),
    Combination(
        "xPos both ways",
        lambda c: c.positions == "xpos" and c.prefix_decoder,
        "model.positions is xpos, which grows without bound for later keys: no prefix_decoder with it",
    ),
    Combination(
        "a bias that RMSNorm does not have",
        lambda c: c.norm == "rms" and c.norm_bias,
        "model.norm_bias is true, but model.norm is rms, which has none; leave it out or use layer",
    ),
    Combination(
        "full layers without a window",
        lambda c: c.window is None and c.full_every > 0,
        "model.full_every is {c.full_every} without model.window: every layer sees everything already",
    ),
    Combination(
        "a window that no layer has",
        lambda c: c.window is not None and c.full_every == 1,
        "model.full_every is 1, so no layer has the window; leave both out",
    ),
    Combination(
        "a window both ways",
        lambda c: c.window is not None and c.prefix_decoder,
        "model.window hides what prefix_decoder would show; use one of them",
    ),
    Combination(
        "dropout of everything",
        lambda c: c.dropout >= 1 or c.attention_dropout >= 1,
        "model.dropout is {c.dropout}, model.attention_dropout {c.attention_dropout}; expected below 1",
    ),
    Combination(
        "more experts a token than there are",
        lambda c: 0 < c.n_experts < c.experts_per_token,
        "model.experts_per_token is {c.experts_per_token}, but model.n_experts is {c.n_experts}",
    ),
    Combination(
        "a capacity without experts",
        lambda c: c.expert_capacity is not None and not c.n_experts,
        "model.expert_capacity is set without model.n_experts; leave it out",
    ),
    Combination(
        "experts with biases",
        lambda c: c.n_experts > 0 and c.feedforward_bias,
        "model.feedforward_bias is true with model.n_experts: experts have no biases here; leave it out",
    ),
    Combination(
        "one expert whose weight is always 1",
        lambda c: c.n_experts > 1 and c.experts_per_token == 1 and c.normalise_gates,
        "model.experts_per_token is 1 with model.normalise_gates: the router would get no gradient from the loss; "
        "set normalise_gates to false (Switch)",
    ),
)
