"""From dialogue records to packed micro-batches: which examples a step holds, rendered with their loss masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chatloom.dialogue.record import Conversation, Preference
from chatloom.dialogue.template import ChatTemplate, Rendered
from chatloom.errors import ChatloomError
from chatloom.tokens.order import Order
from chatloom.tokens.packing import Batch, Segment, micro_batches
from chatloom.tokens.vocabulary import Vocabulary
from chatloom.training.parallel.shares import item_shares
from chatloom.training.parallel.world import Axis


@dataclass(frozen=True)
class Example:
    """Segments that belong together (one conversation, or the answers to one prompt), and the id of their record."""

    id: str
    segments: tuple[Segment, ...]

    @property
    def n_tokens(self) -> int:
        """Tokens of all segments."""
        return sum(len(segment.tokens) for segment in self.segments)


@dataclass(frozen=True)
class Rejected:
    """Records that cannot be trained on, with the reason; counted, never silent."""

    id: str
    reason: str


def segment(rendered: Rendered, **fields: object) -> Segment:
    """A segment from rendered ids and mask; `fields` are Segment's own (group, role, scalars)."""
    return Segment(
        tokens=np.asarray(rendered.ids, dtype=np.int64),
        supervised=np.asarray(rendered.mask, dtype=np.float32),
        **fields,  # type: ignore[arg-type]
    )


def conversation_examples(
    conversations: Sequence[Conversation], template: ChatTemplate, vocabulary: Vocabulary, context: int
) -> tuple[list[Example], list[Rejected]]:
    """One example a conversation: whole turns cut from the front when it exceeds `context` tokens.

    Rejected: a last turn that alone is too long (cutting it would lose its end token), or no supervised token at all.
    """
    examples, rejected = [], []
    for conversation in conversations:
        fitted = template.fit(conversation, vocabulary, context)
        if fitted.messages is None:
            rejected.append(Rejected(conversation.id, fitted.reason))
            continue
        rendered = template.render(fitted.messages, vocabulary)
        if not any(rendered.mask[1:]):
            rejected.append(Rejected(conversation.id, "no assistant message: nothing to learn from"))
            continue
        examples.append(Example(conversation.id, (segment(rendered),)))
    return examples, rejected


def preference_examples(
    preferences: Sequence[Preference], template: ChatTemplate, vocabulary: Vocabulary, context: int
) -> tuple[list[Example], list[Rejected]]:
    """One example a preference: its answers best first, each a segment with the prompt before it.

    A preference with an answer that exceeds `context` tokens is rejected whole: a cut answer would be another answer.
    """
    examples, rejected = [], []
    for preference in preferences:
        rendered = [template.render_answer(preference, i, vocabulary) for i in range(len(preference.answers))]
        longest = max(len(item) for item in rendered)
        if longest > context:
            rejected.append(Rejected(preference.id, f"an answer takes {longest} tokens; the limit is {context}"))
            continue
        margin = {} if preference.margin is None else {"margin": preference.margin}
        segments = tuple(segment(item, role=f"rank{i}", scalars=dict(margin)) for i, item in enumerate(rendered))
        examples.append(Example(preference.id, segments))
    return examples, rejected


def check_rejected(rejected: Sequence[Rejected], total: int, limit: float, what: str) -> None:
    """Raise ChatloomError when more than a share `limit` of all records had to be left out."""
    if total and len(rejected) > limit * total:
        shown = "; ".join(f"{item.id}: {item.reason}" for item in rejected[:3])
        raise ChatloomError(
            f"{len(rejected)} of {total} {what} cannot be used ({shown}). Train with a longer context, "
            f"clean the data, or raise `max_rejected_share` (now {limit:g})."
        )


class ExampleStream:
    """Endless shuffled examples; `step(i)` is a pure function of the seed and i, so resuming needs no state."""

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        per_step: int,
        seed: int,
        row_length: int,
        micro_tokens: int,
        pad_id: int,
        axis: Axis = Axis(),  # noqa: B008 - frozen
    ) -> None:
        """`axis`: the processes that share out every step; one alone does all of it."""
        self.examples, self.per_step, self.axis = examples, per_step, axis
        self.row_length, self.micro_tokens, self.pad_id = row_length, micro_tokens, pad_id
        self.order = Order(len(examples), seed)

    def steps(self, epochs: float) -> int:
        """Optimizer steps in a number of epochs, at least one."""
        return max(1, round(epochs * len(self.examples) / self.per_step))

    def chosen(self, step: int) -> list[Example]:
        """The examples of a step, in stream order."""
        return [self.examples[i] for i in self.order.items(step * self.per_step, self.per_step)]

    def step(self, step: int) -> list[Batch]:
        """The packed micro-batches of a step, or of this process's share of it, by tokens."""
        chosen = self.chosen(step)
        if self.axis.size > 1:
            shares = item_shares([example.n_tokens for example in chosen], self.axis.size)
            chosen = [chosen[i] for i in shares[self.axis.place]]
        return pack_examples(chosen, self.row_length, self.micro_tokens, self.pad_id)


def pack_examples(examples: Sequence[Example], row_length: int, micro_tokens: int, pad_id: int) -> list[Batch]:
    """Micro-batches over examples; every example is a group, numbered by its place, and stays in one micro-batch."""
    segments = [
        Segment(item.tokens, item.supervised, group=number, role=item.role, scalars=item.scalars)
        for number, example in enumerate(examples)
        for item in example.segments
    ]
    return micro_batches(segments, micro_tokens, row_length, pad_id)
