"""Promises of the stages that make vocabularies: the demo's stays as it was, reports are true, models can follow."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import foreign_tokenizers as foreign
import numpy as np
import pyarrow as pa
import pytest
import tokenizers
import torch
from toys import World, make_artifact

from chatloom import artifact, recipe
from chatloom.artifact import Artifact
from chatloom.corpus.record import Document, write_documents
from chatloom.errors import ChatloomError
from chatloom.model.extension import train_new_rows_only
from chatloom.stage import PlanContext
from chatloom.stages import find
from chatloom.tokens.vocabulary import Vocabulary
from chatloom.training.bundle import load_bundle


def documents(folder: Path, groups: dict[tuple[str, str], list[str]], name: str = "texts") -> Artifact:
    """Documents of (language, source), every fifth held out."""

    def write(target: Path) -> None:
        rows = [
            Document(
                f"{source}-{i}", text, source=source,
                labels={"language": language, "split": "held_out" if i % 5 == 4 else "train"},
            )
            for (language, source), texts in groups.items()
            for i, text in enumerate(texts)
        ]  # fmt: skip
        write_documents(target / "shards" / "0.parquet", rows, {"language": pa.string(), "split": pa.string()})

    return make_artifact(folder / name, "documents", write, name=name)


def run(kind: str, out: Path, inputs: dict[str, Any], **settings: Any) -> Artifact:
    return recipe.run_stage(kind, settings, inputs, out, seed=3, quiet=True)


def report(item: Artifact) -> dict[str, Any]:
    return dict(json.loads(item.file("report.json").read_text(encoding="utf-8")))


MIXED = {
    ("en", "manual"): [f"{text} page {i}" for i in range(10) for text in foreign.ENGLISH],
    ("zh", "manual"): [f"{text}第{i}页" for i in range(8) for text in foreign.CHINESE],
    ("en", "web"): ["Buy cheap things here!!! 100% " * 3] * 10,
}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return documents(tmp_path_factory.mktemp("documents"), MIXED).path


def test_the_demos_vocabulary_is_the_one_it_always_was() -> None:
    """Hashes from before other algorithms came in: same texts, same settings, same bytes."""
    english = [
        "Return the dedented text: any common leading whitespace of every line is removed.\n\n    def dedent(text):\n",
        "The reader returns 12345 rows; don't read the rows twice. The reader is a reader of rows.\n",
    ]
    chinese = ["这个函数返回去掉缩进的文本，文本的每一行都去掉共同的缩进。"]
    made = Vocabulary.train(english * 3 + chinese * 3, 330)
    assert made.sha256 == "9c952640e41b018569d64569a74b02a7f9fb3bbfd08becae9e244340c98475ba"
    if tokenizers.__version__ == "0.23.3":  # other versions write the same content in another form
        digest = hashlib.sha256(made.to_json().encode("utf-8")).hexdigest()
        assert digest == "9c34be8236658cdf3b67ef77c5862ccf718fbc50e982fffb0083b4218eff33f0"


def test_the_stage_learns_from_all_training_text_that_fits_and_from_no_held_out_text(
    mixed: Path, tmp_path: Path
) -> None:
    made = run("tokenizer", tmp_path / "t", {"documents": [mixed]}, vocab_size=400)
    training = [text for texts in MIXED.values() for i, text in enumerate(texts) if i % 5 != 4]
    assert Vocabulary.load(made.path) == Vocabulary.train(training, 400)
    own = run("tokenizer", tmp_path / "own", {"documents": [mixed]}, vocab_size=400, trainer="own", curve_points=0)
    assert own.file("tokenizer.json").read_bytes() == made.file("tokenizer.json").read_bytes()


def test_the_report_tells_languages_sources_and_the_sample_apart(mixed: Path, tmp_path: Path) -> None:
    made = run("tokenizer", tmp_path / "t", {"documents": [mixed]}, vocab_size=380)
    found = report(made)
    held = [text for texts in MIXED.values() for i, text in enumerate(texts) if i % 5 == 4]
    total = found["compression"]["all"]
    vocabulary = Vocabulary.load(made.path)
    assert total["bytes"] == sum(len(text.encode()) for text in held)
    assert total["tokens"] == sum(map(len, vocabulary.encode_batch(held)))
    assert found["compression"]["measured_on"] == "held-out documents"
    assert set(found["compression"]["languages"]) == {"en", "zh"}
    assert set(found["compression"]["sources"]) == {"manual", "web"}
    strata = {(row["language"], row["source"]): row for row in found["sample"]["strata"]}
    assert set(strata) == set(MIXED)
    assert all(row["taken"] == row["available"] for row in strata.values())
    curve = found["curve"]
    assert len(curve) == 4
    assert [row["bytes"] for row in curve] == sorted(row["bytes"] for row in curve)
    assert curve[-1] == {"bytes": found["sample"]["bytes"], "entries": 380,
                         "bytes_per_token": found["compression"]["documents"]["bytes_per_token"]}  # fmt: skip
    assert curve[0]["bytes_per_token"] < curve[-1]["bytes_per_token"]
    assert made.metrics["bytes_per_token_zh"] == found["compression"]["languages"]["zh"]["bytes_per_token"]
    assert made.metrics["megabytes_per_second"] > 0
    again = run("tokenizer", tmp_path / "again", {"documents": [mixed]}, vocab_size=380)
    assert again.file("report.json").read_bytes() == made.file("report.json").read_bytes()


def test_a_small_sample_is_fair_to_languages_and_bounded(mixed: Path, tmp_path: Path) -> None:
    made = run(
        "tokenizer", tmp_path / "t", {"documents": [mixed]}, vocab_size=300, sample_bytes=1200, smoothing=0.0,
        curve_points=0, allow_smaller=True,
    )  # fmt: skip
    found = report(made)["sample"]
    assert found["bytes"] <= 1200
    by_language = {
        code: sum(row["taken"] for row in found["strata"] if row["language"] == code) for code in ("en", "zh")
    }
    assert by_language["zh"] == pytest.approx(by_language["en"], abs=4)


def test_the_page_stands_alone_and_shows_no_mojibake(mixed: Path, tmp_path: Path) -> None:
    made = run("tokenizer", tmp_path / "t", {"documents": [mixed]}, vocab_size=380)
    page = made.file("report.html").read_text(encoding="utf-8")
    for word in ("Compression", "Longest", "Digits", "Round trips", "manual", "文本"):
        assert word in page
    assert "<script" not in page
    assert "src=" not in page.replace('src="data:', "")
    assert not set(page) & set("Ġ\ufffd")


def test_other_vocabularies_are_compared_with_when_they_are_given(mixed: Path, tmp_path: Path) -> None:
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "tokenizer.json").write_text(foreign.text_of(foreign.llama3()), encoding="utf-8")
    made = run(
        "tokenizer", tmp_path / "t", {"documents": [mixed], "compare": [tmp_path / "llama"]}, vocab_size=380,
        curve_points=0,
    )  # fmt: skip
    row = report(made)["comparisons"]["llama"]["bytes_per_token"]["zh"]
    assert row["ours"] > row["theirs"]
    assert report(run("tokenizer", tmp_path / "u", {"documents": [mixed]}, vocab_size=380))["comparisons"] == {}


@pytest.mark.parametrize(
    "settings",
    [
        {"algorithm": "unigram", "allow_smaller": True},
        {"alphabet": "characters", "trainer": "own", "digits": 1, "allow_smaller": True},
        {"algorithm": "unigram", "alphabet": "characters", "allow_smaller": True},
    ],
    ids=["unigram", "characters", "unigram characters"],
)
def test_other_algorithms_make_vocabularies_that_models_can_use(
    mixed: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    made = run("tokenizer", tmp_path / "t", {"documents": [mixed]}, vocab_size=420, curve_points=1, **settings)
    stored = run("tokens", tmp_path / "tokens", {"documents": [mixed], "vocabulary": made.path})
    assert stored.metrics["train"]["tokens"] > 0
    assert report(made)["vocabulary"]["algorithm"] == settings.get("algorithm", "bpe")
    assert report(made)["round_trips"]["failed"] == 0


def test_wordpiece_is_made_warned_of_and_refused_for_token_stores(mixed: Path, tmp_path: Path) -> None:
    stage = find("tokenizer")
    settings = stage.settings.parse({"algorithm": "wordpiece", "vocab_size": 200})
    assert stage.plan is not None
    planned = stage.plan(PlanContext(settings, {"documents": []}, {}, 2, 5e10))
    assert "no chat model can be trained" in planned.warnings[0]
    made = run(
        "tokenizer", tmp_path / "t", {"documents": [mixed]}, algorithm="wordpiece", vocab_size=200, allow_smaller=True
    )
    assert report(made)["vocabulary"]["lossless"] is False
    assert "report.html" in made.manifest["files"]
    with pytest.raises(ChatloomError, match=r"WordPiece vocabulary.*no chat model can be trained on it"):
        run("tokens", tmp_path / "tokens", {"documents": [mixed], "vocabulary": made.path})


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"alphabet": "characters"}, "set `trainer: own`"),
        ({"ties": "greater_bytes"}, "set `trainer: own`"),
        ({"algorithm": "wordpiece", "alphabet": "characters"}, "`alphabet` is for bpe and unigram"),
        ({"vocab_size": 261}, "need 262"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    mixed: Path, tmp_path: Path, settings: dict[str, Any], why: str
) -> None:
    with pytest.raises(ChatloomError, match=why):
        run("tokenizer", tmp_path / "t", {"documents": [mixed]}, **settings)


OLD = {("en", "manual"): [f"{text} page {i}" for i in range(10) for text in foreign.ENGLISH]}
NEW = {("zh", "manual"): [f"{text}第{i}页" for i in range(10) for text in foreign.CHINESE]}


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("sides")
    return documents(folder, OLD, "old").path, documents(folder, NEW, "new").path


def llama_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / "tokenizer.json").write_text(foreign.text_of(foreign.llama3()), encoding="utf-8")
    return folder


def test_a_foreign_vocabulary_is_extended_and_says_what_changed(sides: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = sides
    made = run(
        "extend-tokenizer", tmp_path / "x",
        {"vocabulary": llama_folder(tmp_path / "llama"), "documents": [new], "old_documents": [old]},
        new_entries=40, rename={"<|eot_id|>": "<|end|>"},
    )  # fmt: skip
    found = report(made)["extension"]
    n = len(foreign.llama3().get_vocab(with_added_tokens=True))
    assert made.metrics["vocab_size"] == n + 5 + 40
    assert made.metrics["first_new_id"] == n
    assert found["merges"] == 40
    assert found["changes"] == {"documents": 6, "changed": 0, "share": 0.0, "examples": []}
    rows = report(made)["comparisons"]["before the extension"]["bytes_per_token"]
    assert rows["zh"]["ratio"] > 2
    assert rows["en"]["ratio"] == 1.0
    saved = json.loads(made.file("extension.json").read_text(encoding="utf-8"))
    assert len(saved["pieces"]) == 45
    assert Vocabulary.load(made.path).size == n + 45
    page = made.file("report.html").read_text(encoding="utf-8")
    assert "Extension" in page
    assert "before the extension" in page


def test_an_extension_that_old_text_feels_is_refused(sides: tuple[Path, Path], tmp_path: Path) -> None:
    new = sides[1]
    # Held-out old text holds Chinese words that the sample of old text never had.
    texts = [text if i % 5 != 4 else text + foreign.CHINESE[0] for i, text in enumerate(OLD["en", "manual"])]
    leaky = documents(tmp_path, {("en", "manual"): texts}, "leaky")
    given = {"vocabulary": llama_folder(tmp_path / "llama"), "documents": [new], "old_documents": [leaky.path]}
    with pytest.raises(ChatloomError, match=r"6 of 6 held-out old documents \(100.000%\) are cut otherwise"):
        run("extend-tokenizer", tmp_path / "x", given, new_entries=40)
    made = run("extend-tokenizer", tmp_path / "y", given, new_entries=40, max_changed_share=1.0)
    assert made.metrics["changed_documents"] == 6
    with pytest.raises(ChatloomError, match="the input `old_documents` is missing"):
        run("extend-tokenizer", tmp_path / "z", {k: given[k] for k in ("vocabulary", "documents")}, new_entries=40)
    unsplit = documents(tmp_path, {("en", "manual"): OLD["en", "manual"][:4]}, "unsplit").path
    with pytest.raises(ChatloomError, match="none of the old documents is held out"):
        run("extend-tokenizer", tmp_path / "w", {**given, "old_documents": [unsplit]}, new_entries=40)


def test_no_new_entries_only_takes_a_vocabulary_in(tmp_path: Path) -> None:
    given = {"vocabulary": llama_folder(tmp_path / "llama")}
    made = run("extend-tokenizer", tmp_path / "x", given, new_entries=0, rename={"<|end_of_text|>": "<|endoftext|>"})
    n = len(foreign.llama3().get_vocab(with_added_tokens=True))
    assert made.metrics["vocab_size"] == n + 5
    assert Vocabulary.load(made.path).eos_id == foreign.llama3().token_to_id("<|end_of_text|>")


def test_a_model_follows_its_extended_vocabulary(world: World, tmp_path: Path) -> None:
    """Old text is read and predicted as before, folders open in transformers, and new rows can be trained alone."""
    new = documents(tmp_path, {("de", "manual"): ["Zurück über Brücken, drüben überbrücken. " * 4] * 10}, "new").path
    extended = run(
        "extend-tokenizer", tmp_path / "x",
        {"vocabulary": world["tokenizer"].path, "documents": [new], "old_documents": [world["documents"].path]},
        new_entries=20,
    )  # fmt: skip
    for name in ("pretrain", "sft"):
        before = load_bundle(world[name].path)
        made = run("extend-model", tmp_path / name, {"model": world[name].path, "vocabulary": extended.path})
        after = load_bundle(made.path)
        assert after.vocabulary == Vocabulary.load(extended.path)
        assert after.template == before.template
        size = before.vocabulary.size
        assert (made.metrics["rows_before"], made.metrics["rows"], made.metrics["first_new_id"]) == (
            size,
            size + 20,
            size,
        )
        text = "the colour of grass is green. 草的颜色是绿色。"
        ids = torch.tensor([before.vocabulary.encode(text)])
        assert after.vocabulary.encode(text) == ids[0].tolist()
        with torch.no_grad():
            torch.testing.assert_close(
                after.model.logits(after.model(ids))[..., :size], before.model.logits(before.model(ids))
            )
        pieces = json.loads(extended.file("extension.json").read_text(encoding="utf-8"))["pieces"]
        mean = before.model.embedding.weight[pieces[0]].mean(0)
        torch.testing.assert_close(after.model.embedding.weight[size], mean)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tmp_path / "sft")
    assert theirs("Brücken über")["input_ids"] == after.vocabulary.encode("Brücken über")
    assert len(after.vocabulary.encode("Brücken über")) < len(before.vocabulary.encode("Brücken über"))
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "sft")
    with torch.no_grad():
        np.testing.assert_allclose(network(ids).logits.numpy(), after.model.logits(after.model(ids)).numpy(), atol=1e-4)
    train_new_rows_only(after.model, size)
    assert [name for name, p in after.model.named_parameters() if p.requires_grad] == ["embedding.weight"]


def test_a_model_of_another_vocabulary_is_refused(world: World, tmp_path: Path) -> None:
    taken = run("extend-tokenizer", tmp_path / "x", {"vocabulary": llama_folder(tmp_path / "llama")}, new_entries=0)
    with pytest.raises(ChatloomError, match="was extended from another vocabulary"):
        run("extend-model", tmp_path / "m", {"model": world["sft"].path, "vocabulary": taken.path})
    with pytest.raises(ChatloomError, match=r"has no extension.json.*extend-tokenizer"):
        run("extend-model", tmp_path / "m", {"model": world["sft"].path, "vocabulary": world["tokenizer"].path})
    assert artifact.exists(taken.path)
