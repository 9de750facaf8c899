"""Promises of stages that train an adapter: the base stays, the folder is whole, a resumed run has the same bytes."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from crashing import crashing
from kill_child import LOOP, content, in_this_process, metrics_of
from safetensors.torch import load_file
from toys import FACTS, World, question

from chatloom import artifact, recipe
from chatloom.api import load
from chatloom.errors import ChatloomError
from chatloom.model.adapters.peft_files import load_adapter
from chatloom.model.adapters.virtual_tokens import PromptedTransformer
from chatloom.settings import SettingsError
from chatloom.stage import Plan, PlanContext
from chatloom.stages import find
from chatloom.stages.ppo import Ppo
from chatloom.training import checkpoints
from chatloom.training.adapters import AdapterSettings, Tuning
from chatloom.training.bundle import load_bundle
from chatloom.training.loop import Trainer
from chatloom.training.metrics import read_metrics
from chatloom.training.parallel.team import Team
from chatloom.training.parallel.world import World as Processes

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora", "rank": 4, "targets": ["all-linear"]},
    "lora with dropout": {"kind": "lora", "rank": 4, "dropout": 0.2, "rslora": True},
    "prefix": {"kind": "prefix", "virtual_tokens": 6},
    "projected prefix": {"kind": "prefix", "virtual_tokens": 6, "projection": True, "hidden_size": 16},
    "prompt": {"kind": "prompt", "virtual_tokens": 6},
    "p-tuning": {"kind": "p-tuning", "virtual_tokens": 6},
    "p-tuning lstm": {"kind": "p-tuning", "virtual_tokens": 4, "network": "lstm", "hidden_size": 8},
}
RATE = {kind: 1e-2 if "lora" in kind else 0.1 for kind in KINDS}  # virtual tokens want a larger one
every_kind = pytest.mark.parametrize("kind", KINDS)
TOKENS = torch.randint(0, 300, (2, 20), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.logits(model(TOKENS))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


# --- what comes out -----------------------------------------------------------------------------------------------


@every_kind
def test_it_learns_and_peft_computes_the_same_from_base_and_adapter(kind: str, world: World, tmp_path: Path) -> None:
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    made = world.run("sft", tmp_path / "sft", adapter=KINDS[kind], optimizer={"lr": RATE[kind]})
    rows = read_metrics(made.path / "metrics.jsonl").rows
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.03  # this base is tiny: it listens little to what stands before
    base = world["pretrain"].path
    before, after = weights(base), weights(made.path)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    expected = {"lora": {"self_attn.q_proj", "mlp.up_proj"}, "lora with dropout": {"self_attn.q_proj"}}.get(kind, set())
    assert {f"model.layers.1.{name}.weight" for name in expected} <= changed
    assert bool(changed) == ("lora" in kind)
    ours = load_bundle(made.path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(theirs, made.path / "adapter").eval()
    with torch.no_grad():
        found = theirs(TOKENS).logits[:, -TOKENS.shape[1] :]
    torch.testing.assert_close(logits(ours.model), found, atol=1e-4, rtol=0)
    assert (found - logits(load_bundle(base).model)).abs().max() > 0.01
    again = load_adapter(load_bundle(base).model, made.path / "adapter")
    torch.testing.assert_close(logits(again), found, atol=1e-4, rtol=0)
    assert made.metrics["heldout_loss"] > 0
    assert made.metrics["trained_parameters"] == pytest.approx(
        sum(tensor.numel() for tensor in load_file(made.path / "state" / "adapter.safetensors").values())
    )


@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_chat_evaluate_and_training_take_the_folder(kind: str, world: World, tmp_path: Path) -> None:
    start = {"model": world["sft"].path}
    made = world.run("sft", tmp_path / "sft", inputs=start, adapter=KINDS[kind], optimizer={"lr": RATE[kind]})
    model = load(made.path, device="cpu")
    right = [model.chat([m.to_dict() for m in question(name)], max_new_tokens=8) == FACTS[name] for name in FACTS]
    assert sum(right) > len(right) / 2
    evaluated = world.run(
        "evaluate", tmp_path / "evaluate", inputs={"models": [world.folder / "sft", made.path]}, labels=["full", "own"]
    )
    assert evaluated.kind == "evaluation"
    further = world.run("dpo", tmp_path / "dpo", inputs={"model": made.path}, epochs=0.2)  # all weights
    bundle = load_bundle(further.path)
    assert isinstance(bundle.model, PromptedTransformer) == (kind == "prefix")
    assert not torch.equal(logits(bundle.model), logits(load_bundle(made.path).model))


# --- going on -----------------------------------------------------------------------------------------------------


@every_kind
def test_a_run_that_died_ends_with_the_same_bytes(
    kind: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = in_this_process(world, "sft", tmp_path / "whole", adapter=KINDS[kind])
    with crashing(monkeypatch, 5):
        in_this_process(world, "sft", tmp_path / "sft", adapter=KINDS[kind])
    [*_, last] = checkpoints.steps(artifact.partial_of(tmp_path / "sft"))
    folder = artifact.partial_of(tmp_path / "sft") / checkpoints.FOLDER / f"step-{last}"
    assert logits(load_bundle(folder).model).isfinite().all()  # a checkpoint is a whole model
    made, events = in_this_process(world, "sft", tmp_path / "sft", adapter=KINDS[kind])
    assert events.count("u") == 10 - last
    assert content(made) == content(whole)
    assert [row["loss"] for row in metrics_of(made)] == [row["loss"] for row in metrics_of(whole)]


def test_without_the_adapters_own_state_the_end_is_another(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: the equality above can fail."""
    whole, _ = in_this_process(world, "sft", tmp_path / "whole", adapter=KINDS["lora"])
    with crashing(monkeypatch, 5):
        in_this_process(world, "sft", tmp_path / "sft", adapter=KINDS["lora"])
    monkeypatch.setattr(Tuning, "load_state", lambda self, state: None)
    made, _ = in_this_process(world, "sft", tmp_path / "sft", adapter=KINDS["lora"])
    assert content(made) != content(whole)


def test_dropout_is_drawn_from_seed_and_step(world: World, tmp_path: Path) -> None:
    losses = []
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        torch.manual_seed(len(losses))  # what others drew before does not matter
        made = world.run("sft", tmp_path / name, adapter=KINDS["lora with dropout"], epochs=1, seed=seed)
        losses.append([row["loss"] for row in read_metrics(made.path / "metrics.jsonl").rows])
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]
    plain = world.run("sft", tmp_path / "d", adapter={**KINDS["lora with dropout"], "dropout": 0.0}, epochs=1)
    assert losses[0] != [row["loss"] for row in read_metrics(plain.path / "metrics.jsonl").rows]


# --- memory -------------------------------------------------------------------------------------------------------


def live_bytes() -> int:
    """Bytes of all tensors of this process that anything holds, each memory counted once."""
    gc.collect()
    found: dict[int, int] = {}
    for item in gc.get_objects():
        if type(item) in (torch.Tensor, torch.nn.Parameter) and item.device.type == "cpu":
            for tensor in (item, item.grad if item.is_leaf else None):
                if tensor is not None:
                    storage = tensor.untyped_storage()
                    found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_memory_is_one_model_and_not_four(
    stage: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full training holds weights, gradients and two moments; LoRA the weights, which are the reference too."""
    world.prepare(stage)
    model = sum(value.nbytes for value in weights(world["sft"].path).values())
    measured: list[int] = []
    states: list[int] = []
    update = Trainer.update

    def watched(self: Trainer, *args: Any) -> dict[str, float]:
        metrics = update(self, *args)
        measured.append(live_bytes() - before)
        states.append(sum(value.numel() for value in self.optimizer.tensors().values()))
        return metrics

    monkeypatch.setattr(Trainer, "update", watched)
    found = {}
    for name, adapter in (("full", None), ("lora", {"kind": "lora", "rank": 1})):
        before = live_bytes()
        made = world.run(stage, tmp_path / name, adapter=adapter, epochs=0.2)
        found[name] = measured[-1] / model
        n_tensors = len(load_file(made.path / "state" / "optimizer.safetensors")) // 3
        assert states[-1] == 2 * made.metrics["trained_parameters"] + n_tensors  # two moments, and a counter a tensor
    assert found["full"] > 3.9
    assert found["lora"] < 1.4
    assert not any(".weight" in name for name in load_file(made.path / "state" / "optimizer.safetensors"))


# --- DPO ----------------------------------------------------------------------------------------------------------


def test_dpo_starts_at_the_declared_value_and_raises_the_margin(world: World, tmp_path: Path) -> None:
    made = world.run(
        "dpo", tmp_path / "dpo", adapter={"kind": "lora", "rank": 4, "dropout": 0.1}, optimizer={"lr": 3e-3}
    )
    rows = read_metrics(made.path / "metrics.jsonl").rows
    assert rows[0]["loss"] == pytest.approx(0.693147, rel=1e-4)
    assert rows[-1]["margin"] > 0.2
    assert json.loads((made.path / "adapter" / "chatloom.json").read_text(encoding="utf-8")) == {"merged": True}


@pytest.mark.parametrize("kind", ["prefix", "prompt", "p-tuning"])
def test_dpo_refuses_virtual_tokens(kind: str, world: World, tmp_path: Path) -> None:
    with pytest.raises(ChatloomError, match=f"adapter.kind {kind}: stage dpo takes lora alone"):
        world.run("dpo", tmp_path / "dpo", adapter=KINDS[kind])


# --- freezing, and what is refused --------------------------------------------------------------------------------


def test_frozen_weights_stay_and_have_no_state(world: World, tmp_path: Path) -> None:
    made = world.run("sft", tmp_path / "sft", freeze=["embeddings", "layers.0", "norms"], epochs=1)
    before, after = weights(world["pretrain"].path), weights(made.path)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("model.layers.1.") and "norm" not in name for name in changed)
    state = load_file(made.path / "state" / "optimizer.safetensors")
    assert {name.split(".model.")[1] for name in state} == {
        f"layers.1.{part}.weight"
        for part in ("attention.qkv", "attention.output", "feedforward.gate_up", "feedforward.down")
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"freeze": ["embedding"]}, "`embedding` matches no weight"),
        ({"freeze": ["*"]}, "leave no weight to train"),
        ({"freeze": ["norms"], "adapter": {"kind": "lora"}}, "freeze and adapter are both given"),
        ({"adapter": {"kind": "lora"}, "init": "random"}, "random weights learns nothing"),
        ({"adapter": {"kind": "lora", "targets": ["query"]}}, "LoRA target `query` matches no linear layer"),
        ({"adapter": {"kind": "lora", "targets": ["lm_head"]}}, "its embedding"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], said: str, world: World, tmp_path: Path) -> None:
    with pytest.raises(ChatloomError, match=said):
        world.run("sft", tmp_path / "sft", **changes)


def test_settings_of_another_kind_are_refused_by_name() -> None:
    with pytest.raises(SettingsError, match="`projection` has no meaning for kind lora; it belongs to prefix"):
        AdapterSettings.parse({"kind": "lora", "projection": True})
    with pytest.raises(SettingsError, match="`rank` has no meaning for kind p-tuning; it belongs to lora"):
        AdapterSettings.parse({"kind": "p-tuning", "rank": 3})


def test_a_second_adapter_and_an_adapter_nobody_marked_are_refused(world: World, tmp_path: Path) -> None:
    made = world.run("sft", tmp_path / "sft", adapter=KINDS["prompt"], epochs=0.2)
    with pytest.raises(ChatloomError, match="virtual tokens already"):
        world.run("sft", tmp_path / "again", inputs={"model": made.path}, adapter=KINDS["lora"])
    (made.path / "adapter" / "chatloom.json").unlink()
    with pytest.raises(ChatloomError, match="says whether the weights contain it"):
        load_bundle(made.path)


# --- merging ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lora", "prefix", "p-tuning"])
@pytest.mark.parametrize("given", ["artifact", "folder"])
def test_a_model_and_an_adapter_make_one_model(kind: str, given: str, world: World, tmp_path: Path) -> None:
    made = world.run("sft", tmp_path / "sft", adapter=KINDS[kind], epochs=1)
    adapter = made.path if given == "artifact" else made.path / "adapter"
    inputs = {"model": {"path": str(world["pretrain"].path)}, "adapter": {"path": str(adapter)}}
    merged = recipe.run_stage("merge-adapter", inputs, {}, tmp_path / "merged", quiet=True)
    torch.testing.assert_close(
        logits(load_bundle(merged.path).model), logits(load_bundle(made.path).model), atol=1e-5, rtol=0
    )
    assert weights(merged.path).keys() == weights(world["pretrain"].path).keys()
    count = sum(value.numel() for value in load_file(made.path / "adapter" / "adapter_model.safetensors").values())
    assert merged.metrics["adapter_parameters"] == count
    inputs["model"] = {"path": str(merged.path)}
    if kind != "lora":
        with pytest.raises(ChatloomError, match="has virtual tokens already"):
            recipe.run_stage("merge-adapter", inputs, {}, tmp_path / "twice", quiet=True)


def test_an_adapter_of_another_model_is_refused(world: World, tmp_path: Path) -> None:
    made = world.run("sft", tmp_path / "sft", adapter=KINDS["prefix"], epochs=0.2)
    inputs = {"model": {"path": str(world["sft"].path)}, "adapter": {"path": str(world["sft"].path)}}
    with pytest.raises(ChatloomError, match="no such adapter folder"):
        recipe.run_stage("merge-adapter", inputs, {}, tmp_path / "none", quiet=True)
    small = {"hidden_size": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "context": 40}
    other = world.run("pretrain", tmp_path / "other", model=small, epochs=0.1)
    inputs = {"model": {"path": str(other.path)}, "adapter": {"path": str(made.path)}}
    with pytest.raises(ChatloomError, match="`num_layers` is 2, for this model it is 1"):
        recipe.run_stage("merge-adapter", inputs, {}, tmp_path / "wrong", quiet=True)


def test_a_vocabulary_is_not_extended_under_virtual_tokens(world: World, tmp_path: Path) -> None:
    made = world.run("sft", tmp_path / "sft", adapter=KINDS["prompt"], epochs=0.2)
    inputs = {"model": {"path": str(made.path)}, "vocabulary": {"path": str(world["tokenizer"].path)}}
    with pytest.raises(ChatloomError, match="has virtual tokens; extend the model without them"):
        recipe.run_stage("extend-model", inputs, {}, tmp_path / "extended", quiet=True)


# --- pretraining, reward model, PPO -------------------------------------------------------------------------------


def test_pretraining_goes_on_with_an_adapter(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = {"start": world["sft"].path}
    how: dict[str, Any] = {"model": None, "adapter": KINDS["p-tuning"], "inputs": start}

    def run(name: str) -> Any:
        settings = {key: value for key, value in world.settings("pretrain").items() if key != "model"}
        settings |= {"epochs": 1, "adapter": how["adapter"], "loop": {**settings["loop"], **LOOP}}
        inputs = world.inputs("pretrain", **start)
        return recipe.run_stage("pretrain", settings, inputs, tmp_path / name, seed=7, quiet=True)

    whole = run("whole")
    with crashing(monkeypatch, 5):
        run("killed")
    assert content(run("killed")) == content(whole)
    assert isinstance(load_bundle(whole.path).model, PromptedTransformer)
    assert whole.metrics["heldout"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"adapter": {"kind": "lora"}}, "random weights learns nothing; give a `start`"),
        ({"freeze": ["norms"], "train_new_rows_first": 2}, "`freeze` and `train_new_rows_first` both say"),
    ],
)
def test_what_pretraining_cannot_do_is_refused(
    changes: dict[str, Any], said: str, world: World, tmp_path: Path
) -> None:
    with pytest.raises(ChatloomError, match=said):
        world.run("pretrain", tmp_path / "pretrain", **changes)


def test_a_reward_model_learns_by_lora_and_resumes(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"adapter": {"kind": "lora", "rank": 4, "targets": ["all-linear"]}, "optimizer": {"lr": 1e-2}, "epochs": 4}
    whole, _ = in_this_process(world, "reward", tmp_path / "whole", **how)
    with crashing(monkeypatch, 5):
        in_this_process(world, "reward", tmp_path / "reward", **how)
    made, _ = in_this_process(world, "reward", tmp_path / "reward", **how)
    assert content(made) == content(whole)
    assert made.metrics["heldout_accuracy"] > 0.7
    adapter = load_file(made.path / "adapter" / "adapter_model.safetensors")
    assert torch.equal(adapter["base_model.model.score.weight"], load_bundle(made.path).reward.score.weight)
    ppo = world.run("ppo", tmp_path / "ppo", inputs={"reward": made.path}, iterations=1)
    assert ppo.kind == "model"


def test_ppo_with_lora_needs_no_copy_for_the_reference_and_resumes(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how: dict[str, Any] = {"adapter": {"kind": "lora", "rank": 4}, "actor": {"lr": 3e-3}}
    ppo = Ppo(world.context("ppo", tmp_path / "look", **how))
    assert ppo.reference is None
    assert ppo.experience(0).metrics["kl"] == 0.0  # the reference is the actor's start
    ppo.iterate(0)
    with torch.no_grad(), ppo.as_reference() as network:
        assert torch.equal(logits(network), logits(load_bundle(world["sft"].path).model))
    assert not torch.equal(logits(ppo.actor), logits(load_bundle(world["sft"].path).model))
    whole, _ = in_this_process(world, "ppo", tmp_path / "whole", **how)
    with crashing(monkeypatch, 13):
        in_this_process(world, "ppo", tmp_path / "ppo", **how)
    made, events = in_this_process(world, "ppo", tmp_path / "ppo", **how)
    assert events.count("u") < 20
    assert content(made) == content(whole)
    assert metrics_of(made)[-1]["kl"] > 0


def test_what_would_part_the_policy_from_its_sampler_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(ChatloomError, match=r"adapter\.dropout is 0\.2 in stage ppo"):
        world.run("ppo", tmp_path / "ppo", adapter=KINDS["lora with dropout"])
    with pytest.raises(ChatloomError, match="stage ppo takes lora alone"):
        world.run("ppo", tmp_path / "ppo", adapter=KINDS["prompt"])
    with pytest.raises(ChatloomError, match="stage reward takes lora alone"):
        world.run("reward", tmp_path / "reward", adapter=KINDS["prompt"])
    made = world.run("sft", tmp_path / "sft", adapter=KINDS["prompt"], epochs=0.2)
    with pytest.raises(ChatloomError, match="a reward model of a model with virtual tokens"):
        world.run("reward", tmp_path / "reward", inputs={"model": made.path})


# --- plans, precision, optimizers, kept checkpoints ---------------------------------------------------------------


def planned(world: World, stage: str, **changes: Any) -> Plan:
    kind = find(stage)
    context = world.context(stage, world.folder / "plans" / stage)
    settings = kind.settings.parse(world.settings(stage, **changes))
    assert kind.plan is not None
    return kind.plan(PlanContext(settings, context.inputs, {}, 2, 1e10))


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "ppo"])
def test_a_plan_counts_neither_gradients_nor_moments_of_the_base(stage: str, world: World) -> None:
    full, lora = planned(world, stage), planned(world, stage, adapter={"kind": "lora"})
    size = 4 * full.value("parameters")
    # Gradients and two moments of a model are gone, and the moments' copy for the checkpoint; in PPO the reference too.
    assert full.value("memory") - lora.value("memory") == pytest.approx(size * (6 if stage == "ppo" else 5))
    assert full.value("disk") - lora.value("disk") == pytest.approx(2 * size)  # the moments
    assert 0.6 < lora.value("flops") / full.value("flops") < 0.95


@pytest.mark.parametrize("kind", ["lora with dropout", "prefix", "p-tuning lstm"])
def test_it_trains_in_bf16(kind: str, world: World, tmp_path: Path) -> None:
    exact = world.run("sft", tmp_path / "fp32", adapter=KINDS[kind], epochs=1)
    made = world.run("sft", tmp_path / "bf16", adapter=KINDS[kind], epochs=1, precision="bf16")
    assert made.metrics["last_loss"] == pytest.approx(exact.metrics["last_loss"], rel=0.02)
    assert {value.dtype for value in load_file(made.path / "state" / "adapter.safetensors").values()} == {torch.float32}


@pytest.mark.parametrize("name", ["muon", "lamb"])
def test_other_optimizers_train_an_adapter(name: str, world: World, tmp_path: Path) -> None:
    made = world.run("sft", tmp_path / "sft", adapter=KINDS["lora"], optimizer={"name": name}, epochs=1)
    state = load_file(made.path / "state" / "optimizer.safetensors")
    assert all(".lora." in key for key in state)
    assert not any(key.startswith("momentum") for key in state)  # an update is no map between hidden states
    assert made.metrics["last_loss"] < made.metrics["first_loss"]


def test_on_several_processes_it_is_refused(world: World) -> None:
    team = Team(Processes(size=2, mesh=object()))  # type: ignore[arg-type]
    with pytest.raises(ChatloomError, match="an adapter is trained by one process"):
        Tuning(load_bundle(world["sft"].path), AdapterSettings(), team=team)
