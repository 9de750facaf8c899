"""Promises of a plan's figures: what is made is counted, what is not is foreseen, and the demo took about that long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chatloom import recipe
from chatloom.artifact import Artifact
from chatloom.corpus.record import Document, write_documents
from chatloom.dialogue.record import Conversation, Message, Preference
from chatloom.dialogue.storage import Prompt, write_conversations, write_preferences, write_prompts
from chatloom.model.config import TransformerConfig
from chatloom.recipe import planning
from chatloom.recipe.reading import from_values
from chatloom.stage import Line, Plan, PlanContext
from chatloom.training import costs

QUESTION, ANSWER = "What is it? " * 4, "It is so." * 4  # 48 and 36 bytes: 12 and 9 tokens
CONFIG = TransformerConfig(
    vocab_size=512, hidden_size=32, n_layers=2, n_heads=2, n_kv_heads=2, head_dim=16, intermediate_size=88,
    max_positions=64,
)  # fmt: skip


def context(inputs: dict[str, Any] | None = None, plans: dict[str, Plan] | None = None) -> PlanContext:
    return PlanContext(None, inputs or {}, plans or {}, 2, 1e11)


def planned(**values: float) -> Plan:
    return Plan(tuple(Line(name, value, "") for name, value in values.items()))


@pytest.fixture
def made(tmp_path: Path) -> Artifact:
    asked = [Message("user", QUESTION)]
    talks = [Conversation(f"c{i}", [*asked, Message("assistant", ANSWER)]) for i in range(10)]
    write_conversations(tmp_path / "sft.parquet", talks)
    write_preferences(tmp_path / "pairs.parquet", [Preference("p", asked, [ANSWER, "No."])] * 4)
    write_prompts(tmp_path / "prompts.parquet", [Prompt("a", asked)] * 3)
    write_documents(tmp_path / "shards" / "0.parquet", [Document("d", "x" * 5000, "page")], {})
    return Artifact(tmp_path, {"kind": "conversations", "files": {}, "metrics": {}})


def test_texts_that_are_made_are_counted(made: Artifact) -> None:
    given = context({"data": made})
    assert costs.texts_of(given, "data", "records") == costs.Texts(10, 12 + 2 + 1, 9 + 1)
    assert costs.texts_of(given, "data", "pairs") == costs.Texts(4, 15, (9 + 1 + 0.75 + 1) / 2)
    assert costs.texts_of(given, "data", "prompts") == costs.Texts(3, 15, costs.ANSWER_TOKENS)
    assert costs.texts_of(given, "data", "tests").count == 0  # there is no such file
    assert costs.document_bytes(given, "data") == pytest.approx(5000, rel=0.02)


def test_texts_of_several_inputs_are_added_up_whether_made_or_not(made: Artifact) -> None:
    plans = {"data": planned(records=30), "data.1": planned(records=30, prompt_tokens=55, answer_tokens=50, bytes=100)}
    given = context({"data": [made]}, plans)
    found = costs.texts_of(given, "data", "records")
    assert (found.count, found.prompt_tokens, found.answer_tokens) == (40, 45, 40)
    assert costs.n_sources(given, "data") == 2
    assert costs.document_bytes(given, "data") == pytest.approx(5100, rel=0.02)
    assert costs.texts_of(context(), "data", "records") == costs.Texts()


def test_a_damaged_file_is_left_to_the_stage_to_complain_of(made: Artifact) -> None:
    for name in ("sft.parquet", "shards/0.parquet"):
        file = made.path / name
        file.write_bytes(file.read_bytes()[:-20])
    middle = made.path / "pairs.parquet"
    middle.write_bytes(middle.read_bytes()[:8] + bytes(200) + middle.read_bytes()[208:])
    given = context({"data": made})
    assert costs.texts_of(given, "data", "records").count == costs.texts_of(given, "data", "pairs").count == 0
    assert costs.document_bytes(given, "data") == 0


def test_answers_are_as_long_as_the_model_learnt_and_no_longer_than_allowed() -> None:
    plans = {"model": planned(answer_tokens=14)}
    assert costs.answer_tokens(context(plans=plans), "model", 48) == 14
    assert costs.answer_tokens(context(plans=plans), "model", 8) == 8
    assert costs.answer_tokens(context(), "model", 48) == 48
    assert costs.answer_tokens(context(plans={"model": planned()}), "model", 48) == 48


def test_a_sampled_token_takes_longer_than_a_scored_one_and_leaves_nothing_on_the_disk() -> None:
    def plan(**options: Any) -> Plan:
        return costs.training_plan(CONFIG, context(), tokens=0, trained=0, frozen=1, **options)

    scored, sampled = plan(scored=1e6), plan(sampled=1e6, row_tokens=64)
    assert scored.value("flops") == sampled.value("flops") > 0
    ratio = costs.UTILISATION / costs.SAMPLING_UTILISATION
    assert sampled.value("time") == pytest.approx(ratio * scored.value("time"))
    assert scored.value("disk") == scored.value("disk_meanwhile") == 0
    cache = 2 * 2 * 2 * 16 * 4 * 64 * costs.SAMPLED_AT_ONCE  # key and value, layers, heads, width, bytes, tokens
    assert plan(sampled=1.0, row_tokens=64, micro_batch_tokens=1).value("memory") > costs.PROGRAM_BYTES + cache


def test_without_a_trained_model_no_activation_is_kept() -> None:
    memory = [costs.training_plan(CONFIG, context(), tokens=1, trained=n).value("memory") for n in (0, 1)]
    assert costs.PROGRAM_BYTES < memory[0] < memory[1]


# --- a run that was measured ------------------------------------------------------------------------------------------

# What decided the cost of the demo on 2026-11-22, on two cores that multiply at 177 GFLOP/s, alone on the machine.
MEASURED: dict[str, Any] = {
    "corpus": {"stage": "corpus", "documents": {"source": "pydoc"}},
    "questions": {
        "stage": "questions", "documents": {"from": "corpus"}, "n_facts": 300, "questions_per_fact": 32,
        "refusal_share": 0.3, "alignment_per_fact": 6, "pairs_per_fact": 30, "test_invented": 100,
        "test_multi_turn": 60,
    },
    "tokenizer": {"stage": "tokenizer", "documents": {"from": "corpus"}, "vocab_size": 4096},
    "tokens": {"stage": "tokens", "documents": {"from": "corpus"}, "vocabulary": {"from": "tokenizer"}},
    "pretrain": {
        "stage": "pretrain", "tokens": {"from": "tokens"},
        "model": {"hidden_size": 128, "n_layers": 4, "n_heads": 4, "context": 256}, "epochs": 1.0,
    },
    "sft": {"stage": "sft", "model": {"from": "pretrain"}, "conversations": {"from": "questions"}, "epochs": 1.1},
    "reward": {
        "stage": "reward", "model": {"from": "sft"}, "preferences": {"from": "questions"}, "max_new_tokens": 48
    },
    "best-of-n": {
        "stage": "best-of-n", "model": {"from": "sft"}, "reward": {"from": "reward"}, "prompts": {"from": "questions"},
        "n": 16, "max_prompts": 1200, "max_new_tokens": 48, "pairs_per_prompt": 2,
    },
    "dpo": {"stage": "dpo", "model": {"from": "sft"}, "preferences": {"from": "best-of-n"}, "epochs": 2},
    "ppo": {
        "stage": "ppo", "model": {"from": "sft"}, "reward": {"from": "reward"}, "prompts": {"from": "questions"},
        "iterations": 24, "batch_prompts": 256, "epochs": 1, "max_new_tokens": 48,
    },
    "evaluate": {
        "stage": "evaluate", "models": [{"from": "sft"}, {"from": "dpo"}, {"from": "ppo"}],
        "labels": ["sft", "dpo", "ppo"], "reward": {"from": "reward"}, "tests": {"from": "questions"},
        "best_of": 16, "max_new_tokens": 48,
    },
}  # fmt: skip
SECONDS = {"questions": 7, "tokenizer": 1.8, "pretrain": 86, "sft": 56, "reward": 74, "best-of-n": 45, "dpo": 17,
           "ppo": 91, "evaluate": 60}  # fmt: skip
TOKENS = {"pretrain": 859_250, "sft": 547_785, "reward": 618_984, "dpo": 162_305, "ppo": 220_489}
MEGABYTES = {"questions": 0.93, "tokenizer": 0.29, "tokens": 2.1, "pretrain": 16.1, "sft": 16.2, "reward": 16.2,
             "best-of-n": 0.19, "dpo": 16.2, "ppo": 32, "evaluate": 0.17}  # fmt: skip


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> recipe.PlanReport:
    monkeypatch.setattr(planning, "machine_speed", lambda: (2, 177e9))
    return recipe.plan(from_values({"stages": MEASURED}), tmp_path)


def test_the_plan_of_the_demo_is_near_what_it_took(demo: recipe.PlanReport) -> None:
    figures = {stage.node.name: stage.figures for stage in demo.stages}
    for name, measured in (("time", SECONDS), ("tokens", TOKENS)):
        for stage, value in measured.items():
            assert value / 2 < figures[stage].value(name) < 2 * value, (stage, name)
    for stage, value in MEGABYTES.items():
        assert value / 2 < figures[stage].value("disk") / 1e6 < 2 * value, stage
    assert 450 / 1.5 < sum(figures[stage].value("time") for stage in SECONDS) < 450 * 1.5


def test_the_plan_of_the_demo_knows_how_much_memory_it_takes(demo: recipe.PlanReport) -> None:
    assert 1.39e9 / 2 < demo.totals["memory"].value < 1.39e9 * 2
    assert demo.totals["parameters"].value == 1_315_968


def test_an_evaluation_costs_more_with_more_models_though_none_is_made(tmp_path: Path) -> None:
    def seconds(count: int) -> float:
        entry = MEASURED["evaluate"]
        fewer = {**MEASURED, "evaluate": {**entry, "models": entry["models"][:count], "labels": []}}
        report = recipe.plan(from_values({"stages": fewer}), tmp_path, measure=False)
        return report.stages[-1].figures.value("time")

    assert seconds(1) < seconds(2) < seconds(3) < 2 * seconds(1)
