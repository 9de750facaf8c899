"""One pair of functions for each file format: does a record fit it, and what conversation or preference does it hold.

Every builder takes a record's columns and returns {"messages"} or {"prompt", "answers"}, contents verbatim; it
raises DialogueError with the reason where the record cannot be used. `formats.py` puts them in order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from chatloom.dialogue.record import DialogueError, Message

Columns = Mapping[str, Any]
MESSAGES = ("messages",)
TURNS = ("conversations", "conversation", "system")
INSTRUCTION = ("instruction", "input", "system", "history")
PAIR = ("chosen", "rejected")
COMPLETION = ("prompt", "completion", "question", "answer", "query", "response", "system", "history")
_COMPLETION_PAIRS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("query", "response"))
_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
    "function_call": "tool",  # a call written as text, without a tool behind it, is nothing to learn
    "observation": "tool",
    "tool": "tool",
}
_TRANSCRIPT_TURN = re.compile(r"\n\n(Human|Assistant):")


# --- messages, ShareGPT, Alpaca, prompt/completion: conversations ---------------------------------------------


def has_messages(columns: Columns) -> bool:
    if isinstance(columns.get("label"), bool):  # unpaired feedback: half of its answers are disliked ones
        return False
    return _is_messages(_list(columns.get("messages")))


def messages(columns: Columns) -> dict[str, Any]:
    return {"messages": _messages(_list(columns["messages"]))}


def has_turns(columns: Columns) -> bool:
    turns_ = _list(columns.get("conversations", columns.get("conversation")))
    return _is_turns(turns_) and "chosen" not in columns


def turns(columns: Columns) -> dict[str, Any]:
    said = _turns(_list(columns.get("conversations", columns.get("conversation"))))
    return {"messages": _with_system(columns, said)}


def has_instruction(columns: Columns) -> bool:
    return isinstance(columns.get("instruction"), str) and isinstance(columns.get("output"), str)


def instruction(columns: Columns) -> dict[str, Any]:
    return {"messages": [*_instruction(columns), Message("assistant", _text(columns, "output"))]}


def has_completion(columns: Columns) -> bool:
    if "label" in columns and isinstance(columns["label"], bool):
        return False
    return any(_is_said(columns.get(q)) and _is_said(columns.get(a)) for q, a in _COMPLETION_PAIRS)


def completion(columns: Columns) -> dict[str, Any]:
    ask, reply = next((q, a) for q, a in _COMPLETION_PAIRS if _is_said(columns.get(q)) and _is_said(columns.get(a)))
    prompt = _with_system(columns, _history(columns) + _said(columns[ask], "user"))
    return {"messages": prompt + _said(columns[reply], "assistant")}


# --- preferences -----------------------------------------------------------------------------------------------


def has_turn_pairs(columns: Columns) -> bool:
    return _is_turns(_list(columns.get("conversations"))) and all(key in columns for key in PAIR)


def turn_pairs(columns: Columns) -> dict[str, Any]:
    answers = [_last_text(columns[key], key) for key in PAIR]
    return {"prompt": _with_system(columns, _turns(_list(columns["conversations"]))), "answers": answers}


def has_instruction_pairs(columns: Columns) -> bool:
    return isinstance(columns.get("instruction"), str) and all(isinstance(columns.get(key), str) for key in PAIR)


def instruction_pairs(columns: Columns) -> dict[str, Any]:
    return {"prompt": _instruction(columns), "answers": [_text(columns, key) for key in PAIR]}


def has_rankings(columns: Columns) -> bool:
    ranked = _list(columns.get("output"))
    return isinstance(columns.get("instruction"), str) and ranked is not None


def rankings(columns: Columns) -> dict[str, Any]:
    ranked = _list(columns["output"])
    if ranked is None or not all(isinstance(answer, str) for answer in ranked):
        raise DialogueError("the ranking holds something else than texts")
    return {"prompt": _instruction(columns), "answers": ranked}


def has_prompt_pairs(columns: Columns) -> bool:
    return _is_said(columns.get("prompt")) and all(_is_said(columns.get(key)) for key in PAIR)


def prompt_pairs(columns: Columns) -> dict[str, Any]:
    prompt = _said(columns["prompt"], "user")
    answers = []
    for key in PAIR:
        said = _said(columns[key], "assistant")
        if said[: len(prompt)] == prompt:  # some sets repeat the prompt in front of both answers
            said = said[len(prompt) :]
        if len(said) != 1 or said[0].role != "assistant":
            raise DialogueError(f"{key} holds {len(said)} messages after the prompt; expected one of the assistant")
        answers.append(said[0].content)
    return {"prompt": _with_system(columns, prompt), "answers": answers}


def has_transcripts(columns: Columns) -> bool:
    return "prompt" not in columns and all(
        isinstance(columns.get(key), str) and _TRANSCRIPT_TURN.match(columns[key]) for key in PAIR
    )


def transcripts(columns: Columns) -> dict[str, Any]:
    return _implicit([_transcript(columns[key], key) for key in PAIR])


def has_implicit_pairs(columns: Columns) -> bool:
    return "prompt" not in columns and all(_is_messages(_list(columns.get(key))) for key in PAIR)


def implicit_pairs(columns: Columns) -> dict[str, Any]:
    return _implicit([_messages(_list(columns[key])) for key in PAIR])


def explain(columns: Columns) -> str:
    """Return what to do about a record of a format that is known but not of this kind; empty where none is known."""
    if isinstance(columns.get("label"), bool):
        return (
            " It holds unpaired feedback (a `label` beside each answer): training on all of it would also teach the "
            "disliked answers; keep the records whose label is true and drop the column."
        )
    return ""


def number(value: Any, name: str) -> float | None:
    """Return a column as a float, None where it is absent; raises DialogueError on anything else."""
    if value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise DialogueError(f"{name} is {value!r}; expected a number") from None


# --- parts -----------------------------------------------------------------------------------------------------


def _list(value: Any) -> list[Any] | None:
    """A list column; CSV and some Parquet files hold it as JSON text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, list) and value else None


def _is_messages(value: Sequence[Any] | None) -> bool:
    return value is not None and isinstance(value[0], dict) and {"role", "content"} <= value[0].keys()


def _is_turns(value: Sequence[Any] | None) -> bool:
    return value is not None and isinstance(value[0], dict) and ("from" in value[0] or "role" in value[0])


def _is_said(value: Any) -> bool:
    return _is_messages(value) if isinstance(value, list) and value else isinstance(value, str)


def _messages(values: Sequence[Any] | None) -> list[Message]:
    return [_message(value) for value in values or []]


def _message(value: Any) -> Message:
    if isinstance(value, dict) and (value.get("tool_calls") or value.get("function_call")):
        raise DialogueError("a message calls a tool, which the chat template does not render")
    if isinstance(value, dict) and value.get("role") in ("developer", "function"):
        value = {**value, "role": {"developer": "system", "function": "tool"}[value["role"]]}
    return Message.from_dict(value)


def _turns(values: Sequence[Any] | None) -> list[Message]:
    said = []
    for value in values or []:
        if not isinstance(value, dict):
            raise DialogueError(f"a turn is {type(value).__name__}; expected an object with 'from' and 'value'")
        speaker = value.get("from", value.get("role"))
        content = value.get("value", value.get("content"))
        role = _SPEAKERS.get(str(speaker).lower())
        if role is None:
            raise DialogueError(f"a turn is from {speaker!r}; expected one of {', '.join(_SPEAKERS)}")
        if not isinstance(content, str):
            raise DialogueError(f"a turn's text is {type(content).__name__}; expected text under 'value'")
        said.append(Message(role, content))
    return said


def _said(value: Any, role: str) -> list[Message]:
    return _messages(value) if isinstance(value, list) else [Message(role, value)]


def _text(columns: Columns, key: str) -> str:
    value = columns.get(key)
    if not isinstance(value, str):
        raise DialogueError(f"column {key!r} is {type(value).__name__}; expected text")
    return value


def _history(columns: Columns) -> list[Message]:
    history = columns.get("history")
    if history in (None, "", []):
        return []
    pairs = _list(history)
    if pairs is None or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(side, str) for side in pair) for pair in pairs
    ):
        raise DialogueError("column 'history' is not a list of [question, answer] pairs")
    return [Message(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair)]


def _with_system(columns: Columns, said: list[Message]) -> list[Message]:
    system = columns.get("system")
    if not isinstance(system, str) or not system.strip():
        return said
    if said and said[0].role == "system":
        raise DialogueError("two system messages: one in column 'system', one in the conversation")
    return [Message("system", system), *said]


def _instruction(columns: Columns) -> list[Message]:
    asked = _text(columns, "instruction")
    given = columns.get("input")
    if isinstance(given, str) and given.strip():
        asked = f"{asked}\n{given}"
    return _with_system(columns, [*_history(columns), Message("user", asked)])


def _last_text(value: Any, key: str) -> str:
    said = [Message("assistant", value)] if isinstance(value, str) else _turns(value if _list(value) else [value])
    if len(said) != 1 or said[0].role != "assistant":
        raise DialogueError(f"{key} is not one reply of the assistant")
    return said[0].content


def _transcript(text: str, key: str) -> list[Message]:
    """Cut a transcript at its markers; the one space after a marker belongs to the marker."""
    pieces = _TRANSCRIPT_TURN.split(text)
    if pieces[0].strip():
        raise DialogueError(f"{key} has text before its first '\\n\\nHuman:'")
    return [
        Message("user" if speaker == "Human" else "assistant", said.removeprefix(" "))
        for speaker, said in zip(pieces[1::2], pieces[2::2])
    ]


def _implicit(both: list[list[Message]]) -> dict[str, Any]:
    for key, said in zip(PAIR, both):
        if len(said) < 2 or said[-1].role != "assistant":
            raise DialogueError(f"{key} does not end with an assistant message after a prompt")
    if both[0][:-1] != both[1][:-1]:
        raise DialogueError("chosen and rejected answer different prompts")
    return {"prompt": both[0][:-1], "answers": [said[-1].content for said in both]}
