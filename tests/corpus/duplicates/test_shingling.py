"""Shingles are what the slow definition says, for all texts at once as for one."""

from __future__ import annotations

import gzip
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatloom.corpus.duplicates import minhash, shingling
from chatloom.corpus.duplicates.minhash import Banding, band_keys, jaccard, signatures
from chatloom.corpus.duplicates.shingling import located_units, shingle_rows, shingles, windows, word_units

ALPHABET = st.text(st.sampled_from(list("ab Z_9é\n.-中文字ひらカ한글\u3000𠀀😀ſ")), max_size=60)
ASIAN = re.compile(
    "[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af\u3041-\u3096\u30a1-\u30fa\uac00-\ud7a3]"
)


def slow_units(text: str) -> list[str]:
    if len(ASIAN.findall(text)) > 0.3 * len(re.findall(r"[^\W\d_]", text)):
        return [character for character in text.lower() if not character.isspace()]
    return re.findall(r"\w+", text.lower())


def slow_sets(texts: list[str]) -> list[set[tuple[str, ...]]]:
    units = [slow_units(text) for text in texts]
    return [{tuple(u[i : i + 5]) for i in range(max(1, len(u) - 4))} if u else set() for u in units]


@settings(max_examples=300, deadline=None)
@given(st.lists(ALPHABET, max_size=6))
def test_shingles_are_equal_where_their_units_are(texts: list[str]) -> None:
    rows, sets = list(shingle_rows(texts)), slow_sets(texts)
    assert [len(np.unique(row)) for row in rows] == [len(one) for one in sets]
    for one, one_set in zip(rows, sets):
        for other, other_set in zip(rows, sets):
            assert len(np.intersect1d(one, other)) == len(one_set & other_set)


def test_a_text_has_the_same_shingles_alone_and_among_others() -> None:
    texts = ["one two three four five six", "", "一二三四五六七八", "ab", " \n", "x" * 50_000, "word " * 40_000]
    for text, row in zip(texts, shingle_rows(texts)):
        assert np.array_equal(shingles(text), np.unique(row))


def test_a_text_of_many_pieces_has_the_shingles_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(f"wörd{i % 977} 字" for i in range(3000))
    chinese = "".join(chr(0x4E00 + i * i % 5000) for i in range(9000)) + " code" * 500
    whole = [word_units([text]).values, word_units([chinese]).values]
    monkeypatch.setattr(shingling, "PIECE_CHARACTERS", 500)
    assert np.array_equal(word_units([text]).values, whole[0])
    assert np.array_equal(word_units([chinese]).values, whole[1])
    longer_than_a_piece = "a" * 1700
    assert len(word_units([longer_than_a_piece + " b"]).values) == 5


def test_located_units_say_where_they_stand() -> None:
    texts = ["Hello,  wORLD!", "", "中文abc 123", "ＡＢＣ１２", "abc12"]
    located = located_units(texts)
    offsets = located.units.offsets
    found = [
        [texts[row][s:e] for s, e in zip(located.starts[a:b].tolist(), located.ends[a:b].tolist())]
        for row, (a, b) in enumerate(itertools.pairwise(offsets.tolist()))
    ]
    assert found == [["Hello", "wORLD"], [], ["中", "文", "abc", "123"], ["ＡＢＣ１２"], ["abc12"]]
    assert located.units.values[offsets[3]] == located.units.values[offsets[4]]  # full-width forms are the same
    assert located_units(["hello World"]).units.values.tolist() == located.units.values[:2].tolist()


def test_windows_stay_within_their_text() -> None:
    units = word_units(["a b c", "d", "", "e f g h"])
    assert windows(units, 3, short=False).lengths().tolist() == [1, 0, 0, 2]
    assert windows(units, 3).lengths().tolist() == [1, 1, 0, 2]
    assert len(np.unique(windows(units, 2, short=False).values)) == 5
    with pytest.raises(ValueError):
        windows(units, 0)


def test_signatures_of_many_texts_equal_those_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in rng.integers(0, 500, n)) for n in (0, 3, 700, 5, 0, 40, 2000, 1)]
    banding = Banding(5, 3)
    alone = np.concatenate([signatures(shingle_rows([text]), banding) for text in texts])
    assert np.array_equal(signatures(shingle_rows(texts), banding), alone)
    monkeypatch.setattr(minhash, "CHUNK", 64)  # texts over several chunks, chunks over several texts
    assert np.array_equal(signatures(shingle_rows(texts), banding), alone)


def test_equal_rows_in_different_bands_have_different_keys() -> None:
    signature = np.tile(np.array([[7, 8, 9]], np.uint32), (2, 4))
    keys = band_keys(signature, Banding(4, 3))
    assert len(np.unique(keys)) == 4
    assert np.array_equal(keys[0], keys[1])


def test_similarity_agrees_with_the_labels(shared_data: Path) -> None:
    with gzip.open(shared_data / "clean" / "near_duplicates_labelled.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    sets = [np.unique(row) for row in shingle_rows([row["text"] for row in rows])]
    base = {row["cluster"]: one for row, one in zip(rows, sets) if row["op"] == "base"}
    differences = np.array(
        [abs(jaccard(one, base[row["cluster"]]) - row["jaccard5_to_base"]) for row, one in zip(rows, sets)]
    )[[row["op"] != "base" for row in rows]]
    # The others are code in Chinese pages, which the labels take by characters and we by words.
    assert (differences < 1e-4).mean() > 0.96
