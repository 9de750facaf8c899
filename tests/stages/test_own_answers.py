"""Promises of own-answers: right above wrong, nothing right ranked below, every wrong answer once, the same again."""

from __future__ import annotations

from pathlib import Path

import pytest
from toys import World, dialogues, question

from chatloom.dialogue.record import Preference
from chatloom.dialogue.storage import Prompt, read_preferences
from chatloom.errors import ChatloomError
from chatloom.evaluation.sampling import Scored
from chatloom.stages.own_answers import distinct_prompts, wrong_answers


def scored(text: str, ended: bool = True) -> Scored:
    return Scored(text, None, -1.0, 3, ended)


def test_pairs_put_the_given_answer_above_what_the_model_said(world: World) -> None:
    made = world["own-answers"]
    for name in ("pairs.parquet", "pairs_heldout.parquet"):
        given = read_preferences(world["conversations"].file(name))
        right = {pair.prompt[-1].content: pair.chosen for pair in given}
        prompts, _ = distinct_prompts(given)
        pairs = read_preferences(made.file(name))
        assert pairs
        assert {pair.prompt[-1].content for pair in pairs} <= {prompt.messages[-1].content for prompt in prompts}
        for pair in pairs:
            assert pair.kind == "own_answer"
            assert pair.chosen == right[pair.prompt[-1].content]
            assert pair.ended[0]
            assert not (pair.ended[1] and pair.answers[1].strip() == pair.chosen.strip())
        told = [(pair.prompt[-1].content, pair.answers[1], pair.ended[1]) for pair in pairs]
        assert len(set(told)) == len(told)
    assert made.metrics["pairs"] <= made.metrics["answers"] == 3 * made.metrics["prompts"]


def test_a_prompt_is_asked_once_whatever_pairs_it_has() -> None:
    pairs = [
        Preference("a", question("sky"), ["blue", "red"]),
        Preference("b", question("sky"), ["azure", "red"]),
        Preference("c", question("sky"), ["blue", "gold"]),
        Preference("d", question("snow"), ["white", "red"]),
    ]
    prompts, right = distinct_prompts(pairs)
    assert [prompt.id for prompt in prompts] == ["a", "d"]
    assert right == {"a": ["blue", "azure"], "d": ["white"]}


def test_every_wrong_answer_makes_one_pair_and_no_right_one_does() -> None:
    pool = [
        scored("blue"),
        scored(" azure\n"),
        scored("red"),
        scored("red"),
        scored("red", False),
        scored("blue", False),
    ]
    found = wrong_answers(Prompt("p", question("sky")), ["blue", "azure"], pool)
    assert [(pair.answers, pair.ended) for pair in found] == [
        (["blue", "red"], [True, True]),
        (["blue", "red"], [True, False]),
        (["blue", "blue"], [True, False]),
    ]
    assert [pair.id for pair in found] == ["p/own0", "p/own1", "p/own2"]


def test_the_same_seed_gives_the_same_pairs_and_another_seed_others(world: World, tmp_path: Path) -> None:
    def texts(path: Path) -> list[list[str]]:
        return [pair.answers for pair in read_preferences(path / "pairs.parquet")]

    again = world.run("own-answers", tmp_path / "again")
    other = world.run("own-answers", tmp_path / "other", seed=8)
    assert texts(again.path) == texts(world["own-answers"].path) != texts(other.path)


def test_a_reward_model_learns_from_both_sorts_of_pairs(world: World, tmp_path: Path) -> None:
    made = world.run(
        "reward", tmp_path / "reward", inputs={"preferences": [world["conversations"].path, world["own-answers"].path]}
    )
    assert made.metrics["prompts"] == world["reward"].metrics["prompts"] + world["own-answers"].metrics["pairs"]
    assert "own_answer" in made.metrics["heldout_accuracy_by_kind"]


def test_a_model_that_only_says_what_is_right_is_told_so(world: World, tmp_path: Path) -> None:
    sure = world.run("sft", tmp_path / "sft", epochs=40)
    with pytest.raises(ChatloomError, match="every sampled answer equals the right one"):
        world.run("own-answers", tmp_path / "own", inputs={"model": sure.path}, temperature=0.01, n=1)


def test_no_pairs_is_an_error_that_says_so(world: World, tmp_path: Path) -> None:
    empty = dialogues(tmp_path / "empty", pairs=[])
    with pytest.raises(ChatloomError, match="no right answer"):
        world.run("own-answers", tmp_path / "own", inputs={"preferences": [empty.path]})
