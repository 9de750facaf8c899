"""HTML becomes text without losing what a documentation page says."""

from __future__ import annotations

import gzip
import importlib
import json
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
import regex

from chatloom.corpus.extraction.extract import Extractor, extract, tidy
from chatloom.corpus.reading.decoding import Undecodable

EXTRACTORS: tuple[Extractor, ...] = ("blocks", "resiliparse", "resiliparse-main", "trafilatura")


@pytest.mark.parametrize("name", ["textwrap", "json", "functools", "random", "math", "os.path", "threading", "re"])
def test_blocks_keeps_95_percent_of_docstrings_their_line_breaks_and_their_indentation(
    pages: Path, docstrings: ModuleType, name: str
) -> None:
    text = extract((pages / f"{name}.html").read_bytes(), "blocks").text
    kept = docstrings.compare(importlib.import_module(name), text)
    assert kept.objects >= 10
    assert kept.character_share >= 0.95
    assert kept.break_share >= 0.95
    assert kept.indentation_share >= 0.95


def test_the_measure_notices_lost_text_and_joined_lines(pages: Path, docstrings: ModuleType) -> None:
    html = (pages / "textwrap.html").read_bytes()
    module = importlib.import_module("textwrap")
    text = extract(html, "blocks").text
    assert docstrings.compare(module, " ".join(text.split())).break_share < 0.1
    assert docstrings.compare(module, text[: len(text) // 2]).character_share < 0.8
    flat_left = "\n".join(line.strip() for line in text.split("\n"))
    assert docstrings.compare(module, flat_left).indentation_share < 0.9
    articles_only = docstrings.compare(module, extract(html, "trafilatura").text)
    assert articles_only.break_share < 0.5  # why the demo does not use it


def test_a_definition_is_told_from_the_next_by_indentation_and_an_empty_line(pages: Path) -> None:
    text = extract((pages / "bisect.html").read_bytes(), "blocks").text
    lines = text.split("\n")
    at = next(i for i, line in enumerate(lines) if line.startswith("bisect_left("))
    assert lines[at + 1].startswith("    Return the index")
    end = next(i for i in range(at + 1, len(lines)) if lines[i] and not lines[i].startswith("    "))
    assert lines[end - 1] == ""
    assert "\xa0" not in text


@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_title_address_and_language_hint_are_kept(extractor: Extractor) -> None:
    paragraph = "这是一个用来测试正文抽取的页面，里面有足够长的一段中文文字，好让每一种抽取器都认出它是正文。" * 3
    html = (
        '<html lang="zh-CN"><head><meta charset="utf-8"><title> 标 题\n一 </title>'
        '<link rel="canonical" href="https://example.org/a"></head>'
        f"<body><main><article><h1>标题</h1><p>{paragraph}</p><p>{paragraph}</p></article></main></body></html>"
    )
    page = extract(html.encode("gb18030").replace(b'charset="utf-8"', b'charset="gbk"'), extractor)
    assert (page.title, page.url, page.language_hint) == ("标 题 一", "https://example.org/a", "zh-cn")
    assert paragraph in page.text


@pytest.mark.parametrize("extractor", EXTRACTORS)
@pytest.mark.parametrize(
    "html",
    [b"", b"\0\0\0", b"<", b"<html><body><table><tr><p>", b"<div>" * 2_000 + b"x", b"plain words, no markup at all",
     b"<body>" + b"<b><i><a href='" * 500, b"<!DOCTYPE html><p>a</p></p></div></body></html><p>tail"],
)  # fmt: skip
def test_broken_html_never_raises(extractor: Extractor, html: bytes) -> None:
    assert isinstance(extract(html, extractor).text, str)


def test_bytes_in_no_known_encoding_are_refused() -> None:
    with pytest.raises(Undecodable, match="neither UTF-8"):
        extract(b"<p>caf\xe9 \x81\x8d</p>" + b"plain ascii " * 50, "blocks")


def test_tidy_changes_nothing_but_white_space_and_control_characters() -> None:
    assert tidy("a\r\nb\rc\u2028d  \n\n\n\n\n\n\ne\x00f\ufeff\n\n") == "a\nb\nc\nd\n\n\nef"
    assert tidy("    code(x)\n\t\u3000　中文\xa0\xa0x") == "    code(x)\n\t\u3000　中文  x"
    assert tidy("e\u0301") == "é"


def tokens(text: str) -> Counter[str]:
    return Counter(
        regex.findall(r"[\p{Han}\p{Hiragana}\p{Katakana}]|[^\W\p{Han}\p{Hiragana}\p{Katakana}]+", text.lower())
    )


def token_f1(page: str, gold: str) -> float:
    found, wanted = tokens(page), tokens(gold)
    common = (found & wanted).total()
    return 2 * common / max(1, found.total() + wanted.total())


def test_trafilatura_finds_the_articles_of_real_pages(shared_data: Path) -> None:
    with gzip.open(shared_data / "web" / "extraction_articles.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for number, line in enumerate(file) if number % 12 == 0]
    scores = [token_f1(extract(row["html"], "trafilatura").text, row["gold_text"]) for row in rows]
    assert sum(scores) / len(scores) > 0.9


def test_chinese_news_pages_are_extracted(shared_data: Path) -> None:
    with gzip.open(shared_data / "web" / "zh_news_pages.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [row for row in map(json.loads, file) if row.get("reference")]
    scores = [token_f1(extract(row["html"], "trafilatura").text, row["reference"]["content"]) for row in rows]
    assert sum(scores) / len(scores) > 0.8
