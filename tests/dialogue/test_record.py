from __future__ import annotations

import pytest

from chatloom.dialogue.record import Conversation, DialogueError, Message, Preference, prompt_of

ASK = Message("user", "Why?")


def test_content_is_kept_verbatim() -> None:
    text = "  two spaces \n\ttab\r\n全角　空格 "
    assert Message("user", text).content == text
    assert Message.from_dict(Message("assistant", text, 0.5).to_dict()) == Message("assistant", text, 0.5)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("hello", "expected an object"),
        ({"role": "user"}, "'content' is missing"),
        ({"content": "x"}, "'role' is missing"),
        ({"role": "user", "content": ["a"]}, "'content' is list"),
        ({"role": "wizard", "content": "a"}, "wizard"),
        ({"role": "assistant", "content": "a", "weight": "much"}, "weight"),
        ({"role": "assistant", "content": "a", "weight": True}, "weight"),
        ({"role": "assistant", "content": "a", "weight": -1}, ">= 0"),
        ({"role": "user", "content": "\ud800"}, "surrogate"),
    ],
)
def test_a_bad_message_is_refused_with_what_is_wrong(value: object, words: str) -> None:
    with pytest.raises(DialogueError, match=words):
        Message.from_dict(value)


def test_a_system_message_may_only_come_first() -> None:
    with pytest.raises(DialogueError, match="only the first"):
        Conversation("c", [ASK, Message("system", "late")])
    with pytest.raises(DialogueError, match="nothing else"):
        Conversation("c", [Message("system", "alone")])
    with pytest.raises(DialogueError, match="no messages"):
        Conversation("c", [])


def test_prompt_is_what_comes_before_the_answer() -> None:
    conversation = Conversation("c", [ASK, Message("assistant", "A"), Message("user", "B"), Message("assistant", "C")])
    assert conversation.prompt == conversation.messages[:3]
    assert conversation.answer == "C"
    assert prompt_of([ASK]) == [ASK]
    with pytest.raises(DialogueError, match="no assistant"):
        _ = Conversation("c", [ASK]).answer


def test_a_preference_needs_two_different_answers_to_one_open_prompt() -> None:
    with pytest.raises(DialogueError, match="at least two"):
        Preference("p", [ASK], ["only"])
    with pytest.raises(DialogueError, match="equal answers"):
        Preference("p", [ASK], ["same", "same"])
    with pytest.raises(DialogueError, match="user message last"):
        Preference("p", [ASK, Message("assistant", "already")], ["a", "b"])
    with pytest.raises(DialogueError, match="`ended` flags"):
        Preference("p", [ASK], ["a", "b"], ended=[True])
    with pytest.raises(DialogueError, match="margin"):
        Preference("p", [ASK], ["a", "b"], margin=float("nan"))


def test_ranked_answers_give_every_pair_better_first() -> None:
    ranked = Preference("p", [ASK], ["best", "middle", "worst"])
    assert list(ranked.pairs()) == [(0, 1), (0, 2), (1, 2)]
    assert (ranked.chosen, ranked.rejected) == ("best", "worst")
    assert ranked.ended == [True, True, True]
    assert ranked.conversation(1) == [ASK, Message("assistant", "middle")]
