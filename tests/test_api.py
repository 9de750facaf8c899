"""Promises of the Python API on a toy chat model: load, chat, generate, score, and clear words where it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toys import FACTS, World, pairs, question

import chatloom
from chatloom.api import Model, load, load_chat, train
from chatloom.dialogue.record import Message
from chatloom.errors import ChatloomError


@pytest.fixture(scope="module")
def model(world: World) -> Model:
    return load(world["sft"].path, device="cpu")


def asked(name: str) -> str:
    return question(name)[0].content


def manual_logprob(model: Model, messages: list[Message], answer: str) -> float:
    """Sum over the answer's tokens and its end token, with nothing packed."""
    bundle = model.bundle
    opening = bundle.chat.render(messages, bundle.vocabulary, open_reply=True).ids
    reply = [*bundle.vocabulary.encode(answer), bundle.vocabulary.id_of("<|end|>")]
    ids = torch.tensor([opening + reply])
    with torch.no_grad():
        table = bundle.model.logits(bundle.model(ids)).double().log_softmax(-1)[0]
    return sum(float(table[len(opening) - 1 + i, token]) for i, token in enumerate(reply))


def test_the_package_offers_what_its_page_says(world: World) -> None:
    for name in ("load", "run", "train"):
        assert callable(getattr(chatloom, name))
    assert chatloom.load(world["sft"].path, device="cpu").path == world["sft"].path


def test_chat_gives_text_and_the_same_text_again(model: Model) -> None:
    reply = model.chat(asked("sky"), max_new_tokens=12)
    assert isinstance(reply, str)
    assert "<|" not in reply
    assert reply == model.chat([{"role": "user", "content": asked("sky")}], max_new_tokens=12)
    assert reply == "".join(model.stream(asked("sky"), max_new_tokens=12))
    warm = [model.chat(asked("sky"), max_new_tokens=12, temperature=1.5, seed=seed) for seed in (1, 1, 2, 3, 4)]
    assert warm[0] == warm[1]
    assert len(set(warm)) > 1


def test_streamed_pieces_never_cut_a_character(model: Model) -> None:
    for seed in range(20):
        pieces = list(model.stream(asked("雪"), max_new_tokens=20, temperature=1.5, seed=seed))
        whole = "".join(pieces)
        assert whole.encode("utf-8").decode("utf-8") == whole


def test_generate_gives_n_replies_that_do_not_depend_on_their_neighbours(model: Model) -> None:
    prompts = [asked(name) for name in FACTS]
    pools = model.generate(prompts, n=3, max_new_tokens=8, seed=5)
    assert [len(pool) for pool in pools] == [3] * len(prompts)
    [alone] = model.generate(prompts[4:5], n=3, max_new_tokens=8, seed=5)
    assert [reply.text for reply in alone] == [reply.text for reply in pools[4]]
    for pool in pools:
        for reply in pool:
            assert 1 <= reply.tokens <= 8
            assert reply.logprob < 0
            assert reply.ended or reply.tokens == 8
    assert len({reply.text for pool in pools for reply in pool}) > 5


def test_score_equals_the_sum_by_hand(model: Model) -> None:
    pairs = [(asked(name), colour) for name, colour in FACTS.items()]
    for (prompt, answer), value in zip(pairs, model.score(pairs), strict=True):
        assert value == pytest.approx(manual_logprob(model, [Message("user", prompt)], answer), abs=1e-3)
    assert model.score([]) == []
    history = [
        {"role": "user", "content": asked("sky")},
        {"role": "assistant", "content": "blue"},
        {"role": "user", "content": asked("sun")},
    ]
    messages = [Message.from_dict(item) for item in history]
    assert model.score([(history, "gold")])[0] == pytest.approx(manual_logprob(model, messages, "gold"), abs=1e-3)


def test_a_replys_logprob_is_its_score(model: Model) -> None:
    names = [*FACTS]
    compared = 0
    for name, pool in zip(names, model.generate([asked(name) for name in names], n=4, max_new_tokens=12, seed=2)):
        for reply in pool:
            respelt = len(model.bundle.vocabulary.encode(reply.text)) + 1 != reply.tokens or "\ufffd" in reply.text
            if reply.ended and not respelt:
                assert reply.logprob == pytest.approx(model.score([(asked(name), reply.text)])[0], abs=1e-3)
                compared += 1
    assert compared > 10


def test_a_reward_model_scores_and_does_not_talk(world: World) -> None:
    judge = load(world["reward"].path, device="cpu")
    assert judge.is_reward_model
    learnt = [pair for pair in pairs(range(48)) if all(pair.ended)]
    right = judge.score([(pair.prompt[0].content, pair.chosen) for pair in learnt])
    wrong = judge.score([(pair.prompt[0].content, pair.rejected) for pair in learnt])
    assert sum(a > b for a, b in zip(right, wrong, strict=True)) >= 0.9 * len(learnt)
    with pytest.raises(ChatloomError, match="expected a language model, found a reward model"):
        judge.chat(asked("sky"))
    with pytest.raises(ChatloomError, match="is a reward model; it scores answers and cannot write any"):
        load_chat(world["reward"].path, device="cpu")


def test_a_conversation_that_fills_the_context_is_said(model: Model) -> None:
    long = "0123456789" * 6
    with pytest.raises(ChatloomError, match=r"the conversation takes \d+ tokens, the model reads 40; start a new one"):
        model.chat(long)
    with pytest.raises(ChatloomError, match="40"):
        model.generate([long])
    with pytest.raises(ChatloomError, match="more than a row of 40"):
        model.score([(long, "blue")])
    with pytest.raises(ChatloomError, match="more than a row of 40"):
        model.score([(asked("sky"), long)])


def test_a_chat_near_the_end_of_the_context_stops_there(model: Model) -> None:
    prompt = "0123456789" * 3 + "01"
    ids = model.bundle.chat.render([Message("user", prompt)], model.bundle.vocabulary, open_reply=True).ids
    assert 30 < len(ids) < 40
    model.chat(prompt, max_new_tokens=1000, temperature=3.0)


def test_a_base_model_goes_on_with_text_and_takes_no_messages(world: World) -> None:
    base = load(world["pretrain"].path, device="cpu")
    [[reply]] = base.generate(["the colour of"], max_new_tokens=8, temperature=0.0)
    assert reply.text
    with pytest.raises(ChatloomError, match="base model goes on with a text; it has no chat template"):
        base.chat([{"role": "user", "content": "hello"}])
    with pytest.raises(ChatloomError, match="base model without a chat template; instruction-tune it first"):
        base.score([("a", "b")])


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([{"role": "wizard", "content": "x"}], "message role is 'wizard'; expected one of system, user"),
        ([{"content": "x"}], "message key 'role' is missing; expected text"),
        ([{"role": "user"}], "message key 'content' is missing; expected text"),
        ([{"role": "user", "content": 3}], "message key 'content' is int; expected text"),
        ([{"role": "tool", "content": "x"}], "has no role 'tool'; it renders system, user, assistant"),
    ],
)
def test_messages_that_are_none_are_said(messages: list[dict[str, str]], words: str, model: Model) -> None:
    with pytest.raises(ChatloomError, match=words):
        model.chat(messages, max_new_tokens=4)


def test_an_empty_question_gets_an_answer(model: Model) -> None:
    assert isinstance(model.chat("", max_new_tokens=4), str)


def test_a_folder_that_is_no_model_is_said(world: World, tmp_path: Path) -> None:
    with pytest.raises(ChatloomError, match="no such model folder"):
        load(tmp_path / "nothing")
    with pytest.raises(ChatloomError, match=r"config\.json"):
        load(world["tokenizer"].path, device="cpu")


def test_train_is_the_stage_itself(world: World, tmp_path: Path) -> None:
    made = train(
        "sft",
        inputs=world.inputs("sft"),
        out=tmp_path / "sft",
        seed=7,
        quiet=True,
        **world.settings("sft"),
    )
    files = world["sft"].manifest["files"]
    assert made.manifest["files"]["model.safetensors"] == files["model.safetensors"]
    with pytest.raises(ChatloomError, match=r"epoch.*did you mean `epochs`"):
        train("sft", inputs=world.inputs("sft"), out=tmp_path / "typo", epoch=3)
    with pytest.raises(ChatloomError, match="no kind of stage called `stf`; did you mean `sft`"):
        train("stf", inputs={}, out=tmp_path / "typo")


def test_one_text_in_place_of_a_list_is_told_apart(world: World) -> None:
    model = chatloom.load(world["sft"].path)
    with pytest.raises(ChatloomError, match="generate takes a list"):
        model.generate("colour of sky?")
    with pytest.raises(ChatloomError, match="expected a text"):
        model.chat(3)  # type: ignore[arg-type]
