"""What an adapter is: its kind and sizes, as values. Their weights are modules of `lora.py` and `encoders.py`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from chatloom.errors import ChatloomError

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class Lora:
    """Low-rank updates of linear layers (Hu et al. 2021): y = W x + scale * B A dropout(x).

    `targets` are Hugging Face's module names (q_proj, down_proj, `layers.3.mlp.up_proj`) or the one word `all-linear`.
    With `rslora` the scale is alpha / sqrt(rank) (Kalajdzievski 2023), else alpha / rank.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    rslora: bool = False
    targets: tuple[str, ...] = ("q_proj", "v_proj")

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0 or not math.isfinite(self.alpha) or not 0 <= self.dropout < 1:
            raise ChatloomError(
                f"LoRA of rank {self.rank}, alpha {self.alpha}, dropout {self.dropout}; expected a rank of at least 1, "
                "a positive alpha and a dropout from 0 to below 1"
            )
        if not self.targets:
            raise ChatloomError("LoRA without targets; name modules such as q_proj and v_proj, or all-linear")

    @property
    def scale(self) -> float:
        """What the low-rank product is multiplied with."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclass(frozen=True)
class Prefix:
    """Trained keys and values before every text, in every layer (Li & Liang 2021).

    With `projection` they are what a small network makes of trained vectors, `hidden_size` wide inside (None: as wide
    as a layer's keys): steadier training, and only its result is saved in PEFT's format.
    """

    n_tokens: int = 20
    projection: bool = False
    hidden_size: int | None = None

    def __post_init__(self) -> None:
        _check_tokens(self.n_tokens, self.hidden_size)


@dataclass(frozen=True)
class Prompt:
    """Trained input vectors before every text (Lester et al. 2021), which start as those of tokens drawn at random."""

    n_tokens: int = 20

    def __post_init__(self) -> None:
        _check_tokens(self.n_tokens, None)


@dataclass(frozen=True)
class PTuning:
    """Input vectors before every text that a small network makes of trained ones (Liu et al. 2021, P-tuning v1).

    `network`: three linear layers with ReLU between (mlp), or a two-way LSTM of `n_layers` and two linear layers
    (lstm), `hidden_size` wide inside (None: as wide as the model).
    """

    n_tokens: int = 20
    network: Literal["mlp", "lstm"] = "mlp"
    hidden_size: int | None = None
    n_layers: int = 2

    def __post_init__(self) -> None:
        _check_tokens(self.n_tokens, self.hidden_size)
        if self.n_layers < 1:
            raise ChatloomError(f"an LSTM of {self.n_layers} layers; expected at least 1")


VirtualTokens = Prefix | Prompt | PTuning
Adapter = Lora | VirtualTokens


def _check_tokens(n_tokens: int, hidden_size: int | None) -> None:
    if n_tokens < 1:
        raise ChatloomError(f"{n_tokens} virtual tokens; expected at least 1")
    if hidden_size is not None and hidden_size < 1:
        raise ChatloomError(f"a network {hidden_size} wide; expected at least 1")
