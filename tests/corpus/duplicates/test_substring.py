"""Repeated substrings are those that brute force finds, by suffix array and across shards alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatloom.corpus.duplicates import windows as windows_module
from chatloom.corpus.duplicates.passages import joined
from chatloom.corpus.duplicates.runs import RunError
from chatloom.corpus.duplicates.substring import repeated_spans
from chatloom.corpus.duplicates.windows import (
    repeats_in_shard,
    sliding_minimum,
    write_anchors,
    write_repeats,
    write_shared,
    write_windows,
)

TEXTS = st.lists(
    st.one_of(
        st.text(st.sampled_from("ab"), max_size=40),
        st.text(st.sampled_from("a字é😀 \x00"), max_size=40),
        st.builds(lambda piece, n, tail: piece * n + tail, st.text(max_size=9), st.integers(0, 9), st.text(max_size=5)),
    ),
    max_size=7,
)


def brute_force(texts: list[str], window: int) -> list[list[int]]:
    known, found = set(), []
    for text in texts:
        spans = []
        for start in range(len(text) - window + 1):
            if text[start : start + window] in known:
                spans.append((start, start + window))
            known.add(text[start : start + window])
        found.append(joined(spans))
    return found


def across_shards(texts: list[str], window: int, folder: Path, n: int, parts: int, memory: int) -> list[list[int]]:
    size = max(1, -(-len(texts) // n))
    shards = [list(enumerate(texts[start : start + size])) for start in range(0, len(texts), size)] or [[]]

    def files(name: str, count: int) -> list[Path]:
        return [folder / f"{name}-{number}" for number in range(count)]

    anchors, shared = files("anchors", len(shards)), files("shared", parts)
    found, repeats = files("windows", len(shards)), files("repeats", parts)
    for number, shard in enumerate(shards):
        write_anchors(number, shard, anchors[number], min_characters=window, memory_bytes=memory)
    for part in range(parts):
        write_shared(anchors, shared[part], part=part, parts=parts, memory_bytes=memory)
    for number, shard in enumerate(shards):
        write_windows(number, shard, shared, found[number], min_characters=window, memory_bytes=memory)
    for part in range(parts):
        write_repeats(found, repeats[part], part=part, parts=parts, memory_bytes=memory)
    return [
        spans
        for number, shard in enumerate(shards)
        for _, spans in repeats_in_shard(number, [row for row, _ in shard], repeats, min_characters=window)
    ]


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.integers(1, 12))
def test_the_suffix_array_finds_what_brute_force_finds(texts: list[str], window: int) -> None:
    pytest.importorskip("pydivsufsort")
    assert repeated_spans(texts, window) == brute_force(texts, window)


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.integers(2, 12), st.integers(1, 3), st.integers(1, 3), st.sampled_from([100, 1 << 24]))
def test_windows_across_shards_find_what_brute_force_finds(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], window: int, n: int, parts: int, memory: int
) -> None:
    folder = tmp_path_factory.mktemp("windows")
    assert across_shards(texts, window, folder, n, parts, memory) == brute_force(texts, window)


def test_long_texts_in_pieces_are_as_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows_module, "PIECE", 64)
    rng = np.random.default_rng(0)
    text = "".join(map(chr, rng.integers(97, 123, 700)))
    texts = [text, text[100:400] + "!" + text[350:600], "x" * 300]
    expected = brute_force(texts, 20)
    assert expected[1] == [0, 300, 301, 551]
    assert across_shards(texts, 20, tmp_path, 2, 2, 1 << 20) == expected


def test_a_text_has_few_anchors(tmp_path: Path) -> None:
    text = "".join(map(chr, np.random.default_rng(0).integers(97, 123, 20_000)))
    records = write_anchors(0, [(0, text)], tmp_path / "anchors", min_characters=100)
    assert records < 5 * len(text) / 100


def test_runs_of_another_length_are_refused(tmp_path: Path) -> None:
    write_anchors(0, [(0, "abcdef")], tmp_path / "a", min_characters=3)
    write_shared([tmp_path / "a"], tmp_path / "b")
    with pytest.raises(RunError, match="windows of 3 characters"):
        write_windows(0, [(0, "abcdef")], [tmp_path / "b"], tmp_path / "c", min_characters=4)
    with pytest.raises(ValueError, match="at least 2"):
        write_anchors(0, [], tmp_path / "a", min_characters=1)


def test_the_sliding_minimum_is_the_minimum_of_each_window() -> None:
    values = np.random.default_rng(0).integers(0, 50, 37, dtype=np.uint64)
    for size in range(1, 38):
        assert sliding_minimum(values, size).tolist() == [min(values[i : i + size]) for i in range(38 - size)]
