"""Promises of the vocabulary report: counts that can be checked by hand, languages apart."""

from __future__ import annotations

import json

import pytest

from chatloom.tokens.compression import measure_compression
from chatloom.tokens.vocabulary import Vocabulary, VocabularyError


def test_the_report_counts_what_was_encoded() -> None:
    vocabulary = Vocabulary.train(["aaaa aaaa 中文中文 zz zz"] * 3, 300, allow_smaller=True)
    texts = [("en", "aaaa aaaa"), ("zh", "中文"), ("zh", "龘"), ("en", "")]
    report = measure_compression(vocabulary, texts)
    tokens = {text: len(vocabulary.encode(text)) for _, text in texts}
    assert report.languages["en"].bytes == 9
    assert report.languages["en"].texts == 2
    assert report.languages["zh"].characters == 3
    assert report.languages["zh"].bytes == 9
    assert report.languages["zh"].tokens == tokens["中文"] + 3
    assert report.languages["all"].tokens == sum(tokens.values())
    assert report.languages["en"].bytes_per_token == 9 / tokens["aaaa aaaa"]
    assert report.languages["zh"].characters_per_token == 3 / (tokens["中文"] + 3)
    assert report.single_byte_share == 3 / sum(tokens.values())  # the three bytes of a character never seen
    assert "zz" in {entry.strip() for entry in report.unused_examples}
    assert report.longest[0] == "中文中文"  # 12 bytes
    written = json.loads(json.dumps(report.to_dict()))
    assert written["languages"]["all"]["bytes_per_token"] == report.languages["all"].bytes_per_token
    assert written["unused"] == report.unused


def test_no_text_is_an_error() -> None:
    vocabulary = Vocabulary.train(["aa aa"], 300, allow_smaller=True)
    with pytest.raises(VocabularyError, match="no text"):
        measure_compression(vocabulary, [("en", "")])
