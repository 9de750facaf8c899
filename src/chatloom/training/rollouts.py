"""Sampled answers as tables [samples, time] for the estimators, and as packed batches for the networks.

Networks see packed rows, GAE and whitening see one row a sample; `cells` maps between the two, so that a token's
advantage meets exactly that token's log-probability whatever the packing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from chatloom.model.heads import RewardModel, ValueModel
from chatloom.model.transformer import Transformer
from chatloom.tokens.packing import Batch, Segment, micro_batches
from chatloom.training.forward import score


@dataclass(frozen=True)
class Answers:
    """Sampled answers to prompts: token ids with the prompt before them, the answer's tokens supervised.

    `prompt_lengths` int64 [n]; `lengths` int64 [n]: answer tokens, the end token included; `ended` bool [n];
    `sampler_logprobs` [n, time] under the sampling temperature, 0 after the end.
    """

    segments: list[Segment]
    prompt_lengths: Tensor
    lengths: Tensor
    ended: Tensor
    sampler_logprobs: Tensor

    @property
    def mask(self) -> Tensor:
        """1 at real answer tokens: float32 [n, time]."""
        time = torch.arange(int(self.lengths.max()))
        return (time.unsqueeze(0) < self.lengths.unsqueeze(1)).float()

    def __len__(self) -> int:
        return len(self.segments)


def answers(
    prompts: Sequence[Sequence[int]],
    sampled: Sequence[Sequence[int]],
    logprobs: Sequence[Sequence[float]],
    ended: Sequence[bool],
) -> Answers:
    """Put prompts and their sampled tokens (end token included) together; every answer needs at least one token."""
    segments = []
    longest = max(len(item) for item in sampled)
    table = torch.zeros(len(sampled), longest)
    for number, (prompt, tokens) in enumerate(zip(prompts, sampled, strict=True)):
        supervised = np.zeros(len(prompt) + len(tokens), dtype=np.float32)
        supervised[len(prompt) :] = 1.0
        segments.append(Segment(np.asarray([*prompt, *tokens]), supervised, group=number))
        table[number, : len(tokens)] = torch.tensor(logprobs[number])
    return Answers(
        segments,
        torch.tensor([len(prompt) for prompt in prompts]),
        torch.tensor([len(tokens) for tokens in sampled]),
        torch.tensor(list(ended)),
        table,
    )


def cells(batch: Batch, index: Tensor, prompt_lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Sample number and place in its answer, int64 [n] each, of flat supervised positions of a batch."""
    samples = batch.group.index_select(0, batch.segments.flatten().index_select(0, index))
    positions = batch.positions.flatten().index_select(0, index)
    return samples, positions - (prompt_lengths.to(index.device).index_select(0, samples) - 1)


@torch.no_grad()
def logprob_table(
    model: Transformer, rolled: Answers, batches: Sequence[Batch], temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies [n, time] (nats, CPU) of the answers' tokens under a model; 0 after the end."""
    table = torch.zeros_like(rolled.sampler_logprobs)
    entropies = torch.zeros_like(table)
    for batch in batches:
        scored = score(model, batch, temperature=temperature, with_entropy=True)
        where = tuple(item.cpu() for item in cells(batch, scored.index, rolled.prompt_lengths))
        table[where] = scored.logprobs.float().cpu()
        assert scored.entropies is not None
        entropies[where] = scored.entropies.float().cpu()
    return table, entropies


@torch.no_grad()
def value_table(critic: ValueModel, rolled: Answers, batches: Sequence[Batch]) -> Tensor:
    """The critic's value [n, time] (CPU) of the state before each answer token."""
    table = torch.zeros_like(rolled.sampler_logprobs)
    for batch in batches:
        index = batch.supervised
        values = critic.values(batch).flatten().index_select(0, index)
        where = tuple(item.cpu() for item in cells(batch, index, rolled.prompt_lengths))
        table[where] = values.float().cpu()
    return table


@torch.no_grad()
def reward_scores(reward: RewardModel, batches: Sequence[Batch], n: int) -> Tensor:
    """Rewards [n] (CPU) by group number, read at each segment's last real token."""
    scores = torch.zeros(n)
    for batch in batches:
        scores[batch.group.cpu()] = reward.rewards(batch).float().cpu()
    return scores


def batches_of(
    segments: Sequence[Segment], row_length: int, micro_tokens: int, pad_id: int, device: torch.device | str
) -> list[Batch]:
    """Packed micro-batches on a device."""
    return [batch.to(device) for batch in micro_batches(segments, micro_tokens, row_length, pad_id)]
