"""Heads on the decoder: a reward model scores a whole segment, a value model every position.

reward = score . hidden[last token of the segment] + bias. The normaliser's gain is folded into `score`, so a reward
model is always ready to be used and saved as it is.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from chatloom.errors import ChatloomError
from chatloom.model.config import TransformerConfig
from chatloom.model.transformer import Transformer

if TYPE_CHECKING:
    from chatloom.tokens.packing import Batch


def without_unembedding(body: Transformer) -> Transformer:
    """The same network (parameters shared) without an output matrix of its own, which a head never uses.

    Left in, an untied output matrix would be carried by the optimizer and the model folder, and never get a gradient.
    """
    if body.output_embedding is None:
        return body
    bare = Transformer(replace(body.config, tie_embeddings=True), initialise=False)
    for name, part in body.named_children():
        if name != "output_embedding":
            setattr(bare, name, part)
    return bare


def _draw_score(layer: nn.Linear, generator: torch.Generator | None) -> None:
    """N(0, 1 / sqrt(hidden + 1)) (Stiennon et al. 2020; Huang et al. 2024, detail 20), for scores of order one."""
    std = 1.0 / math.sqrt(layer.in_features + 1)
    with torch.no_grad():
        layer.weight.copy_(torch.empty(layer.weight.shape).normal_(0.0, std, generator=generator))


class RewardModel(nn.Module):
    """Scalar reward of each segment, read at its last token (Ouyang et al. 2022, section 3.5).

    `bias` is a buffer: it is set by `normalise`, never trained (a pairwise loss cannot see it).
    """

    bias: Tensor

    def __init__(self, body: Transformer, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.body = without_unembedding(body)
        weight = body.embedding.weight
        self.score = nn.utils.skip_init(
            nn.Linear, body.config.hidden_size, 1, bias=False, device=weight.device, dtype=weight.dtype
        )
        self.register_buffer("bias", torch.zeros((), device=weight.device))
        _draw_score(self.score, generator)

    @property
    def config(self) -> TransformerConfig:
        """Shape of the body."""
        return self.body.config

    def forward(self, tokens: Tensor, positions: Tensor, segments: Tensor | None, rows: Tensor, ends: Tensor) -> Tensor:
        """Rewards [n] fp32 of the segments whose last tokens sit at (rows [n], ends [n]) of tokens [batch, time]."""
        return self.rewards_from_hidden(self.body(tokens, positions, segments)[rows, ends])

    def rewards_from_hidden(self, hidden: Tensor) -> Tensor:
        """Rewards [n] fp32 of last-token hidden states [n, hidden]."""
        return self.score(hidden).squeeze(-1).float() + self.bias

    def rewards(self, batch: Batch) -> Tensor:
        """Rewards [n_segments] fp32 of all segments of a packed batch."""
        return self.rewards_from_hidden(self.body.over(batch)[batch.segment_row, batch.segment_end])

    @torch.no_grad()
    def normalise(self, gain: float, bias: float) -> None:
        """Make every reward r into gain * r + bias, folded into the weights (Ziegler et al. 2019, section 2).

        For zero mean and unit spread pass gain = 1/std and bias = -mean/std. A positive gain keeps every ranking;
        raises ChatloomError for any other, or for a number that is not finite.
        """
        if not (math.isfinite(gain) and math.isfinite(bias) and gain > 0):
            raise ChatloomError(
                f"reward normalisation with gain {gain} and bias {bias}; expected finite numbers and a positive gain. "
                "A spread of zero means that the reward model gives every text the same score"
            )
        self.score.weight.mul_(gain)
        self.bias.mul_(gain).add_(bias)


class ValueModel(nn.Module):
    """Expected return at every position (Schulman et al. 2017): value = score . hidden + bias, the bias trained."""

    def __init__(self, body: Transformer) -> None:
        super().__init__()
        self.body = without_unembedding(body)
        weight = body.embedding.weight
        self.score = nn.Linear(body.config.hidden_size, 1, bias=True, device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            # Zero head (Ziegler et al. 2019's code): the first advantages are the rewards themselves.
            self.score.weight.zero_()
            self.score.bias.zero_()

    @classmethod
    def from_reward_model(cls, reward: RewardModel) -> ValueModel:
        """A value model that starts as the reward model (Ouyang et al. 2022, appendix C.4), with weights of its own."""
        config = reward.config
        body = Transformer(config, initialise=False).to(reward.score.weight.device, reward.score.weight.dtype)
        body.load_state_dict(reward.body.state_dict())
        value = cls(body)
        with torch.no_grad():
            value.score.weight.copy_(reward.score.weight)
            value.score.bias.copy_(reward.bias.reshape(1))
        return value

    @property
    def config(self) -> TransformerConfig:
        """Shape of the body."""
        return self.body.config

    def forward(self, tokens: Tensor, positions: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """Values [batch, time] fp32, in the unit of the reward, of tokens [batch, time]."""
        return self.values_from_hidden(self.body(tokens, positions, segments))

    def values(self, batch: Batch) -> Tensor:
        """Values [rows, time] fp32 at every place of a packed batch."""
        return self.values_from_hidden(self.body.over(batch))

    def values_from_hidden(self, hidden: Tensor) -> Tensor:
        """Values [...] fp32 of hidden states [..., hidden]."""
        return self.score(hidden).squeeze(-1).float()
