"""Promises of going on: done is skipped, half done goes on, a changed setting is refused or does not matter."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from crashing import crashing
from kill_child import LOOP, SETTINGS, content, in_child, in_this_process, metrics_of
from safetensors.torch import load_file
from toys import World

from chatloom import artifact, recipe
from chatloom.artifact import Artifact, ArtifactError
from chatloom.errors import ChatloomError
from chatloom.model import weight_files
from chatloom.stages.ppo import Ppo
from chatloom.training import checkpoints
from chatloom.training.checkpoints import State
from chatloom.training.optimizers import ScheduledOptimizer
from chatloom.training.trainer import Trainer


def half_done(
    world: World, stage: str, out: Path, monkeypatch: pytest.MonkeyPatch, updates: int = 5, **how: Any
) -> Path:
    """A stage that died after some steps; returns the folder of its checkpoints."""
    world.prepare(stage)
    with crashing(monkeypatch, updates):
        in_this_process(world, stage, out, **how)
    return artifact.partial_of(out) / checkpoints.FOLDER


@pytest.fixture(scope="module")
def runs(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Artifact, str]]:
    """Uninterrupted runs and their events."""
    folder = tmp_path_factory.mktemp("whole")
    return {stage: in_this_process(world, stage, folder / stage) for stage in ("sft", "ppo")}


@pytest.fixture(scope="module")
def whole(runs: dict[str, tuple[Artifact, str]]) -> dict[str, dict[str, str]]:
    """Content of the uninterrupted runs."""
    return {stage: content(made) for stage, (made, _) in runs.items()}


def test_a_finished_stage_is_skipped(world: World, tmp_path: Path) -> None:
    made, _ = in_this_process(world, "sft", tmp_path / "sft")
    before = {file: file.stat().st_mtime_ns for file in made.path.rglob("*")}
    again, events = in_this_process(world, "sft", tmp_path / "sft")
    assert "u" not in events
    assert again.manifest == made.manifest
    assert {file: file.stat().st_mtime_ns for file in made.path.rglob("*")} == before


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"optimizer": {"lr": 5e-4}}, r"optimizer\.lr: 0\.01 -> 0\.0005"),
        ({"epochs": 3}, r"epochs: 2(\.0)? -> 3"),
        ({"batch_conversations": 4}, "batch_conversations: 8 -> 4"),
    ],
)
def test_a_changed_setting_on_a_half_done_stage_is_refused_with_the_difference(
    changes: dict[str, Any], shown: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = half_done(world, "sft", tmp_path / "sft", monkeypatch)
    with pytest.raises(ChatloomError, match=f"(?s)half done with other settings.*{shown}.*--start-over"):
        in_this_process(world, "sft", tmp_path / "sft", **changes)
    assert [item.name for item in left.iterdir()]  # what was done is still there


def test_another_seed_or_input_on_a_half_done_stage_is_refused(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_done(world, "sft", tmp_path / "sft", monkeypatch)
    with pytest.raises(ChatloomError, match="seed: 7 -> 8"):
        world.run("sft", tmp_path / "sft", seed=8, loop=LOOP, **SETTINGS["sft"])
    with pytest.raises(ChatloomError, match=r"parents\.model"):
        in_this_process(world, "sft", tmp_path / "sft", inputs={"model": world["dpo"].path})


def test_start_over_drops_what_was_done(
    world: World, whole: dict[str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_done(world, "sft", tmp_path / "sft", monkeypatch)
    made = recipe.run_stage(
        "sft",
        world.settings("sft", loop=LOOP, **SETTINGS["sft"]),
        world.inputs("sft"),
        tmp_path / "sft",
        seed=7,
        start_over=True,
        quiet=True,
    )
    assert content(made) == whole["sft"]
    assert [row["step"] for row in metrics_of(made)] == list(range(1, 11))


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_a_changed_runtime_setting_is_not_refused_and_changes_nothing(
    stage: str, world: World, whole: dict[str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_done(world, stage, tmp_path / stage, monkeypatch, updates=13 if stage == "ppo" else 5)
    made, events = in_this_process(
        world, stage, tmp_path / stage, loop={"checkpoint_every": 1, "keep_checkpoints": 3, "max_skips": 1}
    )
    assert content(made) == whole[stage]
    assert events.count("u") < (20 if stage == "ppo" else 10)  # it went on from the checkpoint


@pytest.mark.parametrize("name", ["INT", "TERM", "USR1"])
def test_ctrl_c_saves_says_how_to_go_on_and_the_next_run_ends_with_the_same_bytes(
    name: str,
    world: World,
    runs: dict[str, tuple[Artifact, str]],
    whole: dict[str, dict[str, str]],
    tmp_path: Path,
) -> None:
    out = tmp_path / "sft"
    # In the first optimizer step: no checkpoint is due there, so the signal alone is why one is written.
    child = in_child(world, "sft", out, name, runs["sft"][1].index("u"))
    assert child.returncode == 128 + signal.Signals[f"SIG{name}"], child.stderr
    assert "saved after step 1; run the same command again to go on from here" in child.stdout + child.stderr
    assert checkpoints.steps(artifact.partial_of(out)) == [1]
    made, events = in_this_process(world, "sft", out)
    assert events.count("u") == 9
    assert content(made) == whole["sft"]
    assert [row["step"] for row in metrics_of(made)] == list(range(1, 11))


# --- negative controls: the equality above can fail -------------------------------------------------------------------


def test_without_the_optimizers_state_the_weights_differ(
    world: World, whole: dict[str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_done(world, "sft", tmp_path / "sft", monkeypatch)
    monkeypatch.setattr(ScheduledOptimizer, "load_tensors", lambda self, tensors: None)
    made, _ = in_this_process(world, "sft", tmp_path / "sft")
    assert content(made)["model.safetensors"] != whole["sft"]["model.safetensors"]


def test_without_the_step_counter_the_weights_differ(
    world: World, whole: dict[str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_done(world, "sft", tmp_path / "sft", monkeypatch)
    load = Trainer.load

    def forgetful(self: Trainer, state: State) -> None:
        load(self, State({**state.values, "updates": 0}, state.tensors))

    monkeypatch.setattr(Trainer, "load", forgetful)
    made, _ = in_this_process(world, "sft", tmp_path / "sft")
    assert content(made)["model.safetensors"] != whole["sft"]["model.safetensors"]


@pytest.mark.parametrize("part", ["critic", "kl"])
def test_without_the_critic_or_the_kl_coefficient_ppo_ends_elsewhere(
    part: str, world: World, whole: dict[str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_done(world, "ppo", tmp_path / "ppo", monkeypatch, updates=13)

    def partial_load(self: Ppo, state: State) -> None:
        if part != "kl":
            self.kl.load_state_dict(state.values["kl"])
        if part != "critic":
            self.critic.load_state_dict(state.tensors["critic"])

    monkeypatch.setattr(Ppo, "load_state", partial_load)
    made, _ = in_this_process(world, "ppo", tmp_path / "ppo")
    assert content(made)["model.safetensors"] != whole["ppo"]["model.safetensors"]


# --- damage, full disks, second writers -------------------------------------------------------------------------------


def damage(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    os.truncate(file, file.stat().st_size - 100)


def test_a_damaged_checkpoint_costs_some_steps_and_nothing_else(
    world: World, whole: dict[str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = half_done(world, "sft", tmp_path / "sft", monkeypatch)
    assert checkpoints.steps(left.parent) == [2, 4]
    damage(left / "step-4")
    made, events = in_this_process(world, "sft", tmp_path / "sft")
    assert events.count("u") == 8
    assert content(made) == whole["sft"]


def test_when_all_checkpoints_are_damaged_a_person_decides(
    world: World, whole: dict[str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = half_done(world, "sft", tmp_path / "sft", monkeypatch)
    for step in (2, 4):
        damage(left / f"step-{step}")
    for _ in range(2):
        with pytest.raises(ChatloomError, match=r"stage `sft`.*every checkpoint is damaged.*--start-over"):
            in_this_process(world, "sft", tmp_path / "sft")
    made = recipe.run_stage(
        "sft",
        world.settings("sft", loop=LOOP, **SETTINGS["sft"]),
        world.inputs("sft"),
        tmp_path / "sft",
        seed=7,
        start_over=True,
        quiet=True,
    )
    assert content(made) == whole["sft"]


@pytest.mark.parametrize("name", [weight_files.SINGLE, "optimizer.safetensors"])
def test_a_disk_that_is_full_for_a_while_costs_checkpoints_and_not_the_run(
    name: str,
    world: World,
    whole: dict[str, dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    save, calls = weight_files.save_file, 0

    def full_for_a_while(tensors: Any, path: Path, **how: Any) -> None:
        nonlocal calls
        calls += path.name == name
        if path.name == name and 3 <= calls <= 6:  # steps 6 and 8, each twice
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(tensors, path, **how)

    monkeypatch.setattr(weight_files, "save_file", full_for_a_while)
    made, events = in_this_process(world, "sft", tmp_path / "sft")
    assert events.count("u") == 10
    assert content(made) == whole["sft"]
    told = capfd.readouterr().err
    assert "WARNING: the checkpoint after step 6 could not be written (No space left on device)" in told
    assert "a stop costs all steps after 4" in told


@pytest.mark.parametrize("for_good", [False, True])
def test_a_disk_that_is_full_at_the_end_gets_rid_of_checkpoints_and_else_says_so(
    for_good: bool, world: World, whole: dict[str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = weight_files.save_file
    left = artifact.partial_of(tmp_path / "sft") / checkpoints.FOLDER

    def full(tensors: Any, path: Path, **how: Any) -> None:
        if path.parent.name == "sft.partial" and (for_good or len(checkpoints.steps(left.parent)) > 1):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(tensors, path, **how)

    with monkeypatch.context() as patch:
        patch.setattr(weight_files, "save_file", full)
        if for_good:
            with pytest.raises(ChatloomError, match=r"stage `sft`.*No space left on device"):
                in_this_process(world, "sft", tmp_path / "sft")
            assert checkpoints.steps(left.parent) == [10]
    made, events = in_this_process(world, "sft", tmp_path / "sft")
    assert events.count("u") == (0 if for_good else 10)
    assert content(made) == whole["sft"]


def test_two_writers_of_one_stage_exclude_each_other(world: World, tmp_path: Path) -> None:
    with artifact.locked(tmp_path / "sft"), pytest.raises(ChatloomError, match=r"another process .* is writing it"):
        in_this_process(world, "sft", tmp_path / "sft")


def test_a_finished_model_keeps_no_checkpoint_and_ppo_keeps_its_critic(world: World) -> None:
    for stage in ("pretrain", "sft", "reward", "dpo", "ppo"):
        assert not (world[stage].path / checkpoints.FOLDER).exists()
    state = load_file(world["ppo"].file("state/critic.safetensors"))
    assert state["score.weight"].shape == (1, 32)
    assert not [file for file in world["ppo"].path.rglob("*") if file.suffix in (".pt", ".pth", ".bin", ".pkl")]


def test_a_checkpoint_is_a_model_that_other_stages_take(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = half_done(world, "sft", tmp_path / "sft", monkeypatch)
    shutil.copytree(left / "step-4", tmp_path / "copied")
    made = world.run("dpo", tmp_path / "dpo", inputs={"model": tmp_path / "copied"}, epochs=1)
    assert made.metrics["first_loss"] == pytest.approx(0.6931472, abs=1e-4)
    damage(left / "step-4")
    with pytest.raises(ArtifactError, match="the manifest says"):
        artifact.load(left / "step-4", verify=True)
