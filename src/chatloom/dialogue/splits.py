"""Divides data once, by prompt, over all files: the same prompt lands in the same part wherever it appears.

The part is a function of (seed, normalised prompt) alone, so it does not depend on the order of records, on the
number of files or on which file is read first. Overlaps between named sets are counted, and must all be 0.
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from chatloom.dialogue.record import DialogueError, Message

Record = TypeVar("Record")


@dataclass(frozen=True)
class Overlap:
    """Prompts that two sets share; `examples` holds at most three of them."""

    first: str
    second: str
    count: int
    examples: tuple[str, ...]


def normalise(text: str) -> str:
    """Fold what does not make another prompt: width and compatibility forms (NFKC), case, runs of white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def prompt_key(messages: Sequence[Message]) -> str:
    """Return the normalised whole prompt: role and text of every message up to the last one not the assistant's."""
    kept = list(messages)
    while kept and kept[-1].role == "assistant":
        kept.pop()
    return "\n".join(f"{message.role}: {normalise(message.content)}" for message in kept)


def root_key(messages: Sequence[Message]) -> str:
    """Return the normalised first user message: one key for all conversations that grew from the same question."""
    for message in messages:
        if message.role == "user":
            return normalise(message.content)
    raise DialogueError("a prompt has no user message, so it cannot be assigned to a split")


def question_keys(messages: Iterable[Message]) -> list[str]:
    """Return every user message, normalised."""
    return [normalise(message.content) for message in messages if message.role == "user"]


def assign(key: str, shares: Mapping[str, float], seed: int) -> str:
    """Return the part that a prompt's key falls in: keyed hash to [0, 1), then the shares in their order.

    Raises DialogueError where shares are negative or do not sum to 1.
    """
    if any(share < 0 for share in shares.values()) or not math.isclose(sum(shares.values()), 1.0, abs_tol=1e-9):
        raise DialogueError(f"split shares are {dict(shares)}; expected numbers >= 0 that sum to 1")
    digest = hashlib.blake2b(key.encode("utf-8"), digest_size=8, key=str(seed).encode("ascii")).digest()
    point = int.from_bytes(digest, "big") / 2**64
    edge = 0.0
    for part, share in shares.items():
        edge += share
        if point < edge:
            return part
    return [part for part, share in shares.items() if share > 0][-1]


def split_by_prompt(
    records: Iterable[Record], key_of: Callable[[Record], str], shares: Mapping[str, float], seed: int
) -> dict[str, list[Record]]:
    """Return the records of each part, in their order; every part is there even when empty."""
    parts: dict[str, list[Record]] = {part: [] for part in shares}
    for record in records:
        parts[assign(key_of(record), shares, seed)].append(record)
    return parts


def overlaps(sets: Mapping[str, Iterable[str]]) -> list[Overlap]:
    """Return the overlap of every pair of named sets of keys, also where it is 0."""
    held = {name: set(keys) for name, keys in sets.items()}
    names = list(held)
    result = []
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            shared = held[first] & held[second]
            result.append(Overlap(first, second, len(shared), tuple(sorted(shared)[:3])))
    return result


def describe_overlaps(sets: Mapping[str, Iterable[str]]) -> str:
    """Return the overlaps as lines to print: `sft (4,000) and test (800): 0 prompts in common`."""
    held = {name: set(keys) for name, keys in sets.items()}
    return "\n".join(
        f"{overlap.first} ({len(held[overlap.first]):,}) and {overlap.second} ({len(held[overlap.second]):,}): "
        f"{overlap.count:,} prompts in common"
        for overlap in overlaps(held)
    )


def require_disjoint(sets: Mapping[str, Iterable[str]]) -> None:
    """Raise DialogueError naming the sets and examples where any two share a prompt."""
    shared = [overlap for overlap in overlaps(sets) if overlap.count]
    if shared:
        lines = "; ".join(f"{o.first} and {o.second} share {o.count} prompts, e.g. {o.examples[0]!r}" for o in shared)
        raise DialogueError(
            f"sets that must be disjoint are not: {lines}. Split all files in one go by prompt, with one seed"
        )
