"""Promises of the evaluation and the report: complete files, honest columns, the same table again, one closed page."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from toys import FACTS, World, dialogues, question

from chatloom.artifact import Artifact
from chatloom.dialogue.storage import Prompt
from chatloom.errors import ChatloomError
from chatloom.evaluation.sampling import Scored
from chatloom.stages.evaluate import gold_curve, judged


def read_json(made: Artifact, name: str) -> Any:
    return json.loads(made.file(name).read_text(encoding="utf-8"))


def answers(made: Artifact) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(made.file("answers.parquet")).to_pylist()
    return found


def test_every_file_is_there_and_every_answer_in_it(world: World) -> None:
    made = world["evaluate"]
    names = {"answers.parquet", "table.json", "table.txt", "curve.json", "samples.json"}
    assert names <= set(made.manifest["files"])
    rows = answers(made)
    counts = {(row["method"]): sum(other["method"] == row["method"] for other in rows) for row in rows}
    assert counts == {
        "sft": 24, "dpo": 24, "ppo": 24, "best-of-4": 12, "sft (greedy)": 12, "dpo (greedy)": 12, "ppo (greedy)": 12,
    }  # fmt: skip
    assert {row["language"] for row in rows} == {"en", "zh"}
    assert len(read_json(made, "samples.json")) == 3
    assert all(set(item["answers"]) == {"sft", "dpo", "ppo", "best-of-4"} for item in read_json(made, "samples.json"))
    assert "sampled answers" in made.file("table.txt").read_text(encoding="utf-8")


def test_the_table_is_the_mean_of_the_answers(world: World) -> None:
    rows = answers(world["evaluate"])
    table = read_json(world["evaluate"], "table.json")
    assert set(table) == {"sampled", "greedy"}
    headline = {row["method"]: row for row in table["sampled"] if row["group"] == table["sampled"][0]["group"]}
    assert list(headline) == ["sft", "dpo", "ppo", "best-of-4"]
    for method, row in headline.items():
        mine = [item for item in rows if item["method"] == method]
        for name in ("f1", "exact", "reward", "length", "ended"):
            assert row[name] == pytest.approx(sum(float(item[name]) for item in mine) / len(mine)), (method, name)
    assert headline["sft"]["kl"] == 0.0
    assert headline["dpo"]["kl"] > 0.0
    assert headline["ppo"]["kl"] > 0.0
    assert headline["best-of-4"]["kl"] == pytest.approx(0.636, abs=1e-3)  # log 4 - 3/4
    assert headline["best-of-4"]["reward"] > headline["sft"]["reward"]
    groups = {row["group"] for row in table["sampled"]}
    assert any("English" in group for group in groups)
    assert any("中文" in group for group in groups)


def test_best_of_n_answers_with_the_baselines_own_samples(world: World, tmp_path: Path) -> None:
    made = world.run("evaluate", tmp_path / "evaluate", samples=4, greedy=False)
    rows = answers(made)
    for i in range(12):
        pool = [row for row in rows if row["method"] == "sft" and row["prompt"] == f"t{i}"]
        [chosen] = [row for row in rows if row["method"] == "best-of-4" and row["prompt"] == f"t{i}"]
        assert chosen["reward"] == max(row["reward"] for row in pool)
        assert chosen["text"] in {row["text"] for row in pool}


def test_the_gold_curve_starts_at_the_mean_and_ends_at_the_reward_models_choice(world: World) -> None:
    prompts = [Prompt("a", question("sky"), answer="blue"), Prompt("b", question("sun"), answer="gold")]
    pools = [
        [Scored("red", 0.0, -1, 2, True), Scored("blue", 1.0, -1, 2, True)],
        [Scored("gold", 0.0, -1, 2, True), Scored("gold", 1.0, -1, 2, False)],
    ]
    curve = gold_curve(prompts, pools, 2)
    assert [(row["n"], row["exact"], row["reward"]) for row in curve] == [(1, 0.5, 0.5), (2, 0.5, 1.0)]
    curve = read_json(world["evaluate"], "curve.json")
    assert [row["n"] for row in curve] == [1, 2, 4]
    assert all(0.0 <= row["exact"] <= row["f1"] + 1e-9 <= 1.0 + 1e-9 for row in curve)


def test_an_answer_that_did_not_end_is_not_exactly_right() -> None:
    prompt = Prompt("a", question("sky"), answer="blue")
    assert judged(prompt, Scored("blue", 1.0, -1, 2, True))["exact"]
    assert not judged(prompt, Scored("blue", 1.0, -1, 2, False))["exact"]
    assert judged(Prompt("a", question("sky")), Scored("blue", 1.0, -1, 2, True))["exact"] is None


def test_the_same_seed_gives_the_same_table_and_another_seed_another(world: World, tmp_path: Path) -> None:
    again = world.run("evaluate", tmp_path / "again", micro_batch_tokens=80)
    assert [row["text"] for row in answers(again)] == [row["text"] for row in answers(world["evaluate"])]
    assert [row["exact"] for row in read_json(again, "table.json")["sampled"]] == [
        row["exact"] for row in read_json(world["evaluate"], "table.json")["sampled"]
    ]
    other = world.run("evaluate", tmp_path / "other", seed=8)
    texts = [[r["text"] for r in answers(made) if r["method"] == "sft"] for made in (again, other)]
    assert texts[0] != texts[1]


def test_without_reward_model_or_truth_the_rest_is_still_measured(world: World, tmp_path: Path) -> None:
    tests = [Prompt(f"t{i}", question(name)) for i, name in enumerate(FACTS)]
    sets = dialogues(tmp_path / "sets", test=tests).path
    made = world.run(
        "evaluate", tmp_path / "evaluate", inputs={"reward": None, "tests": [sets]}, best_of=0, greedy=False
    )
    rows = read_json(made, "table.json")["sampled"]
    assert rows[0]["exact"] is None
    assert rows[0]["reward"] is None
    assert rows[0]["polite"] is not None
    assert not (made.path / "curve.json").exists()


def test_no_more_than_the_asked_prompts_spread_over_all(world: World, tmp_path: Path) -> None:
    made = world.run("evaluate", tmp_path / "evaluate", max_prompts=4, greedy=False, best_of=0)
    assert {row["prompt"] for row in answers(made)} == {"t0", "t3", "t6", "t9"}


@pytest.mark.parametrize(
    ("labels", "words"),
    [(["a", "b"], "2 labels for 3 models; give one for each"), (["a", "b", "a"], "two models are called the same")],
)
def test_labels_that_do_not_tell_the_models_apart_are_refused(
    labels: list[str], words: str, world: World, tmp_path: Path
) -> None:
    with pytest.raises(ChatloomError, match=words):
        world.run("evaluate", tmp_path / "evaluate", labels=labels)


def test_no_test_prompt_and_prompts_without_room_are_said(world: World, tmp_path: Path) -> None:
    none = dialogues(tmp_path / "none", test=[]).path
    with pytest.raises(ChatloomError, match="there is no test prompt"):
        world.run("evaluate", tmp_path / "empty", inputs={"tests": [none]})
    long = Prompt("long", question("0123456789" * 3), answer="x")
    only = dialogues(tmp_path / "only", test=[long]).path
    with pytest.raises(ChatloomError, match="none of 1 prompts leaves room for max_new_tokens = 8"):
        world.run("evaluate", tmp_path / "long", inputs={"tests": [only]})
    some = dialogues(tmp_path / "some", test=[Prompt("t0", question("sky"), answer="blue"), long]).path
    made = world.run("evaluate", tmp_path / "evaluate", inputs={"tests": [some]}, best_of=0, greedy=False)
    assert (made.metrics["prompts"], made.metrics["prompts_too_long"]) == (1, 1)


# --- the report -------------------------------------------------------------------------------------------------------


class Requests(HTMLParser):
    """Every address that a browser would fetch on opening the page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "srcset", "poster", "data", "background", "xlink:href") or (
                name == "href" and tag in ("link", "image", "use")
            ):
                self.found.append(value or "")
        assert tag not in ("iframe", "object", "embed", "base")


def test_the_report_is_one_page_that_asks_for_nothing(world: World) -> None:
    page = world["report"].file("report.html").read_text(encoding="utf-8")
    outside = [item for item in Requests(page).found if not item.startswith(("data:", "#"))]
    assert outside == []
    assert not re.search(r"@import|url\(\s*['\"]?(?!['\"]?(data:|#))", page)
    assert "http-equiv" not in page or "refresh" not in page
    for words in ("Results", "Reward, KL and gold score", "Pretraining", "近端策略优化", "colour of", "的颜色"):
        assert words in page, words


def test_every_number_of_the_report_is_in_the_summary(world: World) -> None:
    summary = read_json(world["report"], "summary.json")
    assert set(summary) == {
        "conversations", "tokenizer", "tokens", "pretrain", "sft", "reward", "best-of-n", "dpo", "ppo", "evaluate",
    }  # fmt: skip
    assert summary["ppo"]["metrics"]["last_reward"] == world["ppo"].metrics["last_reward"]
    assert summary["sft"]["wall_seconds"] > 0
    assert summary["sft"]["peak_memory_bytes"] > 1e7


def test_every_stage_leaves_a_page_of_its_own(world: World) -> None:
    for name in ("tokenizer", "pretrain", "sft", "reward", "best-of-n", "dpo", "ppo", "evaluate"):
        page = world[name].file("page.html").read_text(encoding="utf-8")
        assert [item for item in Requests(page).found if not item.startswith(("data:", "#"))] == []
