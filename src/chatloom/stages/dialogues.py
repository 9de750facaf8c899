"""Stage `dialogues`: your files of conversations and of preferences -> training, alignment and test sets.

One split, by prompt, over all files: what is asked in a test is asked nowhere else (see `dialogue/division.py`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from chatloom.dialogue.division import (
    ALIGNMENT,
    PARTS,
    TEST,
    TRAIN,
    Division,
    Sets,
    divide,
    kind_of,
    prompts,
    two_by_two,
)
from chatloom.dialogue.files import SUFFIXES, BadRecord
from chatloom.dialogue.formats import Reading, Value, read_conversations, read_preferences
from chatloom.dialogue.record import Conversation, Message, Preference
from chatloom.dialogue.splits import describe_overlaps, require_disjoint, root_key
from chatloom.dialogue.storage import write_conversations, write_preferences, write_prompts
from chatloom.errors import ChatloomError
from chatloom.progress import say
from chatloom.settings import Settings
from chatloom.stage import Context, Input, Line, Plan, PlanContext, Stage
from chatloom.training.costs import lengths

READ_BY_PLAN = 64 * 2**20  # bytes; larger files are only measured before the run, not read
RECORD_BYTES = 500  # of a record in such a file, for the estimate of how many there are
NOTHING = "there is no data; give `conversations: {path: FILE}`, `preferences: {path: FILE}`, or both"


class Shares(Settings):
    """The parts of all prompts; they sum to 1. What is outside `train` is held out from SFT and the reward model."""

    train: float = Field(0.7, gt=0, le=1, description="prompts that SFT and the reward model learn from")
    heldout: float = Field(0.0, ge=0, le=1, description="prompts kept for held-out measurements alone")
    alignment: float = Field(0.15, ge=0, le=1, description="prompts that best-of-n and PPO sample answers to")
    test: float = Field(0.15, ge=0, le=1, description="prompts of the evaluation")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        total = self.train + self.heldout + self.alignment + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"train, heldout, alignment and test sum to {total:g}, expected 1")
        return self


class DialoguesSettings(Settings):
    """Which records are used, and how they are divided. Sizes in UTF-8 bytes: about 4 a token in either language."""

    shares: Shares = Field(Shares(), description="how the prompts are divided")
    max_records: int | None = Field(None, ge=1, description="at most this many of each file, chosen by their prompts")
    max_prompt_bytes: int = Field(8000, ge=1, description="longest last question; of prompts to be answered, the whole")
    min_answer_bytes: int = Field(1, ge=1, description="shortest answer")
    max_answer_bytes: int = Field(16000, ge=1, description="longest last answer")
    prompts_from: Literal["auto", "preferences", "conversations", "both"] = Field(
        "auto", description="whose prompts alignment and test use; auto: the preferences' where there are any"
    )
    true_answers: bool = Field(
        False, description="take the conversations' answers for the true ones of the test prompts (gold score)"
    )
    max_bad_share: float = Field(0.05, ge=0, le=1, description="refuse a file with more unusable records than this")
    columns: Mapping[str, str] = Field({}, description="known column -> yours, for files with other names")
    encoding: str = Field("utf-8", description="of text files; gb18030 for many Chinese ones")


def run(context: Context) -> None:
    """Write `sft`, `pairs` (both also `_heldout`), `prompts` and `test`, and `quarantine.jsonl`."""
    settings: DialoguesSettings = context.settings
    given = {key: files_of(context.files(key)) for key in ("conversations", "preferences")}
    if not any(given.values()):
        raise ChatloomError(f"stage `{context.name}`: {NOTHING}")
    conversations = _read(read_conversations, given["conversations"], settings)
    preferences = [_with_kinds(item) for item in _read(read_preferences, given["preferences"], settings)]
    how = division(settings, context.seed)
    sets = divide([item.records for item in conversations], [item.records for item in preferences], how)
    check_not_empty(context.name, sets, {"conversations": conversations, "preferences": preferences})
    roots = sets.roots()
    require_disjoint(roots)
    messages = [*(item.message for item in conversations), *(item.message for item in preferences)]
    if not context.quiet:
        for message in messages:
            say(f"{context.name}: {message}")
        say(describe_overlaps({part: keys for part, keys in roots.items() if keys}))
        say(f"{context.name}: sft and pairs share {_shared(sets):,} prompts: both are training sets, so they may")
    alignment = prompts(sets, ALIGNMENT, how, source=settings.prompts_from)
    test = prompts(sets, TEST, how, source=settings.prompts_from, answers=settings.true_answers)
    held = [part for part in PARTS if part != TRAIN]
    heldout_pairs = [pair for part in held for item in sets.preferences[part] for pair in two_by_two(item)]
    write_conversations(context.path / "sft.parquet", sets.conversations[TRAIN])
    write_conversations(context.path / "sft_heldout.parquet", [c for part in held for c in sets.conversations[part]])
    write_preferences(context.path / "pairs.parquet", sets.preferences[TRAIN])
    write_preferences(context.path / "pairs_heldout.parquet", heldout_pairs)
    write_prompts(context.path / "prompts.parquet", alignment)
    write_prompts(context.path / "test.parquet", test)
    unusable = [bad for item in conversations for bad in item.quarantined]
    unusable += [bad for item in preferences for bad in item.quarantined]
    _write_quarantine(context.path / "quarantine.jsonl", [*unusable, *sets.left_out])
    context.metrics.update(
        files=messages,
        prompts={part: len(keys) for part, keys in roots.items()},
        prompts_in_common=0,
        prompts_in_sft_and_pairs=_shared(sets),
        sft_conversations=len(sets.conversations[TRAIN]),
        heldout_conversations=sum(len(sets.conversations[part]) for part in held),
        preferences=len(sets.preferences[TRAIN]),
        heldout_preferences=len(heldout_pairs),
        alignment_prompts=len(alignment),
        test_prompts=len(test),
        quarantined=len(unusable),
        left_out=_counted(sets.left_out),
    )


def division(settings: DialoguesSettings, seed: int) -> Division:
    """The settings as the plain values that `divide` takes."""
    return Division(
        shares={part: float(getattr(settings.shares, part)) for part in PARTS},
        seed=seed,
        max_records=settings.max_records,
        max_prompt_bytes=settings.max_prompt_bytes,
        min_answer_bytes=settings.min_answer_bytes,
        max_answer_bytes=settings.max_answer_bytes,
    )


def files_of(paths: Iterable[Path]) -> list[Path]:
    """The files that paths stand for; a folder stands for all its files of a known format, sorted."""
    found: list[Path] = []
    for path in paths:
        inside = [path] if not path.is_dir() else sorted(item for item in path.rglob("*") if _is_known(item))
        if not inside:
            raise ChatloomError(f"{path} holds no file that ends in {', '.join(SUFFIXES)} (also .gz, .zst)")
        found += inside
    return found


def _is_known(path: Path) -> bool:
    name = path.with_suffix("") if path.suffix in (".gz", ".zst") else path
    return path.is_file() and name.suffix in SUFFIXES


def _read(
    read: Callable[..., Reading[Value]], files: Sequence[Path], settings: DialoguesSettings
) -> list[Reading[Value]]:
    """Every file, with sources that name it without its folder; files of equal names are numbered."""
    found, used = [], Counter[str]()
    for path in files:
        used[path.name] += 1
        name = path.name if used[path.name] == 1 else f"{path.name}#{used[path.name]}"
        reading = read(path, columns=settings.columns, max_bad_share=settings.max_bad_share, encoding=settings.encoding)
        records: list[Any] = []
        for record in reading.records:
            source = f"{name}:{record.source.rpartition(':')[2]}"
            records.append(replace(record, id=source, source=source))
        found.append(
            replace(reading, records=records, quarantined=[replace(b, file=name) for b in reading.quarantined])
        )
    return found


def _with_kinds(reading: Reading[Preference]) -> Reading[Preference]:
    return replace(reading, records=[replace(item, kind=kind_of(item.source)) for item in reading.records])


def check_not_empty(
    name: str, sets: Sets, readings: Mapping[str, Sequence[Reading[Conversation] | Reading[Preference]]]
) -> None:
    """Raise ChatloomError, with the reasons, where files were given and nothing of them is left to train on."""
    kept: dict[str, Sequence[object]] = {
        "conversations": sets.conversations[TRAIN],
        "preferences": sets.preferences[TRAIN],
    }
    for key, items in readings.items():
        if items and not kept[key]:
            why = "; ".join(f"{count:,} x {reason}" for reason, count in _counted(sets.left_out).items())
            raise ChatloomError(
                f"stage `{name}`: of {sum(len(item.records) for item in items):,} {key} none is left to train on "
                f"({why or 'there are too few prompts'}); loosen the limits on bytes, raise `shares.train`, add data"
            )


def _counted(left_out: Sequence[BadRecord]) -> dict[str, int]:
    return dict(Counter(bad.reason.partition(":")[0] for bad in left_out).most_common())


def _shared(sets: Sets) -> int:
    asked = {root_key(item.messages) for item in sets.conversations[TRAIN]}
    return len(asked & {root_key(item.prompt) for item in sets.preferences[TRAIN]})


def _write_quarantine(path: Path, records: Sequence[BadRecord]) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as stream:
        for bad in records:
            entry = {"file": bad.file, "line": bad.line, "reason": bad.reason}
            stream.write(json.dumps(entry, ensure_ascii=False) + "\n")


def plan(context: PlanContext) -> Plan:
    """How many records there are; refuses missing files, unknown formats and columns before anything runs."""
    settings: DialoguesSettings = context.settings
    refusals: list[str] = []
    counts, exact = {"conversations": 0, "preferences": 0}, True
    examples: list[tuple[list[str], list[str]]] = []
    for key in counts:
        given = context.inputs.get(key, [])
        try:
            files = files_of(given if isinstance(given, list) else [given])
            large = [path for path in files if path.is_file() and path.stat().st_size > READ_BY_PLAN]
            small = [path for path in files if path not in large]
            if key == "conversations":
                talks = [talk for item in _read(read_conversations, small, settings) for talk in item.records]
                counts[key] = len(talks)
                examples += [(_contents(talk.messages[:-1]), _contents(talk.messages[-1:])) for talk in talks]
            else:
                pairs = [pair for item in _read(read_preferences, small, settings) for pair in item.records]
                counts[key] = len(pairs)
                examples += [(_contents(pair.prompt), pair.answers) for pair in pairs]
        except ChatloomError as error:
            refusals.append(f"{key}: {error}")
            continue
        for path in large:
            packed = path.suffix in (".gz", ".zst", ".parquet")
            counts[key] += path.stat().st_size * (4 if packed else 1) // RECORD_BYTES
        exact = exact and not large
    if not refusals and not any(counts.values()):
        refusals.append(NOTHING)
    share = settings.shares.train
    used = {key: min(count, settings.max_records or count) for key, count in counts.items()}
    asked = max(used.values()) if settings.prompts_from == "both" else used["preferences"] or used["conversations"]
    if settings.prompts_from == "conversations":
        asked = used["conversations"]
    lines = (
        Line("read", sum(counts.values()), "records", exact=exact),
        Line("records", share * used["conversations"], "conversations"),
        Line("pairs", share * used["preferences"], "pairs"),
        Line("prompts", settings.shares.alignment * asked, "prompts"),
        Line("tests", settings.shares.test * asked, "prompts"),
        *lengths(len(examples), examples).lines(),
    )
    return Plan(lines, tuple(refusals))


def _contents(messages: Sequence[Message]) -> list[str]:
    return [message.content for message in messages]


STAGE = Stage(
    kind="dialogues",
    about="files of conversations and pairs -> one split by prompt",
    version=1,
    settings=DialoguesSettings,
    inputs={
        "conversations": Input("files or folders of conversations", required=False, many=True, files=True),
        "preferences": Input("files or folders of ranked answers", required=False, many=True, files=True),
    },
    output="conversations",
    run=run,
    plan=plan,
)
