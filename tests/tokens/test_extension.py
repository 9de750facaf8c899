"""Promises of continued BPE: old ids stay, old text is cut as before, the file's merges go on."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path

import foreign_tokenizers as foreign
import pytest
from tokenizers import Tokenizer

from chatloom.tokens.algorithms import train_bpe
from chatloom.tokens.extension import (
    Extension,
    entries_sha256,
    extend_vocabulary,
    pieces_of_new_entries,
    segmentation_changes,
)
from chatloom.tokens.importing import adapt
from chatloom.tokens.vocabulary import Vocabulary, VocabularyError

OLD = [*foreign.ENGLISH, "def read(rows):\n    return rows[12]\n"]
# New text in two scripts: one unknown to the old vocabulary, one in words that it knows in parts.
NEW = [
    *foreign.CHINESE * 3, "缩进的列表返回缩进的文本。" * 4,
    "rereading rereading misreading misreader's rereader orderly",
    "misreading the rereading of misreading, orderly orderly disorderly",
]  # fmt: skip


def own() -> Vocabulary:
    return Vocabulary.train(OLD * 3, 330)


def llama3() -> Vocabulary:
    return adapt(foreign.text_of(foreign.llama3())).vocabulary


def qwen2() -> Vocabulary:
    return adapt(foreign.text_of(foreign.qwen2())).vocabulary


MAKERS = [own, llama3, qwen2]


def extended(old: Vocabulary, n: int = 60) -> Extension:
    return extend_vocabulary(old, NEW * 3, OLD, n)


@pytest.mark.parametrize("make", MAKERS)
def test_old_ids_stay_and_old_text_is_cut_as_before(make: object) -> None:
    old: Vocabulary = make()  # type: ignore[operator]
    new = extended(old).vocabulary
    assert new.size == old.size + 60
    assert [new.token_bytes(i) for i in range(old.size)] == [old.token_bytes(i) for i in range(old.size)]
    assert new.special_tokens == old.special_tokens
    assert segmentation_changes(old, new, OLD).changed == 0
    assert sum(map(len, new.encode_batch(NEW))) < 0.6 * sum(map(len, old.encode_batch(NEW)))
    assert [new.decode(ids) for ids in new.encode_batch(NEW + OLD)] == NEW + OLD


@pytest.mark.parametrize("make", MAKERS)
def test_the_file_goes_on_with_merges_and_transformers_gives_the_same_ids(make: object, tmp_path: Path) -> None:
    old: Vocabulary = make()  # type: ignore[operator]
    new = extended(old).vocabulary
    new.save(tmp_path)
    before, after = (json.loads(v.to_json()) for v in (old, new))
    count = len(before["model"]["merges"])
    assert after["model"]["merges"][:count] == before["model"]["merges"]
    assert len(after["model"]["merges"]) == count + 60
    for key in ("added_tokens", "pre_tokenizer", "normalizer"):
        assert after[key] == before[key]
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*NEW, *OLD, "<|end|> 缩进 <tool_call>"]:
        assert theirs(text, split_special_tokens=True)["input_ids"] == new.encode(text)
    assert len(theirs) == new.size
    assert Vocabulary.load(tmp_path) == new


@pytest.mark.parametrize("make", MAKERS)
def test_no_pair_of_the_old_sample_is_ever_merged(make: object) -> None:
    old: Vocabulary = make()  # type: ignore[operator]
    made = extended(old)
    pairs = {pair for ids in old.encode_batch(OLD) for pair in pairwise(ids)}
    content = json.loads(made.vocabulary.to_json())["model"]
    new_merges = [(content["vocab"][left], content["vocab"][right]) for left, right in content["merges"][-60:]]
    assert not pairs.intersection(new_merges)
    # Without the old sample frequent pairs of it would have been merged: the rule does something.
    everything = extend_vocabulary(old, OLD * 9, OLD, 60, allow_smaller=True)
    assert (everything.merges, everything.refused > 5) == (0, True)
    assert extend_vocabulary(old, OLD * 9, ["!"], 60, allow_smaller=True).merges > 5


def test_a_merge_that_old_text_would_feel_is_counted_where_the_sample_did_not_show_it() -> None:
    old = own()
    made = extended(old, 60)
    texts = ["the order of the rows", "rereading the rows", "rows and rows", "缩进的文本"]
    changes = segmentation_changes(old, made.vocabulary, texts)
    assert (changes.documents, changes.changed) == (4, 2)
    assert changes.share == 0.5
    assert "缩进" in changes.examples[1]["text"]
    assert changes.examples[0]["before"] != changes.examples[0]["after"]
    assert segmentation_changes(old, made.vocabulary, []).share == 0.0


@pytest.mark.parametrize("whole_pieces_first", [False, True])
def test_the_old_sample_is_cut_as_before_whatever_is_learnt(whole_pieces_first: bool) -> None:
    """Words of a few letters share nearly all their pairs; the rule must hold for every way of merging them."""
    learnt = 0
    for seed in range(12):
        chance = random.Random(seed)
        old_words, new_words = (
            ["".join(chance.choices(letters, k=chance.randint(1, 7))) for _ in range(60)] for letters in ("abc", "abcd")
        )
        content = json.loads(Vocabulary.train([" ".join(old_words)], 262 + 6 + seed, allow_smaller=True).to_json())
        content["model"]["ignore_merges"] = whole_pieces_first
        old = Vocabulary.from_json(json.dumps(content))
        sample = [" ".join(chance.sample(old_words, 20)), *old_words[:5]]
        made = extend_vocabulary(old, [" ".join(new_words)] * 2, sample, 80, allow_smaller=True)
        learnt += made.merges
        assert old.encode_batch(sample) == made.vocabulary.encode_batch(sample)
        assert pieces_of_new_entries(old.size, made.vocabulary) == made.pieces
    assert learnt > 300


@pytest.mark.parametrize("make", MAKERS)
def test_new_entries_are_told_apart_into_old_ones(make: object) -> None:
    old: Vocabulary = make()  # type: ignore[operator]
    made = extended(old)
    new = made.vocabulary
    assert len(made.pieces) == made.merges == 60
    assert made.first_new_id == old.size
    for i, part in enumerate(made.pieces):
        assert old.decode_bytes(part, special=True) == new.token_bytes(old.size + i)
        assert all(0 <= piece < old.size for piece in part)
    assert pieces_of_new_entries(old.size, new) == made.pieces


def test_appended_special_tokens_are_made_of_their_names() -> None:
    tokenizer = foreign.llama3()
    n = len(tokenizer.get_vocab(with_added_tokens=True))
    vocabulary = llama3()
    parts = pieces_of_new_entries(n, vocabulary)
    assert len(parts) == vocabulary.size - n == 6
    assert vocabulary.decode(parts[vocabulary.id_of("<|user|>") - n]) == "<|user|>"
    with pytest.raises(VocabularyError, match="is not made of entries below 3"):
        pieces_of_new_entries(3, vocabulary)


def test_ids_do_not_move_when_special_tokens_stand_outside_the_models_entries() -> None:
    """The trap: the library numbers such tokens after the entries, so they would move with every entry added."""
    content = json.loads(llama3().to_json())
    raw = json.loads(foreign.text_of(foreign.llama3()))
    assert not {token["content"] for token in raw["added_tokens"]} & set(raw["model"]["vocab"])
    raw["model"]["vocab"]["rowsrows"] = len(raw["model"]["vocab"])
    moved = Tokenizer.from_str(json.dumps(raw)).token_to_id("<|begin_of_text|>")
    assert moved != content["model"]["vocab"]["<|begin_of_text|>"]
    assert extended(llama3()).vocabulary.special_tokens == llama3().special_tokens


def test_extending_is_deterministic_and_repeatable() -> None:
    old = own()
    first = extended(old)
    again = extend_vocabulary(old, list(reversed(NEW * 3)), list(reversed(OLD)), 60)
    assert again.vocabulary == first.vocabulary
    twice = extend_vocabulary(first.vocabulary, ["rüber über drüben hinüber " * 9] * 3, OLD + NEW, 5)
    assert twice.first_new_id == first.vocabulary.size
    assert segmentation_changes(old, twice.vocabulary, OLD).changed == 0


def test_what_cannot_be_extended_is_explained() -> None:
    old = own()
    with pytest.raises(VocabularyError, match="no sample of the old text"):
        extend_vocabulary(old, NEW, [], 10)
    with pytest.raises(VocabularyError, match="no text to learn"):
        extend_vocabulary(old, [], OLD, 10)
    with pytest.raises(VocabularyError, match=r"of 5330 entries was asked for.*support only \d+"):
        extend_vocabulary(old, NEW, OLD, 5000)
    assert extend_vocabulary(old, NEW, OLD, 5000, allow_smaller=True).merges < 5000
    characters = train_bpe(OLD * 3, 330, alphabet="characters", allow_smaller=True)
    with pytest.raises(VocabularyError, match="this one is bpe over characters"):
        extend_vocabulary(characters, NEW, OLD, 10)


def test_the_hash_of_old_entries_sees_any_change_but_a_renamed_token() -> None:
    text = foreign.text_of(foreign.llama3())
    n = adapt(text).n_entries
    renamed = adapt(text, rename={"<|eot_id|>": "<|end|>"}).vocabulary
    assert entries_sha256(renamed, n) == entries_sha256(llama3(), n)
    assert entries_sha256(own(), 300) != entries_sha256(llama3(), 300)
