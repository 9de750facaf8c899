from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chatloom.dialogue import formats, storage
from chatloom.dialogue.documentation import Sets
from chatloom.dialogue.record import DialogueError, Message


def test_what_is_written_is_read_back_unchanged(sets: Sets, tmp_path: Path) -> None:
    storage.write_conversations(tmp_path / "c.parquet", sets.sft)
    storage.write_preferences(tmp_path / "p.parquet", sets.preferences)
    storage.write_prompts(tmp_path / "t.parquet", sets.test)
    assert storage.read_conversations(tmp_path / "c.parquet") == sets.sft
    assert storage.read_preferences(tmp_path / "p.parquet") == sets.preferences
    assert storage.read_prompts(tmp_path / "t.parquet") == sets.test


def test_stored_conversations_open_as_an_ordinary_messages_file(sets: Sets, tmp_path: Path) -> None:
    storage.write_conversations(tmp_path / "c.parquet", sets.sft)
    reading = formats.read_conversations(tmp_path / "c.parquet")
    assert reading.format == "messages"
    assert [c.messages for c in reading.records] == [c.messages for c in sets.sft]


def test_a_file_of_another_layout_or_none_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["x"]}), tmp_path / "other.parquet")
    with pytest.raises(DialogueError, match="columns id; expected also"):
        storage.read_conversations(tmp_path / "other.parquet")
    (tmp_path / "no.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(DialogueError, match=r"no\.parquet"):
        storage.read_prompts(tmp_path / "no.parquet")


def test_the_true_answer_is_absent_where_training_reads(sets: Sets, tmp_path: Path) -> None:
    storage.write_prompts(tmp_path / "a.parquet", sets.alignment)
    stored = storage.read_prompts(tmp_path / "a.parquet")
    assert all(prompt.answer is None and prompt.kind == "" and not prompt.metadata for prompt in stored)
    assert all(isinstance(prompt.messages[-1], Message) and prompt.messages[-1].role == "user" for prompt in stored)
