"""Detects what format a file of conversations or preferences has, and brings every record to one form.

The format is found once a file, from the columns of its first records; a record that does not fit it is set aside
with file, line and reason. `Reading.message` says in one sentence what was detected, read, set aside and not used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from chatloom.dialogue import normalise
from chatloom.dialogue.files import MAX_RECORD_BYTES, BadRecord, RawRecord, read_records
from chatloom.dialogue.record import Conversation, DialogueError, Preference

Value = TypeVar("Value", Conversation, Preference)
SAMPLE = 200
ROLES = ("system", "user", "assistant")
KEPT_IN_METADATA = 1000  # characters; longer leftover columns are not carried along


@dataclass(frozen=True)
class Format:
    """A known format: `fits` looks at the columns of one record, `build` turns them into the one form."""

    name: str
    columns: str
    fits: Callable[[Mapping[str, Any]], bool]
    used: tuple[str, ...]
    build: Callable[[Mapping[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Reading(Generic[Value]):
    """What a file held: records in order, the format's name, what was set aside, and a sentence on all of it."""

    records: list[Value]
    format: str
    message: str
    quarantined: list[BadRecord] = field(default_factory=list)


CONVERSATION_FORMATS = (
    Format("messages", "messages: [{role, content}]", normalise.has_messages, normalise.MESSAGES, normalise.messages),
    Format(
        "ShareGPT", "conversations: [{from, value}][, system]", normalise.has_turns, normalise.TURNS, normalise.turns
    ),
    Format(
        "Alpaca",
        "instruction, output[, input, system, history]",
        normalise.has_instruction,
        (*normalise.INSTRUCTION, "output"),
        normalise.instruction,
    ),
    Format(
        "prompt/completion",
        "prompt, completion (or prompt/response, question/answer, query/response)",
        normalise.has_completion,
        normalise.COMPLETION,
        normalise.completion,
    ),
)
PREFERENCE_FORMATS = (
    Format(
        "ShareGPT pairs",
        "conversations: [{from, value}], chosen: {from, value}, rejected: {from, value}[, system]",
        normalise.has_turn_pairs,
        (*normalise.TURNS, *normalise.PAIR),
        normalise.turn_pairs,
    ),
    Format(
        "Alpaca pairs",
        "instruction, chosen, rejected[, input, system, history]",
        normalise.has_instruction_pairs,
        (*normalise.INSTRUCTION, *normalise.PAIR),
        normalise.instruction_pairs,
    ),
    Format(
        "Alpaca rankings",
        "instruction, output: [best, ..., worst][, input, system, history]",
        normalise.has_rankings,
        (*normalise.INSTRUCTION, "output"),
        normalise.rankings,
    ),
    Format(
        "prompt/chosen/rejected",
        "prompt, chosen, rejected (text or messages)",
        normalise.has_prompt_pairs,
        ("prompt", *normalise.PAIR),
        normalise.prompt_pairs,
    ),
    Format(
        "hh-rlhf",
        r"chosen, rejected: transcripts with '\n\nHuman:' and '\n\nAssistant:'",
        normalise.has_transcripts,
        normalise.PAIR,
        normalise.transcripts,
    ),
    Format(
        "chosen/rejected with the prompt inside",
        "chosen, rejected: [{role, content}]",
        normalise.has_implicit_pairs,
        normalise.PAIR,
        normalise.implicit_pairs,
    ),
)


def read_conversations(
    path: Path | str,
    *,
    columns: Mapping[str, str] | None = None,
    max_bad_share: float = 0.05,
    roles: Sequence[str] = ROLES,
    encoding: str = "utf-8",
    max_record_bytes: int = MAX_RECORD_BYTES,
) -> Reading[Conversation]:
    """Read a file for instruction tuning; every conversation returned has an assistant message that is not empty.

    `columns` renames the file's columns first ({"completion": "answer_text"} reads `answer_text` as `completion`).
    Records with other `roles`, or that do not fit the format, are set aside; above `max_bad_share` of them the
    file is refused. Raises DialogueError naming columns found and formats known where no format fits.
    """

    def build(identity: str, parts: dict[str, Any], source: str, metadata: dict[str, Any]) -> Conversation:
        messages = parts["messages"]
        answers = [message for message in messages if message.role == "assistant"]
        if not answers:
            raise DialogueError("no assistant message: there is nothing to learn from it")
        if any(not message.content.strip() for message in answers):
            raise DialogueError("an assistant message is empty")
        if any(not message.content.strip() for message in messages if message.role == "user"):
            raise DialogueError("a user message is empty")
        _check_roles(messages, roles)
        return Conversation(identity, messages, source, metadata)

    return _read(Path(path), CONVERSATION_FORMATS, build, columns, max_bad_share, encoding, max_record_bytes)


def read_preferences(
    path: Path | str,
    *,
    columns: Mapping[str, str] | None = None,
    max_bad_share: float = 0.05,
    roles: Sequence[str] = ROLES,
    encoding: str = "utf-8",
    max_record_bytes: int = MAX_RECORD_BYTES,
) -> Reading[Preference]:
    """Read a file for the reward model and DPO; records with equal or empty answers are set aside.

    Settings and errors as for `read_conversations`.
    """

    def build(identity: str, parts: dict[str, Any], source: str, metadata: dict[str, Any]) -> Preference:
        _check_roles(parts["prompt"], roles)
        if any(not answer.strip() for answer in parts["answers"]):
            raise DialogueError("an answer is empty")
        if len(set(parts["answers"])) < len(parts["answers"]):
            raise DialogueError("two answers are equal: there is nothing to prefer")
        margin = normalise.number(metadata.pop("margin", None), "margin")
        return Preference(identity, parts["prompt"], parts["answers"], margin=margin, source=source, metadata=metadata)

    return _read(Path(path), PREFERENCE_FORMATS, build, columns, max_bad_share, encoding, max_record_bytes)


def _check_roles(messages: Sequence[Any], roles: Sequence[str]) -> None:
    other = sorted({message.role for message in messages} - set(roles))
    if other:
        raise DialogueError(f"role {', '.join(other)} is not among those the chat template renders: {', '.join(roles)}")


def _read(
    path: Path,
    formats: Sequence[Format],
    build: Callable[[str, dict[str, Any], str, dict[str, Any]], Value],
    columns: Mapping[str, str] | None,
    max_bad_share: float,
    encoding: str,
    max_record_bytes: int,
) -> Reading[Value]:
    stream = read_records(path, encoding=encoding, max_record_bytes=max_record_bytes)
    renamed: Iterator[RawRecord | BadRecord] = (_rename(record, columns or {}) for record in stream)
    head = list(islice(renamed, SAMPLE))
    chosen = _detect(path, [record for record in head if isinstance(record, RawRecord)], formats, head)
    records: list[Value] = []
    bad: list[BadRecord] = []
    unused: Counter[str] = Counter()
    for record in chain(head, renamed):
        if isinstance(record, BadRecord):
            bad.append(record)
            continue
        rest = {key: value for key, value in record.columns.items() if key not in chosen.used and value is not None}
        try:
            if not chosen.fits(record.columns):
                found = ", ".join(record.columns) or "none"
                raise DialogueError(f"columns do not fit {chosen.name} ({chosen.columns}); found: {found}")
            parts = chosen.build(record.columns)
            metadata = {key: value for key, value in rest.items() if _is_small(value)}
            source = f"{path.name}:{record.line}"
            records.append(build(source, parts, source, metadata))
        except DialogueError as error:
            bad.append(BadRecord(str(path), record.line, str(error)))
            continue
        unused.update(rest.keys() - {"margin"})
    return Reading(records, chosen.name, _report(path, chosen, records, bad, unused, max_bad_share), bad)


def _rename(record: RawRecord | BadRecord, columns: Mapping[str, str]) -> RawRecord | BadRecord:
    if isinstance(record, BadRecord) or not columns:
        return record
    back = {theirs: ours for ours, theirs in columns.items()}
    kept = {key: value for key, value in record.columns.items() if key not in columns or key in back}
    return RawRecord(record.line, {back.get(key, key): value for key, value in kept.items()})


def _detect(
    path: Path, sample: list[RawRecord], formats: Sequence[Format], head: Sequence[RawRecord | BadRecord]
) -> Format:
    hits = [sum(known.fits(record.columns) for record in sample) for known in formats]
    if hits and max(hits) > 0:
        return formats[hits.index(max(hits))]
    first_bad = next((str(record) for record in head if isinstance(record, BadRecord)), "")
    if not sample:
        raise DialogueError(f"{path} has no readable record" + (f"; the first bad one is {first_bad}" if head else ""))
    found = sorted({key for record in sample for key in record.columns})
    other = PREFERENCE_FORMATS if formats is CONVERSATION_FORMATS else CONVERSATION_FORMATS
    also = [known.name for known in other if any(known.fits(record.columns) for record in sample)]
    what = "conversations" if formats is CONVERSATION_FORMATS else "preferences"
    hint = f" It looks like {also[0]}, which is not a format of {what}." if also else ""
    hint += normalise.explain(sample[0].columns)
    known_formats = "; ".join(f"{known.name} ({known.columns})" for known in formats)
    raise DialogueError(
        f"{path}: its columns are {', '.join(found)}; that is no known format of {what}.{hint} "
        f"Known: {known_formats}. Rename columns with `columns: {{known name: your name}}`"
    )


def _report(
    path: Path,
    chosen: Format,
    records: Sequence[Any],
    bad: Sequence[BadRecord],
    unused: Counter[str],
    max_bad_share: float,
) -> str:
    total = len(records) + len(bad)
    message = f"{path.name}: {chosen.name} ({chosen.columns}); {len(records):,} records read"
    if bad:
        reasons = Counter(record.reason for record in bad).most_common(3)
        shown = "; ".join(f"{count:,} x {reason}" for reason, count in reasons)
        message += f", {len(bad):,} set aside ({shown}; first at line {bad[0].line})"
        if len(bad) > max_bad_share * total or not records:
            raise DialogueError(
                f"{message}. That is {len(bad) / total:.1%} of the file and at most {max_bad_share:.1%} may be bad; "
                "mend the file or raise max_bad_share"
            )
    if unused:
        message += f"; columns not used (short values kept as metadata): {', '.join(sorted(unused))}"
    return message


def _is_small(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= KEPT_IN_METADATA
    return isinstance(value, int | float | bool)
