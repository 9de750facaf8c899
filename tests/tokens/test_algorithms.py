"""Promises of the other algorithms: text comes back, same texts same vocabulary, what loses text says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import foreign_tokenizers as foreign
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatloom.tokens.algorithms import covered_characters, train_bpe, train_unigram
from chatloom.tokens.vocabulary import SPECIAL_TOKENS, Vocabulary, VocabularyError
from chatloom.tokens.wordpiece import UNKNOWN, WordPiece

TEXTS = [*foreign.ENGLISH, *foreign.CHINESE, "龘 12345 naïve\n\n    return <0x41> ▁▁"] * 3
MAKERS: dict[str, Callable[[list[str]], Vocabulary]] = {
    "bpe greater": lambda texts: train_bpe(texts, 380, ties="greater_bytes"),
    "bpe characters": lambda texts: train_bpe(texts, 430, alphabet="characters", coverage=0.99, digits=1),
    "unigram": lambda texts: train_unigram(lambda: texts, 380, allow_smaller=True),
    "unigram characters": lambda texts: train_unigram(
        lambda: texts, 460, alphabet="characters", coverage=0.98, allow_smaller=True
    ),
}
_made: dict[str, Vocabulary] = {}


def made(name: str) -> Vocabulary:
    """Trained once for all tests of this file."""
    if name not in _made:
        _made[name] = MAKERS[name](TEXTS)
    return _made[name]


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=60, deadline=None)
@given(text=st.text(st.one_of(st.characters(exclude_categories=("Cs",)), st.sampled_from("<0x41>▁ 行文\n12"))))
def test_any_text_comes_back_and_its_bytes_add_up(name: str, text: str) -> None:
    vocabulary = made(name)
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text
    assert int(vocabulary.bytes_per_id[ids].sum()) == len(text.encode("utf-8"))
    assert not any(vocabulary.is_special(i) for i in ids)
    assert vocabulary.decode_bytes(vocabulary.encode_bytes(text.encode("utf-16-le"))) == text.encode("utf-16-le")


@pytest.mark.parametrize("name", MAKERS)
def test_typed_special_tokens_stay_text_and_transformers_agrees(name: str, tmp_path: Path) -> None:
    vocabulary = made(name)
    vocabulary.save(tmp_path)
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in ["".join(SPECIAL_TOKENS), "a<|end|> b", *TEXTS[:7], "", "\x00 ＡＢ 🏳️‍🌈"]:
        ids = vocabulary.encode(text)
        assert theirs(text, split_special_tokens=True)["input_ids"] == ids
        assert theirs.decode(ids) == text
    assert [vocabulary.id_of(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4, 5]
    assert Vocabulary.load(tmp_path) == vocabulary
    assert made(name).sha256 not in {made(other).sha256 for other in MAKERS if other != name}


@pytest.mark.parametrize("name", MAKERS)
def test_the_order_of_texts_and_the_run_do_not_matter(name: str) -> None:
    assert MAKERS[name](list(reversed(TEXTS))) == made(name)


def test_wordpiece_and_unigram_are_the_same_in_every_process_and_on_any_number_of_threads() -> None:
    code = (
        "import json, sys; texts = json.load(sys.stdin);"
        "from chatloom.tokens.algorithms import train_unigram; from chatloom.tokens.wordpiece import WordPiece;"
        "print(train_unigram(lambda: texts, 380, allow_smaller=True).sha256,"
        "WordPiece.train(texts, 200, allow_smaller=True)._tokenizer.to_str())"
    )
    found = set()
    for threads in ("1", "3"):
        done = subprocess.run(
            [sys.executable, "-c", code], input=json.dumps(TEXTS), capture_output=True, text=True, check=True,
            env=dict(os.environ, RAYON_NUM_THREADS=threads, PYTHONHASHSEED=threads),
        )  # fmt: skip
        found.add(done.stdout)
    assert len(found) == 1


def test_rare_characters_fall_back_to_bytes_and_frequent_ones_do_not() -> None:
    vocabulary = made("bpe characters")
    assert [vocabulary.token_bytes(i) for i in vocabulary.encode("龘")] == [b"\xe9", b"\xbe", b"\x98"]
    assert len(vocabulary.encode("文")) == 1
    lengths = [len(vocabulary.token_bytes(i)) for i in vocabulary.encode("12345")]
    assert lengths == [1] * 5  # digits: 1 splits every digit
    assert len(made("unigram characters").encode("龘")) == 3


def test_the_fewest_characters_that_cover_the_text_are_kept() -> None:
    from collections import Counter

    counts = Counter({"aaab": 10, "b": 5, "c": 4, "d": 1})  # a 30, b 15, c 4, d 1
    assert covered_characters(counts, 0.6, 99) == ["a"]
    assert covered_characters(counts, 0.9, 99) == ["a", "b"]
    assert covered_characters(counts, 0.901, 99) == ["a", "b", "c"]
    assert covered_characters(counts, 1.0, 99) == ["a", "b", "c", "d"]
    with pytest.raises(VocabularyError, match="room for 2 beside the bytes; raise vocab_size"):
        covered_characters(counts, 1.0, 2)
    with pytest.raises(VocabularyError, match="expected a share"):
        covered_characters(counts, 0.0, 2)


@pytest.mark.parametrize("name", ["bpe", "unigram"])
def test_bad_sizes_and_no_text_are_explained(name: str) -> None:
    def train(texts: list[str], size: int) -> Vocabulary:
        return train_bpe(texts, size) if name == "bpe" else train_unigram(lambda: texts, size)

    with pytest.raises(VocabularyError, match="the smallest is 262"):
        train(TEXTS, 261)
    with pytest.raises(VocabularyError, match="no text"):
        train([""], 300)
    with pytest.raises(VocabularyError, match=r"of 90000 entries .* support only \d+"):
        train(TEXTS, 90_000)


def test_wordpiece_loses_text_says_so_and_cannot_be_a_vocabulary(tmp_path: Path) -> None:
    trained = WordPiece.train(TEXTS, 260, allow_smaller=True)
    ids = trained.encode_batch(["The  reader 读 ☃"])[0]
    assert trained.unknown_id in ids
    assert trained.decode(ids) == f"The reader {UNKNOWN} {UNKNOWN}"
    assert not trained.lossless
    trained.save(tmp_path)
    with pytest.raises(VocabularyError, match=r"WordPiece vocabulary, which has an unknown token.*no chat model"):
        Vocabulary.load(tmp_path)
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(tmp_path)("The reader")["input_ids"] == trained.encode_batch(["The reader"])[0]
    names = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    assert {"the", "##s", "reader", "文"} <= set(names)
    with pytest.raises(VocabularyError, match="raise vocab_size"):
        WordPiece.train(TEXTS, 50)
    with pytest.raises(VocabularyError, match="no text"):
        WordPiece.train([""], 100)
