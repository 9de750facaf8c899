"""Settings of an endpoint. A key is never a setting: what is set is the name of its environment variable."""

from __future__ import annotations

import ipaddress
import os
import re
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from chatloom.endpoints.requests import Request
from chatloom.errors import ChatloomError
from chatloom.settings import Settings, SettingsError, runtime

NAME = re.compile("[A-Z_][A-Z0-9_]*")
VISIBLE = re.compile("[!-~]+")


class BudgetSettings(Settings):
    """What may be spent, over all runs that share a file of recorded replies; null for no limit."""

    calls: int | None = runtime(None, ge=1, description="calls sent at most, those that are tried again included")
    tokens: int | None = runtime(None, ge=1, description="tokens at most, of prompts and replies, as the server counts")


class EndpointSettings(Settings):
    """Which model answers, where it is, and how patient the client is."""

    address: str = runtime(
        "", description="base address, such as https://HOST/v1; `/chat/completions` or `/completions` is added to it"
    )
    model: str = Field("", description="the model's name there")
    api: Literal["chat", "completions"] = Field("chat", description="chat, or completions for a base model")
    limit_field: Literal["max_tokens", "max_completion_tokens"] = runtime(
        "max_tokens", description="what the server calls the longest reply, in tokens"
    )
    extra: dict[str, Any] = Field(
        default_factory=dict, description="more fields of a request, as the server names them, such as `top_k: 20`"
    )
    key: str = runtime("", description="NAME of the environment variable that holds the key; empty: none is sent")
    concurrency: int = runtime(8, ge=1, le=1024, description="calls under way at once")
    seconds: float = runtime(120.0, gt=0, description="seconds one call may take, from sending to the last byte")
    tries: int = runtime(6, ge=1, description="calls for one reply before the run stops")
    longest_wait: float = runtime(60.0, gt=0, description="seconds at most between two tries, unless the server says")
    budget: BudgetSettings = Field(default_factory=BudgetSettings, description="where to stop")

    @field_validator("key")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        # A SettingsError, not a ValueError: pydantic would print what was found, which may be a key.
        if value and not NAME.fullmatch(value):
            raise SettingsError(
                "endpoint.key: expected the NAME of an environment variable (upper-case letters, digits and _, such as "
                "OPENAI_API_KEY), found something else, which is not shown because it may be a key; put the key into "
                "the environment and its variable's name here"
            )
        return value

    @field_validator("address")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        if not value:
            return value
        try:
            parts = urlsplit(value)
            hidden = parts.username is not None or parts.password is not None
            good = parts.scheme in ("http", "https") and parts.hostname and not parts.query and not parts.fragment
            _ = parts.port
        except ValueError:
            hidden, good = "@" in value, False
        if hidden:
            raise SettingsError(
                "endpoint.address: holds a user name or password; give the address without, and the key by `key`"
            )
        if not good:
            raise SettingsError(
                f"endpoint.address: expected a base address such as https://HOST/v1, without ? and #, found {value!r}"
            )
        return value.rstrip("/")

    def request(self, text: str, *, system: str = "", **options: Any) -> Request:
        """What is asked: a user's message (after a system message, where given), or a text to be gone on with.

        `options` are those of Request. Raises ValueError for a system message where there is no chat.
        """
        options = {"model": self.model, "limit_field": self.limit_field, "extra": self.extra} | options
        if self.api == "completions":
            if system:
                raise ValueError("a system message needs `api: chat`")
            return Request(prompt=text, **options)
        messages = (("system", system),) if system else ()
        return Request(messages=(*messages, ("user", text)), **options)


def read_key(settings: EndpointSettings) -> str:
    """The key from the environment, "" where none is named.

    Raises ChatloomError, which never shows the key, where it is missing, cannot stand in a header, or would travel
    unencrypted to a host outside.
    """
    if not settings.key:
        return ""
    key = os.environ.get(settings.key, "").strip()
    if not key:
        raise ChatloomError(
            f"endpoint.key: the environment has no variable {settings.key}, or it is empty; set it to the key, or "
            "leave `key` empty where the server asks for none"
        )
    if not VISIBLE.fullmatch(key):
        raise ChatloomError(f"endpoint.key: what {settings.key} holds has spaces, line ends or other odd characters")
    if urlsplit(settings.address).scheme == "http" and not _is_near(urlsplit(settings.address).hostname or ""):
        raise ChatloomError(
            f"endpoint.address: {settings.address} would send the key unencrypted through the net; use https, or leave "
            "`key` empty"
        )
    return key


def _is_near(host: str) -> bool:
    """Whether a host is this machine or in a private network."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return "." not in host or host.endswith((".local", ".localhost", ".internal", ".lan"))
