"""Promises of best-of-n: all samples kept, pairs ordered by reward, an unbiased curve, the same answers again."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from toys import World, dialogues, question

from chatloom.artifact import Artifact
from chatloom.dialogue.storage import Prompt, read_preferences, read_prompts
from chatloom.errors import ChatloomError
from chatloom.evaluation.sampling import Scored, best, sample_and_score
from chatloom.stages.best_of_n import ranked_pairs, reward_curve
from chatloom.training.bundle import load_bundle

CPU = torch.device("cpu")


def rollouts(made: Artifact) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(made.file("rollouts.parquet")).to_pylist()
    return found


def scored(text: str, reward: float, ended: bool = True) -> Scored:
    return Scored(text, reward, -1.0, 3, ended)


def test_every_sample_is_kept(world: World) -> None:
    made = world["best-of-n"]
    rows = rollouts(made)
    prompts = read_prompts(world["conversations"].file("prompts.parquet"))
    assert [(row["prompt"], row["sample"]) for row in rows] == [(p.id, i) for p in prompts for i in range(8)]
    assert made.metrics["answers"] == 36 * 8
    assert all(row["logprob"] < 0 and 1 <= row["tokens"] <= 8 for row in rows)
    assert 0 < sum(row["ended"] for row in rows) < len(rows)
    assert made.metrics["ended"] == pytest.approx(sum(row["ended"] for row in rows) / len(rows))


def test_rewards_are_the_reward_models_less_the_penalty(world: World, tmp_path: Path) -> None:
    harsh = world.run("best-of-n", tmp_path / "harsh", missing_end_penalty=3.0)
    mild = world.run("best-of-n", tmp_path / "mild", missing_end_penalty=0.0)
    bundle = load_bundle(world["reward"].path)
    prompts = {p.id: p for p in read_prompts(world["conversations"].file("prompts.parquet"))}
    for one, two in zip(rollouts(harsh), rollouts(mild), strict=True):
        assert one["text"] == two["text"]
        assert two["reward"] - one["reward"] == pytest.approx(0.0 if one["ended"] else 3.0, abs=1e-4)
    for row in rollouts(mild)[:24]:
        ids = bundle.chat.render(prompts[row["prompt"]].messages, bundle.vocabulary, open_reply=True).ids
        ids += bundle.vocabulary.encode(row["text"])
        ids += [bundle.vocabulary.id_of("<|end|>")] * row["ended"]
        last = torch.tensor([len(ids) - 1])
        if len(bundle.vocabulary.encode(row["text"])) + row["ended"] != row["tokens"] or "\ufffd" in row["text"]:
            continue  # the policy spelt the text with other tokens
        with torch.no_grad():
            value = bundle.reward(torch.tensor([ids]), torch.arange(len(ids))[None], None, torch.tensor([0]), last)
        assert row["reward"] == pytest.approx(float(value), abs=1e-3)


def test_pairs_put_the_better_reward_first(world: World) -> None:
    by_prompt: dict[str, dict[tuple[str, bool], float]] = {}
    for row in rollouts(world["best-of-n"]):
        by_prompt.setdefault(row["prompt"], {})[row["text"], row["ended"]] = row["reward"]
    pairs = read_preferences(world["best-of-n"].file("pairs.parquet"))
    assert len(pairs) == world["best-of-n"].metrics["pairs"] > 20
    for pair in pairs:
        pool = by_prompt[pair.id.split("/")[0]]
        chosen, rejected = (pool[pair.answers[i], pair.ended[i]] for i in (0, 1))
        assert chosen == max(pool.values())
        assert rejected == min(pool.values())
        assert chosen - rejected >= 0.1


def test_pairs_go_inwards_skip_equal_answers_and_keep_their_distance() -> None:
    prompt = Prompt("p", question("sky"))
    pool = [scored("a", 3.0), scored("a", 3.0), scored("b", 2.0), scored("c", 1.8), scored("d", 0.0)]
    pool.append(scored("a", 1.0, False))
    found = ranked_pairs(prompt, pool, 3, 0.5)
    assert [(pair.answers, pair.ended) for pair in found] == [(["a", "d"], [True, True]), (["b", "a"], [True, False])]
    assert [pair.id for pair in found] == ["p/0", "p/1"]
    assert len(ranked_pairs(prompt, pool, 1, 0.5)) == 1
    assert ranked_pairs(prompt, pool, 3, 5.0) == []
    assert ranked_pairs(prompt, [scored("a", 1.0)] * 4, 3, 0.0) == []


def test_the_curve_is_unbiased_over_the_pool(world: World) -> None:
    pools: dict[str, list[float]] = {}
    for row in rollouts(world["best-of-n"]):
        pools.setdefault(row["prompt"], []).append(row["reward"])
    curve = json.loads(world["best-of-n"].file("curve.json").read_text(encoding="utf-8"))
    assert [row["n"] for row in curve] == [1, 2, 4, 8]
    for row in curve:
        values = [
            sum(max(chosen) for chosen in itertools.combinations(pool, row["n"]))
            / len(list(itertools.combinations(pool, row["n"])))
            for pool in pools.values()
        ]
        assert row["reward"] == pytest.approx(sum(values) / len(values), abs=1e-5)
    assert curve[0]["kl"] == 0.0
    assert curve[3]["kl"] == pytest.approx(1.204, abs=1e-3)  # log 8 - 7/8


def test_the_curve_ends_at_the_whole_pool_when_that_is_no_power_of_two() -> None:
    curve = reward_curve([[scored("a", 1.0), scored("b", 2.0), scored("c", 6.0)]])
    assert [(row["n"], row["reward"]) for row in curve] == [(1, 3.0), (2, pytest.approx(14 / 3)), (3, 6.0)]


def test_the_same_seed_gives_the_same_answers_and_another_seed_others(world: World, tmp_path: Path) -> None:
    texts = [row["text"] for row in rollouts(world["best-of-n"])]
    again = world.run("best-of-n", tmp_path / "again", micro_batch_tokens=80)
    other = world.run("best-of-n", tmp_path / "other", seed=8)
    assert [row["text"] for row in rollouts(again)] == texts
    assert [row["text"] for row in rollouts(other)] != texts


def test_a_prompts_answers_do_not_depend_on_how_many_prompts_follow(world: World, tmp_path: Path) -> None:
    few = world.run("best-of-n", tmp_path / "few", max_prompts=5)
    rows = rollouts(world["best-of-n"])[: 5 * 8]
    assert [row["text"] for row in rollouts(few)] == [row["text"] for row in rows]


def test_prompts_without_room_for_an_answer_are_counted_and_no_prompts_said(world: World, tmp_path: Path) -> None:
    long = Prompt("long", question("0123456789" * 3))
    some = dialogues(tmp_path / "some", prompts=[Prompt("p0", question("sky")), long]).path
    made = world.run("best-of-n", tmp_path / "made", inputs={"prompts": [some]})
    assert (made.metrics["prompts"], made.metrics["prompts_too_long"]) == (1, 1)
    assert {row["prompt"] for row in rollouts(made)} == {"p0"}
    only = dialogues(tmp_path / "only", prompts=[long]).path
    with pytest.raises(ChatloomError, match="none of 1 prompts leaves room for max_new_tokens = 8 in a context of 40"):
        world.run("best-of-n", tmp_path / "long", inputs={"prompts": [only]})
    none = dialogues(tmp_path / "none", prompts=[]).path
    with pytest.raises(ChatloomError, match="there is no prompt to answer"):
        world.run("best-of-n", tmp_path / "empty", inputs={"prompts": [none]})
    with pytest.raises(ChatloomError, match=r"max_new_tokens \(40\) fills the whole context \(40\)"):
        world.run("best-of-n", tmp_path / "full", max_new_tokens=40)


# --- sampling and scoring ---------------------------------------------------------------------------------------------


def test_the_kl_of_a_policy_to_itself_is_zero_and_to_another_what_its_logprobs_say(world: World) -> None:
    policy, reference = load_bundle(world["ppo"].path), load_bundle(world["sft"].path)
    with torch.no_grad():
        for p in policy.model.parameters():
            p.mul_(1.15)
    prompts = read_prompts(world["conversations"].file("prompts.parquet"))[:12]
    how: dict[str, Any] = {
        "n": 64, "max_new_tokens": 8, "temperature": 1.0, "seed": 3, "device": CPU, "quiet": True,
    }  # fmt: skip
    own = sample_and_score(policy, None, prompts, reference=policy, **how)
    assert max(abs(item.kl or 0.0) for pool in own for item in pool) < 1e-5
    found = [item for pool in sample_and_score(policy, None, prompts, reference=reference, **how) for item in pool]
    exact = torch.tensor([item.kl for item in found])
    assert float(exact.min()) > 0.0
    # The same mean from the samples themselves (k1), whose noise is far larger.
    from chatloom.tokens.packing import Segment, micro_batches
    from chatloom.training.forward import segment_logprobs

    k1 = torch.zeros(len(found))
    segments = []
    for i, item in enumerate(found):
        opening = policy.chat.render(prompts[i // 64].messages, policy.vocabulary, open_reply=True).ids
        reply = policy.vocabulary.encode(item.text) + [policy.vocabulary.id_of("<|end|>")] * item.ended
        segments.append(Segment(opening + reply, [0.0] * len(opening) + [1.0] * len(reply), group=i))  # type: ignore[arg-type]
    with torch.no_grad():
        for batch in micro_batches(segments, 4000, 40, policy.vocabulary.pad_id):
            k1[batch.group] = segment_logprobs(policy.model, batch)[0] - segment_logprobs(reference.model, batch)[0]
    respelt = [len(policy.vocabulary.encode(item.text)) + item.ended != item.tokens for item in found]
    kept = ~torch.tensor(respelt)
    error = float(k1[kept].std()) / float(kept.sum()) ** 0.5
    mean, tolerance = float(exact[kept].mean()), 5 * error + 0.05 * float(exact.mean())
    assert float(k1[kept].mean()) == pytest.approx(mean, abs=tolerance)
    assert float(exact.std()) < float(k1.std())


def test_greedy_answers_are_all_the_same(world: World) -> None:
    policy, reward = load_bundle(world["sft"].path), load_bundle(world["reward"].path)
    prompts = read_prompts(world["conversations"].file("prompts.parquet"))[:4]
    pools = sample_and_score(
        policy, reward, prompts, n=3, max_new_tokens=8, temperature=0.0, seed=1, device=CPU, quiet=True
    )
    for pool in pools:
        assert len({(item.text, round(item.reward or 0.0, 4)) for item in pool}) == 1


def test_a_prompt_without_room_is_said_and_answers_without_reward_have_no_best(world: World) -> None:
    policy = load_bundle(world["sft"].path)
    long = [Prompt("long", question("0123456789" * 3))]
    with pytest.raises(ChatloomError, match=r"prompt 'long' takes \d+ tokens and max_new_tokens is 8.*context of 40"):
        sample_and_score(policy, None, long, n=1, max_new_tokens=8, temperature=1.0, seed=1, device=CPU, quiet=True)
    with pytest.raises(ChatloomError, match="sampled without a reward model"):
        best([Scored("a", None, -1.0, 3, True)])


def test_the_best_is_the_highest_reward_and_the_first_among_equals() -> None:
    pool = [scored("a", -3.0), scored("b", -1.0), scored("c", -1.0), scored("d", -2.0)]
    assert best(pool).text == "b"
