"""What pretraining learns: to go on with a text (language modelling), or one of the denoising objectives.

`ObjectiveSettings` is what a person chooses, `Denoising` what it comes to for a vocabulary and rows of some length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from chatloom.settings import Settings
from chatloom.tokens.denoising import DenoisingError, Ints, Mode, Noise, denoise, piece_generator
from chatloom.tokens.packing import Segment
from chatloom.tokens.reserved import MODE_TOKENS, mode_ids, sentinel_ids
from chatloom.tokens.vocabulary import Vocabulary

Kind = Literal["language-modeling", "prefix-lm", "span-corruption", "ul2"]
FEWEST_SENTINELS = 2


class Denoiser(Settings):
    """One kind of noise of UL2's mixture."""

    mode: Mode = Field(description="R: short spans, few of them; X: long spans or many; S: the text's end")
    rate: float | None = Field(
        None, gt=0, lt=1, description="share of the tokens that is noise; null, for S: drawn anew for each text"
    )
    mean_span: float | None = Field(None, ge=1, description="mean length of a span, in tokens; null for S")
    share: float = Field(1.0, gt=0, description="how much of the text it gets, beside the others' shares")


# Tay et al. 2022, table 1: mean span and rate; S takes a quarter of the text, in one span. All alike in the mixture.
UL2_DENOISERS = (
    Denoiser(mode="R", mean_span=3, rate=0.15),
    Denoiser(mode="R", mean_span=8, rate=0.15),
    Denoiser(mode="S", rate=0.25),
    Denoiser(mode="X", mean_span=3, rate=0.5),
    Denoiser(mode="X", mean_span=8, rate=0.5),
    Denoiser(mode="X", mean_span=64, rate=0.15),
    Denoiser(mode="X", mean_span=64, rate=0.5),
)


_OF_KIND: dict[Kind, tuple[str, ...]] = {
    "prefix-lm": ("target_share",),
    "span-corruption": ("rate", "mean_span"),
    "ul2": ("denoisers", "mode_tokens"),
}


class ObjectiveSettings(Settings):
    """What is learnt."""

    kind: Kind = Field(
        "language-modeling",
        description="language-modeling: every token from those before; prefix-lm: the second part of a text from its "
        "first; span-corruption: spans taken out (T5); ul2: a mixture of both",
    )
    rate: float = Field(0.15, gt=0, lt=1, description="span-corruption: share of the tokens taken out")
    mean_span: float = Field(3.0, ge=1, description="span-corruption: mean length of a span, in tokens")
    target_share: float | None = Field(
        None, gt=0, lt=1, description="prefix-lm: share of a text that is its second part; null: cut anywhere"
    )
    denoisers: tuple[Denoiser, ...] = Field(
        (), description="ul2: the mixture; empty: the paper's seven (see docs/pretrain.md)"
    )
    mode_tokens: bool = Field(True, description="ul2: put [NLU] (R), [NLG] (X) or [S2S] (S) in front of a text")

    def check(self) -> None:
        """Raise DenoisingError where a setting is given that belongs to another kind of objective."""
        defaults = type(self)()
        for kind, names in _OF_KIND.items():
            for name in names:
                if kind != self.kind and getattr(self, name) != getattr(defaults, name):
                    raise DenoisingError(
                        f"objective.{name} is for `kind: {kind}` and `kind` is {self.kind}; leave it out"
                    )

    @property
    def is_denoising(self) -> bool:
        """Whether anything but plain language modelling is learnt."""
        return self.kind != "language-modeling"

    @property
    def mixture(self) -> tuple[Denoiser, ...]:
        """The denoisers of ul2."""
        return self.denoisers or UL2_DENOISERS

    @property
    def noises(self) -> tuple[Noise, ...]:
        """The kinds of noise; none for language modelling. Raises DenoisingError for one that makes no sense."""
        if self.kind == "prefix-lm":
            return (Noise("S", self.target_share),)
        if self.kind == "span-corruption":
            return (Noise("R", self.rate, self.mean_span),)
        if self.kind == "ul2":
            return tuple(_noise(place, item, self.mode_tokens) for place, item in enumerate(self.mixture))
        return ()

    @property
    def shares(self) -> NDArray[np.float64]:
        """Share of the text that each of them gets; they sum to 1."""
        shares = np.array([item.share for item in self.mixture]) if self.kind == "ul2" else np.ones(1)
        return shares / shares.sum()


def _noise(place: int, item: Denoiser, mode_token: bool) -> Noise:
    where = f"objective.denoisers.{place}"
    if item.mode == "S" and item.mean_span is not None:
        raise DenoisingError(f"{where}: has mode S and a mean_span; S takes one span, the text's end: leave it out")
    if item.mode != "S" and (item.mean_span is None or item.rate is None):
        raise DenoisingError(f"{where}: has mode {item.mode} and needs `rate` and `mean_span`; give both")
    return Noise(item.mode, item.rate, item.mean_span, mode_token)


def missing_tokens(settings: ObjectiveSettings, sentinels: int, modes: int) -> str:
    """Why a vocabulary with so many sentinels and mode tokens cannot serve an objective; empty where it can."""
    noises = settings.noises
    wanted = []
    if any(noise.mode != "S" for noise in noises) and sentinels < FEWEST_SENTINELS:
        wanted.append(f"sentinel tokens (<extra_id_0>, <extra_id_1>, ...; it has {sentinels})")
    if any(noise.mode_token for noise in noises) and modes < len(MODE_TOKENS):
        wanted.append(f"the mode tokens {', '.join(MODE_TOKENS.values())}")
    if not wanted:
        return ""
    return (
        f"`objective.kind: {settings.kind}` needs {' and '.join(wanted)} and the vocabulary lacks them; make it with "
        "`sentinels: 100` in stage `tokenizer`, or extend it so in stage `extend-tokenizer`"
        + (", or set `objective.mode_tokens: false`" if settings.kind == "ul2" and len(wanted) == 1 else "")
    )


@dataclass(frozen=True)
class Denoising:
    """A denoising objective over rows of one length.

    bidirectional: the model is a prefix decoder, so the input is marked as a prefix whose tokens see one another.
    """

    noises: tuple[Noise, ...]
    shares: tuple[float, ...]
    sentinels: tuple[int, ...]
    modes: dict[Mode, int]
    row_length: int
    seed: int
    bidirectional: bool = False

    @classmethod
    def of(
        cls, settings: ObjectiveSettings, vocabulary: Vocabulary, row_length: int, seed: int, *, bidirectional: bool
    ) -> Denoising | None:
        """None for language modelling. Raises DenoisingError where the vocabulary lacks tokens or no text fits."""
        settings.check()
        if not settings.is_denoising:
            return None
        sentinels, modes = sentinel_ids(vocabulary), mode_ids(vocabulary)
        if why := missing_tokens(settings, len(sentinels), len(modes)):
            raise DenoisingError(why)
        shares = tuple(settings.shares.tolist())
        return cls(settings.noises, shares, tuple(sentinels), modes, row_length, seed, bidirectional)

    @cached_property
    def longest(self) -> tuple[int, ...]:
        """Of each noise, the longest text that a row holds."""
        return tuple(noise.longest(self.row_length, len(self.sentinels)) for noise in self.noises)

    @cached_property
    def _sentinels(self) -> Ints:
        return np.array(self.sentinels, dtype=np.int64)

    def segment(
        self, ids: Ints, weights: NDArray[np.float32], noise: int, *, epoch: int, document: int, start: int
    ) -> Segment:
        """A piece of a document in one pass over the data as it is trained on; `role` is the noise's name."""
        chosen = self.noises[noise]
        generator = piece_generator(self.seed, epoch, document, start)
        mode_id = self.modes[chosen.mode] if chosen.mode_token else None
        made = denoise(ids, weights, chosen, self._sentinels, mode_id, generator)
        prefix = made.n_input if self.bidirectional else 0
        return Segment(made.tokens, made.weights, group=document, role=chosen.name, prefix=prefix)


@dataclass(frozen=True)
class Expected:
    """What an objective makes of text, for a plan: places per token of text, and share of them that carry loss."""

    growth: float
    loss_share: float
    table: str


def expected(settings: ObjectiveSettings, row_length: int, n_sentinels: int) -> Expected:
    """Of texts as long as rows hold; raises DenoisingError where none fits."""
    noises, shares = settings.noises, settings.shares
    longest = [noise.longest(row_length, n_sentinels) for noise in noises]
    places = np.array([float(noise.places(n)) / n for noise, n in zip(noises, longest, strict=True)])
    losses = np.array([float(noise.losses(n)) / n for noise, n in zip(noises, longest, strict=True)])
    lines: list[Sequence[str]] = [("denoiser", "of the text", "longest text", "in places", "with loss")]
    for noise, share, n, wide, loss in zip(noises, shares, longest, places, losses, strict=True):
        lines.append((noise.name, f"{share:.1%}", str(n), str(round(wide * n)), f"{loss / wide:.1%}"))
    growth = float(places @ shares)
    share = float(losses @ shares) / growth
    lines.append(("together", "100.0%", "", "", f"{share:.1%}"))
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    table = "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))])
        for line in lines
    )
    return Expected(growth, share, table)
