"""Promises of the recipes that come with chatloom: they can be read, and expand to what they say."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from chatloom import recipe
from chatloom.corpus.record import document_files, read_documents
from chatloom.recipe import RecipeError
from chatloom.recipe.reading import packaged, read_values

SEEDS = (0, 1, 2)
CORPUS = ("corpus.documents", "corpus.labels", "corpus.duplicates", "corpus.selection")
SHARED = (*CORPUS, "questions", "tokenizer", "tokens")
TRAINED = ("pretrain", "sft", "sft-random", "own-answers", "reward", "best-of-n", "dpo", "ppo", "evaluate")


@pytest.mark.parametrize("name", sorted(packaged()))
def test_every_packaged_recipe_can_be_read(name: str) -> None:
    graph = recipe.read(name)
    assert graph.name == name
    assert "report" in graph.nodes


def test_the_full_demo_trains_everything_for_three_seeds_on_the_same_data() -> None:
    nodes = recipe.read("demo-full").nodes
    assert set(nodes) == {*SHARED, *(f"{name}-seed{seed}" for name in TRAINED for seed in SEEDS), "report"}
    for name in SHARED:
        assert nodes[name].seed == 0
    for name in TRAINED:
        for seed in SEEDS:
            node = nodes[f"{name}-seed{seed}"]
            assert node.seed == seed
            assert all(parent in SHARED or parent.endswith(f"-seed{seed}") for parent in node.parents)
    assert set(nodes["report"].parents) == set(nodes) - {"report"}


def test_the_random_row_differs_from_instruction_tuning_in_its_start_alone() -> None:
    nodes = recipe.read("demo-full").nodes
    tuned, random = (nodes[f"{name}-seed0"] for name in ("sft", "sft-random"))
    assert random.settings.result() == {**tuned.settings.result(), "init": "random"}
    assert random.inputs == tuned.inputs
    evaluate = nodes["evaluate-seed0"]
    labels = dict(zip((source.stage for source in evaluate.inputs["models"]), evaluate.settings.labels, strict=True))
    assert labels["sft-random-seed0"] == "sft from random weights"
    assert next(iter(labels)) == "sft-seed0"


def test_the_full_demo_changes_nothing_else() -> None:
    demo, full = recipe.read("demo").nodes, recipe.read("demo-full").nodes
    for name, node in demo.items():
        if name in SHARED:
            assert full[name].settings.result() == node.settings.result()
        elif name not in ("evaluate", "report"):
            assert full[f"{name}-seed0"].settings.result() == node.settings.result()


def test_bring_your_own_names_the_folder_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(recipe.PlanRefused, match="data/pretrain: no such file or folder"):
        recipe.plan(recipe.read("bring-your-own"), tmp_path / "runs", measure=False)


def test_bring_your_own_is_ready_once_the_three_folders_hold_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = {
        "pretrain": [{"text": "A page of text. " * 20}],
        "sft": [{"instruction": "Say hello.", "output": "Hello."}],
        "preference": [{"prompt": "Say hello.", "chosen": "Hello, gladly.", "rejected": "No."}],
    }
    for folder, records in rows.items():
        (tmp_path / "data" / folder).mkdir(parents=True)
        file = tmp_path / "data" / folder / "mine.jsonl"
        file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    report = recipe.plan(recipe.read("bring-your-own"), tmp_path / "runs", measure=False)
    report.check()
    assert [stage.state for stage in report.stages] == ["to do"] * len(report.stages)


TINY = (
    "tokenizer.vocab_size=320",
    "tokenizer.allow_smaller=true",
    "corpus.selection.rules.preset=none",
    "corpus.engine.workers=1",
    "pretrain.model={hidden_size: 16, n_layers: 1, n_heads: 2, context: 96}",
    "sft.epochs=1",
    "own-answers.max_new_tokens=8",
    "reward.max_new_tokens=8",
    "reward.normalise_samples=16",
    "best-of-n.n=2",
    "best-of-n.max_new_tokens=8",
    "ppo.iterations=2",
    "ppo.critic_warmup=0",
    "ppo.batch_prompts=4",
    "ppo.max_new_tokens=8",
    "evaluate.samples=1",
    "evaluate.best_of=2",
    "evaluate.max_new_tokens=8",
)


def test_bring_your_own_goes_from_files_to_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = [f"What is {n} plus one? {'请回答。' * (n % 2)}" for n in range(60)]
    rows = {
        "pretrain": [
            {"text": f"Page {n}. Gladly, {n} plus one is {n + 1}, and that is all. 第{n}页。"} for n in range(40)
        ],
        "sft": [{"instruction": text, "output": f"It is {n + 1}."} for n, text in enumerate(asked)],
        "preference": [
            {"prompt": text, "chosen": f"Gladly: {n}.", "rejected": f"{n}, duh."} for n, text in enumerate(asked)
        ],
    }
    for folder, records in rows.items():
        (tmp_path / "data" / folder).mkdir(parents=True)
        file = tmp_path / "data" / folder / "mine.jsonl"
        file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    graph = recipe.read("bring-your-own", TINY)
    made = recipe.run(graph, tmp_path / "runs", quiet=True)
    table = json.loads(made["evaluate"].file("table.json").read_text(encoding="utf-8"))["sampled"]
    assert [row["method"] for row in table if row["group"] == table[0]["group"]] == [
        "sft",
        "dpo",
        "ppo after dpo",
        "best-of-2",
    ]
    assert all(row["polite"] is not None and row["exact"] is None for row in table)
    assert made["reward"].metrics["heldout_accuracy"] is not None
    page = made["report"].file("report.html").read_text(encoding="utf-8")
    assert "polite" in page


def test_bring_your_own_never_reads_outside_its_folders() -> None:
    stages = read_values(packaged()["bring-your-own"])["stages"]
    paths = [
        given["path"]
        for entry in stages.values()
        for given in entry.values()
        if isinstance(given, dict) and "path" in given
    ]
    assert paths == ["data/pretrain", "data/sft", "data/preference"]


WORDS = {
    "en": {
        "good": "the study of history shows that a city was founded by the river and that its people lived in peace",
        "raw": "buy now the best price for you and click here to win a free phone that we have with offers today",
    },
    "zh": {
        "good": "历史研究说明这座城市在河边建立人民在这里生活了很久后来成为国家的中心",
        "raw": "点击这里马上购买最低价格免费手机等你来拿今天下单有优惠快来看看吧",
    },
}
SMALL_CRAWL = (
    "pages.engine.workers=1",
    "measures.engine.workers=1",
    "judged.engine.workers=1",
    "chosen.engine.workers=1",
    "copies.held_out_share=0.1",
    "reference.min_units=100",
    "good-or-raw.classifier.min_texts=10",
    "good-or-raw.held_out_share=0",
    "tokenizer.vocab_size=400",
    "pretrain.model={hidden_size: 16, n_layers: 1, n_heads: 2, context: 64}",
    "pretrain.batch_rows=4",
)


def texts_of_a_kind(language: str, kind: str, count: int, rng: random.Random) -> list[str]:
    """Sentences of one kind's words in random order, long enough for the rules of web pages."""
    joint, end = (" ", ". ") if language == "en" else ("", "。")
    words = WORDS[language][kind].split() if language == "en" else list(WORDS[language][kind])
    return [
        "".join(joint.join(rng.sample(words, 12)) + end for _ in range(20 if language == "en" else 25))
        for _ in range(count)
    ]


def test_a_crawl_goes_from_pages_to_batches_in_both_languages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = random.Random(0)
    for folder in ("crawl", "good"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for language in WORDS:
        good = texts_of_a_kind(language, "good", 80, rng)
        raw = [*texts_of_a_kind(language, "raw", 60, rng), *good[60:], good[60]]
        write_rows(tmp_path / "data" / "good" / f"{language}.jsonl", [{"text": text} for text in good[:60]])
        pages = [{"html": f"<html><body><article><p>{text}</p></article></body></html>"} for text in raw]
        write_rows(tmp_path / "data" / "crawl" / f"{language}.jsonl", pages)
    made = recipe.run(recipe.read("crawl", SMALL_CRAWL), tmp_path / "runs", quiet=True)
    assert set(made["reference"].metrics) >= set(WORDS)
    assert all(made["good-or-raw"].metrics[language]["auc"] > 0.8 for language in WORDS)
    chosen = [d for file in document_files(made["chosen"].path) for d in read_documents(file)]
    for language, kinds in WORDS.items():
        own = [document for document in chosen if document.labels["language"] == language]
        first = set(kinds["good"].split() if language == "en" else kinds["good"])
        good = [
            d for d in own if len(first & set(d.text.replace(".", "").split() if language == "en" else d.text)) > 15
        ]
        assert len(good) == 20  # of 21, one of which is a copy
        assert 0 < len(own) - len(good) < 60  # the tail of the others is gone
        assert min(d.labels["quality"] for d in good) > max(d.labels["quality"] for d in own if d not in good)
    copies = made["copies"].metrics
    assert copies["copies"]["exact"] == 2
    assert copies["split"]["held_out"] > 5
    learnt_from = sum(made["good-or-raw"].metrics[language]["training_raw"] for language in WORDS)
    assert learnt_from <= copies["split"]["train"]  # what is held out is nobody's training text
    counts = made["tokens"].metrics
    assert counts["train"]["documents"] + counts["held_out"]["documents"] == len(chosen)
    table = made["pretrain"].file("mixture.txt").read_text(encoding="utf-8")
    assert all(word in table for word in ("stable", "annealing", "best", "chinese", "others"))
    assert "What cleaning kept" in made["report"].file("report.html").read_text(encoding="utf-8")


def test_a_crawl_reads_from_two_folders_and_says_which_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(recipe.PlanRefused, match="data/crawl: no such file or folder"):
        recipe.plan(recipe.read("crawl"), tmp_path / "runs", measure=False)
    (tmp_path / "data" / "crawl").mkdir(parents=True)
    (tmp_path / "data" / "crawl" / "a.txt").write_text("A page.", encoding="utf-8")
    with pytest.raises(recipe.PlanRefused, match="data/good: no such file or folder"):
        recipe.plan(recipe.read("crawl"), tmp_path / "runs", measure=False)


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def test_an_unknown_recipe_names_those_that_there_are() -> None:
    with pytest.raises(RecipeError, match="did you mean `bring-your-own`"):
        recipe.read("bring-your-ow")


TINY_BASE = (
    "tokenizer.vocab_size=320",
    "tokenizer.allow_smaller=true",
    "corpus.selection.rules.preset=none",
    "corpus.engine.workers=1",
    "corpus.duplicates.held_out_share=0.2",
    "pretrain.model={hidden_size: 16, n_layers: 1, n_heads: 2, context: 64}",
    "pretrain.batch_rows=4",
    "pretrain.loop.device=cpu",
    "pretrain.loop.micro_batch_tokens=128",
)


@pytest.mark.parametrize("name", ["gpu-124m", "cpu-hour"])
def test_a_base_model_is_made_of_a_folder_of_text(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(recipe.PlanRefused, match="data/text: no such file or folder"):
        recipe.plan(recipe.read(name), tmp_path / "runs", measure=False)
    (tmp_path / "data" / "text").mkdir(parents=True)
    rng = random.Random(0)
    for language in WORDS:
        texts = [text for kind in ("good", "raw") for text in texts_of_a_kind(language, kind, 30, rng)]
        write_rows(tmp_path / "data" / "text" / f"{language}.jsonl", [{"text": text} for text in texts])
    made = recipe.run(recipe.read(name, TINY_BASE), tmp_path / "runs", quiet=True)
    assert made["tokens"].metrics["held_out"]["documents"] > 0
    scores = made["pretrain"].metrics["heldout"]
    assert scores["model"]["bits_per_byte"] < 8
    assert made["report"].file("report.html").is_file()


def test_the_gpu_recipe_is_of_the_size_that_it_says() -> None:
    settings = recipe.read("gpu-124m").nodes["pretrain"].settings
    assert settings.model.config(32768).n_parameters() == pytest.approx(124e6, rel=0.01)
    assert recipe.read("cpu-hour").nodes["pretrain"].settings.model.config(8192).n_parameters() == pytest.approx(
        4e6, rel=0.02
    )
