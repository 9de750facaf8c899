"""Promises of stage `tokens`: one pass in flat memory, labels kept, conversations as instruction tuning has them."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from toys import World, conversation, dialogues, make_artifact, question

from chatloom.artifact import Artifact
from chatloom.corpus.record import Document, write_documents
from chatloom.dialogue.record import Conversation, Message
from chatloom.dialogue.template import ChatTemplate
from chatloom.errors import ChatloomError
from chatloom.recipe import PlanRefused
from chatloom.stages import tokens as stage
from chatloom.tokens.megatron import export_megatron
from chatloom.tokens.store import TokenStore
from chatloom.tokens.vocabulary import Vocabulary

LABELS = {"split": pa.string(), "quality": pa.float64(), "spans": pa.list_(pa.int64())}


def shards(folder: Path, parts: list[list[Document]]) -> Artifact:
    def write(target: Path) -> None:
        (target / "shards").mkdir()
        for number, documents in enumerate(parts):
            write_documents(target / "shards" / f"{number:05d}.parquet", documents, LABELS)

    return make_artifact(folder, "documents", write, folder=folder.name)


def documents(count: int, first: int = 0, words: int = 6) -> list[Document]:
    return [
        Document(
            f"d{n}", f"the colour of {n} is blue. " * words, source=f"s{n % 3}",
            labels={"split": "held_out" if n % 4 == 3 else "train", "quality": n / 10, "spans": [0, n] if n else None},
        )
        for n in range(first, first + count)
    ]  # fmt: skip


def test_shards_are_read_in_order_and_their_labels_travel_with_the_tokens(world: World, tmp_path: Path) -> None:
    made = shards(tmp_path / "documents", [documents(5), documents(4, 5)])
    out = world.run("tokens", tmp_path / "tokens", inputs={"documents": [made.path]})
    vocabulary = Vocabulary.load(out.path)
    train, held_out = (TokenStore(out.path, vocabulary, name=name, verify=True) for name in ("train", "held_out"))
    assert [row["id"] for row in train.describe(range(len(train)))] == ["d0", "d1", "d2", "d4", "d5", "d6", "d8"]
    assert [row["id"] for row in held_out.describe(range(len(held_out)))] == ["d3", "d7"]
    assert train.describe([4])[0] | {"start": 0} == {
        "id": "d5", "kind": "document", "source": "s2", "start": 0, "length": len(train.read(4)),
        "labels": {"split": "train", "quality": 0.5, "spans": [0, 5]},
    }  # fmt: skip
    assert vocabulary.decode(train.read(4)[1:-1].tolist()) == documents(1, 5)[0].text
    assert train.read(4)[[0, -1]].tolist() == [vocabulary.eos_id] * 2
    assert not train.has_mask
    assert out.metrics["train"] == {"documents": 7, "tokens": train.n_tokens}
    assert json.loads((out.path / "counts.json").read_text(encoding="utf-8"))["held_out"]["documents"] == 2


def test_one_label_with_two_types_is_refused(world: World, tmp_path: Path) -> None:
    first = shards(tmp_path / "a", [documents(2)])
    second = make_artifact(
        tmp_path / "b", "documents",
        lambda target: write_documents(target / "shards" / "0.parquet", [], {"quality": pa.string()}),
    )  # fmt: skip
    with pytest.raises(ChatloomError, match=r"label `quality` is double in .* and string in .*; make them alike"):
        world.run("tokens", tmp_path / "tokens", inputs={"documents": [first.path, second.path]})


def test_memory_does_not_grow_with_the_corpus(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatloom.tokens.store_writer.ROW_GROUP", 64)  # what is held back at most

    def peak(count: int) -> int:
        made = shards(tmp_path / f"documents{count}", [documents(500, n, words=20) for n in range(0, count, 500)])
        context = world.context("tokens", tmp_path / f"out{count}")
        context.inputs = {**context.inputs, "documents": [made]}
        tracemalloc.start()
        stage.run(context)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    few, many = peak(1000), peak(5000)
    assert many < 1.2 * few


@pytest.mark.parametrize("loss", ["assistant", "all"])
def test_conversations_are_rendered_and_masked_as_in_instruction_tuning(
    world: World, tmp_path: Path, loss: str
) -> None:
    talks = [conversation(1, "sky", "blue"), Conversation("silent", question("coal")), conversation(2, "雪", "白色")]
    made = dialogues(tmp_path / "talks", sft=talks)
    out = world.run("tokens", tmp_path / "tokens", inputs={"conversations": [made.path]}, conversation_loss=loss)
    vocabulary = Vocabulary.load(out.path)
    store = TokenStore(out.path, vocabulary, name="train", verify=True)
    rows = store.describe(range(len(store)))
    found = {row["id"]: n for n, row in enumerate(rows) if row["kind"] == "conversation"}
    assert list(found) == (["c1", "c2"] if loss == "assistant" else ["c1", "silent", "c2"])
    assert out.metrics.get("nothing_to_learn") == (1 if loss == "assistant" else None)
    for talk in (talks[0], talks[2]):
        rendered = ChatTemplate().render(talk.messages, vocabulary)
        assert store.read(found[talk.id]).tolist() == rendered.ids
        expected = rendered.mask if loss == "assistant" else [1.0] * len(rendered.ids)
        assert store.weights(found[talk.id]).tolist() == expected
    assert store.has_mask == (loss == "assistant")
    assert store.weights(0).all()  # a document among them is learnt whole
    assert not (out.path / "held_out.mask.bin").exists()


def test_weights_between_nothing_and_all_are_refused(world: World, tmp_path: Path) -> None:
    half = Conversation("half", [*question("sky"), Message("assistant", "blue", weight=0.5)])
    made = dialogues(tmp_path / "talks", sft=[half])
    with pytest.raises(ChatloomError, match=r"'half' has a loss mask .* each 0 or 1"):
        world.run("tokens", tmp_path / "tokens", inputs={"conversations": [made.path]})


def test_token_files_of_megatron_are_taken_in(world: World, tmp_path: Path) -> None:
    vocabulary = Vocabulary.load(world["tokens"].path)
    store = TokenStore(world["tokens"].path, vocabulary, name="train")
    export_megatron(store, tmp_path / "theirs")
    out = world.run("tokens", tmp_path / "tokens", inputs={"documents": None, "megatron": [tmp_path / "theirs.idx"]})
    again = TokenStore(out.path, vocabulary, name="train")
    assert np.array_equal(np.concatenate(list(again)), np.concatenate(list(store)))
    assert again.lengths.tolist() == store.lengths.tolist()
    assert again.describe([3])[0]["id"] == "theirs:3"
    assert (out.path / "train.bin").read_bytes() == (tmp_path / "theirs.bin").read_bytes()


def test_nothing_to_read_is_refused_by_the_plan(world: World, tmp_path: Path) -> None:
    with pytest.raises(PlanRefused, match="give `documents`, `conversations` or `megatron`"):
        world.run("tokens", tmp_path / "tokens", inputs={"documents": None})
