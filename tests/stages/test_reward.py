"""Promises of the reward model: it ranks, it is normalised as it says, and what cannot be learnt from is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from toys import World, dialogues, pairs, question

from chatloom.dialogue.record import Preference
from chatloom.dialogue.storage import Prompt, read_preferences, read_prompts
from chatloom.errors import ChatloomError
from chatloom.generation.engine import generate
from chatloom.model.heads import RewardModel
from chatloom.stages import reward as stage
from chatloom.tokens.packing import Segment, pack
from chatloom.training.bundle import Bundle, load_bundle
from chatloom.training.data import pack_examples, preference_examples
from chatloom.training.metrics import read_metrics
from chatloom.training.rollouts import answers, batches_of, reward_scores


def chosen_scores(bundle: Bundle, preferences: list[Preference]) -> torch.Tensor:
    """Scores of the best answers, one forward pass an answer and nothing packed."""
    template, vocabulary = bundle.chat, bundle.vocabulary
    found = []
    for preference in preferences:
        rendered = template.render_answer(preference, 0, vocabulary)
        batch = pack([Segment(rendered.ids, rendered.mask, group=0)], 40, vocabulary.pad_id)  # type: ignore[arg-type]
        with torch.no_grad():
            found.append(float(bundle.reward.rewards(batch)))
    return torch.tensor(found)


def sampled_scores(bundle: Bundle, policy: Bundle, prompts: list[Prompt], count: int, seed: int) -> torch.Tensor:
    """Scores of answers that the chat model gives to prompts in turn."""
    template, vocabulary = bundle.chat, bundle.vocabulary
    ids = [template.render(prompt.messages, vocabulary, open_reply=True).ids for prompt in prompts]
    given = [ids[i % len(ids)] for i in range(count)]
    drawn = [
        pool[0]
        for pool in generate(
            policy.model,
            given,
            max_new_tokens=8,
            seed=seed,
            stop_ids=template.stop_ids(vocabulary),
            prompt_keys=list(range(count)),
        )
    ]
    rolled = answers(given, [s.tokens for s in drawn], [s.logprobs for s in drawn], [s.finished for s in drawn])
    return reward_scores(bundle.reward, batches_of(rolled.segments, 40, 4000, vocabulary.pad_id, "cpu"), count)


def test_measured_afresh_chosen_answers_have_mean_0_and_samples_spread_1(world: World) -> None:
    bundle, policy = load_bundle(world["reward"].path), load_bundle(world["sft"].path)
    preferences = read_preferences(world["conversations"].file("pairs.parquet"))
    prompts = read_prompts(world["conversations"].file("prompts.parquet"))
    assert float(chosen_scores(bundle, preferences).mean()) == pytest.approx(0.0, abs=1e-3)
    assert float(sampled_scores(bundle, policy, prompts[:32], 32, seed=7).std()) == pytest.approx(1.0, abs=1e-3)
    other = float(sampled_scores(bundle, policy, prompts, 256, seed=99).std())
    assert 0.6 < other < 1.6  # other samples agree, as far as 32 of them can tell


def test_normalising_is_affine_and_is_stored_with_the_model(world: World, tmp_path: Path) -> None:
    raw = world.run("reward", tmp_path / "reward", normalise=False)
    preferences = pairs(range(24))
    before = chosen_scores(load_bundle(raw.path), preferences)
    after = chosen_scores(load_bundle(world["reward"].path), preferences)
    gain, bias = world["reward"].metrics["gain"], world["reward"].metrics["bias"]
    assert gain > 0
    torch.testing.assert_close(after, gain * before + bias, atol=1e-4, rtol=1e-4)
    config = json.loads(world["reward"].file("config.json").read_text(encoding="utf-8"))
    assert config["reward_bias"] == pytest.approx(bias, rel=1e-6)
    assert raw.metrics["heldout_accuracy"] == world["reward"].metrics["heldout_accuracy"]
    assert raw.metrics["heldout_brier"] == pytest.approx(world["reward"].metrics["heldout_brier"], rel=1e-4)


def test_it_learns_to_rank_and_its_report_holds_when_counted_again(world: World) -> None:
    rows = read_metrics(world["reward"].path / "metrics.jsonl").rows
    assert rows[-1]["accuracy"] > 0.9
    assert rows[-1]["loss"] < 0.3 < rows[0]["loss"]
    bundle = load_bundle(world["reward"].path)
    heldout = pairs(range(100, 116))
    examples, _ = preference_examples(heldout, bundle.chat, bundle.vocabulary, 40)
    [batch] = pack_examples(examples, 40, 10_000, bundle.vocabulary.pad_id)
    with torch.no_grad():
        scores = bundle.reward.rewards(batch)
    right = [float(scores[2 * i] > scores[2 * i + 1]) for i in range(16)]
    report = json.loads(world["reward"].file("heldout.json").read_text(encoding="utf-8"))
    assert report["n"] == 16
    assert report["accuracy"] == pytest.approx(sum(right) / 16)
    assert set(report["by_kind"]) == {"another", "rambling"}
    assert world["reward"].metrics["heldout_accuracy"] == report["accuracy"]


def test_the_rate_falls_to_zero_in_one_epoch_by_default(world: World) -> None:
    rows = read_metrics(world["reward"].path / "metrics.jsonl").rows
    assert rows[0]["lr"] == 3e-3
    assert rows[-1]["lr"] == 0.0
    assert stage.RewardSettings().optimizer.final_share == 0.0
    assert stage.RewardSettings().epochs == 1.0


def test_a_model_that_scores_every_text_alike_cannot_be_normalised(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "reward_scores", lambda model, batches, n: torch.full((n,), 0.25))
    with pytest.raises(ChatloomError, match=r"stage `reward`.*same score"):
        world.run("reward", tmp_path / "reward", epochs=0.1)


def test_no_preference_is_said(world: World, tmp_path: Path) -> None:
    sets = dialogues(tmp_path / "sets", pairs=[]).path
    with pytest.raises(ChatloomError, match=r"stage `reward`.*no item to train on"):
        world.run("reward", tmp_path / "reward", inputs={"preferences": [sets]})


def test_answers_longer_than_the_context_are_counted_or_refused(world: World, tmp_path: Path) -> None:
    long = Preference("long", question("sky"), ["blue", "0123456789" * 4])
    sets = dialogues(tmp_path / "sets", pairs=[*pairs(range(40)), long]).path
    made = world.run("reward", tmp_path / "reward", inputs={"preferences": [sets]}, epochs=0.2)
    assert (made.metrics["prompts"], made.metrics["rejected"]) == (40, 1)
    rejected = json.loads(made.file("rejected.json").read_text(encoding="utf-8"))
    assert [item["id"] for item in rejected] == ["long"]
    with pytest.raises(ChatloomError, match="1 of 41 preferences cannot be used"):
        world.run("reward", tmp_path / "strict", inputs={"preferences": [sets]}, max_rejected_share=0.0)


def test_no_room_for_the_samples_is_said(world: World, tmp_path: Path) -> None:
    with pytest.raises(ChatloomError, match=r"no prompt leaves room for max_new_tokens = 36 in a context of 40; lower"):
        world.run("reward", tmp_path / "reward", max_new_tokens=36, epochs=0.1)


def test_without_prompts_the_preferences_own_are_sampled_from(world: World, tmp_path: Path) -> None:
    sets = dialogues(tmp_path / "sets", pairs=pairs(range(12))).path
    made = world.run("reward", tmp_path / "reward", inputs={"preferences": [sets]}, epochs=1)
    assert made.metrics["normalised"] is True
    assert "heldout_accuracy" not in made.metrics  # there is nothing held out to report on


def test_k_ranked_answers_are_one_element_of_the_batch(world: World, tmp_path: Path) -> None:
    ranked = [
        Preference(f"r{i}", question(name), [right, f"{right} {right}", "red gold", "no"][: 2 + i % 3])
        for i, (name, right) in enumerate([("sky", "blue"), ("雪", "白色"), ("grass", "green")] * 4)
    ]
    sets = dialogues(tmp_path / "sets", pairs=ranked).path
    made = world.run("reward", tmp_path / "reward", inputs={"preferences": [sets]}, epochs=6, batch_prompts=6)
    assert made.metrics["prompts"] == 12
    rows = read_metrics(made.path / "metrics.jsonl").rows
    assert rows[-1]["accuracy"] > 0.9


def test_the_reward_is_a_reward_model_and_says_so(world: World) -> None:
    assert world["reward"].kind == "reward-model"
    bundle = load_bundle(world["reward"].path)
    assert isinstance(bundle.network, RewardModel)
    with pytest.raises(ChatloomError, match="expected a language model, found a reward model"):
        _ = bundle.model
    with pytest.raises(ChatloomError, match="expected a reward model, found a language model"):
        _ = load_bundle(world["sft"].path).reward
