"""Promises of turning records into examples: right masks, whole turns, counted rejections, an order without state."""

from __future__ import annotations

import pytest
from toys import FACTS, World, conversation, pairs, question

from chatloom.dialogue.record import Conversation, Message, Preference
from chatloom.dialogue.template import ChatTemplate
from chatloom.errors import ChatloomError
from chatloom.tokens.vocabulary import Vocabulary
from chatloom.training.data import (
    Example,
    ExampleStream,
    Rejected,
    check_rejected,
    conversation_examples,
    pack_examples,
    preference_examples,
)

TEMPLATE = ChatTemplate()


@pytest.fixture(scope="module")
def vocabulary(world: World) -> Vocabulary:
    return Vocabulary.load(world["tokenizer"].path)


def supervised_text(example: Example, vocabulary: Vocabulary, place: int = 0) -> str:
    segment = example.segments[place]
    return vocabulary.decode([int(t) for t, w in zip(segment.tokens, segment.supervised) if w], special=True)


def test_only_the_assistant_and_its_end_token_carry_loss(vocabulary: Vocabulary) -> None:
    messages = [Message("system", "be brief"), *question("sky"), Message("assistant", "blue")]
    both = Conversation("c", [*messages, *conversation(1, "雪", "白色").messages])
    [example], rejected = conversation_examples([both], TEMPLATE, vocabulary, 80)
    assert not rejected
    assert supervised_text(example, vocabulary) == "blue<|end|>白色<|end|>"


def test_a_message_with_weight_zero_carries_no_loss(vocabulary: Vocabulary) -> None:
    messages = [*question("sky"), Message("assistant", "red", weight=0.0), *conversation(1, "coal", "black").messages]
    [example], _ = conversation_examples([Conversation("c", messages)], TEMPLATE, vocabulary, 80)
    assert supervised_text(example, vocabulary) == "black<|end|>"


def test_what_cannot_be_learnt_from_is_rejected_with_its_reason(vocabulary: Vocabulary) -> None:
    long = conversation(1, "sky", "blue " * 60)
    silent = Conversation("silent", question("sky"))
    late = Conversation("late", [*long.messages, *conversation(2, "雪", "白色").messages])
    examples, rejected = conversation_examples([long, silent, late], TEMPLATE, vocabulary, 40)
    assert {item.id: item.reason.split(";")[0] for item in rejected}.keys() == {"c1", "silent"}
    assert "the limit is 40" in rejected[0].reason
    assert "no assistant message" in rejected[1].reason
    [kept] = examples  # whole turns are dropped from the front, never a part of one
    assert kept.id == "late"
    assert supervised_text(kept, vocabulary) == "白色<|end|>"


def test_a_preference_with_one_answer_too_long_is_rejected_whole(vocabulary: Vocabulary) -> None:
    good, bad = pairs([1])[0], Preference("long", question("sky"), ["blue", "red " * 60])
    examples, rejected = preference_examples([good, bad], TEMPLATE, vocabulary, 40)
    assert [example.id for example in examples] == ["pair1"]
    assert rejected[0].id == "long"
    assert "the limit is 40" in rejected[0].reason


def test_answers_of_a_preference_share_their_prompt_and_nothing_else(vocabulary: Vocabulary) -> None:
    preference = Preference("p", question("sky"), ["blue", "red"], margin=0.5, ended=[True, False])
    [example], _ = preference_examples([preference], TEMPLATE, vocabulary, 40)
    assert supervised_text(example, vocabulary, 0) == "blue<|end|>"
    assert supervised_text(example, vocabulary, 1) == "red"  # it never ended, so it has no end token
    assert [segment.role for segment in example.segments] == ["rank0", "rank1"]
    # A number stored with one answer (its reference log-probability) must not appear at the other.
    example.segments[0].scalars["reference"] = 1.0
    assert example.segments[1].scalars == {"margin": 0.5}


def test_too_many_rejections_stop_the_stage_with_examples_of_them() -> None:
    rejected = [Rejected(f"r{i}", "too long") for i in range(6)]
    check_rejected(rejected[:5], 100, 0.05, "conversations")
    check_rejected([], 0, 0.0, "conversations")
    with pytest.raises(ChatloomError, match=r"6 of 100 conversations cannot be used \(r0: too long; r1.*max_rejected"):
        check_rejected(rejected, 100, 0.05, "conversations")


def stream_of(vocabulary: Vocabulary, seed: int = 3, micro_tokens: int = 400) -> ExampleStream:
    conversations = [conversation(i, *item) for i, item in enumerate(FACTS.items())]
    examples, _ = conversation_examples(conversations, TEMPLATE, vocabulary, 40)
    return ExampleStream(
        examples, per_step=5, seed=seed, row_length=40, micro_tokens=micro_tokens, pad_id=vocabulary.pad_id
    )


def test_a_step_is_a_pure_function_of_seed_and_number(vocabulary: Vocabulary) -> None:
    one, two = stream_of(vocabulary), stream_of(vocabulary)
    forwards = [[e.id for e in one.chosen(i)] for i in range(8)]
    backwards = [[e.id for e in two.chosen(i)] for i in reversed(range(8))][::-1]
    assert forwards == backwards
    assert forwards != [[e.id for e in stream_of(vocabulary, seed=4).chosen(i)] for i in range(8)]


def test_an_epoch_shows_every_example_once(vocabulary: Vocabulary) -> None:
    stream = stream_of(vocabulary)
    seen = [e.id for i in range(12) for e in stream.chosen(i)]  # 60 = 5 epochs of 12
    for epoch in range(5):
        assert sorted(seen[epoch * 12 : epoch * 12 + 12]) == sorted(e.id for e in stream.examples)
    assert stream.steps(5) == 12
    assert stream.steps(0.01) == 1


def test_micro_batches_hold_the_same_examples_whatever_their_size(vocabulary: Vocabulary) -> None:
    small, large = (stream_of(vocabulary, micro_tokens=size).step(2) for size in (40, 4000))
    assert len(large) == 1 < len(small)
    assert sum(batch.total_weight for batch in small) == large[0].total_weight
    assert sum(batch.n_tokens for batch in small) == large[0].n_tokens


def test_answers_to_one_prompt_stay_in_one_micro_batch(vocabulary: Vocabulary) -> None:
    examples, _ = preference_examples(pairs(range(20)), TEMPLATE, vocabulary, 40)
    batches = pack_examples(examples, 40, 80, vocabulary.pad_id)
    assert len(batches) > 3
    groups = [set(batch.group.tolist()) for batch in batches]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 20


def test_no_example_at_all_is_said(vocabulary: Vocabulary) -> None:
    with pytest.raises(ChatloomError, match="nothing to read: there is no item to train on"):
        ExampleStream([], per_step=1, seed=0, row_length=40, micro_tokens=40, pad_id=0)
