"""Bytes become text in one of the known encodings, or are refused; no byte is ever dropped."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatloom.corpus.reading.decoding import Undecodable, decode_html, decode_text

CHINESE = "中华人民共和国，繁體字也算。㐀𠀀 mixed with ASCII 123"


@given(st.text())
def test_every_utf8_text_comes_back(text: str) -> None:
    assert decode_text(text.encode("utf-8")) == text.removeprefix("\ufeff")


@pytest.mark.parametrize("encoding", ["gb18030", "gbk", "utf-16", "utf-8-sig"])
def test_chinese_comes_back_from_each_encoding(encoding: str) -> None:
    text = "中华人民共和国，繁體字也算 mixed with ASCII 123"
    assert decode_text(text.encode(encoding)) == text


@pytest.mark.parametrize(
    "text", ["Où est l'élève? Là-bas, déjà arrivé.", "Größe, Übermaß, schön, fünf", "señor año mañana"]
)
def test_western_bytes_are_not_read_as_chinese(text: str) -> None:
    with pytest.raises(Undecodable):
        decode_text(text.encode("latin-1"))


def test_a_page_s_declared_encoding_is_used_when_it_fits() -> None:
    text = "<meta charset='windows-1251'><p>Привет, мир</p>"
    assert decode_html(text.encode("cp1251")) == text
    assert decode_html("<p>Привет</p>".encode("koi8-r"), "koi8-r") == "<p>Привет</p>"
    wrong = "<meta charset='gb2312'><p>你好，世界</p>"
    assert decode_html(wrong.encode("utf-8")) == wrong  # a wrong declaration loses against valid UTF-8
    assert decode_html(f"<p>{CHINESE}</p>".encode("gb18030"), "utf-8") == f"<p>{CHINESE}</p>"


def test_real_pages_in_old_encodings_are_read(shared_data: Path) -> None:
    decoded = refused = 0
    with gzip.open(shared_data / "web" / "extraction_segments.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            if '"html_base64"' in line:
                try:
                    assert "\ufffd" not in decode_html(base64.b64decode(json.loads(line)["html_base64"]))
                    decoded += 1
                except Undecodable:
                    refused += 1
    assert (decoded, refused) == (12, 1)  # one page mixes two encodings
