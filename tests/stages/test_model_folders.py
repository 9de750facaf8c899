"""Promises of the folders that training leaves: `transformers` opens them, with equal ids, logits and rewards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from toys import FACTS, World, question

from chatloom.dialogue.record import Message
from chatloom.training.bundle import load_bundle

transformers = pytest.importorskip("transformers")


def dialogue(name: str) -> list[Message]:
    return [Message("system", "be brief"), *question(name), Message("assistant", FACTS[name]), *question("sky")]


@pytest.mark.parametrize("name", ["sft", "dpo", "ppo"])
def test_a_chat_models_folder_opens_with_equal_ids_and_logits(name: str, world: World) -> None:
    folder = world[name].path
    bundle = load_bundle(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for thing in ("coal", "雪"):
        messages = dialogue(thing)
        for open_reply in (False, True):
            ids = bundle.chat.render(messages, bundle.vocabulary, open_reply=open_reply).ids
            found = tokenizer.apply_chat_template(
                [m.to_dict() for m in messages], add_generation_prompt=open_reply, tokenize=True, return_dict=True
            )
            assert found["input_ids"] == ids
        tokens = torch.tensor(ids)[None, :40]
        with torch.inference_mode():
            ours = bundle.model.logits(bundle.model(tokens))
            torch.testing.assert_close(ours, theirs(tokens).logits, atol=1e-4, rtol=0)
    stops = bundle.chat.stop_ids(bundle.vocabulary)
    assert theirs.generation_config.eos_token_id == stops
    assert bundle.vocabulary.id_of("<|end|>") in stops
    assert theirs.generation_config.pad_token_id == bundle.vocabulary.pad_id
    assert bundle.vocabulary.pad_id not in stops


def test_transformers_writes_the_same_greedy_answer(world: World) -> None:
    from chatloom.api import load

    folder = world["sft"].path
    model = load(folder, device="cpu")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name in ("grass", "天"):
        given = tokenizer.apply_chat_template(
            [m.to_dict() for m in question(name)], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        out = theirs.generate(**given, max_new_tokens=10, do_sample=False)[0, given["input_ids"].shape[1] :]
        assert tokenizer.decode(out, skip_special_tokens=True) == model.chat(question_dicts(name), max_new_tokens=10)


def question_dicts(name: str) -> list[dict[str, str]]:
    return [m.to_dict() for m in question(name)]


def test_the_mask_of_transformers_is_our_mask(world: World) -> None:
    folder = world["sft"].path
    bundle = load_bundle(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    messages = dialogue("sun")
    found = tokenizer.apply_chat_template(
        [m.to_dict() for m in messages], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    rendered = bundle.chat.render(messages, bundle.vocabulary)
    assert found["input_ids"] == rendered.ids
    assert found["assistant_masks"] == [int(value) for value in rendered.mask]


def test_a_reward_models_folder_opens_with_equal_scores_up_to_its_stored_bias(world: World) -> None:
    folder = world["reward"].path
    bundle = load_bundle(folder)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    assert type(theirs).__name__ == "LlamaForSequenceClassification"
    bias = json.loads((folder / "config.json").read_text(encoding="utf-8"))["reward_bias"]
    assert bias != 0.0
    for name, colour in FACTS.items():
        ids = torch.tensor(bundle.chat.render([*question(name), Message("assistant", colour)], bundle.vocabulary).ids)[
            None
        ]
        with torch.inference_mode():
            last = torch.tensor([ids.shape[1] - 1])
            ours = bundle.reward(ids, torch.arange(ids.shape[1])[None], None, torch.tensor([0]), last)
            assert float(theirs(ids).logits[0, 0]) + bias == pytest.approx(float(ours), abs=1e-4)


def test_a_base_models_folder_opens_without_a_chat_template(world: World) -> None:
    folder: Path = world["pretrain"].path
    bundle = load_bundle(folder)
    assert bundle.template is None
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert theirs.generation_config.eos_token_id in (bundle.vocabulary.eos_id, [bundle.vocabulary.eos_id])
    text = "the colour of 雪 is"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == bundle.vocabulary.encode(text)
    with torch.inference_mode():
        ours = bundle.model.logits(bundle.model(torch.tensor([ids])))
        torch.testing.assert_close(ours, theirs(torch.tensor([ids])).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["pretrain", "reward"])
def test_weights_can_be_read_by_whoever_may_read_their_neighbours(world: World, name: str) -> None:
    folder = world[name].path
    modes = {file.name: file.stat().st_mode & 0o777 for file in folder.rglob("*") if file.is_file()}
    weights = [mode for file, mode in modes.items() if file.endswith(".safetensors")]
    assert weights
    assert set(weights) == {modes["config.json"]}
