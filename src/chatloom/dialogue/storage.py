"""Conversations, preferences and prompts as Parquet files: what dialogue artifacts hold.

Columns are plain (ids, roles, contents, lists), so any Parquet reader opens them; metadata is one JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from chatloom.dialogue.record import Conversation, DialogueError, Message, Preference

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("weight", pa.float64())]))
CONVERSATIONS = pa.schema(
    [("id", pa.string()), ("messages", MESSAGES), ("source", pa.string()), ("metadata", pa.string())]
)
PREFERENCES = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", MESSAGES),
        ("answers", pa.list_(pa.string())),
        ("ended", pa.list_(pa.bool_())),
        ("kind", pa.string()),
        ("margin", pa.float64()),
        ("source", pa.string()),
        ("metadata", pa.string()),
    ]
)
PROMPTS = pa.schema(
    [("id", pa.string()), ("messages", MESSAGES), ("answer", pa.string()), ("kind", pa.string()),
     ("language", pa.string()), ("metadata", pa.string())]
)  # fmt: skip


@dataclass(frozen=True)
class Prompt:
    """A prompt to be answered; `answer` is the true one where it is known (None in files that training reads)."""

    id: str
    messages: list[Message]
    answer: str | None = None
    kind: str = ""
    language: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)


def write_conversations(path: Path, conversations: Sequence[Conversation]) -> None:
    """Write conversations in order; an empty sequence makes a file without rows."""
    rows = [
        {"id": c.id, "messages": _plain(c.messages), "source": c.source, "metadata": _json(c.metadata)}
        for c in conversations
    ]
    _write(path, rows, CONVERSATIONS)


def read_conversations(path: Path) -> list[Conversation]:
    """What `write_conversations` wrote; raises DialogueError for another layout."""
    return [
        Conversation(row["id"], _messages(row["messages"]), row["source"] or "", json.loads(row["metadata"] or "{}"))
        for row in _rows(path, CONVERSATIONS)
    ]


def write_preferences(path: Path, preferences: Sequence[Preference]) -> None:
    """Write preferences in order."""
    rows = [
        {
            "id": p.id,
            "prompt": _plain(p.prompt),
            "answers": p.answers,
            "ended": p.ended,
            "kind": p.kind,
            "margin": p.margin,
            "source": p.source,
            "metadata": _json(p.metadata),
        }
        for p in preferences
    ]
    _write(path, rows, PREFERENCES)


def read_preferences(path: Path) -> list[Preference]:
    """What `write_preferences` wrote."""
    return [
        Preference(
            id=row["id"],
            prompt=_messages(row["prompt"]),
            answers=row["answers"],
            kind=row["kind"] or "",
            margin=row["margin"],
            ended=row["ended"],
            source=row["source"] or "",
            metadata=json.loads(row["metadata"] or "{}"),
        )
        for row in _rows(path, PREFERENCES)
    ]


def write_prompts(path: Path, prompts: Sequence[Prompt]) -> None:
    """Write prompts in order."""
    rows = [
        {
            "id": p.id,
            "messages": _plain(p.messages),
            "answer": p.answer,
            "kind": p.kind,
            "language": p.language,
            "metadata": _json(p.metadata),
        }
        for p in prompts
    ]
    _write(path, rows, PROMPTS)


def read_prompts(path: Path) -> list[Prompt]:
    """What `write_prompts` wrote."""
    return [
        Prompt(
            row["id"],
            _messages(row["messages"]),
            row["answer"],
            row["kind"] or "",
            row["language"] or "",
            json.loads(row["metadata"] or "{}"),
        )
        for row in _rows(path, PROMPTS)
    ]


def _plain(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [{"role": m.role, "content": m.content, "weight": m.weight} for m in messages]


def _messages(values: list[dict[str, Any]]) -> list[Message]:
    return [Message(value["role"], value["content"], value["weight"]) for value in values]


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _write(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, compression="zstd")


def _rows(path: Path, schema: pa.Schema) -> Iterator[dict[str, Any]]:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DialogueError(f"{path}: not a Parquet file that can be read ({error})") from None
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise DialogueError(
            f"{path}: has the columns {', '.join(table.column_names)}; expected also {', '.join(missing)}"
        )
    yield from table.to_pylist()
