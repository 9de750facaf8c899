"""Prompts as requests to whoever answers: an endpoint, a chat model or a base model; and which replies are there.

A request says the same however many others there are, so that its reply can be taken over by a later artifact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatloom.corpus.synthetic.making import prompts_of
from chatloom.corpus.synthetic.prompts import Prompt, sample_seed
from chatloom.corpus.synthetic.settings import AskSettings
from chatloom.endpoints import EndpointSettings, Recorded, Request

REPLIES = "replies.jsonl"
PARTIAL = ".partial"


@dataclass(frozen=True)
class Local:
    """A model made here, as requests name it: by its content, wherever its folder lies."""

    fingerprint: str
    is_chat: bool


@dataclass(frozen=True)
class Asking:
    """The prompts of a folder in order, each as often as there are samples, as requests to `who`."""

    folder: Path
    settings: AskSettings
    seed: int
    who: EndpointSettings | Local

    def __len__(self) -> int:
        return self.settings.prompts * self.settings.samples

    def asked(self) -> Iterator[tuple[Prompt, int]]:
        """Prompts and numbers of samples."""
        return ((prompt, sample) for prompt in prompts_of(self.folder) for sample in range(self.settings.samples))

    def requests(self) -> Iterator[Request]:
        """One request for each of `asked`."""
        for prompt, sample in self.asked():
            yield self._request(prompt, sample)

    def _request(self, prompt: Prompt, sample: int) -> Request:
        settings, who = self.settings, self.who
        seed = sample_seed(self.seed, prompt.number, sample)
        options: dict[str, Any] = {
            "max_tokens": settings.max_tokens, "temperature": settings.temperature, "top_p": settings.top_p,
            "sample": sample,
        }  # fmt: skip
        if isinstance(who, EndpointSettings):
            return who.request(prompt.text, seed=seed if settings.send_seed else None, **options)
        if who.is_chat:
            return Request(who.fingerprint, messages=(("user", prompt.text),), seed=seed, **options)
        return Request(who.fingerprint, prompt=prompt.text, seed=seed, **options)

    def take_over(self, recorded: Recorded) -> None:
        """Replies that earlier artifacts beside this folder have, whatever else was set when they were made."""
        base, parent = self.folder.name.removesuffix(PARTIAL), self.folder.parent
        files = [folder / REPLIES for folder in (parent / base, *sorted(parent.glob(f"{base}@*")))]
        files = [file for file in files if file.is_file()]
        if files:
            keys = {request.key for request in self.requests()}
            for file in files:
                recorded.take_over(file, keys)


def aside(folder: Path) -> Path:
    """A name under which a half-done folder that is not gone on with is an earlier one."""
    return folder.with_name(f"{folder.name.removesuffix(PARTIAL)}@1")
