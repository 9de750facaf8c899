"""Promises of denoising objectives in pretraining: the loss falls, shares are reported, steps can be looked at."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import MODEL, World

from chatloom.artifact import Artifact
from chatloom.cli import main
from chatloom.errors import ChatloomError
from chatloom.evaluation.heldout import objective_scores
from chatloom.model.transformer import Transformer
from chatloom.settings import SettingsError
from chatloom.stage import Line, Plan, PlanContext
from chatloom.stages import find
from chatloom.stages.pretrain import PretrainSettings, read_data
from chatloom.tokens.reserved import mode_ids, sentinel_ids
from chatloom.tokens.vocabulary import Vocabulary
from chatloom.training.bundle import load_bundle
from chatloom.training.forward import score
from chatloom.training.loop import Trainer
from chatloom.training.metrics import read_metrics
from chatloom.training.parallel.shares import nothing_of

KINDS = ("prefix-lm", "span-corruption", "ul2")


@pytest.fixture(scope="module")
def tokens(world: World, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The toy corpus under a vocabulary with 12 sentinels."""
    folder = tmp_path_factory.mktemp("denoising")
    world.run("tokenizer", folder / "tokenizer", vocab_size=320, sentinels=12)
    return world.run("tokens", folder / "tokens", inputs={"vocabulary": folder / "tokenizer"})


def trained(world: World, tokens: Artifact, out: Path, kind: str, **settings: Any) -> Artifact:
    values = {"epochs": 3, "objective": {"kind": kind}, **settings}
    return world.run("pretrain", out, inputs={"tokens": tokens.path}, **values)


@pytest.fixture(scope="module")
def made(world: World, tokens: Artifact, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("objectives")
    return {kind: trained(world, tokens, folder / kind, kind) for kind in KINDS}


def test_the_tokenizer_reserves_what_was_asked_for(tokens: Artifact) -> None:
    vocabulary = Vocabulary.load(tokens.path)
    assert vocabulary.size == 320
    assert sentinel_ids(vocabulary) == list(range(305, 317))
    assert sorted(mode_ids(vocabulary).values()) == [317, 318, 319]


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_every_objective_falls(made: dict[str, Artifact], kind: str) -> None:
    rows = read_metrics(made[kind].path / "metrics.jsonl").rows
    assert rows[0]["loss"] == pytest.approx(math.log(320), rel=0.05)
    assert rows[-1]["loss"] < rows[0]["loss"] - 1
    heldout = made[kind].metrics["heldout_objective"]["together"]
    assert heldout["nats_per_token"] < math.log(320) - 1
    assert made[kind].metrics["heldout"]["model"]["bits_per_byte"] > 0  # and as a language model


@pytest.mark.parametrize("kind", KINDS)
def test_the_share_of_tokens_with_loss_is_reported(made: dict[str, Artifact], kind: str) -> None:
    item = made[kind]
    rows = read_metrics(item.path / "metrics.jsonl").rows
    counted = sum(row["loss_share"] * row["tokens"] for row in rows) / sum(row["tokens"] for row in rows)
    assert item.metrics["loss_share"] == pytest.approx(counted, rel=0.05)
    low, high = {"prefix-lm": (0.45, 0.55), "span-corruption": (0.15, 0.3), "ul2": (0.28, 0.5)}[kind]
    assert low < item.metrics["loss_share"] < high
    heldout = item.metrics["heldout_objective"]
    names = {noise.name for noise in PretrainSettings.parse({"objective": {"kind": kind}}).objective.noises}
    assert set(heldout) - {"together"} <= names
    assert len(heldout) > min(len(names), 5)  # six documents are held out
    parts = [value for name, value in heldout.items() if name != "together"]
    assert sum(part["tokens"] for part in parts) == heldout["together"]["tokens"]
    nats = sum(part["tokens"] * part["nats_per_token"] for part in parts)
    assert nats == pytest.approx(heldout["together"]["tokens"] * heldout["together"]["nats_per_token"])
    assert json.loads(item.file("heldout_objective.json").read_text(encoding="utf-8")) == heldout


def test_language_modelling_reports_the_share_too(world: World) -> None:
    share = world["pretrain"].metrics["loss_share"]
    assert 0.9 < share < 1  # all but each piece's first token
    rows = read_metrics(world["pretrain"].path / "metrics.jsonl").rows
    assert rows[0]["loss_share"] == pytest.approx(share, abs=0.03)
    assert "heldout_objective" not in world["pretrain"].metrics


def test_the_objectives_loss_on_held_out_text_is_that_of_its_targets(
    made: dict[str, Artifact], tokens: Artifact
) -> None:
    item = made["span-corruption"]
    bundle = load_bundle(item.path)
    settings = PretrainSettings.parse(item.manifest["settings"])
    data = read_data([tokens.path], bundle.vocabulary, settings, MODEL["context"], 7)
    assert data.denoising is not None
    found = objective_scores([tokens.path], bundle, data.denoising, torch.device("cpu"))
    from chatloom.training.pretraining_data import open_stores

    store = open_stores([tokens.path], bundle.vocabulary, "held_out")
    nats = count = 0.0
    for document, length in enumerate(store.lengths.tolist()):
        step = data.denoising.longest[0]
        starts = list(range(0, length, step))
        ends = [*starts[1:], length]
        if ends[-1] - starts[-1] == 1:
            starts[-1] -= 1
            ends[-2] -= 1
        for start, end in zip(starts, ends):
            ids = store.read(document, start, end)
            segment = data.denoising.segment(
                ids, store.weights(document, start, end), 0, epoch=0, document=document, start=start
            )
            sequence = torch.from_numpy(segment.tokens)[None]
            with torch.no_grad():
                table = bundle.model.logits(bundle.model(sequence)).log_softmax(-1)[0]
            logprobs = table[:-1].gather(1, sequence[0, 1:, None])[:, 0]
            weights = torch.from_numpy(segment.supervised[1:])
            nats -= float((logprobs * weights).sum())
            count += float(weights.sum())
    assert found["together"]["tokens"] == count
    assert found["together"]["nats_per_token"] == pytest.approx(nats / count, rel=1e-4)


def test_a_prefix_decoder_reads_the_input_both_ways(world: World, tokens: Artifact, tmp_path: Path) -> None:
    model = {**MODEL, "prefix_decoder": True}
    item = trained(world, tokens, tmp_path / "both", "prefix-lm", epochs=1, model=model)
    bundle = load_bundle(item.path)
    settings = PretrainSettings.parse(item.manifest["settings"])
    network = Transformer(settings.model.config(bundle.vocabulary.size)).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():  # large ones, so that what is seen matters
        parameter.data.normal_(0, 0.3, generator=generator)

    @torch.no_grad()
    def loss(*, prefix_decoder: bool) -> float:
        data = read_data([tokens.path], bundle.vocabulary, settings, 40, 7, prefix_decoder=prefix_decoder)
        assert data.denoising is not None
        [batch] = data.batches(0, 100, bundle.vocabulary.pad_id)
        assert (batch.prefix is not None) is prefix_decoder
        scored = score(network, batch)
        return float((scored.logprobs * scored.weights).sum() / scored.weights.sum())

    assert loss(prefix_decoder=True) != pytest.approx(loss(prefix_decoder=False), rel=1e-3)
    data = read_data([tokens.path], bundle.vocabulary, settings, 40, 7, prefix_decoder=True)
    row = data.rows(0)[0]
    [batch] = data.batches(0, 1, bundle.vocabulary.pad_id)[:1]
    scored = score(network, batch)
    alone = []
    for segment in data.segments(row):
        sequence = torch.from_numpy(segment.tokens)[None]
        marks = (torch.arange(len(segment)) < segment.prefix)[None]
        with torch.no_grad():
            table = network.logits(network(sequence, prefix=marks)).log_softmax(-1)[0]
        places = torch.from_numpy(segment.supervised[1:]).nonzero()[:, 0]
        alone.append(table[places, sequence[0, places + 1]])
    torch.testing.assert_close(scored.logprobs, torch.cat(alone), atol=1e-4, rtol=0)


def test_a_batch_of_nothing_has_no_prefix_either(tokens: Artifact) -> None:
    settings = PretrainSettings.parse({"objective": {"kind": "prefix-lm"}, "model": MODEL})
    vocabulary = Vocabulary.load(tokens.path)
    data = read_data([tokens.path], vocabulary, settings, MODEL["context"], 7, prefix_decoder=True)
    [batch] = data.batches(0, 100, vocabulary.pad_id)
    empty = nothing_of(batch)
    assert batch.n_keys > 0
    assert empty.n_keys == 0
    assert not empty.prefix.any()


def test_a_prefix_decoder_that_no_objective_trains_is_warned_of(tokens: Artifact) -> None:
    settings = {"model": {**MODEL, "prefix_decoder": True}}
    [warning] = planned(PretrainSettings.parse(settings), tokens).warnings
    assert "objective.kind: prefix-lm" in warning
    settings["objective"] = {"kind": "prefix-lm"}
    assert not planned(PretrainSettings.parse(settings), tokens).warnings


def test_the_same_seed_gives_the_same_bytes_whatever_the_micro_batches(
    world: World, tokens: Artifact, tmp_path: Path
) -> None:
    runs = [trained(world, tokens, tmp_path / f"{n}", "ul2", epochs=0.5, seed=seed) for n, seed in enumerate((7, 7, 8))]
    hashes = [item.manifest["files"]["model.safetensors"]["sha256"] for item in runs]
    assert hashes[0] == hashes[1] != hashes[2]
    other = trained(world, tokens, tmp_path / "small", "ul2", epochs=0.5, loop={"micro_batch_tokens": MODEL["context"]})
    losses = [[row["loss"] for row in read_metrics(x.path / "metrics.jsonl").rows] for x in (runs[0], other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(
    world: World, tokens: Artifact, made: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, steps = Trainer.update, made["ul2"].metrics["steps"]

    def stopping(self: Trainer, *given: Any) -> dict[str, float]:
        if self.updates == steps // 2:
            raise KeyboardInterrupt
        return update(self, *given)

    loop = {"checkpoint_every": 2}
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", stopping)
        with pytest.raises(KeyboardInterrupt):
            trained(world, tokens, tmp_path / "ul2", "ul2", loop=loop)
    again = trained(world, tokens, tmp_path / "ul2", "ul2", loop=loop)
    assert again.manifest["attempts"] == 2
    for name in ("model.safetensors", "heldout_objective.json"):
        assert (again.path / name).read_bytes() == (made["ul2"].path / name).read_bytes()


def test_a_step_can_be_looked_at_with_readable_sentinels(
    made: dict[str, Artifact], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(made["ul2"].path), "--step", "2", "--samples", "8"]) == 0
    shown = capsys.readouterr().out
    assert "denoised by R 3 15%" in shown or "denoised by X 3 50%" in shown
    assert "⟦<extra_id_0>⟧·⟦" in shown  # the target begins
    assert "\n<extra_id_0>" not in shown
    assert any(f"\n[{mode}]·" in shown for mode in ("NLU", "NLG", "S2S"))
    settings = PretrainSettings.parse(made["ul2"].manifest["settings"])
    vocabulary = Vocabulary.load(made["ul2"].path)
    [folder] = [made["ul2"].path / entry["path"] for entry in made["ul2"].manifest["inputs"]["tokens"]]
    data = read_data([folder], vocabulary, settings, MODEL["context"], 7)
    [batch] = data.batches(1, 100, vocabulary.pad_id)
    assert shown.count("⟦") == len(batch.supervised)


def test_a_vocabulary_without_sentinels_is_refused_before_anything_runs(world: World, tmp_path: Path) -> None:
    with pytest.raises(ChatloomError, match=r"needs sentinel tokens .*`sentinels: 100` in stage `tokenizer`"):
        trained(world, world["tokens"], tmp_path / "pretrain", "span-corruption")
    settings = PretrainSettings.parse({"objective": {"kind": "ul2"}, "model": MODEL})
    [refusal] = planned(settings, world["tokens"]).refusals
    assert "sentinel tokens" in refusal
    with pytest.raises(SettingsError, match=r"objective\.kind"):
        PretrainSettings.parse({"objective": {"kind": "mlm"}})


def planned(settings: PretrainSettings, tokens: Artifact | Plan) -> Plan:
    make = find("pretrain").plan
    assert make is not None
    plans = {"tokens.0": tokens} if isinstance(tokens, Plan) else {}
    inputs = {} if isinstance(tokens, Plan) else {"tokens": [tokens]}
    return make(PlanContext(settings, inputs, plans, threads=1, flops_per_second=1e9))


def test_the_plan_says_what_share_carries_loss(tokens: Artifact) -> None:
    plain = planned(PretrainSettings.parse({"model": MODEL}), tokens)
    assert plain.value("loss_share") == 1.0
    for kind in KINDS:
        plan = planned(PretrainSettings.parse({"model": MODEL, "objective": {"kind": kind}}), tokens)
        assert not plan.refusals
        assert 0.1 < plan.value("loss_share") < 0.6
        assert plan.value("tokens") >= plain.value("tokens")
        assert "longest text" in plan.notes[0].text


def test_a_tokenizer_to_come_tells_the_plan_how_many_sentinels_it_will_have() -> None:
    settings = PretrainSettings.parse({"model": MODEL, "objective": {"kind": "ul2"}})
    lines = (Line("corpus_tokens", 1e6, "tokens"), Line("vocabulary", 4096, "entries"))
    for sentinels, refused in ((0, True), (100, False)):
        plan = planned(settings, Plan((*lines, Line("sentinels", sentinels, "entries"))))
        assert bool(plan.refusals) is refused
    assert not planned(settings, Plan(lines)).refusals  # nothing tells


def test_extending_a_vocabulary_can_reserve_sentinels_for_a_model_that_is_there(world: World, tmp_path: Path) -> None:
    extended = world_stage("extend-tokenizer", tmp_path / "words", {"vocabulary": world["pretrain"].path},
                           new_entries=0, sentinels=4)  # fmt: skip
    model = world_stage("extend-model", tmp_path / "grown", {"model": world["pretrain"].path,
                                                             "vocabulary": extended.path})  # fmt: skip
    vocabulary = load_bundle(model.path).vocabulary
    assert len(sentinel_ids(vocabulary)) == 4
    assert len(mode_ids(vocabulary)) == 3
    assert load_bundle(model.path).model.config.vocab_size == 307


def world_stage(kind: str, out: Path, inputs: dict[str, Any], **settings: Any) -> Artifact:
    from chatloom import recipe

    return recipe.run_stage(kind, settings, inputs, out, seed=7, quiet=True)
