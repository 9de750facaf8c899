"""Promises of DPO: the first loss is the declared one and checked, the margin grows, wrong references are caught."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toys import World, dialogues, pairs, question

from chatloom.dialogue.record import Preference
from chatloom.dialogue.storage import read_preferences
from chatloom.errors import ChatloomError
from chatloom.objectives.preference import KINDS, PreferenceLoss
from chatloom.stages import dpo as stage
from chatloom.stages.dpo import DpoLoss, check_start
from chatloom.training.bundle import load_bundle
from chatloom.training.data import pack_examples, preference_examples
from chatloom.training.forward import segment_logprobs
from chatloom.training.metrics import read_metrics


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return read_metrics(folder / "metrics.jsonl").rows


@pytest.mark.parametrize("loss", KINDS)
def test_the_first_loss_is_the_declared_value(loss: str, world: World, tmp_path: Path) -> None:
    smoothing = 0.1 if KINDS[loss].smooths else 0.0
    made = world.run("dpo", tmp_path / "dpo", loss=loss, label_smoothing=smoothing, beta=0.2, epochs=0.1)
    [row] = rows_of(made.path)
    expected = PreferenceLoss(loss, 0.2, smoothing).value_at_reference
    assert made.metrics["value_at_reference"] == expected
    assert row["loss"] == pytest.approx(expected, rel=1e-4)
    assert row["margin"] == pytest.approx(0.0, abs=1e-5)


def test_an_added_likelihood_term_is_no_part_of_the_check(world: World, tmp_path: Path) -> None:
    made = world.run("dpo", tmp_path / "dpo", nll_weight=0.5, epochs=0.1)
    [row] = rows_of(made.path)
    assert row["loss"] == pytest.approx(0.693147 - 0.5 * row["chosen_logprob"], rel=0.2)
    assert row["loss"] > 0.7


@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo"])
def test_wrong_reference_logprobs_stop_the_run_with_the_likely_causes(
    loss: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = stage.with_reference

    def wrong(model: Any, examples: Any, *args: Any) -> None:
        original(model, examples, *args)
        for example in examples:
            example.segments[0].scalars["reference"] += 0.5  # as of another template, or a model half a nat away

    monkeypatch.setattr(stage, "with_reference", wrong)
    with pytest.raises(ChatloomError, match=rf"first {loss} loss is.*must be.*another model.*dropout"):
        world.run("dpo", tmp_path / "dpo", loss=loss)


def test_the_check_wants_a_number_and_the_right_one() -> None:
    loss = PreferenceLoss("sigmoid", 0.1)
    objective = DpoLoss(None, loss)  # type: ignore[arg-type]
    for value in (None, float("nan"), 0.7):
        objective.first_value = value
        with pytest.raises(ChatloomError, match=r"must be 0\.693147"):
            check_start(objective, loss, "fp32")
    objective.first_value = 0.70
    check_start(objective, loss, "bf16")  # bf16 rounds more


def test_reference_logprobs_are_those_of_the_start_model(world: World) -> None:
    bundle = load_bundle(world["sft"].path)
    examples, _ = preference_examples(pairs(range(9)), bundle.chat, bundle.vocabulary, 40)
    stage.with_reference(bundle.model, examples, 80, bundle.vocabulary.pad_id, torch.device("cpu"))
    [batch] = pack_examples(examples, 40, 4000, bundle.vocabulary.pad_id)
    with torch.no_grad():
        sums, _ = segment_logprobs(bundle.model, batch)
    torch.testing.assert_close(batch.scalars["reference"], sums, atol=1e-4, rtol=0)
    assert len({round(value, 3) for value in sums.tolist()}) > 9


def test_dpo_raises_the_margin_and_the_chosen_answers_share(world: World) -> None:
    rows = rows_of(world["dpo"].path)
    assert rows[0]["margin"] == pytest.approx(0.0, abs=1e-5)
    assert rows[-1]["margin"] > 0.2
    assert rows[-1]["accuracy"] > 0.7
    assert rows[-1]["loss"] < 0.6
    before, after = (load_bundle(world[name].path) for name in ("sft", "dpo"))
    preferences = read_preferences(world["best-of-n"].file("pairs.parquet"))
    examples, _ = preference_examples(preferences, before.chat, before.vocabulary, 40)
    [batch] = pack_examples(examples, 40, 10_000, before.vocabulary.pad_id)
    chosen, rejected = stage.pair_indices(batch)
    margins = []
    for bundle in (before, after):
        with torch.no_grad():
            sums, _ = segment_logprobs(bundle.model, batch)
        margins.append(float((sums[chosen] - sums[rejected]).mean()))
    assert margins[1] > margins[0] + 0.5


def test_a_pair_is_chosen_then_rejected_whatever_the_packing(world: World) -> None:
    bundle = load_bundle(world["sft"].path)
    examples, _ = preference_examples(pairs(range(20)), bundle.chat, bundle.vocabulary, 40)
    for batch in pack_examples(examples, 40, 120, bundle.vocabulary.pad_id):
        chosen, rejected = stage.pair_indices(batch)
        assert torch.equal(batch.group[chosen], batch.group[rejected])
        assert {batch.role[i] for i in chosen.tolist()} == {"rank0"}
        assert {batch.role[i] for i in rejected.tolist()} == {"rank1"}


def test_of_a_ranking_the_best_and_the_worst_are_used(world: World, tmp_path: Path) -> None:
    ranking = [
        Preference(f"r{i}", question("sky"), ["blue", "gold", f"red {i}"], ended=[True, True, False]) for i in range(4)
    ]
    sets = dialogues(tmp_path / "sets", pairs=ranking)
    context = world.context("dpo", tmp_path / "dpo")
    context.inputs = {**context.inputs, "preferences": [sets]}
    found = stage._pairs(context)
    assert [pair.answers for pair in found] == [["blue", f"red {i}"] for i in range(4)]
    assert all(pair.ended == [True, False] for pair in found)


def test_no_pair_is_said(world: World, tmp_path: Path) -> None:
    sets = dialogues(tmp_path / "sets", pairs=[]).path
    with pytest.raises(ChatloomError, match=r"stage `dpo`.*there is no pair to learn from"):
        world.run("dpo", tmp_path / "dpo", inputs={"preferences": [sets]})


def test_a_number_without_meaning_for_a_loss_is_said(world: World, tmp_path: Path) -> None:
    with pytest.raises(ChatloomError, match="sigmoid has no label_smoothing; the kinds that have are cdpo, robust"):
        world.run("dpo", tmp_path / "dpo", label_smoothing=0.1)


def test_pairs_too_long_are_counted_and_too_many_refused(world: World, tmp_path: Path) -> None:
    long = [Preference(f"l{i}", question("sky"), ["blue", "0123456789" * 4 + str(i)]) for i in range(2)]
    sets = dialogues(tmp_path / "sets", pairs=[*pairs(range(38)), *long]).path
    made = world.run("dpo", tmp_path / "dpo", inputs={"preferences": [sets]}, epochs=0.1)
    assert (made.metrics["pairs"], made.metrics["rejected"]) == (38, 2)
    with pytest.raises(ChatloomError, match=r"2 of 40 pairs cannot be used \(l0: an answer takes \d+ tokens"):
        world.run("dpo", tmp_path / "strict", inputs={"preferences": [sets]}, epochs=0.1, max_rejected_share=0.04)
