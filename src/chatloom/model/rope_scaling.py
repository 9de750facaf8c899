"""Rotary angles stretched for contexts longer than the model was trained on: linear, NTK-aware, Llama 3's and YaRN.

Each turns the inverse frequencies w_i = theta^(-2i/d) into others, given how much longer (`factor`) the context is.
Hugging Face's names and formulae, so that folders mean the same here and there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from chatloom.errors import ChatloomError

ScalingKind = Literal["linear", "ntk", "llama3", "yarn"]
KINDS = ("linear", "ntk", "llama3", "yarn")


@dataclass(frozen=True)
class RopeScaling:
    """How angles are stretched.

    kind               linear: w / factor (Chen et al. 2023, position interpolation); ntk: theta * factor^(d/(d-2))
                       ("NTK-aware"); llama3: low frequencies / factor, high ones kept (Llama 3.1); yarn: the same by a
                       ramp over the number of turns, and warmer attention (Peng et al. 2023)
    factor             context now / context trained
    original           positions the model was trained on (llama3, yarn)
    low, high          llama3: turns within `original` below and above which a frequency is low and high
    beta_fast, beta_slow   yarn: turns within `original` above and below which a frequency is kept and divided
    attention_factor   yarn: what cosines and sines are multiplied by; 0.1 ln(factor) + 1 when None
    truncate           yarn: the ramp's ends are rounded to whole pairs
    """

    kind: ScalingKind
    factor: float
    original: int | None = None
    low: float = 1.0
    high: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ChatloomError(f"model.rope_scaling.kind is {self.kind!r}; expected one of {', '.join(KINDS)}")
        numbers = ("factor", "low", "high", "beta_fast", "beta_slow", "attention_factor")
        for name in numbers:
            value = getattr(self, name)
            if value is None and name == "attention_factor":
                continue
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
                raise ChatloomError(f"model.rope_scaling.{name} is {value!r}; expected a positive number")
        if self.factor < 1:
            raise ChatloomError(f"model.rope_scaling.factor is {self.factor}; expected at least 1")
        if self.kind in ("llama3", "yarn") and (type(self.original) is not int or self.original < 1):
            raise ChatloomError(
                f"model.rope_scaling.original is {self.original!r}; {self.kind} needs the positions that the model was "
                "trained on"
            )
        if not self.low < self.high:
            raise ChatloomError(f"model.rope_scaling.low is {self.low} and high {self.high}; expected low below high")


def inverse_frequencies(dim: int, theta: float, scaling: RopeScaling | None) -> Tensor:
    """Angles a position turns pair i by: fp32 [dim / 2]."""
    exponents = torch.arange(0, dim, 2, dtype=torch.float32) / dim
    plain = 1.0 / theta**exponents
    if scaling is None:
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    if scaling.kind == "ntk":
        return 1.0 / (theta * scaling.factor ** (dim / max(dim - 2, 1))) ** exponents
    assert scaling.original is not None
    if scaling.kind == "llama3":
        turns = scaling.original * plain / (2 * math.pi)
        smooth = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0.0, 1.0)
        return (1 - smooth) * plain / scaling.factor + smooth * plain
    low, high = (_pair_of(turns, dim, theta, scaling.original) for turns in (scaling.beta_fast, scaling.beta_slow))
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0.0, 1.0)
    return plain / scaling.factor * ramp + plain * (1 - ramp)


def _pair_of(turns: float, dim: int, theta: float, original: int) -> float:
    """Number of the pair that makes so many turns within `original` positions (YaRN, eq. 17 solved for the pair)."""
    return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))


def attention_factor(scaling: RopeScaling | None) -> float:
    """What cosines and sines are multiplied by: YaRN's sqrt(1/t) = 0.1 ln(factor) + 1 (eq. 22), else 1."""
    if scaling is None or scaling.kind != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    return 1.0 if scaling.factor <= 1 else 0.1 * math.log(scaling.factor) + 1.0
