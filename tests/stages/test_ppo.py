"""Promises of PPO: its identities hold at the first minibatch, its checks can fail, and it raises the reward."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys import FACTS, World, dialogues, question

from chatloom.artifact import MANIFEST
from chatloom.dialogue.record import Preference
from chatloom.dialogue.storage import Prompt
from chatloom.errors import ChatloomError
from chatloom.generation.engine import Sample
from chatloom.stages import ppo as stage
from chatloom.stages.ppo import Ppo
from chatloom.tokens.vocabulary import Vocabulary
from chatloom.training.bundle import load_bundle
from chatloom.training.metrics import read_metrics


@pytest.fixture
def ppo(world: World, tmp_path: Path) -> Ppo:
    return Ppo(world.context("ppo", tmp_path / "ppo"))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return read_metrics(folder / "metrics.jsonl").rows


# --- identities of the first minibatch --------------------------------------------------------------------------------


def test_in_the_first_minibatch_policy_and_sampler_are_one(world: World) -> None:
    rows = rows_of(world["ppo"].path)
    assert len(rows) == 4
    for row in rows:
        assert 0.0 <= row["first_log_ratio"] < 1e-4
        assert row["sampler_distance"] < 1e-4
        assert row["largest_log_ratio"] > 1e-4  # later ones have moved, so the check can tell


def test_before_any_update_ratio_kl_and_clipping_are_those_of_equal_policies(ppo: Ppo) -> None:
    data = ppo.experience(0)
    assert data.metrics["kl"] == 0.0  # the reference is the actor's start
    loss = stage.PpoLoss(ppo.actor, ppo.critic, ppo.settings, data)
    batches = ppo.pack(data.rolled, range(len(data.rolled)))
    metrics = ppo.trainer.update(batches, loss)
    assert metrics["ratio"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["clip_fraction"] == 0.0
    assert metrics["policy_kl"] == pytest.approx(0.0, abs=1e-9)
    assert metrics["policy_loss"] == pytest.approx(0.0, abs=1e-5)  # whitened advantages have mean 0
    assert loss.largest < 1e-4


def test_tampered_old_logprobs_are_caught(ppo: Ppo) -> None:
    data = ppo.experience(0)
    data.old_logprobs += 1e-3
    with pytest.raises(ChatloomError, match=r"\|log ratio\| up to 1\.\d+e-03.*dropout.*temperature"):
        ppo.update(0, data)


def test_weights_changed_between_sampling_and_update_are_caught(ppo: Ppo) -> None:
    data = ppo.experience(0)
    with torch.no_grad():
        for p in ppo.actor.parameters():
            p.add_(1e-2)
    with pytest.raises(ChatloomError, match="weights changed in between"):
        ppo.update(0, data)


def test_a_sampler_of_another_mind_is_caught(ppo: Ppo, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = stage.generate

    def lying(*args: Any, **how: Any) -> list[list[Sample]]:
        return [
            [Sample(s.tokens, [value - 0.05 for value in s.logprobs], s.finished) for s in pool]
            for pool in generate(*args, **how)
        ]

    monkeypatch.setattr(stage, "generate", lying)
    with pytest.raises(ChatloomError, match=r"sampler's log-probabilities differ.*truncated distribution"):
        ppo.experience(0)


def test_the_temperature_is_part_of_every_logprob(world: World, tmp_path: Path) -> None:
    ppo = Ppo(world.context("ppo", tmp_path / "ppo", temperature=0.6))
    data = ppo.experience(0)
    assert data.metrics["kl"] == 0.0
    assert data.metrics["sampler_distance"] < 1e-4
    assert ppo.update(0, data)["first_log_ratio"] < 1e-4


# --- what the reward is made of ---------------------------------------------------------------------------------------


def shaped(ppo: Ppo, monkeypatch: pytest.MonkeyPatch, iteration: int = 0) -> tuple[dict[str, Any], torch.Tensor]:
    """The arguments that the shaping got in one iteration, and its result."""
    seen: dict[str, Any] = {}
    original = stage.kl_shaped_rewards

    def spy(scores: torch.Tensor, kl: torch.Tensor, mask: torch.Tensor, **how: Any) -> torch.Tensor:
        seen.update(scores=scores, kl=kl, mask=mask, **how)
        seen["rewards"] = original(scores, kl, mask, **how)
        return seen["rewards"]

    monkeypatch.setattr(stage, "kl_shaped_rewards", spy)
    seen["data"] = ppo.experience(iteration)
    return seen, seen["rewards"]


def test_the_score_lies_on_the_last_real_token_and_the_kl_on_each(ppo: Ppo, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        for p in ppo.actor.parameters():
            p.mul_(1.01)  # so that there is a KL
    seen, rewards = shaped(ppo, monkeypatch)
    lengths = seen["data"].rolled.lengths
    assert len(set(lengths.tolist())) > 2
    for i, length in enumerate(lengths.tolist()):
        row = -0.05 * seen["kl"][i, :length]
        row[-1] += seen["scores"][i].clamp(-5, 5)
        torch.testing.assert_close(rewards[i, :length], row)
        assert not rewards[i, length:].any()
    assert float(seen["kl"].abs().max()) > 1e-4


def test_an_answer_that_never_ended_pays_the_penalty(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for penalty in (0.0, 2.5):
        ppo = Ppo(world.context("ppo", tmp_path / f"{penalty}", missing_end_penalty=penalty, max_new_tokens=3))
        seen, _ = shaped(ppo, monkeypatch)
        found[penalty] = seen["scores"]
        ended = seen["data"].rolled.ended
        monkeypatch.undo()
    assert 0 < int(ended.sum()) < len(ended)
    expected = torch.where(ended, torch.tensor(0.0), torch.tensor(2.5))
    torch.testing.assert_close(found[0.0] - found[2.5], expected)


def test_scores_are_clipped(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ppo = Ppo(world.context("ppo", tmp_path / "ppo", reward_clip=0.1))
    _, rewards = shaped(ppo, monkeypatch)
    assert float(rewards.abs().max()) <= 0.1 + 1e-6


def test_the_critic_starts_as_the_reward_model(ppo: Ppo) -> None:
    data = ppo.experience(0)
    [batch, *_] = ppo.pack(data.rolled, range(4))
    with torch.no_grad():
        values = ppo.critic(batch.tokens, batch.positions, batch.segments)
        last = values[batch.segment_row, batch.segment_end]
        torch.testing.assert_close(last, ppo.reward.rewards(batch), atol=1e-5, rtol=0)


def test_only_actor_and_critic_learn(ppo: Ppo) -> None:
    frozen = {
        name: {key: value.clone() for key, value in getattr(ppo, name).state_dict().items()}
        for name in ("reference", "reward", "actor", "critic")
    }
    ppo.iterate(0)
    for name, before in frozen.items():
        after = getattr(ppo, name).state_dict()
        same = all(torch.equal(after[key], value) for key, value in before.items())
        assert same == (name in ("reference", "reward")), name


def test_while_the_critic_warms_up_the_policy_stays_as_it_is(world: World, tmp_path: Path) -> None:
    ppo = Ppo(world.context("ppo", tmp_path / "ppo", critic_warmup=1))
    actor, critic = ({k: v.clone() for k, v in m.state_dict().items()} for m in (ppo.actor, ppo.critic))
    metrics = ppo.iterate(0)
    assert metrics["largest_log_ratio"] < 1e-4
    assert metrics["grad_norm"] == 0.0 < metrics["grad_norm_critic"]
    assert all(torch.equal(v, actor[k]) for k, v in ppo.actor.state_dict().items())
    assert any(not torch.equal(v, critic[k]) for k, v in ppo.critic.state_dict().items())
    ppo.iterate(1)
    assert any(not torch.equal(v, actor[k]) for k, v in ppo.actor.state_dict().items())


# --- controllers and early stop ---------------------------------------------------------------------------------------


def test_the_kl_coefficient_follows_its_formula_and_is_in_the_state(world: World) -> None:
    rows = rows_of(world["ppo"].path)
    expected = [0.05]
    for row in rows:
        error = min(max(row["kl"] / 6.0 - 1.0, -0.2), 0.2)
        expected.append(expected[-1] * (1.0 + error * 16 / 100))
    assert [row["kl_coefficient"] for row in rows] == pytest.approx(expected[:-1])
    assert len({row["kl_coefficient"] for row in rows}) == 4
    state = json.loads(world["ppo"].file("state/values.json").read_text(encoding="utf-8"))
    assert state["extra"]["kl"]["coefficient"] == pytest.approx(expected[-1])


def test_a_fixed_coefficient_stays(world: World, tmp_path: Path) -> None:
    made = world.run("ppo", tmp_path / "ppo", iterations=2, kl={"controller": "fixed", "coefficient": 0.3})
    assert [row["kl_coefficient"] for row in rows_of(made.path)] == [0.3, 0.3]


@pytest.mark.parametrize(("limit", "updates", "stopped"), [(1e-9, 2, 1.0), (None, 4, 0.0), (10.0, 4, 0.0)])
def test_a_pass_is_left_when_the_policy_has_moved_too_far(
    limit: float | None, updates: int, stopped: float, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ppo = Ppo(world.context("ppo", tmp_path / "ppo", policy_kl_limit=limit))
    done = []
    update: Callable[..., dict[str, float]] = ppo.trainer.update
    monkeypatch.setattr(ppo.trainer, "update", lambda *args: (done.append(1), update(*args))[1])
    metrics = ppo.iterate(0)
    assert metrics["stopped_early"] == stopped
    assert len(done) == updates  # the second minibatch is the first that can have moved
    assert ppo.trainer.updates == 4  # the schedule counts planned updates


def test_every_minibatch_sees_other_answers_and_every_pass_all_of_them() -> None:
    orders = [stage._permutation(7, iteration, epoch, 16) for iteration in range(3) for epoch in range(2)]
    assert all(sorted(order.tolist()) == list(range(16)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 6
    assert np.array_equal(orders[0], stage._permutation(7, 0, 0, 16))


# --- learning ---------------------------------------------------------------------------------------------------------


def test_ppo_raises_the_reward_of_a_model_that_likes_one_answer(world: World, tmp_path: Path) -> None:
    colours = [colour for name, colour in FACTS.items() if name.isascii() and colour != "red"]
    liked = [
        Preference(f"{name}-{i}", question(name), ["red", colour], kind="liking")
        for name in FACTS
        for i, colour in enumerate(colours)
    ]
    prompts = [Prompt(f"p{i}", question(name)) for i, name in enumerate([*FACTS] * 2)]
    sets = dialogues(tmp_path / "sets", pairs=liked, prompts=prompts).path
    reward = world.run("reward", tmp_path / "reward", inputs={"preferences": [sets]}, epochs=2)
    fast = {"lr": 2e-3, "eps": 1e-5, "eps_style": "tf", "schedule": "constant"}
    made = world.run(
        "ppo", tmp_path / "ppo", inputs={"reward": reward.path, "prompts": [sets]}, iterations=12, batch_prompts=24,
        actor=fast, critic=fast, kl={"controller": "fixed", "coefficient": 0.02}, policy_kl_limit=None,
    )  # fmt: skip
    rows = rows_of(made.path)
    start, end = (sum(row["reward"] for row in part) / 2 for part in (rows[:2], rows[-2:]))
    assert end > start + 0.5  # one is the spread of the first policy's rewards
    assert rows[-1]["kl"] > 0.05
    assert made.metrics["largest_first_log_ratio"] < 1e-4


# --- what it refuses --------------------------------------------------------------------------------------------------


def test_a_reward_model_that_is_not_normalised_is_refused(world: World, tmp_path: Path) -> None:
    raw = world.run("reward", tmp_path / "reward", normalise=False, epochs=1)
    assert raw.metrics["normalised"] is False
    with pytest.raises(ChatloomError, match=r"stage `ppo`.*reward model is not normalised.*`normalise: true`"):
        world.run("ppo", tmp_path / "ppo", inputs={"reward": raw.path})


def test_a_reward_model_of_another_vocabulary_is_refused(world: World, tmp_path: Path) -> None:
    other = tmp_path / "reward"
    shutil.copytree(world["reward"].path, other)
    Vocabulary.train(["quite another text " * 40] * 3, 290, allow_smaller=True).save(other)
    load_bundle(world["reward"].path).chat.save(other)
    (other / MANIFEST).unlink()
    with pytest.raises(ChatloomError, match="reward model reads another vocabulary than the policy"):
        world.run("ppo", tmp_path / "ppo", inputs={"reward": other})


def test_prompts_too_long_are_counted_and_too_few_prompts_refused(world: World, tmp_path: Path) -> None:
    good = [Prompt(f"p{i}", question(name)) for i, name in enumerate(FACTS)]
    long = [Prompt(f"long{i}", question("0123456789" * 3 + str(i))) for i in range(5)]
    sets = dialogues(tmp_path / "sets", prompts=[*good, *long]).path
    made = world.run("ppo", tmp_path / "ppo", inputs={"prompts": [sets]}, iterations=1, batch_prompts=8)
    assert (made.metrics["prompts"], made.metrics["prompts_too_long"]) == (12, 5)
    with pytest.raises(ChatloomError, match=r"12 prompts fit the context, batch_prompts is 16; give more prompts"):
        world.run("ppo", tmp_path / "more", inputs={"prompts": [sets]})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_new_tokens": 40}, r"max_new_tokens \(40\) fills the whole context \(40\)"),
        ({"minibatches": 17}, r"minibatches \(17\) exceed batch_prompts \(16\)"),
        ({"batch_prompts": 37}, r"batch_prompts \(37\) exceed the 36 prompts; lower it"),
        ({"batch_prompts": 36, "kl": {"horizon": 30}}, r"batch_prompts \(36\) exceed kl\.horizon \(30\)"),
    ],
)
def test_numbers_that_cannot_work_are_refused_before_anything_runs(
    changes: dict[str, Any], words: str, world: World, tmp_path: Path
) -> None:
    with pytest.raises(ChatloomError, match=words):
        world.run("ppo", tmp_path / "ppo", **changes)
    assert not (tmp_path / "ppo.partial").exists()
