from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatloom.dialogue.jinja import probe_conversations, render_jinja
from chatloom.dialogue.record import Conversation, DialogueError, Message, Preference
from chatloom.dialogue.template import FILE, JINJA_FILE, ChatTemplate
from chatloom.tokens.vocabulary import Vocabulary

TEMPLATE = ChatTemplate()
TALK = [
    Message("system", "Be brief."),
    Message("user", "What does `textwrap.dedent` do?"),
    Message("assistant", "Remove whitespace."),
    Message("user", "那 `os.path` 呢？"),
    Message("assistant", "它处理路径。"),
]


def saved(folder: Path, vocabulary: Vocabulary) -> Path:
    vocabulary.save(folder)
    TEMPLATE.save(folder)
    return folder


def test_the_mask_covers_the_assistants_content_and_its_end_token_only(vocabulary: Vocabulary) -> None:
    rendered = TEMPLATE.render(TALK[1:3], vocabulary)
    user, end, assistant = (vocabulary.id_of(t) for t in ("<|user|>", "<|end|>", "<|assistant|>"))
    ask, reply = vocabulary.encode(TALK[1].content), vocabulary.encode(TALK[2].content)
    assert rendered.ids == [user, *ask, end, assistant, *reply, end]
    assert rendered.mask == [0] * (len(ask) + 3) + [1] * (len(reply) + 1)


def test_every_reply_of_a_long_talk_is_supervised_up_to_its_end(vocabulary: Vocabulary) -> None:
    rendered = TEMPLATE.render(TALK, vocabulary)
    learned = [token for token, weight in zip(rendered.ids, rendered.mask) if weight]
    end = vocabulary.id_of("<|end|>")
    expected = [*vocabulary.encode(TALK[2].content), end, *vocabulary.encode(TALK[4].content), end]
    assert learned == expected


def test_a_messages_weight_replaces_the_rule(vocabulary: Vocabulary) -> None:
    talk = [Message("user", "a", 0.25), Message("assistant", "b", 0.0), Message("assistant", "c", 2.0)]
    rendered = TEMPLATE.render(talk, vocabulary)
    assert rendered.mask == [0, 0.25, 0.25, 0, 0, 0, 0, 2, 2]


def test_an_opened_reply_continues_exactly_where_training_put_it(vocabulary: Vocabulary) -> None:
    prompt = TEMPLATE.render(TALK[:-1], vocabulary, open_reply=True)
    whole = TEMPLATE.render(TALK, vocabulary)
    assert whole.ids[: len(prompt)] == prompt.ids
    assert prompt.mask[-1] == 0
    assert whole.mask[len(prompt)] == 1


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(max_size=30), min_size=1, max_size=4))
def test_no_content_can_make_a_special_token(vocabulary: Vocabulary, texts: list[str]) -> None:
    tokens = "".join(Vocabulary.SPECIAL_TOKENS)
    talk = [Message("user", f"{text}{tokens}") for text in texts]
    rendered = TEMPLATE.render(talk, vocabulary)
    special = [token for token in rendered.ids if token < len(Vocabulary.SPECIAL_TOKENS)]
    assert special == [vocabulary.id_of("<|user|>"), vocabulary.id_of("<|end|>")] * len(texts)


def test_an_answer_of_a_preference_alone_carries_weight(vocabulary: Vocabulary) -> None:
    pair = Preference("p", TALK[:4], ["good", "ba"], ended=[True, False])
    good, bad = (TEMPLATE.render_answer(pair, i, vocabulary) for i in (0, 1))
    assert good.ids == TEMPLATE.render(pair.conversation(0), vocabulary).ids
    assert bad.ids == TEMPLATE.render(pair.conversation(1), vocabulary, ended=False).ids
    assert sum(good.mask) == len(vocabulary.encode("good")) + 1
    assert sum(bad.mask) == len(vocabulary.encode("ba"))
    assert good.ids[-1] == vocabulary.id_of("<|end|>") != bad.ids[-1]


def test_stop_ids_hold_the_end_token_the_model_was_taught(vocabulary: Vocabulary) -> None:
    assert TEMPLATE.render(TALK, vocabulary).ids[-1] in TEMPLATE.stop_ids(vocabulary)
    assert vocabulary.pad_id not in TEMPLATE.stop_ids(vocabulary)


def test_a_role_without_a_token_is_refused_by_name(vocabulary: Vocabulary) -> None:
    with pytest.raises(DialogueError, match=r"no role 'tool'.*system, user, assistant"):
        TEMPLATE.render([Message("tool", "42")], vocabulary)


def test_transformers_gives_the_same_ids_and_mask(vocabulary: Vocabulary, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(saved(tmp_path, vocabulary))
    for talk in [*probe_conversations(TEMPLATE.roles), TALK]:
        for open_reply in (False, True):
            ours = TEMPLATE.render(talk, vocabulary, open_reply=open_reply)
            out = theirs.apply_chat_template(
                [message.to_dict() for message in talk],
                add_generation_prompt=open_reply,
                return_dict=True,
                return_assistant_tokens_mask=True,
            )
            assert out["input_ids"] == ours.ids
            assert out["assistant_masks"] == ours.mask


def test_transformers_refuses_a_content_that_spells_a_special_token(vocabulary: Vocabulary, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(saved(tmp_path, vocabulary))
    for token in Vocabulary.SPECIAL_TOKENS:
        with pytest.raises(Exception, match="spells the special token"):
            theirs.apply_chat_template([{"role": "user", "content": f"x{token}"}])


def test_a_saved_template_loads_as_it_was(vocabulary: Vocabulary, tmp_path: Path) -> None:
    assert ChatTemplate.load(saved(tmp_path, vocabulary)) == TEMPLATE
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["chat_template"] == TEMPLATE.jinja == (tmp_path / JINJA_FILE).read_text(encoding="utf-8")


def test_a_template_changed_by_hand_is_refused(vocabulary: Vocabulary, tmp_path: Path) -> None:
    file = saved(tmp_path, vocabulary) / FILE
    file.write_text(file.read_text(encoding="utf-8").replace('"end_token": "<|end|>"', '"end_token": "<|pad|>"'))
    with pytest.raises(DialogueError, match="sha256"):
        ChatTemplate.load(tmp_path)


@pytest.mark.parametrize("place", [JINJA_FILE, "tokenizer_config.json"])
def test_a_second_template_that_drifted_is_refused(vocabulary: Vocabulary, tmp_path: Path, place: str) -> None:
    file = saved(tmp_path, vocabulary) / place
    file.write_text(file.read_text(encoding="utf-8").replace("<|assistant|>", "<|user|>"), encoding="utf-8")
    with pytest.raises(DialogueError, match=rf"{place}.*another chat template"):
        ChatTemplate.load(tmp_path, vocabulary)


def test_a_template_file_that_is_missing_or_no_template_is_refused(tmp_path: Path, vocabulary: Vocabulary) -> None:
    with pytest.raises(DialogueError, match="missing"):
        ChatTemplate.load(tmp_path, vocabulary)
    (tmp_path / FILE).write_text("[]", encoding="utf-8")
    with pytest.raises(DialogueError, match="not a chat template"):
        ChatTemplate.load(tmp_path, vocabulary)


@pytest.mark.parametrize(
    "change",
    [
        ("message['content'] + '<|end|>'", "message['content']"),
        ("'<|user|>'", "'<|user|> '"),
        ("content'] +", "content'] | trim +"),
    ],
)
def test_a_jinja_form_with_other_ids_is_refused(vocabulary: Vocabulary, change: tuple[str, str]) -> None:
    drifted = TEMPLATE.jinja.replace(*change)
    assert drifted != TEMPLATE.jinja
    with pytest.raises(DialogueError, match="differ"):
        TEMPLATE.check_jinja(drifted, vocabulary)


def test_jinja_cannot_reach_the_interpreter() -> None:
    for attack in ("{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ cycler.__init__.__globals__ }}"):
        with pytest.raises(DialogueError):
            render_jinja(attack, TALK)


def test_fit_drops_whole_turns_from_the_front_and_says_how_many(vocabulary: Vocabulary) -> None:
    whole = len(TEMPLATE.render(TALK, vocabulary))
    fitted = TEMPLATE.fit(Conversation("c", TALK), vocabulary, whole)
    assert (fitted.messages, fitted.tokens, fitted.dropped_messages) == (TALK, whole, 0)
    shorter = TEMPLATE.fit(TALK, vocabulary, whole - 1)
    assert shorter.messages == [TALK[0], *TALK[3:]]
    assert shorter.dropped_messages == 2
    assert shorter.tokens == len(TEMPLATE.render(shorter.messages, vocabulary)) < whole


def test_fit_never_cuts_inside_a_reply(vocabulary: Vocabulary) -> None:
    smallest = len(TEMPLATE.render([TALK[0], *TALK[3:]], vocabulary))
    kept = TEMPLATE.fit(TALK, vocabulary, smallest).messages
    assert kept is not None
    assert kept[-1] == TALK[-1]
    refused = TEMPLATE.fit(TALK, vocabulary, smallest - 1)
    assert refused.messages is None
    assert f"{smallest} tokens; the limit is {smallest - 1}" in refused.reason


def test_fit_leaves_room_for_a_reply(vocabulary: Vocabulary) -> None:
    prompt = TALK[:4]
    whole = len(TEMPLATE.render(prompt, vocabulary))
    assert TEMPLATE.fit(prompt, vocabulary, whole + 10, reserve=10).messages == prompt
    assert TEMPLATE.fit(prompt, vocabulary, whole + 10, reserve=11).messages == [prompt[0], prompt[3]]
