"""Denoising: a part of a text is taken out, and the model, after reading the rest, writes what was there.

    text      a b c d e f g h             spans `c d` and `g h` are noise
    input     a b <0> e f <1>             <n> is the sentinel token <extra_id_n>
    target    <0> c d <1> g h <2>         the last sentinel says that it is over

A decoder reads input and target as one sequence and carries loss on the target only. Span corruption: Raffel et al.
2020 (T5), section 3.1.4; prefix language modelling, where the noise is the text's end and no sentinel is needed:
section 3.2.1; several kinds of noise under one name each, told by a mode token in front: Tay et al. 2022 (UL2),
section 3.1. Lengths follow from the length of the text alone, so texts can be cut to what a row holds before any noise
is drawn; what is drawn is a function of (seed, epoch, document, place).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chatloom.errors import ChatloomError

Mode = Literal["R", "X", "S"]
Ints = NDArray[np.int64]
_STREAM = 2**63  # the orders of reading have small numbers here; see `chatloom.tokens.order`


class DenoisingError(ChatloomError):
    """A denoiser that cannot work on these texts, rows or vocabulary."""


@dataclass(frozen=True)
class Noise:
    """How much of a text is noise, and in spans of what mean length.

    rate: share of the tokens; None (of "S" only): a share drawn anew for each text, every place of the cut being
    equally likely. mean_span: tokens, of which "S" has no need: its one span is the text's end. mode_token: whether one
    stands in front.
    """

    mode: Mode
    rate: float | None
    mean_span: float | None = None
    mode_token: bool = False

    @property
    def name(self) -> str:
        """For metrics: "R 3 15%", "S 25%", "S uniform"."""
        rate = "uniform" if self.rate is None else f"{100 * self.rate:g}%"
        return f"S {rate}" if self.mode == "S" else f"{self.mode} {self.mean_span:g} {rate}"

    def counts(self, lengths: ArrayLike) -> tuple[Ints, Ints]:
        """Tokens of noise and spans in texts of these lengths (2 and more): int64, int64, of the same shape.

        T5's rule: round(length * rate) tokens, at least 1 and at most all but one, in round(tokens / mean_span) spans,
        at least one, each with a kept token before it; halves go to the even number. A drawn share counts as half.
        """
        n = np.asarray(lengths, dtype=np.int64)
        noise = np.rint(n * (0.5 if self.rate is None else self.rate)).astype(np.int64).clip(1, n - 1)
        if self.mode == "S" or self.mean_span is None:
            return noise, np.ones_like(noise)
        spans = np.rint(noise / self.mean_span).astype(np.int64)
        return noise, spans.clip(1, np.minimum(noise, n - noise))

    def places(self, lengths: ArrayLike) -> Ints:
        """Tokens of the whole sequence made from texts of these lengths: mode token, input and target together."""
        n = np.asarray(lengths, dtype=np.int64)
        sentinels = 0 if self.mode == "S" else 2 * self.counts(n)[1] + 1
        return n + sentinels + self.mode_token

    def losses(self, lengths: ArrayLike) -> Ints:
        """How many of them carry loss; of a drawn share, the number for a cut in the middle."""
        noise, spans = self.counts(lengths)
        return noise if self.mode == "S" else noise + spans + 1

    def longest(self, row_length: int, n_sentinels: int) -> int:
        """The longest text whose sequence fits in a row, with as many sentinels as there are.

        T5's compute_input_and_target_lengths by search, exact. Raises DenoisingError when not even four tokens fit.
        """
        lengths = np.arange(2, max(row_length, 2) + 1)
        fits = self.places(lengths) <= row_length
        if self.mode != "S":
            fits &= self.counts(lengths)[1] + 1 <= n_sentinels
        found = int(lengths[fits][-1]) if fits.any() else 0
        if found < 4:
            raise DenoisingError(
                f"denoiser {self.name}: texts of at most {found} tokens fit in rows of {row_length} with {n_sentinels} "
                "sentinels, expected 4 or more; make rows longer or reserve more sentinels"
            )
        return found


@dataclass(frozen=True)
class Denoised:
    """One text as a model reads it.

    tokens int64 [length]; weights float32 [length]: of each token as a target, 0 in the input; n_input: tokens of the
    input, the mode token included.
    """

    tokens: Ints
    weights: NDArray[np.float32]
    n_input: int


def denoise(
    ids: Ints,
    weights: NDArray[np.float32],
    noise: Noise,
    sentinels: Ints,
    mode_id: int | None,
    generator: np.random.Generator,
) -> Denoised:
    """Take noise out of a text of ids int64 [length]; `weights` [length] are those of its tokens as targets.

    sentinels: ids of <extra_id_0>, <extra_id_1>, ... Sentinels in the target have the weight 1. Raises DenoisingError
    for a text of one token or too few sentinels.
    """
    if len(ids) < 2:
        raise DenoisingError(f"a text of {len(ids)} token has no room for noise; expected two or more")
    if noise.mode == "S":
        if noise.rate is None:
            kept = int(generator.integers(1, len(ids)))
        else:
            kept = len(ids) - int(noise.counts(len(ids))[0])
        read, written, losses = ids[:kept], ids[kept:], weights[kept:]
    else:
        n_noise, n_spans = (int(count) for count in noise.counts(len(ids)))
        if n_spans + 1 > len(sentinels):
            raise DenoisingError(
                f"{n_spans} spans need {n_spans + 1} sentinels, the vocabulary has {len(sentinels)}; reserve more of "
                "them, or cut texts shorter"
            )
        mask = random_spans(len(ids), n_noise, n_spans, generator)
        read, written, losses = corrupt(ids, weights, mask, sentinels)
    front = [] if mode_id is None else [mode_id]
    tokens = np.concatenate([np.array(front, dtype=np.int64), read, written])
    n_input = len(front) + len(read)
    return Denoised(tokens, np.concatenate([np.zeros(n_input, dtype=np.float32), losses]), n_input)


def random_spans(length: int, n_noise: int, n_spans: int, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Which tokens are noise: kept and noisy spans in turn, kept ones first, every such mask being equally likely.

    Bool [length], `n_noise` of them in `n_spans` spans: T5's random_spans_noise_mask.
    """
    kept = _split(length - n_noise, n_spans, generator)
    noisy = _split(n_noise, n_spans, generator)
    spans = np.stack([kept, noisy], axis=1).ravel()
    return np.repeat(np.arange(2 * n_spans) % 2 == 1, spans)


def _split(items: int, parts: int, generator: np.random.Generator) -> Ints:
    """Lengths of `parts` parts of a row of items, none empty, each way to cut being equally likely."""
    cuts = np.zeros(parts + 1, dtype=np.int64)
    cuts[1:-1] = 1 + np.sort(generator.choice(items - 1, parts - 1, replace=False))
    cuts[-1] = items
    return cuts[1:] - cuts[:-1]


def corrupt(
    ids: Ints, weights: NDArray[np.float32], mask: NDArray[np.bool_], sentinels: Ints
) -> tuple[Ints, Ints, NDArray[np.float32]]:
    """Input, target, and the target's weights, for a mask that begins with a kept token and ends with noise."""
    before = np.concatenate([[True], mask[:-1]])
    noise_begins, kept_begins = mask & ~before, ~mask & before
    span = np.cumsum(kept_begins) - 1  # number of the kept span, and of the noise after it
    read = np.where(mask, sentinels[span], ids)[~mask | noise_begins]
    chosen = mask | kept_begins
    last = sentinels[span[-1] + 1]
    written = np.append(np.where(mask, ids, sentinels[span])[chosen], last)
    losses = np.append(np.where(mask, weights, np.float32(1.0))[chosen], np.float32(1.0))
    return read, written, losses


def piece_generator(seed: int, epoch: int, document: int, start: int) -> np.random.Generator:
    """The draws for the piece of a document that begins at a token, in one pass over the data.

    Philox (Salmon et al. 2011): the key is (seed, epoch), the counter begins at the place, 2**64 draws from any other.
    """
    key = np.array([seed & (2**64 - 1), epoch], dtype=np.uint64)
    counter = np.array([0, start, document, _STREAM], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def part_generator(seed: int, stream: int) -> np.random.Generator:
    """The draws that share the documents of a source (its number is `stream`) out to denoisers."""
    key = np.array([seed & (2**64 - 1), 0], dtype=np.uint64)
    counter = np.array([0, 0, 0, _STREAM + 1 + stream], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
