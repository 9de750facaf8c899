from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chatloom.dialogue.formats import read_conversations, read_preferences
from chatloom.dialogue.record import DialogueError, Message

U, A, S = "user", "assistant", "system"


def talk(*said: tuple[str, str]) -> list[Message]:
    return [Message(role, content) for role, content in said]


def save(folder: Path, *records: Any, name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


CONVERSATIONS: list[tuple[str, dict[str, Any], list[Message]]] = [
    (
        "messages",
        {"messages": [{"role": S, "content": "s"}, {"role": U, "content": " q "}, {"role": A, "content": "a\n"}]},
        talk((S, "s"), (U, " q "), (A, "a\n")),
    ),
    (
        "messages",
        {"messages": [{"role": "developer", "content": "s"}, {"role": U, "content": "q"}, {"role": A, "content": "a"}]},
        talk((S, "s"), (U, "q"), (A, "a")),
    ),
    (
        "ShareGPT",
        {"system": "s", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        talk((S, "s"), (U, "q"), (A, "a")),
    ),
    (
        "ShareGPT",
        {"conversations": [{"from": "human", "value": "q"}, {"from": "assistant", "value": "a"}], "id": "7"},
        talk((U, "q"), (A, "a")),
    ),
    (
        "ShareGPT",
        {"conversations": [{"role": U, "content": "q"}, {"role": A, "content": "a"}]},
        talk((U, "q"), (A, "a")),
    ),
    ("Alpaca", {"instruction": "do", "input": "", "output": "a"}, talk((U, "do"), (A, "a"))),
    ("Alpaca", {"instruction": "do", "input": "this", "output": "a"}, talk((U, "do\nthis"), (A, "a"))),
    (
        "Alpaca",
        {"instruction": "三", "output": "3", "system": "s", "history": [["一", "1"], ["二", "2"]]},
        talk((S, "s"), (U, "一"), (A, "1"), (U, "二"), (A, "2"), (U, "三"), (A, "3")),
    ),
    ("prompt/completion", {"prompt": "q", "completion": " a"}, talk((U, "q"), (A, " a"))),
    (
        "prompt/completion",
        {"prompt": [{"role": U, "content": "q"}], "completion": [{"role": A, "content": "a"}]},
        talk((U, "q"), (A, "a")),
    ),
    ("prompt/completion", {"question": "q", "answer": "a"}, talk((U, "q"), (A, "a"))),
    (
        "prompt/completion",
        {"query": "q", "response": "a", "history": [["x", "y"]]},
        talk((U, "x"), (A, "y"), (U, "q"), (A, "a")),
    ),
]


@pytest.mark.parametrize(("name", "record", "expected"), CONVERSATIONS)
def test_every_conversation_format_is_detected_and_normalised(
    tmp_path: Path, name: str, record: dict[str, Any], expected: list[Message]
) -> None:
    reading = read_conversations(save(tmp_path, record))
    assert reading.format == name
    assert [c.messages for c in reading.records] == [expected]
    assert reading.message.startswith(f"data.jsonl: {name} (")
    assert "1 records read" in reading.message


PAIRS: list[tuple[str, dict[str, Any], list[Message], list[str]]] = [
    ("prompt/chosen/rejected", {"prompt": "q", "chosen": "+", "rejected": "-"}, talk((U, "q")), ["+", "-"]),
    (
        "prompt/chosen/rejected",
        {
            "prompt": [{"role": S, "content": "s"}, {"role": U, "content": "q"}],
            "chosen": [{"role": A, "content": "+"}],
            "rejected": [{"role": A, "content": "-"}],
        },
        talk((S, "s"), (U, "q")),
        ["+", "-"],
    ),
    (
        "prompt/chosen/rejected",
        {
            "prompt": "q",
            "chosen": [{"role": U, "content": "q"}, {"role": A, "content": "+"}],
            "rejected": [{"role": U, "content": "q"}, {"role": A, "content": "-"}],
        },
        talk((U, "q")),
        ["+", "-"],
    ),
    (
        "chosen/rejected with the prompt inside",
        {
            "chosen": [{"role": U, "content": "q"}, {"role": A, "content": "+"}],
            "rejected": [{"role": U, "content": "q"}, {"role": A, "content": "-"}],
        },
        talk((U, "q")),
        ["+", "-"],
    ),
    (
        "Alpaca pairs",
        {"instruction": "do", "input": "this", "chosen": "+", "rejected": "-", "output": "+"},
        talk((U, "do\nthis")),
        ["+", "-"],
    ),
    (
        "ShareGPT pairs",
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "+"},
            "rejected": {"from": "gpt", "value": "-"},
        },
        talk((U, "q")),
        ["+", "-"],
    ),
    ("Alpaca rankings", {"instruction": "do", "output": ["1", "2", "3"]}, talk((U, "do")), ["1", "2", "3"]),
    (
        "hh-rlhf",
        {
            "chosen": "\n\nHuman: q\nmore\n\nAssistant: a\n\nHuman: again\n\nAssistant:  + ",
            "rejected": "\n\nHuman: q\nmore\n\nAssistant: a\n\nHuman: again\n\nAssistant: -",
        },
        talk((U, "q\nmore"), (A, "a"), (U, "again")),
        [" + ", "-"],
    ),
]


@pytest.mark.parametrize(("name", "record", "prompt", "answers"), PAIRS)
def test_every_preference_format_is_detected_and_normalised(
    tmp_path: Path, name: str, record: dict[str, Any], prompt: list[Message], answers: list[str]
) -> None:
    reading = read_preferences(save(tmp_path, record))
    assert reading.format == name
    assert reading.records[0].prompt == prompt
    assert reading.records[0].answers == answers


def test_message_lists_are_read_from_csv_and_parquet_too(tmp_path: Path) -> None:
    messages = [{"role": U, "content": 'q, "quoted"'}, {"role": A, "content": "a"}]
    pq.write_table(pa.table({"messages": [messages]}), tmp_path / "a.parquet")
    text = json.dumps(messages).replace('"', '""')
    (tmp_path / "b.csv").write_text(f'messages,id\n"{text}",1\n', encoding="utf-8")
    expected = [Message.from_dict(message) for message in messages]
    for name in ("a.parquet", "b.csv"):
        assert read_conversations(tmp_path / name).records[0].messages == expected


def test_margin_and_short_columns_are_kept_and_the_rest_is_named(tmp_path: Path) -> None:
    record = {"prompt": "q", "chosen": "+", "rejected": "-", "margin": 2, "source": "web", "long": "x" * 5000}
    reading = read_preferences(save(tmp_path, record))
    assert reading.records[0].margin == 2.0
    assert reading.records[0].metadata == {"source": "web"}
    assert reading.records[0].id == "data.jsonl:1"
    assert reading.message.endswith("long, source")


def test_wrong_columns_are_named_with_the_formats_known(tmp_path: Path) -> None:
    path = save(tmp_path, {"frage": "q", "antwort": "a"})
    with pytest.raises(DialogueError) as error:
        read_conversations(path)
    for words in (str(path), "antwort, frage", "messages", "ShareGPT", "Alpaca", "prompt/completion", "columns:"):
        assert words in str(error.value)
    reading = read_conversations(path, columns={"prompt": "frage", "completion": "antwort"})
    assert reading.records[0].messages == talk((U, "q"), (A, "a"))


def test_a_renamed_column_gives_way_to_its_new_name(tmp_path: Path) -> None:
    path = save(tmp_path, {"prompt": "q", "chosen": "+", "rejected": "-", "completion": "old"})
    reading = read_conversations(path, columns={"completion": "chosen"})
    assert reading.records[0].messages == talk((U, "q"), (A, "+"))


def test_a_file_of_the_other_kind_is_recognised(tmp_path: Path) -> None:
    with pytest.raises(DialogueError, match="looks like prompt/chosen/rejected"):
        read_conversations(save(tmp_path, {"prompt": "q", "chosen": "+", "rejected": "-"}))
    with pytest.raises(DialogueError, match="looks like Alpaca"):
        read_preferences(save(tmp_path, {"instruction": "q", "output": "a"}))


def test_unpaired_feedback_is_not_taken_for_good_answers(tmp_path: Path, shared_data: Path) -> None:
    with pytest.raises(DialogueError, match="disliked answers"):
        read_conversations(shared_data / "preference" / "en_kto.jsonl.gz")
    with pytest.raises(DialogueError, match="disliked answers"):
        read_conversations(save(tmp_path, {"prompt": "q", "completion": "a", "label": False}))


GOOD = {"messages": [{"role": U, "content": "q"}, {"role": A, "content": "a"}]}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"messages": [{"role": U, "content": "q"}]}, "no assistant message"),
        ({"messages": [{"role": U, "content": "q"}, {"role": A, "content": "  "}]}, "assistant message is empty"),
        ({"messages": [{"role": U, "content": ""}, {"role": A, "content": "a"}]}, "user message is empty"),
        ({"messages": [{"role": U, "content": "q"}, {"role": A, "content": None}]}, "'content' is missing"),
        (
            {"messages": [{"role": U, "content": "q"}, {"role": "tool", "content": "4"}, GOOD["messages"][1]]},
            "role tool",
        ),
        ({"messages": [GOOD["messages"][0], {"role": A, "content": "", "tool_calls": [{}]}]}, "calls a tool"),
        ({"messages": "none"}, "columns do not fit"),
        ({"other": 1}, "columns do not fit"),
    ],
)
def test_a_record_that_does_not_fit_is_set_aside_with_its_line(
    tmp_path: Path, record: dict[str, Any], reason: str
) -> None:
    reading = read_conversations(save(tmp_path, *[GOOD] * 30, record, GOOD), max_bad_share=0.1)
    assert len(reading.records) == 31
    assert [(bad.line, reason in bad.reason) for bad in reading.quarantined] == [(31, True)]
    assert "1 set aside" in reading.message


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": "q", "chosen": "same", "rejected": "same"}, "equal"),
        ({"prompt": "q", "chosen": "+", "rejected": " "}, "empty"),
        ({"prompt": "q", "chosen": "+", "rejected": "-", "margin": "large"}, "margin"),
    ],
)
def test_a_pair_without_a_preference_is_set_aside(tmp_path: Path, record: dict[str, Any], reason: str) -> None:
    good = {"prompt": "q", "chosen": "+", "rejected": "-"}
    reading = read_preferences(save(tmp_path, record, *[good] * 30))
    assert [(bad.line, reason in bad.reason) for bad in reading.quarantined] == [(1, True)]


def test_transcripts_that_answer_different_prompts_are_set_aside(tmp_path: Path) -> None:
    good = {"chosen": "\n\nHuman: q\n\nAssistant: +", "rejected": "\n\nHuman: q\n\nAssistant: -"}
    other = {**good, "rejected": "\n\nHuman: other\n\nAssistant: -"}
    reading = read_preferences(save(tmp_path, *[good] * 30, other))
    assert [(bad.line, "different prompts" in bad.reason) for bad in reading.quarantined] == [(31, True)]


def test_too_many_bad_records_stop_the_reading(tmp_path: Path) -> None:
    path = save(tmp_path, *[GOOD] * 9, {"messages": [{"role": U, "content": "q"}]})
    with pytest.raises(DialogueError, match=r"10.0% of the file and at most 5.0% may be bad"):
        read_conversations(path)
    assert len(read_conversations(path, max_bad_share=0.1).records) == 9


def test_a_file_without_one_good_record_is_refused_at_any_share(tmp_path: Path) -> None:
    path = save(tmp_path, {"messages": [{"role": U, "content": "q"}]})
    with pytest.raises(DialogueError, match=r"100.0%"):
        read_conversations(path, max_bad_share=1.0)
    path.write_bytes(b"{]\n")
    with pytest.raises(DialogueError, match=r"no readable record.*data\.jsonl:1"):
        read_conversations(path)


@pytest.mark.parametrize(
    ("file", "format_name", "count", "aside"),
    [
        ("sft/en_rasbt_instructions", "Alpaca", 882, 0),
        ("sft/zh_oasst", "Alpaca", 682, 0),
        ("sft/en_gpteacher_roleplay", "Alpaca", 2663, 0),
        ("sft/en_gsm8k_train", "prompt/completion", 7473, 0),
        ("sft/identity_template", "Alpaca", 91, 0),
    ],
)
def test_real_conversation_files_are_read_whole(
    shared_data: Path, file: str, format_name: str, count: int, aside: int
) -> None:
    reading = read_conversations(shared_data / f"{file}.jsonl.gz")
    assert (reading.format, len(reading.records), len(reading.quarantined)) == (format_name, count, aside)


@pytest.mark.parametrize(
    ("file", "format_name", "count", "aside"),
    [
        ("en_rasbt_politeness_pairs", "Alpaca pairs", 877, 5),
        ("en_dpo_pairs", "ShareGPT pairs", 244, 0),
        ("zh_dpo_pairs", "ShareGPT pairs", 248, 0),
        ("zh_oasst_rankings", "Alpaca rankings", 683, 4),
        ("en_hh_harmless", "hh-rlhf", 1496, 6),
    ],
)
def test_real_preference_files_are_read_whole(
    shared_data: Path, file: str, format_name: str, count: int, aside: int
) -> None:
    reading = read_preferences(shared_data / "preference" / f"{file}.jsonl.gz")
    assert (reading.format, len(reading.records), len(reading.quarantined)) == (format_name, count, aside)


def test_multi_turn_history_of_a_real_file_is_kept(shared_data: Path) -> None:
    records = read_conversations(shared_data / "sft" / "zh_oasst.jsonl.gz").records
    assert sum(len(record.messages) > 2 for record in records) > 100
    assert all(record.messages[-1].role == A for record in records)


def test_tool_dialogues_are_refused_with_the_role_named(shared_data: Path) -> None:
    with pytest.raises(DialogueError, match="role tool is not among"):
        read_conversations(shared_data / "sft" / "zh_glaive_toolcall.jsonl.gz")
    reading = read_conversations(
        shared_data / "sft" / "zh_glaive_toolcall.jsonl.gz", roles=("system", "user", "assistant", "tool")
    )
    assert len(reading.records) > 200
