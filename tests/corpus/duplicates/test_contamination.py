"""Planted evaluation items are found, whatever their case and punctuation; phrases of the language are not."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

from chatloom.corpus.duplicates.contamination import Contamination, ContaminationSettings
from chatloom.corpus.duplicates.runs import RunError
from chatloom.corpus.record import Document
from chatloom.errors import ChatloomError

QUESTION = (
    "Janet's ducks lay sixteen eggs per day, and she eats three for breakfast every morning; how many dollars does she "
    "make when the rest are sold at the farmers' market for two dollars an egg?"
)
SHORT = "What is the smallest prime larger than ninety?"  # 8 words
CHINESE = "某工厂生产一批零件，原计划每天生产八十个，实际每天多生产二十个，结果提前三天完成任务，这批零件共有多少个？"
SHORT_CHINESE = "世界上最高的山峰是哪一座山？"
FILLER = [f"filler{i}" for i in range(2000)]


def filler(seed: int, n: int = 80) -> str:
    return " ".join(random.Random(seed).choices(FILLER, k=n))


def labeller(folder: Path, items: list[Any] | None = None, **settings: Any) -> Contamination:
    path = folder / "eval.jsonl"
    rows = items if items is not None else [{"question": text} for text in (QUESTION, SHORT, CHINESE, SHORT_CHINESE)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return Contamination(ContaminationSettings(items=(path,), **settings))


def label(it: Contamination, text: str) -> dict[str, Any]:
    return it.label([Document("d", text)])[0]


@pytest.mark.parametrize(
    ("item", "line"),
    [(QUESTION, 1), (SHORT, 2), (CHINESE, 3), (SHORT_CHINESE, 4)],
    ids=["en", "short", "zh", "short zh"],
)
def test_planted_items_are_found_with_their_spans(tmp_path: Path, item: str, line: int) -> None:
    it = labeller(tmp_path)
    wide = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in item)
    changed = [
        item,
        item.upper(),
        item.replace(",", " --\n").replace("，", "、 "),
        f"«{item}»".replace(" ", "  "),
        wide,
    ]
    for planted in changed:
        before, after = filler(1) + "。 ", " " + filler(2)
        found = label(it, before + planted + after)
        assert (found["contamination_items"], found["contamination_item"]) == (1, f"eval.jsonl:{line}")
        assert found["contamination_item_share"] == 1.0
        start, end = found["contamination_spans"]
        text = (before + planted + after)[start:end]
        assert text.strip("«»?？") == planted.strip("«»?？ ")
        assert 0 < found["contamination_share"] < 0.5


def test_the_share_counts_words_and_characters_covered(tmp_path: Path) -> None:
    it = labeller(tmp_path)
    n = len(QUESTION.replace("'", " ").split())
    assert label(it, QUESTION)["contamination_share"] == 1.0
    assert label(it, QUESTION + " " + filler(0, n))["contamination_share"] == pytest.approx(0.5)
    assert label(it, QUESTION + " " + filler(0) + " " + CHINESE)["contamination_items"] == 2


def test_an_item_with_a_changed_word_is_found_in_part(tmp_path: Path) -> None:
    it = labeller(tmp_path)
    found = label(it, QUESTION.replace("breakfast", "lunch"))
    assert found["contamination_items"] == 1
    assert 0.2 < found["contamination_item_share"] < 0.8
    assert found["contamination_share"] < 1


def test_common_phrases_raise_no_alarm(tmp_path: Path) -> None:
    phrase = "we hold these truths to be self evident that all men are created equal"  # 14 words: two 13-grams
    items = [{"q": f"{filler(i, 20)} {phrase} {filler(i + 50, 20)}"} for i in range(3)]
    template = "which of the following statements about this is true or false or neither according to the text above"
    items += [{"q": f"{filler(200 + i, 20)} {template}"} for i in range(12)]
    it = labeller(tmp_path, items)
    for text in (phrase, template, SHORT[:-8], filler(3), ""):
        found = label(it, f"{filler(9)} {text} {filler(10)}")
        assert found["contamination_items"] == 0, text
        assert found["contamination_spans"] == []
        assert found["contamination_share"] == 0.0
    assert label(it, items[0]["q"])["contamination_items"] == 1
    # A template is no evidence, what stands before it is.
    assert label(it, items[5]["q"])["contamination_items"] == 1


def test_phrases_of_many_documents_do_not_count_but_an_item_that_was_copied_often_does(tmp_path: Path) -> None:
    phrase = "to be or not to be that is the question whether tis nobler in the mind to suffer the slings"
    items = [{"q": f"{filler(1, 40)} {phrase} {filler(2, 40)}"}, {"q": QUESTION}]
    plain = labeller(tmp_path, items)
    documents = [Document(f"{i}", f"{filler(100 + i)} {phrase}") for i in range(15)]
    documents += [Document(f"copy {i}", f"{filler(300 + i)} {QUESTION}") for i in range(15)]
    counts = [tmp_path / "counts-0", tmp_path / "counts-1"]
    assert label(plain, documents[0].text)["contamination_items"] == 1  # without counts
    for path, shard in zip(counts, (documents[::2], documents[1::2])):
        assert plain.write_survey([shard[:4], shard[4:]], path) > 0
    plain.sum_surveys(counts, tmp_path / "all")
    counted = labeller(tmp_path, items, counts=tmp_path / "all")
    assert label(counted, documents[0].text)["contamination_items"] == 0
    assert label(counted, documents[-1].text)["contamination_item"] == "eval.jsonl:2"
    assert label(counted, items[0]["q"])["contamination_items"] == 1
    rare = labeller(tmp_path, items, counts=tmp_path / "all", max_documents=15)
    assert label(rare, documents[0].text)["contamination_items"] == 1
    other = labeller(tmp_path, items[1:], counts=tmp_path / "all")
    with pytest.raises(RunError, match="was made with"):
        label(other, documents[-1].text)


def test_labels_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    it = labeller(tmp_path)
    texts = ["", QUESTION, filler(1), CHINESE + QUESTION, "x", SHORT]
    together = it.label([Document(f"{i}", text) for i, text in enumerate(texts)])
    assert together == [label(it, text) for text in texts]
    assert all(set(row) == set(it.columns) for row in together)


def test_fields_are_chosen_and_mistakes_are_named(tmp_path: Path) -> None:
    items = [{"question": QUESTION, "meta": {"note": CHINESE}}]
    assert label(labeller(tmp_path, items), CHINESE)["contamination_items"] == 1
    assert label(labeller(tmp_path, items, fields=("question",)), CHINESE)["contamination_items"] == 0
    with pytest.raises(ChatloomError, match=r"eval\.jsonl: no item has a text.*prompt.*'meta', 'question'"):
        label(labeller(tmp_path, items, fields=("prompt",)), "x")
    (tmp_path / "bad.jsonl").write_text('{"a": 1}\n{"a": \n', encoding="utf-8")
    with pytest.raises(ChatloomError, match=r"bad\.jsonl:2"):
        label(Contamination(ContaminationSettings(items=(tmp_path / "bad.jsonl",))), "x")
    with pytest.raises(ChatloomError, match="no such file"):
        label(Contamination(ContaminationSettings(items=(tmp_path / "missing.jsonl",))), "x")
    with pytest.raises(ChatloomError, match="no evaluation set"):
        Contamination(ContaminationSettings())
    plain = tmp_path / "plain.txt"
    plain.write_text(f"{SHORT}\n{QUESTION}\n", encoding="utf-8")
    assert label(Contamination(ContaminationSettings(items=(plain,))), QUESTION)["contamination_item"] == "plain.txt:2"


def test_real_evaluation_items_are_found_and_real_text_is_clean(shared_data: Path) -> None:
    files = tuple(shared_data / "eval" / name for name in ("en_gsm8k_test_first400.jsonl.gz", "agieval.jsonl.gz"))
    it = Contamination(ContaminationSettings(items=files))
    planted, n_long = [], 0
    for file, field in zip(files, ("question", "question")):
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                text = json.loads(line)[field]
                if text and len(text) > 100 and number % 7 == 0:
                    planted.append(
                        Document(f"{file.name}:{number}", f"{filler(number)}\n{text.upper()}\n{filler(number)}")
                    )
                    n_long += 1
    found = it.label(planted)
    assert n_long > 100
    named = sum(row["contamination_item"] == document.id for row, document in zip(found, planted))
    assert sum(row["contamination_items"] > 0 for row in found) / n_long > 0.98
    assert named / n_long > 0.95  # some questions occur twice
    clean = []
    for name in ("en_children_stories", "zh_modern_history", "en_peps"):
        with gzip.open(shared_data / "pretrain" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            clean += [Document(f"{name}{i}", json.loads(line)["text"]) for i, line in zip(range(150), lines)]
    assert sum(row["contamination_items"] for row in it.label(clean)) == 0
