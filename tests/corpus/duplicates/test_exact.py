"""Equal documents, addresses, lines and paragraphs, and only these."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatloom.corpus.duplicates.exact import (
    HASHES,
    URLS,
    normalised,
    normalised_url,
    write_equals,
    write_hashes,
    write_urls,
)
from chatloom.corpus.duplicates.passages import Unit, joined, passages, seen_in_shard, write_passages, write_seen
from chatloom.corpus.duplicates.places import names
from chatloom.corpus.duplicates.runs import Run, RunError


def read_lines(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file]


def seen(texts: list[str], folder: Path, *, n: int = 1, parts: int = 1, unit: Unit = "line", least: int = 1):  # type: ignore[no-untyped-def]
    """Spans of every text, through `n` shards and `parts` ranges of hashes."""
    size = max(1, -(-len(texts) // n))
    shards = [list(enumerate(texts[start : start + size])) for start in range(0, len(texts), size)] or [[]]
    found = [folder / f"passages-{i}" for i in range(len(shards))]
    for number, shard in enumerate(shards):
        write_passages(number, shard, found[number], unit=unit, min_characters=least, memory_bytes=2000)
    earlier = [folder / f"seen-{part}" for part in range(parts)]
    for part, path in enumerate(earlier):
        write_seen(found, path, part=part, parts=parts)
    return [
        spans
        for number, shard in enumerate(shards)
        for _, spans in seen_in_shard(number, shard, earlier, unit=unit, min_characters=least)
    ]


def test_published_paragraph_spans_are_found(shared_data: Path, tmp_path: Path) -> None:
    documents = read_lines(shared_data / "clean" / "exact_dup_documents.jsonl.gz")
    rows = read_lines(shared_data / "clean" / "exact_dup_expected_paragraph_spans.jsonl.gz")
    texts = [document["text"] for document in documents]
    # The expected end of a text's last line counts a line end that the text does not have.
    expected = [
        [(start, min(end, len(text))) for start, end, _ in row["attributes"]["bff_duplicate_paragraph_spans"]]
        for row, text in zip(rows, texts)
    ]
    assert sum(map(len, expected)) == 43
    assert seen(texts, tmp_path) == expected
    assert seen(texts, tmp_path, n=4, parts=3) == expected


def test_published_url_copies_are_found(shared_data: Path, tmp_path: Path) -> None:
    documents = read_lines(shared_data / "clean" / "exact_dup_documents.jsonl.gz")
    rows = read_lines(shared_data / "clean" / "exact_dup_expected_url.jsonl.gz")
    urls = [(document["id"], document["metadata"]["url"]) for document in documents]
    write_urls(urls[:1], tmp_path / "a")
    write_urls(urls[1:], tmp_path / "b")
    write_equals([tmp_path / "a", tmp_path / "b"], tmp_path / "edges", URLS)
    edges = Run(tmp_path / "edges").read()
    copies = [row["id"] for row in rows if row["attributes"].get("bff_duplicate_url")]
    assert len(edges) == len(copies) == 1
    ids = [name for name, url in urls if url == "http://advocatesaz.org/tag/good-cholesterol/"]
    assert set(edges.ravel().tolist()) == set(names(ids).tolist())
    assert copies[0] in ids


def test_equal_texts_are_tied_to_the_first_name(tmp_path: Path) -> None:
    texts = [("a", "One  two"), ("b", "three"), ("c", "one two\n"), ("d", "ONE TWO"), ("e", "one two.")]
    write_hashes(texts[:2], tmp_path / "0")
    write_hashes(texts[2:], tmp_path / "1")
    for parts in (1, 4):
        edges = []
        for part in range(parts):
            write_equals([tmp_path / "0", tmp_path / "1"], tmp_path / "edges", HASHES, part=part, parts=parts)
            edges += Run(tmp_path / "edges").read().tolist()
        group = sorted(names(["a", "c", "d"]).tolist())
        assert sorted(edges) == [[name, group[0]] for name in group[1:]]
    with pytest.raises(RunError, match="expected `url hashes`"):
        write_equals([tmp_path / "0"], tmp_path / "edges", URLS)


def test_equality_looks_past_case_and_white_space_only() -> None:
    assert normalised("One  two\n three ") == normalised("one two three")
    assert normalised("one two three") != normalised("one two three.")


def test_texts_with_lone_surrogates_have_a_hash(tmp_path: Path) -> None:
    write_hashes([("a", "a\ud800"), ("b", "a")], tmp_path / "0")
    assert write_equals([tmp_path / "0"], tmp_path / "edges") == 0


@pytest.mark.parametrize(
    "url",
    [
        "http://Example.COM/a/b/", "https://www.example.com:443/a/b", "HTTP://example.com:80/a/./c/../b#part",
        "https://example.com/a/b?utm_source=x&fbclid=1", "http://example.com/%61/b;jsessionid=12AB",
    ],
)  # fmt: skip
def test_addresses_of_one_page_are_one(url: str) -> None:
    assert normalised_url(url) == "example.com/a/b"


def test_addresses_of_different_pages_stay_different() -> None:
    urls = [
        "http://a.org/x", "http://a.org/X", "http://a.org/x?b=1", "http://a.org/x?b=2", "http://a.org/x?b=1&a=",
        "http://a.org:8080/x", "http://b.a.org/x", "http://a.org/%2Fx", "http://a.org/字", "http://例.org/x", "http://a.org/",
    ]  # fmt: skip
    assert len({normalised_url(url) for url in urls}) == len(urls)
    assert normalised_url("http://a.org/x?b=1&a=2") == normalised_url("https://a.org/x?a=2&b=1")
    assert normalised_url("http://a.org/%e5%ad%97") == normalised_url("http://a.org/字")
    assert [normalised_url(text) for text in ("", "not an address", "mailto:a@b.c", "http://[::1", "http://a:b/")] == [
        None
    ] * 5


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.sampled_from("ab \n"), max_size=25), max_size=7), st.integers(1, 3), st.integers(1, 3))
def test_lines_seen_earlier_are_what_reading_in_order_says(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], n: int, parts: int
) -> None:
    expected, known = [], set()
    for text in texts:
        spans, start = [], 0
        for line in text.splitlines(keepends=True):
            content = " ".join(line.split())
            if content and content in known:
                spans.append((start, start + len(line)))
            known |= {content}
            start += len(line)
        expected.append(spans)
    assert seen(texts, tmp_path_factory.mktemp("seen"), n=n, parts=parts) == expected


def test_paragraphs_end_at_empty_lines_and_short_passages_may_be_left_out(tmp_path: Path) -> None:
    text = "one\ntwo\n\n \nthree\n\none\ntwo\n"
    assert [text[start:end] for start, end, _ in passages(text, "paragraph")] == [
        "one\ntwo\n\n \n",
        "three\n\n",
        "one\ntwo\n",
    ]
    assert seen([text, "Three\n\nfour"], tmp_path, unit="paragraph") == [[(18, 26)], [(0, 7)]]
    assert seen([text, "Three\n\nfour"], tmp_path, unit="paragraph", least=6) == [[(18, 26)], []]
    with pytest.raises(RunError, match="at least 6"):
        list(seen_in_shard(0, [(0, text)], [tmp_path / "seen-0"], unit="paragraph", min_characters=7))


def test_touching_and_overlapping_spans_become_one() -> None:
    assert joined([(5, 7), (0, 2), (2, 3), (6, 9), (4, 4)]) == [0, 3, 5, 9]


def test_han_and_kana_count_twice_towards_the_shortest_passage() -> None:
    def found(text: str) -> int:
        return len(list(passages(text, "line", 20)))

    assert (found("nineteen characters"), found("of twenty characters")) == (0, 1)
    assert (found("这一行一共只有九个字"[:9]), found("这一行一共只有十个字")) == (0, 1)
    assert (found("カナ" * 5), found("カナ" * 4 + "a"), found("한국어는두번세지않는다")) == (1, 0, 0)
