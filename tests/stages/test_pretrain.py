"""Promises of tokenizer, tokens and pretraining: the loss falls, held-out bits are right, odd corpora are said."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from toys import MODEL, World, make_artifact

from chatloom.artifact import Artifact
from chatloom.corpus.record import Document, write_documents
from chatloom.errors import ChatloomError
from chatloom.evaluation.heldout import baseline_documents, model_logprobs
from chatloom.stages.pretrain import PretrainSettings, _rows_at_once
from chatloom.tokens.store import TokenStore
from chatloom.tokens.vocabulary import Vocabulary
from chatloom.training.bundle import load_bundle
from chatloom.training.metrics import read_metrics
from chatloom.training.model_settings import ModelSettings
from chatloom.training.pretraining_data import open_stores
from chatloom.training.session import wants_compiled
from chatloom.training.settings import LoopSettings


def corpus(folder: Path, texts: Sequence[str], split: str = "train") -> Artifact:
    documents = [Document(f"d{i}", text, source="toy", labels={"split": split}) for i, text in enumerate(texts)]
    return make_artifact(
        folder,
        "documents",
        lambda target: write_documents(target / "shards" / "0.parquet", documents, {"split": pa.string()}),
    )


def test_the_loss_falls_and_the_model_beats_single_tokens(world: World) -> None:
    rows = read_metrics(world["pretrain"].path / "metrics.jsonl").rows
    assert rows[0]["loss"] == pytest.approx(math.log(300), rel=0.05)
    assert rows[-1]["loss"] < rows[0]["loss"] - 1.5
    heldout = world["pretrain"].metrics["heldout"]
    assert heldout["model"]["bits_per_byte"] < heldout["unigram"]["bits_per_byte"]
    assert heldout["trigram"]["bits_per_byte"] < heldout["unigram"]["bits_per_byte"]


def test_z_loss_is_told_apart_and_both_penalties_change_what_is_learned(world: World, tmp_path: Path) -> None:
    def run(name: str, **changes: float) -> tuple[bytes, list[dict[str, float]]]:
        made = world.run("pretrain", tmp_path / name, epochs=0.5, **changes)
        return (made.path / "model.safetensors").read_bytes(), read_metrics(made.path / "metrics.jsonl").rows

    plain, plain_rows = run("plain")
    with_z, rows = run("z", z_loss=0.01)
    shrunk, _ = run("shrunk", embedding_gradient_share=0.1)
    assert len({plain, with_z, shrunk}) == 3
    assert "nll" not in plain_rows[0]
    for row in rows:
        assert row["loss"] == pytest.approx(row["nll"] + row["z_loss"], rel=1e-5)
    # A new model's logits are near 0, so its normaliser is ln(vocabulary).
    assert rows[0]["z_loss"] == pytest.approx(0.01 * math.log(300) ** 2, rel=0.05)
    assert rows[0]["nll"] == pytest.approx(plain_rows[0]["loss"], rel=1e-6)


def test_every_heldout_token_is_predicted_once_in_pieces_of_the_context(world: World) -> None:
    bundle = load_bundle(world["pretrain"].path)
    store = TokenStore(world["tokens"].path, bundle.vocabulary, name="held_out")
    documents = [*list(store), torch.randint(6, 262, (131,), generator=torch.Generator().manual_seed(0)).numpy()]
    assert max(map(len, documents)) > 3 * 40
    found = list(model_logprobs(bundle, documents, torch.device("cpu")))
    for ids, logprobs in zip(documents, found, strict=True):
        assert len(logprobs) == len(ids) - 1
        assert (logprobs < 0).all()
        for start in range(0, len(ids) - 1, 39):  # pieces share one token
            piece = torch.tensor(ids[start : start + 40].astype("int64"))[None]
            with torch.no_grad():
                table = bundle.model.logits(bundle.model(piece)).log_softmax(-1)[0]
            expected = table[:-1].gather(1, piece[0, 1:, None])[:, 0]
            part = torch.tensor(logprobs[start : start + len(expected)], dtype=torch.float32)
            torch.testing.assert_close(part, expected, atol=1e-4, rtol=0)


def test_bits_per_byte_are_nats_over_bytes(world: World) -> None:
    bundle = load_bundle(world["pretrain"].path)
    store = TokenStore(world["tokens"].path, bundle.vocabulary, name="held_out")
    documents = list(store)
    nats = n_bytes = 0.0
    for ids, logprobs in zip(documents, model_logprobs(bundle, documents, torch.device("cpu")), strict=True):
        sizes = bundle.vocabulary.bytes_per_id[ids[1:]]
        nats -= float(logprobs[sizes > 0].sum())  # the document's end is no text
        n_bytes += int(sizes.sum())
    heldout = world["pretrain"].metrics["heldout"]["model"]
    assert heldout["bytes"] == n_bytes
    assert heldout["bits_per_byte"] == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-5)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(world: World, tmp_path: Path) -> None:
    made = [
        world.run("pretrain", tmp_path / f"{i}", epochs=0.2, seed=seed).manifest["files"]["model.safetensors"]["sha256"]
        for i, seed in enumerate((7, 7, 8))
    ]
    assert made[0] == made[1] != made[2]


def test_a_corpus_of_one_document_can_be_trained_on(world: World, tmp_path: Path) -> None:
    documents = corpus(tmp_path / "documents", ["the colour of sky is blue. " * 30])
    vocabulary = world.run(
        "tokenizer", tmp_path / "tokenizer", inputs={"documents": [documents.path], "conversations": None},
        allow_smaller=True,
    )  # fmt: skip
    tokens = world.run(
        "tokens", tmp_path / "tokens", inputs={"documents": [documents.path], "vocabulary": vocabulary.path}
    )
    made = world.run("pretrain", tmp_path / "pretrain", inputs={"tokens": tokens.path}, epochs=3)
    assert made.metrics["heldout"] == {}  # nothing is held out, and nothing is made up
    assert made.metrics["steps"] >= 1
    assert made.metrics["skipped_steps"] == 0


def test_a_corpus_that_is_held_out_whole_is_refused(world: World, tmp_path: Path) -> None:
    documents = corpus(tmp_path / "documents", ["the colour of sky is blue."], split="heldout")
    with pytest.raises(ChatloomError, match=r"stage `tokens`.*no document is on the training side"):
        world.run("tokens", tmp_path / "tokens", inputs={"documents": [documents.path]})


def test_a_vocabulary_larger_than_the_text_supports_is_refused_with_the_number(world: World, tmp_path: Path) -> None:
    with pytest.raises(ChatloomError, match=r"5000 entries was asked for.*support only \d+.*set vocab_size to \d+"):
        world.run("tokenizer", tmp_path / "tokenizer", vocab_size=5000)
    made = world.run("tokenizer", tmp_path / "smaller", vocab_size=5000, allow_smaller=True)
    assert 300 < made.metrics["vocab_size"] < 5000


def test_a_vocabulary_without_room_for_the_bytes_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(ChatloomError, match="vocab_size is 200; six special tokens and 256 bytes need 262"):
        world.run("tokenizer", tmp_path / "tokenizer", vocab_size=200)


def test_sizes_that_do_not_divide_are_refused_before_anything_runs(world: World, tmp_path: Path) -> None:
    with pytest.raises(ChatloomError, match=r"(?i)kv|heads"):
        world.run("pretrain", tmp_path / "pretrain", model={**MODEL, "n_kv_heads": 3})
    assert not (tmp_path / "pretrain.partial").exists()


def test_the_default_width_of_the_feed_forward_is_eight_thirds() -> None:
    assert ModelSettings(hidden_size=96).config(300).intermediate_size == 256
    assert ModelSettings(hidden_size=32).config(300).intermediate_size == 88  # 85.3, up to a multiple of 8


def test_the_n_gram_baselines_count_an_even_choice_of_a_large_corpus(world: World) -> None:
    training = open_stores([world["tokens"].path], Vocabulary.load(world["tokens"].path))
    everything = list(baseline_documents(training, 10**9))
    assert [ids.tolist() for ids in everything] == [ids.tolist() for ids in training.stores[0]]
    some = list(baseline_documents(training, int(training.lengths.sum()) // 3))
    assert len(some) == round(len(training) / 3)
    assert some[-1].tolist() == training.read((len(some) - 1) * len(training) // len(some)).tolist()


@pytest.mark.parametrize(("micro_batch_tokens", "equal", "expected"), [(64, False, 4), (80, True, 4), (1000, True, 62)])
def test_compiled_micro_batches_are_all_of_one_size(micro_batch_tokens: int, equal: bool, expected: int) -> None:
    settings = PretrainSettings.parse({"batch_rows": 12, "loop": {"micro_batch_tokens": micro_batch_tokens}})
    rows = _rows_at_once(settings, 16, sizes=[12], equal=equal)
    assert rows == expected
    assert not equal or 12 % min(rows, 12) == 0
    growing = _rows_at_once(settings, 16, sizes=[6, 9, 12], equal=equal)
    assert growing == (3 if equal else expected)  # every size is a number of whole micro-batches


def test_compiling_without_triton_is_refused_where_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatloom.training.session.find_spec", lambda _: None)
    config = ModelSettings().config(300)
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert not wants_compiled(LoopSettings.parse({}), cpu, config)
    assert not wants_compiled(LoopSettings.parse({}), cuda, config)  # and says that it is slower
    assert not wants_compiled(LoopSettings.parse({"compile": "off"}), cuda, config)
    with pytest.raises(ChatloomError, match="triton"):
        wants_compiled(LoopSettings.parse({"compile": "on"}), cuda, config)
    monkeypatch.setattr("chatloom.training.session.find_spec", lambda _: object())
    assert wants_compiled(LoopSettings.parse({}), cuda, config)
    experts = replace(config, n_experts=4)
    assert not wants_compiled(LoopSettings.parse({}), cuda, experts)
    with pytest.raises(ChatloomError, match="mixture of experts"):
        wants_compiled(LoopSettings.parse({"compile": "on"}), cuda, experts)
