"""Promises of pretraining on mixtures and from a model: exact counts, resume, refusals, steps that can be looked at."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toys import CPU, MODEL, World

from chatloom import recipe
from chatloom.artifact import Artifact
from chatloom.cli import main
from chatloom.cli.batches import training_data
from chatloom.errors import ChatloomError
from chatloom.model.transformer import Transformer
from chatloom.recipe import PlanRefused
from chatloom.stage import Context
from chatloom.stages.pretrain import ModelSettings, PretrainSettings, read_data
from chatloom.tokens.store import TokenStore
from chatloom.tokens.vocabulary import Vocabulary
from chatloom.training.bundle import load_bundle
from chatloom.training.metrics import read_metrics
from chatloom.training.next_token_loss import NextTokenLoss
from chatloom.training.optimizers import ScheduledOptimizer
from chatloom.training.start import NewRowsFirst
from chatloom.training.trainer import Trainer

UPDATE = Trainer.update


def stop_after(steps: int) -> Callable[..., dict[str, float]]:
    """An update that is interrupted, as by Ctrl-C, when it is called once more than `steps` times."""
    left = iter(range(steps))

    def counted(self: Trainer, *args: Any) -> dict[str, float]:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return UPDATE(self, *args)

    return counted


# --- mixtures ---------------------------------------------------------------------------------------------------------

MIXTURE: dict[str, Any] = {
    "sources": [{"name": "talk", "where": 'kind == "conversation"'}, {"name": "text"}],
    "stages": [
        {"name": "early", "epochs": {"text": 0.6}},
        {"name": "annealing", "tokens": 1500, "weights": {"text": 1}, "epochs": {"talk": 1}},
    ],
}


@pytest.fixture(scope="module")
def two_stores(world: World, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The toy's documents in one store, its conversations in another."""
    world.prepare("tokens")
    talks = world.run(
        "tokens", tmp_path_factory.mktemp("talks") / "talks",
        inputs={"documents": None, "conversations": [world["conversations"].path]},
    )  # fmt: skip
    return [world["tokens"].path, talks.path]


@pytest.fixture(scope="module")
def mixed(world: World, two_stores: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("mixed") / "pretrain"
    return world.run("pretrain", out, inputs={"tokens": two_stores}, mixture=MIXTURE, epochs=1)


def test_a_mixture_is_trained_on_and_told_in_exact_numbers(mixed: Artifact, two_stores: list[Path]) -> None:
    told = json.loads((mixed.path / "mixture.json").read_text(encoding="utf-8"))
    assert {(item["stage"], item["source"]) for item in told} == {
        ("early", "text"), ("annealing", "text"), ("annealing", "talk"),
    }  # fmt: skip
    talk = next(item for item in told if item["source"] == "talk")
    store = TokenStore(two_stores[1], name="train")
    assert talk["tokens"] == int(store.lengths.sum()) - len(store)
    assert talk["epochs"] == 1
    assert told == mixed.metrics["mixture"]
    rows = sum(item["rows"] for item in told)
    assert mixed.metrics["steps"] == -(-rows // 8)
    assert "stage `annealing`" in (mixed.path / "mixture.txt").read_text(encoding="utf-8")
    losses = [row["loss"] for row in read_metrics(mixed.path / "metrics.jsonl").rows]
    assert losses[-1] < losses[0] - 0.5


def test_a_mixture_that_was_killed_goes_on_to_the_same_weights(
    mixed: Artifact, world: World, two_stores: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(**loop: Any) -> Artifact:
        inputs = {"tokens": two_stores}
        return world.run("pretrain", tmp_path / "pretrain", inputs=inputs, mixture=MIXTURE, epochs=1, loop=loop)

    for steps in (3, 9):  # in the first stage; then, having gone on, in the second
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "update", stop_after(steps))
            with pytest.raises(KeyboardInterrupt):
                run(checkpoint_every=2)
    again = run()
    for name in ("model.safetensors", "state/optimizer.safetensors", "mixture.json"):
        assert (again.path / name).read_bytes() == (mixed.path / name).read_bytes()


def test_a_growing_batch_muon_and_a_late_decay_go_on_to_the_same_weights(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(name: str, **loop: Any) -> Artifact:
        return world.run(
            "pretrain", tmp_path / name, epochs=2, loop=loop, batch_ramp={"first_rows": 2, "share": 0.5},
            optimizer={"name": "muon", "schedule": "wsd", "decay": 0.3},
        )  # fmt: skip

    whole = run("whole")
    for steps in (3, 6):  # while the batch grows, and when it is whole
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "update", stop_after(steps))
            with pytest.raises(KeyboardInterrupt):
                run("parts", checkpoint_every=2)
    parts = run("parts")
    for name in ("model.safetensors", "state/optimizer.safetensors"):
        assert (parts.path / name).read_bytes() == (whole.path / name).read_bytes()
    rows = read_metrics(whole.path / "metrics.jsonl").rows
    assert rows[0]["tokens"] < 0.5 * rows[-1]["tokens"]
    assert rows[-1]["loss"] < rows[0]["loss"] - 1
    assert rows[len(rows) // 2]["lr"] == pytest.approx(3e-3)
    assert rows[-1]["lr"] == pytest.approx(3e-4)
    monkeypatch.setenv("COLUMNS", "200")
    first = 0
    for step in range(1, len(rows) + 1):
        capsys.readouterr()
        assert main(["inspect", str(whole.path), "--step", str(step), "-n", "0"]) == 0
        title = re.search(rf"step {step} of {len(rows)}: rows (\d+) to (\d+)", capsys.readouterr().out)
        assert title is not None
        assert int(title[1]) == first
        first = int(title[2]) + 1
    counts = _row_counts(whole)
    assert sorted(set(counts)) == [2, 4, 6, 8]
    assert first == sum(counts)


def _row_counts(made: Artifact) -> list[int]:
    """Rows of each step, from the settings in the manifest."""
    data, _ = training_data(made)
    return [len(data.rows(step)) for step in range(data.n_steps)]


def test_inspect_names_the_documents_labels_and_source_of_a_steps_batch(
    mixed: Artifact, two_stores: list[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    step = mixed.metrics["steps"] - 1
    assert main(["inspect", str(mixed.path), "--step", str(step), "--samples", "1"]) == 0
    shown = capsys.readouterr().out
    assert f"step {step} of {step + 1}: rows {8 * step - 8} to {8 * step - 1}" in shown
    assert re.search(r"row \d+: talk, pass 1, stage `annealing`\n  [cm]\d+ \(\), tokens 0 to \d+ of \d+", shown)
    assert re.search(r"row \d+: text, pass 1, stage `annealing`\n  d\d+ \(split train\), tokens \d+ to", shown)
    assert shown.count("⟦") > 3
    assert main(["inspect", str(mixed.path), "--step", "9999"]) == 1
    assert f"trained in steps 1 to {step + 1}" in capsys.readouterr().err
    assert main(["inspect", str(mixed.path), "--samples", "2", "--skip", "3", "--no-verify"]) == 0
    shown = capsys.readouterr().out
    assert "row 3: text, pass 1, stage `early`" in shown
    assert "row 4: text" in shown
    assert main(["inspect", str(two_stores[0]), "--step", "1"]) == 1
    assert "steps are known of what stage `pretrain` made" in capsys.readouterr().err


def test_inspect_does_not_explain_a_model_by_tokens_that_were_made_anew(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = world.run("tokens", tmp_path / "tokens")
    world.run("pretrain", tmp_path / "pretrain", inputs={"tokens": [tokens.path]}, epochs=0.1)
    assert main(["inspect", str(tmp_path / "pretrain"), "--step", "1"]) == 0
    shutil.rmtree(tokens.path)
    world.run("tokens", tmp_path / "tokens", mark_ends=False)
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "pretrain"), "--step", "1"]) == 1
    assert "put back what was there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        (
            {"sources": [{"name": "all"}], "stages": [{"name": "s", "tokens": 1e6, "weights": {"all": 1}}]},
            "mixture source `all`: stages ask for 1 M tokens",
        ),
        (
            {"sources": [{"name": "a", "where": "lenght > 3"}], "stages": [{"name": "s", "epochs": {"a": 1}}]},
            "there is no label `lenght`; did you mean `length`",
        ),
        (
            {"sources": [{"name": "a", "where": "length >"}], "stages": [{"name": "s", "epochs": {"a": 1}}]},
            "`length >`: cannot be read",
        ),
        ({"sources": [{"name": "all"}]}, "give both `sources` and `stages`"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused_by_the_plan(
    world: World, tmp_path: Path, mixture: dict[str, Any], message: str
) -> None:
    with pytest.raises(PlanRefused, match=re.escape(message)):
        world.run("pretrain", tmp_path / "pretrain", mixture=mixture, epochs=1)
    assert not (tmp_path / "pretrain.partial").exists()


def test_epochs_beside_a_mixture_are_refused(world: World, tmp_path: Path) -> None:
    mixture = {"sources": [{"name": "all"}], "stages": [{"name": "s", "epochs": {"all": 1}}]}
    with pytest.raises(PlanRefused, match="its stages say how much is read"):
        world.run("pretrain", tmp_path / "pretrain", mixture=mixture, epochs=2)


def test_chatloom_plan_prints_the_table_of_the_mixture(
    world: World, two_stores: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = {"stage": "pretrain", "tokens": [{"path": str(path)} for path in two_stores], "model": MODEL}
    (tmp_path / "mix.yaml").write_text(json.dumps({"stages": {"base": {**stage, "mixture": MIXTURE}}}))
    assert main(["plan", str(tmp_path / "mix.yaml"), "--out", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "`base` reads\nstage `early`" in shown
    title = re.search(r"`base` learns by adamw in (\d+) steps: from 0.001, cosine to 0.0001\n0.001 │█", shown)
    assert title is not None
    data = read_data(
        two_stores, Vocabulary.load(two_stores[0]), PretrainSettings.parse({"mixture": MIXTURE}), MODEL["context"], 0
    )
    assert int(title[1]) == data.n_steps  # what is planned is what is run
    assert re.search(r"all stages +weight +epochs +tokens +of +documents +disk\n  talk +[\d.]+% +1.00", shown)
    assert (
        main(["plan", str(tmp_path / "mix.yaml"), "--set", "base.mixture.stages=[{name: s, epochs: {talk: 9}}]"]) == 2
    )
    assert "max_epochs is 4" in capsys.readouterr().err
    growing = ["--set", "base.batch_ramp={first_rows: 1, increment: 1, share: 0.4}", "--set", "base.batch_rows=3"]
    assert main(["plan", str(tmp_path / "mix.yaml"), *growing]) == 0
    assert re.search(
        r"`base` reads 1 of 3 rows a step at first, all from step \d+ of \d+\n3 │ +▃+█", capsys.readouterr().out
    )
    assert main(["plan", str(tmp_path / "mix.yaml"), "--set", "base.batch_ramp={first_rows: 1}"]) == 2
    assert "lower `share`" in capsys.readouterr().err
    assert main(["plan", str(tmp_path / "mix.yaml"), "--set", "base.optimizer.warmup_steps=5000"]) == 2
    assert re.search(r"5000 steps of warm-up do not fit into \d+ steps", capsys.readouterr().err)


# --- going on from a model --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def extended(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy's model, said to have got its rows from 290 on just now."""
    folder = tmp_path_factory.mktemp("start") / "extended"
    shutil.copytree(world["pretrain"].path, folder, ignore=shutil.ignore_patterns("artifact.json", "state", "*.jsonl"))
    (folder / "extension.json").write_text('{"first_new_id": 290}', encoding="utf-8")
    return folder


def go_on(world: World, out: Path, start: Path, **changes: Any) -> Artifact:
    settings = {"epochs": 1, "batch_rows": 8, "optimizer": {"lr": 3e-3}, "loop": CPU, **changes}
    inputs = {"tokens": [world["tokens"].path], "start": start}
    return recipe.run_stage("pretrain", settings, inputs, out, seed=7, quiet=True)


def changed(one: Path, two: Path) -> dict[str, torch.Tensor]:
    before, after = (load_file(folder / "model.safetensors") for folder in (one, two))
    return {name: (before[name] != after[name]).reshape(len(before[name]), -1).any(1) for name in before}


def test_new_rows_alone_learn_at_first_and_everything_later(world: World, extended: Path, tmp_path: Path) -> None:
    new = go_on(world, tmp_path / "new", extended, train_new_rows_first=99)
    found = changed(extended, new.path)
    assert found.pop("model.embed_tokens.weight").nonzero().flatten().tolist() == list(range(290, 300))
    assert not any(rows.any() for rows in found.values())
    both = go_on(world, tmp_path / "both", extended, train_new_rows_first=4)
    assert all(rows.any() for rows in changed(extended, both.path).values())
    all_along = go_on(world, tmp_path / "all", extended)
    assert changed(both.path, all_along.path)["model.norm.weight"].any()
    assert (
        all_along.metrics["heldout"]["model"]["bits_per_byte"]
        < world["pretrain"].metrics["heldout"]["model"]["bits_per_byte"]
    )  # it went on, and did not begin anew
    assert main(["inspect", str(both.path), "--step", "2", "-n", "0"]) == 0


def test_old_rows_of_an_output_matrix_of_its_own_do_not_even_decay(extended: Path, tmp_path: Path) -> None:
    config = ModelSettings.parse({**MODEL, "tie_embeddings": False}).config(300)
    model = Transformer(config, generator=torch.Generator().manual_seed(0))
    settings = PretrainSettings.parse({"train_new_rows_first": 2, "optimizer": {"lr": 0.1, "weight_decay": 0.5}})
    optimizer = ScheduledOptimizer({"model": model}, {"model": settings.optimizer}, 10)
    start = Artifact(extended, {})
    context = Context(settings, {"start": start}, tmp_path, 0, "pretrain", "model", quiet=True)
    new_rows_first = NewRowsFirst(context, model, optimizer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tokens = torch.randint(6, 300, (2, 20), generator=torch.Generator().manual_seed(1))
    moved = []
    for step in range(3):
        new_rows_first(step)
        optimizer.zero_grad()
        model.logits(model(tokens)).square().mean().backward()
        optimizer.step(step + 3)
        moved.append({name for name, value in model.state_dict().items() if not torch.equal(value, before[name])})
        if step < 2:
            for name in ("embedding.weight", "output_embedding.weight"):
                assert torch.equal(model.state_dict()[name][:290], before[name][:290])
    assert moved[0] == moved[1] == {"embedding.weight", "output_embedding.weight"}
    assert moved[2] == set(before)


def test_a_run_that_begins_with_new_rows_goes_on_to_the_same_weights(
    world: World, extended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = go_on(world, tmp_path / "whole", extended, train_new_rows_first=5)
    loop = {**CPU, "checkpoint_every": 1}
    for steps in (3, 4):  # in the steps of new rows, and after them
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "update", stop_after(steps))
            with pytest.raises(KeyboardInterrupt):
                go_on(world, tmp_path / "parts", extended, train_new_rows_first=5, loop=loop)
    parts = go_on(world, tmp_path / "parts", extended, train_new_rows_first=5)
    for name in ("model.safetensors", "state/optimizer.safetensors"):
        assert (parts.path / name).read_bytes() == (whole.path / name).read_bytes()


def test_a_run_may_go_on_with_the_moments_of_its_start(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two halves at a constant rate, the second with the first's moments, are one run."""
    steady = {"optimizer": {"lr": 3e-3, "warmup": 0.0, "schedule": "constant"}, "epochs": 1}
    first = world.run("pretrain", tmp_path / "first", **steady)

    def second(name: str, **changes: Any) -> Artifact:
        return go_on(world, tmp_path / name, first.path, **{**steady, **changes})

    kept, fresh = second("kept", start_moments=True), second("fresh")
    steps = first.metrics["steps"]
    state = load_file(kept.path / "state" / "optimizer.safetensors")
    assert {float(value) for name, value in state.items() if name.startswith("step.")} == {2.0 * steps}
    # The second half reads the same rows as the first; done in one run by hand, it ends in the same bytes.
    again = load_bundle(first.path)
    optimizer = ScheduledOptimizer(
        {"model": again.model}, {"model": PretrainSettings.parse(steady).optimizer}, kept.metrics["steps"]
    )
    optimizer.load_tensors(load_file(first.path / "state" / "optimizer.safetensors"))
    data = read_data([world["tokens"].path], again.vocabulary, PretrainSettings.parse({"batch_rows": 8}), 40, 7)
    trainer = Trainer({"model": again.model.train()}, optimizer)
    for step in range(data.n_steps):
        trainer.update(data.batches(step, 10, again.vocabulary.pad_id), NextTokenLoss(again.model))
    weights = load_bundle(kept.path).model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in again.model.state_dict().items())
    assert (fresh.path / "model.safetensors").read_bytes() != (kept.path / "model.safetensors").read_bytes()
    with monkeypatch.context() as patch:  # a run that goes on takes its own moments, not the start's
        patch.setattr(Trainer, "update", stop_after(4))
        with pytest.raises(KeyboardInterrupt):
            second("parts", start_moments=True, loop={**CPU, "checkpoint_every": 2})
    parts = second("parts", start_moments=True)
    assert (parts.path / "model.safetensors").read_bytes() == (kept.path / "model.safetensors").read_bytes()


def test_moments_that_are_not_there_are_refused(world: World, extended: Path, tmp_path: Path) -> None:
    with pytest.raises(ChatloomError, match=r"has no state/ with an optimizer's moments"):
        go_on(world, tmp_path / "a", extended, start_moments=True)
    with pytest.raises(ChatloomError, match=r"trained with another optimizer or other parameters \(momentum_buffer"):
        go_on(world, tmp_path / "b", world["pretrain"].path, start_moments=True, optimizer={"name": "muon"})
    with pytest.raises(ChatloomError, match="needs a `start`"):
        world.run("pretrain", tmp_path / "c", start_moments=True)


def test_a_start_that_does_not_fit_is_refused(world: World, extended: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanRefused, match="leave `model` out"):
        go_on(world, tmp_path / "a", extended, model=MODEL)
    with pytest.raises(ChatloomError, match="needs, as `start`, a model that stage `extend-model` made"):
        go_on(world, tmp_path / "b", world["pretrain"].path, train_new_rows_first=3)
    other = shutil.copytree(extended, tmp_path / "other")
    Vocabulary.train(["another text, another text"], 300, allow_smaller=True).save(other)
    with pytest.raises(ChatloomError, match="make them again with the model's vocabulary"):
        go_on(world, tmp_path / "c", other)
