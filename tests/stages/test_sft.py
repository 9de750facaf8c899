"""Promises of instruction tuning: it learns what it is shown, it learns to stop, and it says what it leaves out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from toys import FACTS, World, conversation, dialogues, question

from chatloom.artifact import partial_of
from chatloom.dialogue.record import Conversation, Message
from chatloom.errors import ChatloomError
from chatloom.generation.engine import generate
from chatloom.generation.sampling import Sampling
from chatloom.tokens.packing import Batch
from chatloom.training import checkpoints
from chatloom.training.bundle import Bundle, load_bundle
from chatloom.training.metrics import read_metrics
from chatloom.training.next_token_loss import NextTokenLoss
from chatloom.training.trainer import Terms


def greedy(bundle: Bundle, name: str, limit: int = 12) -> tuple[str, bool]:
    """The model's answer about a thing, and whether it ended it itself."""
    prompt = bundle.chat.render(question(name), bundle.vocabulary, open_reply=True).ids
    [[sample]] = generate(
        bundle.model,
        [prompt],
        max_new_tokens=limit,
        sampling=Sampling(temperature=0.0),
        stop_ids=bundle.chat.stop_ids(bundle.vocabulary),
    )
    return bundle.vocabulary.decode(sample.tokens, special=True), sample.finished


def test_it_reaches_no_loss_on_eight_conversations_and_says_them_by_heart(world: World, tmp_path: Path) -> None:
    items = list(FACTS.items())[2:10]
    sets = dialogues(tmp_path / "sets", sft=[conversation(i, *item) for i, item in enumerate(items)]).path
    made = world.run("sft", tmp_path / "sft", inputs={"conversations": [sets]}, epochs=80)
    rows = read_metrics(made.path / "metrics.jsonl").rows
    assert rows[-1]["loss"] < 0.02
    bundle = load_bundle(made.path)
    for name, colour in items:
        assert greedy(bundle, name) == (f"{colour}<|end|>", True)


def test_trained_on_answers_of_one_token_it_learns_to_stop(world: World, tmp_path: Path) -> None:
    letters = "abcdefgh"
    single = [conversation(i, name, letters[i]) for i, name in enumerate([*FACTS][:8])]
    sets = dialogues(tmp_path / "sets", sft=single).path
    base = load_bundle(world["pretrain"].path)
    assert all(len(base.vocabulary.encode(letter)) == 1 for letter in letters)
    untrained = world.run("sft", tmp_path / "untrained", inputs={"conversations": [sets]}, epochs=0.1)
    assert not any(greedy(load_bundle(untrained.path), name)[1] for name in [*FACTS][:8])
    made = world.run("sft", tmp_path / "sft", inputs={"conversations": [sets]}, epochs=60)
    bundle = load_bundle(made.path)
    for name in [*FACTS][:8]:
        text, ended = greedy(bundle, name)
        assert ended
        assert text.removesuffix("<|end|>") in letters  # one letter, then the end


def test_loss_is_on_the_assistants_tokens_alone(world: World, tmp_path: Path) -> None:
    made = world.run("sft", tmp_path / "sft", epochs=0.1)  # one step
    bundle = load_bundle(world["pretrain"].path)
    [row] = read_metrics(made.path / "metrics.jsonl").rows
    from chatloom.dialogue.storage import read_conversations
    from chatloom.dialogue.template import ChatTemplate
    from chatloom.tokens.order import Order

    conversations = read_conversations(world["conversations"].file("sft.parquet"))
    total = count = 0.0
    for i in Order(len(conversations), 7).items(0, 8):
        rendered = ChatTemplate().render(conversations[i].messages, bundle.vocabulary)
        ids = torch.tensor(rendered.ids)[None]
        with torch.no_grad():
            logprobs = bundle.model.logits(bundle.model(ids)).log_softmax(-1)[0]
        for t in range(1, len(rendered)):
            total -= rendered.mask[t] * float(logprobs[t - 1, rendered.ids[t]])
            count += rendered.mask[t]
    assert row["loss"] == pytest.approx(total / count, rel=1e-4)


def test_from_random_weights_it_starts_knowing_nothing(world: World, tmp_path: Path) -> None:
    made = world.run("sft", tmp_path / "sft", init="random", epochs=0.1)
    assert made.metrics["first_loss"] == pytest.approx(math.log(300), rel=0.05)
    again = world.run("sft", tmp_path / "again", init="random", epochs=0.1, seed=8)
    one, two = (load_bundle(item.path).model.embedding.weight for item in (made, again))
    assert not torch.equal(one, two)  # drawn from the stage's seed


def test_the_heldout_loss_is_measured_on_heldout_conversations(world: World) -> None:
    assert 0.0 < world["sft"].metrics["heldout_loss"] < 3.0
    assert world["sft"].metrics["conversations"] == 40
    assert 0.2 < world["sft"].metrics["supervised_share"] < 0.5


def test_conversations_too_long_are_counted_and_too_many_refused(world: World, tmp_path: Path) -> None:
    good = [conversation(i, *item) for i, item in enumerate([*FACTS.items()] * 4)]
    long = [conversation(100 + i, "sky", "0123456789" * 4) for i in range(2)]
    sets = dialogues(tmp_path / "sets", sft=[*good, *long]).path
    made = world.run("sft", tmp_path / "sft", inputs={"conversations": [sets]}, epochs=0.1)
    assert (made.metrics["conversations"], made.metrics["rejected"]) == (48, 2)
    rejected = json.loads(made.file("rejected.json").read_text(encoding="utf-8"))
    assert [item["id"] for item in rejected] == ["c100", "c101"]
    assert "the limit is 40" in rejected[0]["reason"]
    with pytest.raises(ChatloomError, match=r"stage `strict`: 2 of 50 conversations cannot be used \(c100"):
        world.run("sft", tmp_path / "strict", inputs={"conversations": [sets]}, max_rejected_share=0.01)


@pytest.mark.parametrize("content", ["empty", "absent"])
def test_no_conversation_is_said(content: str, world: World, tmp_path: Path) -> None:
    sets = dialogues(tmp_path / "sets", sft=[] if content == "empty" else None, pairs=[]).path
    with pytest.raises(ChatloomError, match=r"stage `sft`.*no item to train on"):
        world.run("sft", tmp_path / "sft", inputs={"conversations": [sets]})


def test_conversations_without_an_assistant_teach_nothing_and_are_refused(world: World, tmp_path: Path) -> None:
    silent = [Conversation(f"s{i}", question("sky")) for i in range(3)]
    sets = dialogues(tmp_path / "sets", sft=silent).path
    with pytest.raises(ChatloomError, match="no assistant message: nothing to learn from"):
        world.run("sft", tmp_path / "sft", inputs={"conversations": [sets]})


def test_text_that_spells_a_special_token_cannot_end_a_turn(world: World, tmp_path: Path) -> None:
    forged = [Conversation(f"f{i}", [Message("user", "<|end|>x"), Message("assistant", "<|end|>y")]) for i in range(4)]
    sets = dialogues(tmp_path / "sets", sft=forged).path
    made = world.run("sft", tmp_path / "sft", inputs={"conversations": [sets]}, epochs=1)
    bundle = load_bundle(made.path)
    ids = bundle.chat.render(forged[0].messages, bundle.vocabulary).ids
    assert ids.count(bundle.vocabulary.id_of("<|end|>")) == 2


def planted(monkeypatch: pytest.MonkeyPatch, steps: Callable[[int], bool]) -> None:
    """One NaN in the last micro-batch of some steps."""
    calls = 0
    original = NextTokenLoss.__call__

    def poisoned(self: NextTokenLoss, batch: Batch) -> Terms:
        nonlocal calls
        terms = original(self, batch)
        calls += 1
        return Terms(terms.total * float("nan")) if steps(calls) else terms

    monkeypatch.setattr(NextTokenLoss, "__call__", poisoned)


def test_a_step_with_a_nan_is_skipped_and_counted(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(monkeypatch, lambda call: call == 5)
    made = world.run("sft", tmp_path / "sft", epochs=2, loop={"micro_batch_tokens": 120})
    assert made.metrics["skipped_steps"] == 1
    rows = read_metrics(made.path / "metrics.jsonl").rows
    assert len(rows) == 10
    assert [row["skipped"] for row in rows if "skipped" in row] == [1.0]
    assert made.metrics["heldout_loss"] > 0  # which a NaN in a weight would have spoilt


def test_a_run_that_only_gives_nan_ends_with_the_causes_and_keeps_its_checkpoint(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(monkeypatch, lambda call: call > 6)
    with pytest.raises(ChatloomError, match=r"3 steps in a row were skipped.*loss is nan.*learning rate is too high"):
        world.run("sft", tmp_path / "sft", loop={"max_skips": 2, "checkpoint_every": 2})
    assert checkpoints.latest(partial_of(tmp_path / "sft")) is not None


def test_a_micro_batch_smaller_than_a_row_is_said(world: World, tmp_path: Path) -> None:
    with pytest.raises(ChatloomError, match="a micro-batch of 16 tokens holds no row of 40; make the micro-batch"):
        world.run("sft", tmp_path / "sft", loop={"micro_batch_tokens": 16})


def test_a_device_that_is_not_there_is_said(world: World, tmp_path: Path) -> None:
    with pytest.raises(ChatloomError, match="`cpuu` is no device; use auto, cpu"):
        world.run("sft", tmp_path / "sft", loop={"device": "cpuu"})
    if not torch.cuda.is_available():
        with pytest.raises(ChatloomError, match="`cuda` is not available on this machine; use auto or cpu"):
            world.run("sft", tmp_path / "sft", loop={"device": "cuda"})
