"""The generator: many prompts at once (`generate`), or one conversation token by token (`stream`).

A prompt is read once, whatever the number of its samples; rows that ended leave the batch, so the work shrinks. A
sample depends on (seed, prompt, sample number) and the weights, never on its neighbours, up to the rounding of matrix
products of another size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from chatloom.errors import ChatloomError
from chatloom.generation.kv_cache import KVCache
from chatloom.generation.sampling import Sampling, choose, keyed_uniform, prompt_key
from chatloom.model.transformer import Transformer

# Prompts are read in blocks of at most this many tokens, and this many attention scores a head, to bound memory.
_PREFILL_TOKENS = 16384
_PREFILL_SCORES = 2**24


@dataclass(frozen=True, slots=True)
class Sample:
    """One reply: `tokens` with the stop token that ended it, `logprobs` of each in nats, and whether it was ended.

    `logprobs` are log softmax(logits / temperature), before truncation and penalty (temperature 1 when greedy).
    """

    tokens: list[int]
    logprobs: list[float]
    finished: bool


def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    n: int = 1,
    sampling: Sampling | None = None,
    seed: int = 0,
    stop_ids: Sequence[int] = (),
    prompt_keys: Sequence[int] | None = None,
    batch_size: int = 256,
) -> list[list[Sample]]:
    """n samples of each prompt, in the prompts' order.

    sampling: None draws from the model itself. prompt_keys: what stands for each prompt in the random numbers, its own
    tokens when None (equal prompts then get equal samples). batch_size: rows decoded together. Raises ChatloomError for
    an empty prompt, an id outside the vocabulary, a prompt whose reply might not fit the model's context, or a
    model whose logits are not finite.
    """
    sampling = sampling or Sampling()
    _check(model, prompts, stop_ids, max_new_tokens=max_new_tokens, n=n, batch_size=batch_size)
    keys = [prompt_key(p) for p in prompts] if prompt_keys is None else list(prompt_keys)
    if len(keys) != len(prompts):
        raise ChatloomError(f"{len(keys)} prompt_keys for {len(prompts)} prompts; expected one each")
    samples: list[list[Sample | None]] = [[None] * n for _ in prompts]
    for group in _batches([len(p) for p in prompts], n, batch_size):
        decoder = _Decoder(model, sampling, stop_ids)
        rows = [(i, sample) for i, first, count in group for sample in range(first, first + count)]
        uniforms = keyed_uniform(
            seed,
            np.array([keys[i] & (2**64 - 1) for i, _ in rows], dtype=np.uint64)[:, None],
            np.array([sample for _, sample in rows])[:, None],
            np.arange(max_new_tokens)[None, :],
        )
        decoder.read([prompts[i] for i, _, _ in group], [count for _, _, count in group], max_new_tokens)
        for (i, sample), result in zip(rows, decoder.decode(uniforms), strict=True):
            samples[i][sample] = result
    return [[s for s in group if s is not None] for group in samples]


def stream(
    model: Transformer,
    prompt: Sequence[int],
    *,
    max_new_tokens: int | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    stop_ids: Sequence[int] = (),
    key: int | None = None,
    sample: int = 0,
) -> Iterator[int]:
    """Token ids of one reply as they are made, the stop token included: what `generate` gives for the same arguments.

    max_new_tokens None: until the context is full. Raises ChatloomError as `generate` does, before the first token.
    """
    room = model.config.max_positions - len(prompt)
    limit = max(room, 1) if max_new_tokens is None else max_new_tokens
    _check(model, [prompt], stop_ids, max_new_tokens=limit, n=1, batch_size=1)
    uniforms = keyed_uniform(seed, [(prompt_key(prompt) if key is None else key)], [sample], np.arange(limit))
    decoder = _Decoder(model, sampling or Sampling(), stop_ids)
    return _stream(decoder, prompt, uniforms)


def _stream(decoder: _Decoder, prompt: Sequence[int], uniforms: Tensor) -> Iterator[int]:
    decoder.read([prompt], [1], len(uniforms))
    for step in range(len(uniforms)):
        tokens, logprobs = decoder.step(uniforms[step : step + 1])
        if not bool(logprobs.isfinite().all()):
            raise ChatloomError(_NOT_FINITE)
        token = int(tokens)
        yield token
        if token in decoder.stop_ids:
            return


_NOT_FINITE = (
    "the model's logits are not finite, so nothing can be drawn from it; its weights are broken or too narrow a type"
)


class _Decoder:
    """One batch on its way: the cache, the newest hidden state of each row, and what was seen."""

    def __init__(self, model: Transformer, sampling: Sampling, stop_ids: Sequence[int]) -> None:
        self.model = model
        self.sampling = sampling
        self.stop_ids = frozenset(stop_ids)
        self.device = model.unembedding.device
        self.stops = torch.zeros(model.config.vocab_size, dtype=torch.bool, device=self.device)
        self.stops[list(self.stop_ids)] = True

    @torch.inference_mode()
    def read(self, prompts: Sequence[Sequence[int]], counts: Sequence[int], max_new_tokens: int) -> None:
        """Read every prompt once, then give it counts[i] rows."""
        longest = max(len(p) for p in prompts)
        padding = torch.tensor([longest - len(p) for p in prompts], device=self.device)
        tokens = torch.zeros(len(prompts), longest, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
        tokens = tokens.to(self.device)
        cache = KVCache.empty(
            self.model.config,
            len(prompts),
            longest + max_new_tokens - 1,  # the last token drawn is never fed back
            dtype=self.model.unembedding.dtype,
            device=self.device,
            padding=padding if bool(padding.any()) else None,
        )
        block = max(1, min(_PREFILL_TOKENS // longest, _PREFILL_SCORES // longest**2))
        newest = []
        for start in range(0, len(prompts), block):
            part = cache.rows(start, min(start + block, len(prompts)))
            newest.append(self.model(tokens[start : start + block], cache=part)[:, -1])
        cache.advance(longest)
        self.hidden = torch.cat(newest)
        self.seen: Tensor | None = None
        if self.sampling.repetition_penalty != 1.0:
            self.seen = torch.zeros(len(prompts), self.model.config.vocab_size, dtype=torch.bool, device=self.device)
            real = torch.arange(longest, device=self.device) >= padding.unsqueeze(1)
            self.seen[real.nonzero()[:, 0], tokens[real]] = True
        if any(count != 1 for count in counts):
            repeats = torch.tensor(counts, device=self.device)
            cache = cache.expand(repeats)
            self.hidden = self.hidden.repeat_interleave(repeats, dim=0)
            self.seen = None if self.seen is None else self.seen.repeat_interleave(repeats, dim=0)
        self.cache = cache
        self.pending: Tensor | None = None

    @torch.inference_mode()
    def step(self, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """The next token [rows] of every row and its log-probability [rows]; uniforms [rows]."""
        if self.pending is not None:
            self.hidden = self.model(self.pending.unsqueeze(1), cache=self.cache)[:, 0]
        tokens, logprobs = choose(self.model.logits(self.hidden), uniforms, self.sampling, self.seen)
        if self.seen is not None:
            self.seen.scatter_(1, tokens.unsqueeze(1), True)
        self.pending = tokens
        return tokens, logprobs

    @torch.inference_mode()
    def keep(self, rows: Tensor) -> Tensor:
        """Drop all other rows; returns the order in which these rows [n] now lie."""
        assert self.pending is not None
        order = self.cache.keep(rows)
        self.pending = self.pending[order]
        self.seen = None if self.seen is None else self.seen[order]
        return order

    @torch.inference_mode()
    def decode(self, uniforms: Tensor) -> list[Sample]:
        """One sample a row, of at most as many tokens as uniforms [rows, max_new_tokens] has columns."""
        n_rows, limit = uniforms.shape
        uniforms = uniforms.T.contiguous().to(self.device)
        tokens = torch.zeros(limit, n_rows, dtype=torch.int64, device=self.device)
        logprobs = torch.zeros(limit, n_rows, device=self.device)
        lengths = torch.full((n_rows,), limit, device=self.device)
        stopped = torch.zeros(n_rows, dtype=torch.bool, device=self.device)
        rows = torch.arange(n_rows, device=self.device)
        for step in range(limit):
            drawn, scores = self.step(uniforms[step, rows])
            tokens[step, rows] = drawn
            logprobs[step, rows] = scores
            if not self.stop_ids or step + 1 == limit:
                continue
            ending = self.stops[drawn] & ~stopped[rows]
            if bool(ending.any()):
                ended = rows[ending]
                stopped[ended] = True
                lengths[ended] = step + 1
            running = ~stopped[rows]
            n_running = int(running.sum())
            if n_running == 0:
                break
            # Moving rows costs a little, so wait until a sixteenth of them has ended.
            if len(rows) - n_running >= max(1, len(rows) // 16):
                rows = rows[self.keep(running.nonzero().squeeze(1))]
        if limit and self.stop_ids:
            stopped |= self.stops[tokens[lengths - 1, torch.arange(n_rows, device=self.device)]]
        return _collect(tokens.T, logprobs.T, lengths, stopped)


def _collect(tokens: Tensor, logprobs: Tensor, lengths: Tensor, stopped: Tensor) -> list[Sample]:
    if not bool(logprobs.isfinite().all()):
        raise ChatloomError(_NOT_FINITE)
    samples = []
    for ids, scores, length, finished in zip(
        tokens.tolist(), logprobs.tolist(), lengths.tolist(), stopped.tolist(), strict=True
    ):
        samples.append(Sample(ids[:length], scores[:length], finished))
    return samples


def _batches(lengths: Sequence[int], n: int, batch_size: int) -> Iterator[list[tuple[int, int, int]]]:
    """Batches of (prompt, first sample, samples) of at most batch_size rows; longest prompts first, alike together.

    Longest first, so that the largest batch is met at once and not after an hour.
    """
    batch: list[tuple[int, int, int]] = []
    rows = 0
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        for first in range(0, n, batch_size):
            count = min(batch_size, n - first)
            if rows + count > batch_size:
                yield batch
                batch, rows = [], 0
            batch.append((i, first, count))
            rows += count
    if batch:
        yield batch


def _check(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    stop_ids: Sequence[int],
    *,
    max_new_tokens: int,
    n: int,
    batch_size: int,
) -> None:
    """Everything that can be known to be wrong before the first prompt is read."""
    config = model.config
    for name, value in (("max_new_tokens", max_new_tokens), ("n", n), ("batch_size", batch_size)):
        if value < 1:
            raise ChatloomError(f"{name} is {value}; expected at least 1")
    for stop in stop_ids:
        if not 0 <= stop < config.vocab_size:
            raise ChatloomError(f"stop id {stop} is outside the vocabulary (0..{config.vocab_size - 1})")
    for i, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ChatloomError(f"prompt {i} is empty; a prompt needs at least one token to predict from")
        if min(prompt) < 0 or max(prompt) >= config.vocab_size:
            raise ChatloomError(
                f"prompt {i} holds token {min(prompt) if min(prompt) < 0 else max(prompt)}, outside the vocabulary "
                f"(0..{config.vocab_size - 1}); was it made with another tokenizer?"
            )
        if len(prompt) + max_new_tokens > config.max_positions:
            raise ChatloomError(
                f"prompt {i} has {len(prompt)} tokens and up to {max_new_tokens} are asked for, together "
                f"{len(prompt) + max_new_tokens}; the model's context is {config.max_positions}. Shorten the prompt or "
                "ask for fewer tokens"
            )
