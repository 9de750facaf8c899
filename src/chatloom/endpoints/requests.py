"""What is asked of an endpoint and what comes back, as plain values; replies are filed under their request's key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from chatloom.settings import digest

# Tokens that a chat template may put around a message, beyond the bytes of its text; used for upper bounds only.
TEMPLATE_TOKENS = 16


@dataclass(frozen=True)
class Request:
    """One reply that is wanted: `messages` (role, content) of a chat, or the `prompt` of a text to be gone on with.

    `sample` tells apart several replies to the same messages. What is None is left to the server. `limit_field` is the
    body's name for `max_tokens`; `extra` is added to the body as it is. Raises ValueError unless exactly one of
    `messages` and `prompt` is given.
    """

    model: str
    messages: tuple[tuple[str, str], ...] = ()
    prompt: str | None = None
    max_tokens: int = 512
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    sample: int = 0
    limit_field: str = "max_tokens"
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if bool(self.messages) == (self.prompt is not None):
            raise ValueError("a request has either messages or a prompt")

    @cached_property
    def key(self) -> str:
        """Hex sha256 of the model, the messages, the sampling settings and the sample's number."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "limit_field"}
        return digest({**values, "extra": dict(self.extra)})

    @property
    def path(self) -> str:
        """Where it is sent, below the base address."""
        return "chat/completions" if self.messages else "completions"

    def body(self) -> dict[str, Any]:
        """What is sent, as JSON."""
        body: dict[str, Any] = {"model": self.model, self.limit_field: self.max_tokens}
        if self.messages:
            body["messages"] = [{"role": role, "content": content} for role, content in self.messages]
        else:
            body["prompt"] = self.prompt
        optional = {"temperature": self.temperature, "top_p": self.top_p, "seed": self.seed}
        body |= {name: value for name, value in optional.items() if value is not None}
        if self.stop:
            body["stop"] = list(self.stop)
        return {**body, **self.extra}

    @property
    def most_tokens(self) -> int:
        """Tokens it may cost at most, prompt and reply: no tokenizer makes more tokens of a text than it has bytes."""
        parts = [content for _, content in self.messages] or [self.prompt or ""]
        written = sum(len(part.encode("utf-8", "surrogatepass")) + TEMPLATE_TOKENS for part in parts)
        return written + self.max_tokens


@dataclass(frozen=True)
class Reply:
    """The text of a reply, why it ended (`stop`, `length`, ...), its tokens as the server counts them (None: not told).

    `attempts` are the calls it took; `model` is the name the server gives to what answered.
    """

    key: str
    text: str
    finish: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    model: str = ""
    attempts: int = 1

    @property
    def tokens(self) -> int:
        """Prompt and reply, 0 where the server does not tell."""
        return (self.prompt_tokens or 0) + (self.completion_tokens or 0)


@dataclass(frozen=True)
class Refused:
    """A request that the server will not answer however often it is asked: the status and what it said."""

    key: str
    status: int
    message: str
    attempts: int = 1
