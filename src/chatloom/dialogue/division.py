"""Divides records of many files at once: filter, cap, split by prompt; then the prompts that answers are sampled to.

A prompt (its first question, normalised) falls in one part wherever it appears, so an instruction file and a preference
file with the same prompts agree on what is trained on and what is held out. What is left out is kept with its reason.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from chatloom.dialogue.files import BadRecord
from chatloom.dialogue.record import Conversation, Message, Preference
from chatloom.dialogue.splits import assign, prompt_key, question_keys, root_key
from chatloom.dialogue.storage import Prompt

Record = TypeVar("Record", Conversation, Preference)
PARTS = TRAIN, HELDOUT, ALIGNMENT, TEST = "train", "heldout", "alignment", "test"

_HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_KANA_OR_HANGUL = re.compile(r"[\u3040-\u30ff\uac00-\ud7af]")
_WORD = re.compile(r"[^\W\d_\u3040-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]+")
_LATIN = re.compile(r"[A-Za-z]")


@dataclass(frozen=True)
class Division:
    """What is used of each file and how it is divided; `shares` are of the prompts, by part. Sizes in UTF-8 bytes."""

    shares: Mapping[str, float]
    seed: int = 0
    max_records: int | None = None
    max_prompt_bytes: int = 8000
    min_answer_bytes: int = 1
    max_answer_bytes: int = 16000


@dataclass
class Sets:
    """Records by part; `left_out` says of each record that is in none, why."""

    conversations: dict[str, list[Conversation]] = field(default_factory=lambda: {part: [] for part in PARTS})
    preferences: dict[str, list[Preference]] = field(default_factory=lambda: {part: [] for part in PARTS})
    left_out: list[BadRecord] = field(default_factory=list)

    def roots(self) -> dict[str, set[str]]:
        """First questions by part."""
        return {
            part: {root_key(item.messages) for item in self.conversations[part]}
            | {root_key(item.prompt) for item in self.preferences[part]}
            for part in PARTS
        }


def divide(
    conversations: Sequence[Sequence[Conversation]], preferences: Sequence[Sequence[Preference]], how: Division
) -> Sets:
    """The records of each file, filtered, capped and split; raises DialogueError where the shares do not sum to 1."""
    sets = Sets()
    for conversation in _usable(conversations, how, sets.left_out):
        sets.conversations[assign(root_key(conversation.messages), how.shares, how.seed)].append(conversation)
    for preference in _usable(preferences, how, sets.left_out):
        sets.preferences[assign(root_key(preference.prompt), how.shares, how.seed)].append(preference)
    # A conversation may come to a held-out question in a later turn: training on it would teach the test.
    held, roots = set[str](), sets.roots()
    for part in (TEST, ALIGNMENT, HELDOUT, TRAIN):
        sets.conversations[part] = _without(sets.conversations[part], held, sets.left_out)
        sets.preferences[part] = _without(sets.preferences[part], held, sets.left_out)
        held |= roots[part]
    return sets


def two_by_two(preference: Preference) -> list[Preference]:
    """All pairs of a ranking, better answer first: accuracy is a figure about pairs."""
    if len(preference.answers) == 2:
        return [preference]
    return [
        replace(
            preference,
            id=f"{preference.id}/{i}-{j}",
            answers=[preference.answers[i], preference.answers[j]],
            ended=[preference.ended[i], preference.ended[j]],
            margin=None,
        )
        for i, j in preference.pairs()
    ]


def prompts(sets: Sets, part: str, how: Division, *, source: str = "auto", answers: bool = False) -> list[Prompt]:
    """The prompts of a part, each once, in the order of the files; those longer than `max_prompt_bytes` are left out.

    `source`: `preferences`, `conversations`, `both`, or `auto` (the preferences' where there are any at all).
    `answers`: carry the conversations' answer to the same prompt as the true one, where there is one.
    """
    if source == "auto":
        source = "preferences" if any(sets.preferences.values()) else "conversations"
    records: list[Conversation | Preference] = []
    records += sets.preferences[part] if source in ("preferences", "both") else []
    records += sets.conversations[part] if source in ("conversations", "both") else []
    known = {prompt_key(item.prompt): item.answer for item in reversed(sets.conversations[part])} if answers else {}
    found: dict[str, Prompt] = {}
    for record in records:
        key = prompt_key(record.prompt)
        if key in found:
            continue
        if (size := sum(_bytes(message.content) for message in record.prompt)) > how.max_prompt_bytes:
            sets.left_out.append(_left_out(record, f"prompt longer than max_prompt_bytes: {size} bytes"))
            continue
        text = " ".join(message.content for message in record.prompt if message.role == "user")
        found[key] = Prompt(record.id, record.prompt, known.get(key), kind_of(record.source), language_of(text))
    return list(found.values())


def language_of(text: str) -> str:
    """`zh` when Han characters outnumber other words, `en` for other text in Latin letters, else `other`."""
    han, kana_or_hangul = len(_HAN.findall(text)), len(_KANA_OR_HANGUL.findall(text))
    words = _WORD.findall(text)
    if han + kana_or_hangul > len(words):
        return "zh" if kana_or_hangul * 5 <= han else "other"
    return "en" if sum(_LATIN.match(word) is not None for word in words) * 2 > len(words) else "other"


def kind_of(source: str) -> str:
    """The kind under which reports show a record: its file's name without suffixes (`a` of `a.jsonl.gz#2:7`)."""
    return source.partition(".")[0]


def _usable(files: Sequence[Sequence[Record]], how: Division, left_out: list[BadRecord]) -> list[Record]:
    found: list[Record] = []
    seen: dict[str, str] = {}
    for records in files:
        kept = []
        for record in records:
            reason = _objection(record, how)
            if not reason:
                first = seen.setdefault(_content(record), record.id)
                reason = "" if first == record.id else f"a copy of an earlier record: {first}"
            if reason:
                left_out.append(_left_out(record, reason))
            else:
                kept.append(record)
        if how.max_records is not None and len(kept) > how.max_records:
            # By prompt, not by place: files that share prompts then keep the same ones.
            ranked = sorted(kept, key=lambda record: (_rank(root_key(_messages(record)), how.seed), record.id))
            chosen = {record.id for record in ranked[: how.max_records]}
            left_out += [_left_out(record, "beyond max_records") for record in kept if record.id not in chosen]
            kept = [record for record in kept if record.id in chosen]
        found += kept
    return found


def _objection(record: Conversation | Preference, how: Division) -> str:
    """Why a record is not used; empty when it is."""
    questions = [message for message in _messages(record) if message.role == "user"]
    if not questions:
        return "no user message"
    sizes = [_bytes(answer) for answer in ([record.answer] if isinstance(record, Conversation) else record.answers)]
    if (size := _bytes(questions[-1].content)) > how.max_prompt_bytes:
        return f"question longer than max_prompt_bytes: {size} bytes"
    if max(sizes) > how.max_answer_bytes:
        return f"answer longer than max_answer_bytes: {max(sizes)} bytes"
    if min(sizes) < how.min_answer_bytes:
        return f"answer shorter than min_answer_bytes: {min(sizes)} bytes"
    return ""


def _without(records: list[Record], held: set[str], left_out: list[BadRecord]) -> list[Record]:
    kept = []
    for record in records:
        if held.isdisjoint(question_keys(_messages(record))):
            kept.append(record)
        else:
            left_out.append(_left_out(record, "a later turn asks what is held out"))
    return kept


def _messages(record: Conversation | Preference) -> list[Message]:
    return record.messages if isinstance(record, Conversation) else record.prompt


def _left_out(record: Conversation | Preference, reason: str) -> BadRecord:
    name, _, line = record.source.rpartition(":")
    return BadRecord(name, int(line), reason)


def _content(record: Conversation | Preference) -> str:
    said = [(message.role, message.content) for message in _messages(record)]
    return json.dumps([said, [] if isinstance(record, Conversation) else record.answers], ensure_ascii=False)


def _rank(key: str, seed: int) -> bytes:
    # Keyed otherwise than `assign`, or a cap would take its records from the first part alone.
    return hashlib.blake2b(key.encode("utf-8"), digest_size=8, key=f"cap {seed}".encode("ascii")).digest()


def _bytes(text: str) -> int:
    return len(text.encode("utf-8"))
