"""The documented Python API, which the commands use too: load a model, talk to it, score text, run stages and recipes.

import chatloom

chatloom.run("demo", out="runs/demo")                       # a recipe: by name or path
model = chatloom.load("runs/demo/ppo")                      # any model folder or checkpoint
print(model.chat("What does `textwrap.dedent` do?"))
model.generate(["..."], n=4, temperature=1.0)               # sampled answers to prompts
model.score([("question", "answer")])                       # log-probabilities, or rewards
chatloom.train("sft", inputs={"model": ..., "conversations": ...}, out="runs/mine/sft", epochs=3)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from chatloom import recipe
from chatloom.artifact import Artifact
from chatloom.dialogue.record import Message
from chatloom.errors import ChatloomError
from chatloom.generation.engine import generate as generate_samples
from chatloom.generation.engine import stream as stream_tokens
from chatloom.generation.sampling import Sampling
from chatloom.model.heads import RewardModel
from chatloom.tokens.packing import Segment, micro_batches
from chatloom.training.bundle import Bundle, load_bundle
from chatloom.training.forward import segment_logprobs
from chatloom.training.session import resolve_device

Messages = str | Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Reply:
    """One sampled answer: its text, tokens (the end token included), log-probability in nats, and whether it ended."""

    text: str
    tokens: int
    logprob: float
    ended: bool


@dataclass(frozen=True)
class Model:
    """A model folder that is open: a chat model, a base model, or a reward model."""

    bundle: Bundle
    path: Path
    device: torch.device

    @property
    def is_reward_model(self) -> bool:
        """Whether it scores answers instead of writing them."""
        return isinstance(self.bundle.network, RewardModel)

    def chat(self, messages: Messages, *, max_new_tokens: int = 256, temperature: float = 0.0, seed: int = 0) -> str:
        """The reply to a question, or to a list of {"role", "content"} messages, as text."""
        return "".join(self.stream(messages, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed))

    def stream(
        self, messages: Messages, *, max_new_tokens: int = 256, temperature: float = 0.0, seed: int = 0
    ) -> Iterator[str]:
        """The reply piece by piece, never in the middle of a character; the same seed gives the same reply.

        Raises ChatloomError when the conversation fills the context.
        """
        ids = self._prompt(messages)
        room = self.bundle.model.config.max_positions - len(ids)
        if room < 1:
            raise ChatloomError(
                f"the conversation takes {len(ids)} tokens, the model reads {self.bundle.model.config.max_positions}; "
                "start a new one or shorten it"
            )
        stops = set(self._stops())
        tokens = stream_tokens(
            self.bundle.model,
            ids,
            max_new_tokens=min(max_new_tokens, room),
            sampling=Sampling(temperature=temperature),
            seed=seed,
            stop_ids=sorted(stops),
        )
        return self.bundle.vocabulary.decode_stream(token for token in tokens if token not in stops)

    def generate(
        self,
        prompts: Sequence[Messages],
        *,
        n: int = 1,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[list[Reply]]:
        """n sampled answers to each prompt; each depends on seed, prompt and its own number, not on its neighbours.

        Raises ChatloomError for one text instead of a list of them.
        """
        if isinstance(prompts, str):
            raise ChatloomError("generate takes a list of prompts; put the one text into a list, or use `chat`")
        stops = set(self._stops())
        found = generate_samples(
            self.bundle.model,
            [self._prompt(prompt) for prompt in prompts],
            n=n,
            max_new_tokens=max_new_tokens,
            sampling=Sampling(temperature=temperature, top_k=top_k, top_p=top_p),
            seed=seed,
            stop_ids=sorted(stops),
        )
        decode = self.bundle.vocabulary.decode
        return [
            [
                Reply(
                    decode([token for token in sample.tokens if token not in stops]),
                    len(sample.tokens),
                    float(sum(sample.logprobs)),
                    sample.finished,
                )
                for sample in pool
            ]
            for pool in found
        ]

    def score(self, pairs: Sequence[tuple[Messages, str]]) -> list[float]:
        """Rewards of answers to prompts (reward model), or their log-probabilities in nats, end token included."""
        vocabulary, template = self.bundle.vocabulary, self.bundle.chat
        segments = []
        for number, (prompt, answer) in enumerate(pairs):
            opening = template.render(_messages(prompt), vocabulary, open_reply=True)
            reply = [*vocabulary.encode(answer), vocabulary.id_of(template.end_token)]
            mask = [0.0] * len(opening) + [1.0] * len(reply)
            segments.append(Segment(opening.ids + reply, mask, group=number))  # type: ignore[arg-type]
        config = self.bundle.reward.config if self.is_reward_model else self.bundle.model.config
        found = [0.0] * len(pairs)
        with torch.inference_mode():
            at_once = max(16384, config.max_positions)
            for batch in micro_batches(segments, at_once, config.max_positions, vocabulary.pad_id):
                batch = batch.to(self.device)
                values = (
                    self.bundle.reward.rewards(batch)
                    if self.is_reward_model
                    else segment_logprobs(self.bundle.model, batch)[0]
                )
                for group, value in zip(batch.group.tolist(), values.tolist(), strict=True):
                    found[group] = value
        return found

    def _prompt(self, messages: Messages) -> list[int]:
        vocabulary = self.bundle.vocabulary
        if self.bundle.template is None:
            if not isinstance(messages, str):
                raise ChatloomError(
                    f"{self.path}: a base model goes on with a text; it has no chat template for messages"
                )
            return [vocabulary.eos_id, *vocabulary.encode(messages)]
        return self.bundle.template.render(_messages(messages), vocabulary, open_reply=True).ids

    def _stops(self) -> list[int]:
        template, vocabulary = self.bundle.template, self.bundle.vocabulary
        return template.stop_ids(vocabulary) if template else [vocabulary.eos_id]


def load(path: str | Path, *, device: str = "auto") -> Model:
    """Open a model folder: a stage's artifact, a checkpoint, or a Hugging Face folder that chatloom wrote."""
    place = resolve_device(device)
    return Model(load_bundle(Path(path), place), Path(path), place)


def load_chat(path: str | Path, *, device: str = "auto") -> Model:
    """As `load`, for talking: a reward model is refused."""
    model = load(path, device=device)
    if model.is_reward_model:
        raise ChatloomError(f"{path}: is a reward model; it scores answers and cannot write any")
    return model


def run(
    name: str | Path, *, out: str | Path | None = None, overrides: Sequence[str] = (), quiet: bool = False
) -> dict[str, Artifact]:
    """Run a recipe by name or path, skipping what is done, going on with what is half done; artifacts by stage name."""
    graph = recipe.read(name, overrides)
    return recipe.run(graph, Path(out) if out else Path("runs") / graph.name, quiet=quiet)


def train(
    kind: str, *, inputs: Mapping[str, Any], out: str | Path, seed: int = 0, quiet: bool = False, **settings: Any
) -> Artifact:
    """Run one stage alone (any kind, not only training); `inputs` maps names to artifacts or paths."""
    return recipe.run_stage(kind, settings, inputs, Path(out), seed=seed, quiet=quiet)


def _messages(messages: Messages) -> list[Message]:
    if isinstance(messages, str):
        return [Message("user", messages)]
    if not isinstance(messages, Iterable):
        raise ChatloomError(f"messages are {type(messages).__name__}; expected a text, or a list of role and content")
    return [Message.from_dict(dict(item)) for item in messages]
