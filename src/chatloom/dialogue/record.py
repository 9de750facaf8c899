"""What a conversation and a preference are, once read from any file format.

A `Conversation` is what instruction tuning learns from; a `Preference` is one prompt with answers ranked best
first, what the reward model and DPO learn from. Contents are verbatim: nothing here strips or rewrites a text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from chatloom.errors import ChatloomError

ROLES = ("system", "user", "assistant", "tool")


class DialogueError(ChatloomError):
    """A conversation, preference, chat template or file of them that cannot be used; the message says why and where."""


@dataclass(frozen=True)
class Message:
    """One turn's text with the role that wrote it.

    `weight` scales the loss on this message's content and end token; None means the template's own rule
    (1 for an assistant's message, 0 for any other).
    """

    role: str
    content: str
    weight: float | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise DialogueError(f"message role is {self.role!r}; expected one of {', '.join(ROLES)}")
        if not isinstance(self.content, str):
            raise DialogueError(
                f"content of the {self.role} message is {type(self.content).__name__}; expected text (str)"
            )
        try:
            self.content.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DialogueError(
                f"content of the {self.role} message holds half of a surrogate pair at character {error.start}; "
                "expected text that UTF-8 can write"
            ) from None
        if self.weight is not None and not (math.isfinite(self.weight) and self.weight >= 0):
            raise DialogueError(f"weight of the {self.role} message is {self.weight}; expected a finite number >= 0")

    def to_dict(self) -> dict[str, Any]:
        """Return the OpenAI-style dict; `weight` appears only where it was set."""
        out: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.weight is not None:
            out["weight"] = self.weight
        return out

    @classmethod
    def from_dict(cls, value: Any) -> Message:
        """Build from {"role", "content"[, "weight"]}; raises DialogueError naming what is missing."""
        if not isinstance(value, dict):
            raise DialogueError(f"a message is {type(value).__name__}; expected an object with 'role' and 'content'")
        for key in ("role", "content"):
            if not isinstance(value.get(key), str):
                found = "missing" if value.get(key) is None else type(value[key]).__name__
                raise DialogueError(f"message key {key!r} is {found}; expected text; keys found: {', '.join(value)}")
        weight = value.get("weight")
        if weight is not None and (isinstance(weight, bool) or not isinstance(weight, int | float)):
            raise DialogueError(f"message weight is {weight!r}; expected a number")
        return cls(value["role"], value["content"], None if weight is None else float(weight))


@dataclass(frozen=True)
class Conversation:
    """Messages in order, with where they came from. Raises DialogueError on an impossible order of roles."""

    id: str
    messages: list[Message]
    source: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "messages", list(self.messages))
        _check_order(self.messages, f"conversation {self.id!r}")

    @property
    def prompt(self) -> list[Message]:
        """Everything before the last assistant message."""
        return prompt_of(self.messages)

    @property
    def answer(self) -> str:
        """The last assistant message's text; raises DialogueError where there is none."""
        for message in reversed(self.messages):
            if message.role == "assistant":
                return message.content
        raise DialogueError(f"conversation {self.id!r} has no assistant message")


@dataclass(frozen=True)
class Preference:
    """One prompt and two or more answers to it, ranked best first.

    `kind` says how the worse answer is worse (for reports by kind); `margin` is by how much the best beats the
    next, where people graded it (Llama 2, section 3.2.2). `ended[i]` is False for an answer that never stopped:
    it is rendered without its end token. Raises DialogueError on fewer than two answers or two equal ones.
    """

    id: str
    prompt: list[Message]
    answers: list[str]
    kind: str = ""
    margin: float | None = None
    ended: list[bool] = field(default_factory=list)
    source: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", list(self.prompt))
        object.__setattr__(self, "answers", list(self.answers))
        object.__setattr__(self, "ended", list(self.ended) or [True] * len(self.answers))
        where = f"preference {self.id!r}"
        _check_order(self.prompt, where)
        if self.prompt[-1].role == "assistant":
            raise DialogueError(f"{where}: the prompt ends with an assistant message; expected a user message last")
        if len(self.answers) < 2:
            raise DialogueError(f"{where} has {len(self.answers)} answer(s); expected at least two, ranked best first")
        if len(self.ended) != len(self.answers):
            raise DialogueError(f"{where} has {len(self.answers)} answers but {len(self.ended)} `ended` flags")
        if len(set(zip(self.answers, self.ended))) < len(self.answers):
            raise DialogueError(f"{where} has two equal answers: there is nothing to prefer")
        if self.margin is not None and not math.isfinite(self.margin):
            raise DialogueError(f"{where}: margin is {self.margin}; expected a finite number")

    @property
    def chosen(self) -> str:
        """The best answer."""
        return self.answers[0]

    @property
    def rejected(self) -> str:
        """The worst answer."""
        return self.answers[-1]

    def conversation(self, index: int) -> list[Message]:
        """The prompt with answer `index` as the assistant's reply."""
        return [*self.prompt, Message("assistant", self.answers[index])]

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Every (better, worse) pair of answer indices: K(K-1)/2 of them."""
        count = len(self.answers)
        return ((i, j) for i in range(count) for j in range(i + 1, count))


def prompt_of(messages: Sequence[Message]) -> list[Message]:
    """Return what comes before the last assistant message; all of it where the messages end with a user's turn."""
    if messages and messages[-1].role != "assistant":
        return list(messages)
    return list(messages[:-1])


def _check_order(messages: Sequence[Message], where: str) -> None:
    if not messages:
        raise DialogueError(f"{where} has no messages")
    for position, message in enumerate(messages):
        if message.role == "system" and position > 0:
            raise DialogueError(f"{where}: message {position + 1} is a system message; only the first may be one")
    if all(message.role == "system" for message in messages):
        raise DialogueError(f"{where} holds a system message and nothing else")
