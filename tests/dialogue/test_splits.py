from __future__ import annotations

import random

import pytest

from chatloom.dialogue.formats import read_conversations, read_preferences
from chatloom.dialogue.record import DialogueError, Message
from chatloom.dialogue.splits import (
    assign,
    describe_overlaps,
    normalise,
    overlaps,
    prompt_key,
    question_keys,
    require_disjoint,
    root_key,
    split_by_prompt,
)

SHARES = {"train": 0.7, "valid": 0.1, "test": 0.2}


def test_a_prompt_lands_in_the_same_part_whatever_stands_around_it() -> None:
    keys = [f"question {i}" for i in range(400)]
    alone = {key: assign(key, SHARES, 1) for key in keys}
    shuffled = keys[:]
    random.Random(0).shuffle(shuffled)
    parts = split_by_prompt(shuffled, lambda key: key, SHARES, 1)
    assert {key: part for part, held in parts.items() for key in held} == alone
    assert alone != {key: assign(key, SHARES, 2) for key in keys}


def test_parts_have_about_their_shares() -> None:
    parts = split_by_prompt([str(i) for i in range(5000)], lambda key: key, SHARES, 0)
    assert [round(len(parts[name]) / 5000, 1) for name in SHARES] == [0.7, 0.1, 0.2]


def test_spelling_that_makes_no_other_prompt_is_folded() -> None:
    assert normalise("  What\n IS ｘ？ ") == normalise("what is x?")
    assert prompt_key([Message("user", "A  b")]) == prompt_key([Message("user", "a B"), Message("assistant", "x")])
    assert prompt_key([Message("user", "a.b")]) != prompt_key([Message("user", "ab")])
    talk = [Message("system", "s"), Message("user", "First"), Message("assistant", "x"), Message("user", "Then")]
    assert root_key(talk) == "first"
    assert question_keys(talk) == ["first", "then"]
    with pytest.raises(DialogueError, match="no user message"):
        root_key(talk[:1])


@pytest.mark.parametrize("shares", [{"a": 0.5, "b": 0.6}, {"a": 1.5, "b": -0.5}, {}])
def test_shares_that_are_no_division_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(DialogueError, match="sum to 1"):
        assign("x", shares, 0)


def test_a_part_of_share_zero_stays_empty() -> None:
    parts = split_by_prompt([str(i) for i in range(500)], lambda key: key, {"a": 0.0, "b": 1.0, "c": 0.0}, 0)
    assert [len(held) for held in parts.values()] == [0, 500, 0]


def test_overlaps_are_counted_shown_and_refused() -> None:
    sets = {"sft": ["a", "b", "b"], "test": ["c"], "reward": ["b", "c", "d"]}
    assert [(o.first, o.second, o.count) for o in overlaps(sets)] == [
        ("sft", "test", 0),
        ("sft", "reward", 1),
        ("test", "reward", 1),
    ]
    assert "sft (2) and test (1): 0 prompts in common" in describe_overlaps(sets)
    with pytest.raises(DialogueError, match=r"sft and reward share 1 prompts, e.g. 'b'"):
        require_disjoint(sets)
    require_disjoint({"sft": ["a"], "test": ["b"]})


def test_two_files_that_share_every_prompt_split_without_overlap(shared_data) -> None:
    sft = read_conversations(shared_data / "sft" / "en_rasbt_instructions.jsonl.gz").records
    pairs = read_preferences(shared_data / "preference" / "en_rasbt_politeness_pairs.jsonl.gz").records
    shares = {"train": 0.85, "held out": 0.15}
    by_sft = split_by_prompt(sft, lambda c: root_key(c.messages), shares, 7)
    by_pair = split_by_prompt(pairs, lambda p: root_key(p.prompt), shares, 7)
    train = [prompt_key(c.messages) for c in by_sft["train"]] + [prompt_key(p.prompt) for p in by_pair["train"]]
    held = [prompt_key(c.messages) for c in by_sft["held out"]] + [prompt_key(p.prompt) for p in by_pair["held out"]]
    assert len(set(train)) + len(set(held)) == len({root_key(c.messages) for c in sft})
    require_disjoint({"train": train, "held out": held})
    assert 90 < len(by_pair["held out"]) < 170
