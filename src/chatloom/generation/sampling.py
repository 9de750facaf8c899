"""Choosing the next token: the rules (temperature, truncation, penalty) and randomness that belongs to a sample.

Order, as in transformers and vLLM: repetition penalty, temperature, top-k, top-p, min-p, then one draw by inverse CDF
with a uniform number that is a pure function of (seed, prompt, sample, step): no neighbour can change a sample.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from chatloom.errors import ChatloomError

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = 2**64 - 1


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; the default is the model's own distribution.

    temperature: logits / temperature; 0 is greedy (the lowest id wins a tie). top_k: keep the k likeliest tokens, the
    lowest ids at a tie (0 or -1: off). top_p: keep the smallest set of likeliest tokens whose probability reaches p
    (Holtzman et al. 2020; 1: off). min_p: keep tokens at least min_p as likely as the likeliest (Nguyen et al. 2024;
    0: off). repetition_penalty: logit / r if positive, logit * r if not, for every token of prompt and reply so far
    (Keskar et al. 2019; 1: off). At least one token is always kept. Raises ChatloomError for a value out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ChatloomError(f"sampling.temperature is {self.temperature}; expected at least 0 (0: greedy)")
        if self.top_k < -1 or self.top_k != int(self.top_k):
            raise ChatloomError(f"sampling.top_k is {self.top_k}; expected a whole number, 0 or -1 to turn it off")
        for name in ("top_p", "min_p"):
            if not 0 <= getattr(self, name) <= 1:
                raise ChatloomError(f"sampling.{name} is {getattr(self, name)}; expected a number from 0 to 1")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise ChatloomError(f"sampling.repetition_penalty is {self.repetition_penalty}; expected a positive number")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, without randomness."""
        return self.temperature == 0

    @property
    def truncates(self) -> bool:
        """Whether some tokens may get probability zero."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    @property
    def logprob_temperature(self) -> float:
        """Temperature of the log-probabilities reported: the sampling one; 1 for greedy, whose own is degenerate."""
        return 1.0 if self.greedy else self.temperature


def prompt_key(prompt: Sequence[int]) -> int:
    """64-bit key of a prompt's token ids: equal prompts have equal keys on every machine."""
    data = np.asarray(prompt, dtype="<i8").tobytes()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def keyed_uniform(seed: int, prompt_keys: ArrayLike, samples: ArrayLike, steps: ArrayLike) -> Tensor:
    """Uniform numbers in [0, 1), fp64, of the broadcast shape of the three arrays of whole numbers.

    splitmix64 (Steele, Lea & Flood 2014) takes in one key after the other; the upper 53 bits make the number.
    """
    state = _mix(_words(seed))
    for key in (prompt_keys, samples, steps):
        state = _mix(state ^ _words(key))
    return torch.from_numpy((state >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _words(values: ArrayLike) -> NDArray[np.uint64]:
    """Whole numbers of any sign and size, modulo 2^64. Raises TypeError for anything else."""
    array = np.asarray(values)
    if array.dtype.kind == "i":
        return array.astype(np.int64).view(np.uint64)
    if array.dtype.kind == "u":
        return array.astype(np.uint64)
    # Whole numbers beyond 64 bits, and mixes that numpy would turn into floating point.
    exact = np.asarray(values, dtype=object)
    words = [operator.index(value) & _MASK for value in exact.ravel()]
    return np.asarray(words, dtype=np.uint64).reshape(exact.shape)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is the point
        z = z + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def choose(logits: Tensor, uniforms: Tensor, sampling: Sampling, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Next token [n] of each row and its log-probability [n] fp32 in nats, from logits [n, vocab].

    uniforms [n] fp64 in [0, 1). seen [n, vocab] bool: tokens already in prompt or reply, needed for a repetition
    penalty. The log-probability is the model's own, log softmax(logits / temperature) before penalty and
    truncation (temperature 1 when greedy): the quantity a trainer computes for the same token.
    """
    logits = logits.float()
    scaled = logits if sampling.logprob_temperature == 1.0 else logits / sampling.logprob_temperature
    if sampling.repetition_penalty == 1.0:
        processed = scaled
    else:
        if seen is None:
            raise ValueError("a repetition penalty needs `seen`, the tokens so far")
        penalty = sampling.repetition_penalty
        processed = torch.where(seen, torch.where(scaled > 0, scaled / penalty, scaled * penalty), scaled)
    if sampling.greedy:
        tokens = processed.argmax(dim=-1)
        return tokens, _at(scaled, tokens) - scaled.logsumexp(dim=-1)
    if sampling.truncates:
        processed = processed.masked_fill(~kept(processed, sampling), float("-inf"))
    peak = processed.amax(dim=-1, keepdim=True)
    cumulative = (processed - peak).exp_().cumsum(dim=-1, dtype=torch.float64)
    total = cumulative[:, -1]
    # Strictly below the total, or rounding could land on a token of probability zero at the end.
    point = torch.minimum(uniforms.to(total.device) * total, torch.nextafter(total, torch.zeros_like(total)))
    tokens = torch.searchsorted(cumulative, point.unsqueeze(1), right=True).squeeze(1).clamp_(max=logits.shape[1] - 1)
    if processed is scaled:
        normaliser = (peak.squeeze(1).double() + total.log()).float()
    else:
        normaliser = scaled.logsumexp(dim=-1)
    return tokens, _at(scaled, tokens) - normaliser


def kept(scaled: Tensor, sampling: Sampling) -> Tensor:
    """Which tokens top-k, top-p and min-p leave, in this order: bool [n, vocab] from logits / temperature."""
    keep = torch.ones_like(scaled, dtype=torch.bool)
    if 0 < sampling.top_k < scaled.shape[1]:
        edge = scaled.topk(sampling.top_k, dim=-1).values[:, -1:]
        above, tied = scaled > edge, scaled == edge
        room = sampling.top_k - above.sum(dim=-1, keepdim=True)
        keep = above | (tied & (tied.cumsum(dim=-1) <= room))
    if sampling.top_p < 1:
        ranked, ids = scaled.masked_fill(~keep, float("-inf")).sort(dim=-1, descending=True, stable=True)
        probabilities = ranked.softmax(dim=-1, dtype=torch.float64)
        before = probabilities.cumsum(dim=-1) - probabilities
        chosen = before < sampling.top_p
        chosen[:, 0] = True
        keep = keep & torch.zeros_like(keep).scatter_(1, ids, chosen)
    if sampling.min_p > 0:
        # The likeliest token is never cut above, so its probability relative to the others is what it was.
        keep = keep & ((scaled - scaled.amax(dim=-1, keepdim=True)).exp_() >= sampling.min_p)
    return keep


def _at(values: Tensor, index: Tensor) -> Tensor:
    """values[i, index[i]]."""
    return values.gather(1, index.unsqueeze(1)).squeeze(1)
