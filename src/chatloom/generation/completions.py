"""A chatloom model as an endpoint: the same requests, the same replies, the same record of them.

Requests are taken in groups of a fixed size. A group is generated as a whole unless all of it is recorded, so that its
replies do not depend on where an earlier run was cut off; each is written down before anybody sees it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from chatloom.dialogue.record import Message
from chatloom.dialogue.template import ChatTemplate
from chatloom.endpoints import Recorded, Refused, Reply, Request
from chatloom.generation.engine import Sample, generate
from chatloom.generation.sampling import Sampling
from chatloom.model.transformer import Transformer
from chatloom.tokens.vocabulary import Vocabulary

TOO_LONG = 413  # as a server would say it


@dataclass(frozen=True)
class Completions:
    """What answers: a model, its vocabulary, and its chat template (None: a base model, which goes on with a text)."""

    model: Transformer
    vocabulary: Vocabulary
    template: ChatTemplate | None = None
    group: int = 64

    def complete_many(self, requests: Iterable[Request], recorded: Recorded) -> Iterator[Reply | Refused]:
        """One outcome for each request, in order: from the record, else generated and recorded.

        `Refused`: a prompt that leaves no room for `max_tokens` in the model's context. A request's `seed` decides its
        randomness. Raises ValueError for what a model here has no use for: `stop`, `extra`, and messages for a base
        model.
        """
        source = iter(requests)
        while group := list(itertools.islice(source, self.group)):
            done = all(request.key in recorded for request in group)
            refused = {} if done else self._answer(group, recorded)
            for request in group:
                reply = recorded.get(request.key)
                yield refused[request.key] if reply is None else reply

    def _answer(self, group: Sequence[Request], recorded: Recorded) -> dict[str, Refused]:
        refused: dict[str, Refused] = {}
        ids: dict[str, list[int]] = {}
        for request in group:
            prompt = self._prompt(request)
            room = self.model.config.max_positions - len(prompt)
            if room < request.max_tokens:
                told = f"{len(prompt)} tokens leave {max(room, 0)} of the {request.max_tokens} asked for"
                refused[request.key] = Refused(request.key, TOO_LONG, told)
            else:
                ids[request.key] = prompt
        if all(key in recorded for key in ids):
            return refused
        alike: dict[tuple[Sampling, int], list[Request]] = {}
        for request in group:
            if request.key in ids:
                alike.setdefault((sampling_of(request), request.max_tokens), []).append(request)
        for (sampling, max_tokens), some in alike.items():
            samples = generate(
                self.model,
                [ids[request.key] for request in some],
                max_new_tokens=max_tokens,
                sampling=sampling,
                stop_ids=self._stops,
                prompt_keys=[request.seed or 0 for request in some],
                batch_size=self.group,
            )
            for request, [sample] in zip(some, samples, strict=True):
                if request.key not in recorded:
                    recorded.add(self._reply(request, len(ids[request.key]), sample))
        return refused

    @property
    def _stops(self) -> list[int]:
        return [self.vocabulary.eos_id] if self.template is None else self.template.stop_ids(self.vocabulary)

    def _prompt(self, request: Request) -> list[int]:
        if request.stop or request.extra or bool(request.messages) != (self.template is not None):
            raise ValueError("a model here takes messages if it has a chat template, else a prompt; no stop, no extra")
        if self.template is None:
            return self.vocabulary.encode(request.prompt or "") or [self.vocabulary.eos_id]
        messages = [Message(role, content) for role, content in request.messages]
        return self.template.render(messages, self.vocabulary, open_reply=True).ids

    def _reply(self, request: Request, prompt_tokens: int, sample: Sample) -> Reply:
        text = self.vocabulary.decode([token for token in sample.tokens if token not in self._stops])
        return Reply(
            key=request.key,
            text=text,
            finish="stop" if sample.finished else "length",
            prompt_tokens=prompt_tokens,
            completion_tokens=len(sample.tokens),
            model=request.model,
        )


def sampling_of(request: Request) -> Sampling:
    """How its tokens are chosen; what a request leaves open is the model's own distribution."""
    return Sampling(
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
    )
