"""Promises of the vocabulary: lossless, deterministic, safe against typed special tokens, open to transformers."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatloom.tokens.vocabulary import SPECIAL_TOKENS, Vocabulary, VocabularyError, split_pattern

ENGLISH = [
    "Return the dedented text: any common leading whitespace of every line is removed.\n\n    def dedent(text):\n",
    "The reader returns 12345 rows; don't read the rows twice. The reader is a reader of rows.\n",
    "Sorted lists keep their order, and the order of the sorted lists is the order of the reader.\n",
]
CHINESE = [
    "这个函数返回去掉缩进的文本，文本的每一行都去掉共同的缩进。",
    "这个函数返回排序后的列表，列表的顺序就是文本的顺序。用 Python 写成。",
]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.train(ENGLISH * 3 + CHINESE * 3, 400)


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=("Cs",))))
def test_any_unicode_text_comes_back_unchanged_and_its_bytes_add_up(vocabulary: Vocabulary, text: str) -> None:
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text
    assert int(vocabulary.bytes_per_id[ids].sum()) == len(text.encode("utf-8"))
    assert all(i >= len(SPECIAL_TOKENS) for i in ids)


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(st.sampled_from([*SPECIAL_TOKENS, "a", " ", "\n", "中", "<|", "|>"]), max_size=8))
def test_typed_special_tokens_are_text_and_never_special_ids(vocabulary: Vocabulary, parts: list[str]) -> None:
    text = "".join(parts)
    ids = vocabulary.encode(text)
    assert min(ids, default=99) >= len(SPECIAL_TOKENS)
    assert vocabulary.decode(ids) == text
    assert vocabulary.encode_batch([text, text]) == [ids, ids]


@given(ids=st.lists(st.integers(0, 399), max_size=12))
@settings(max_examples=100, deadline=None)
def test_streaming_decode_equals_decoding_at_once(vocabulary: Vocabulary, ids: list[int]) -> None:
    assert "".join(vocabulary.decode_stream(ids)) == vocabulary.decode(ids)


def test_stream_holds_back_half_a_character(vocabulary: Vocabulary) -> None:
    ids = vocabulary.encode("龘")  # in no text, so three single bytes
    assert list(vocabulary.decode_stream(ids)) == ["", "", "龘", ""]


def test_special_ids_are_the_first_six_and_pad_is_not_the_end() -> None:
    vocabulary = Vocabulary.train(["aa bb aa bb"], 263)
    assert [vocabulary.id_of(t) for t in SPECIAL_TOKENS] == [0, 1, 2, 3, 4, 5]
    assert vocabulary.pad_id == 0
    assert vocabulary.eos_id == 1
    assert vocabulary.bytes_per_id[:6].tolist() == [0] * 6
    assert vocabulary.decode([3, vocabulary.encode("a")[0], 5]) == "a"
    assert vocabulary.decode([3, vocabulary.encode("a")[0], 5], special=True) == "<|user|>a<|end|>"
    with pytest.raises(VocabularyError, match="not a special token"):
        vocabulary.id_of("a")
    with pytest.raises(VocabularyError, match="outside the vocabulary"):
        vocabulary.decode([vocabulary.size])
    with pytest.raises(VocabularyError, match="outside the vocabulary"):
        vocabulary.decode([-1])


def test_training_is_the_same_whatever_the_order_of_texts_and_the_process(tmp_path: Path) -> None:
    texts = ENGLISH + CHINESE
    here = Vocabulary.train(texts, 330)
    assert Vocabulary.train(list(reversed(texts)), 330).sha256 == here.sha256
    code = (
        "import json, sys; from chatloom.tokens.vocabulary import Vocabulary;"
        "print(Vocabulary.train(json.load(sys.stdin), 330).sha256)"
    )
    for threads in ("1", "3"):
        done = subprocess.run(
            [sys.executable, "-c", code], input=json.dumps(texts), capture_output=True, text=True, check=True,
            env=dict(os.environ, RAYON_NUM_THREADS=threads, PYTHONHASHSEED=threads),
        )  # fmt: skip
        assert done.stdout.strip() == here.sha256


def test_a_vocabulary_larger_than_the_text_supports_names_the_number_supported() -> None:
    with pytest.raises(VocabularyError, match=r"50000 entries .* support only (\d+)") as caught:
        Vocabulary.train(ENGLISH, 50_000)
    supported = int(str(caught.value).split("support only ")[1].split()[0])
    assert Vocabulary.train(ENGLISH, supported).size == supported
    assert Vocabulary.train(ENGLISH, 50_000, allow_smaller=True).size == supported


@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
def test_no_text_is_an_error(texts: list[str]) -> None:
    with pytest.raises(VocabularyError, match="no text"):
        Vocabulary.train(texts, 300, allow_smaller=True)


def test_bad_arguments_and_bad_text_are_explained(vocabulary: Vocabulary) -> None:
    with pytest.raises(VocabularyError, match="the smallest is 262"):
        Vocabulary.train(ENGLISH, 261)
    with pytest.raises(VocabularyError, match="1, 2 or 3"):
        split_pattern(4)
    with pytest.raises(VocabularyError, match="lone surrogate"):
        vocabulary.encode("a\ud800")
    with pytest.raises(VocabularyError, match=r"text number 2.*lone surrogate"):
        Vocabulary.train(["aa aa", "\udc80"], 300)
    with pytest.raises(VocabularyError, match="expected a str, found bytes"):
        vocabulary.encode(b"a")  # type: ignore[arg-type]


@pytest.mark.parametrize("han", [0, 1, 2])
def test_han_and_kana_are_grouped_as_asked_and_come_back_unchanged(han: int) -> None:
    text = "标准库中没有这个名称，ここにある名前。"
    vocabulary = Vocabulary.train([text * 50, *ENGLISH], 400, han=han, allow_smaller=True)
    pieces = [vocabulary.token_bytes(token).decode("utf-8", "ignore") for token in vocabulary.encode(text)]
    assert vocabulary.decode(vocabulary.encode(text)) == text
    longest = max(sum(char.isalpha() for char in piece) for piece in pieces)
    assert longest == han or (han == 0 and longest > 2)


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_digits_are_grouped_as_asked(digits: int) -> None:
    vocabulary = Vocabulary.train(["1234567 " * 50, *ENGLISH], 300, digits=digits)
    lengths = [len(vocabulary.token_bytes(i)) for i in vocabulary.encode("1234567")]
    assert max(lengths) == digits
    assert sum(lengths) == 7


def test_no_entry_is_longer_than_the_cap_nor_mixes_han_with_latin() -> None:
    texts = ["incomprehensibilities " * 9, "文本的顺序就是列表的顺序" * 9, "用Python写Python" * 9]
    longest = {
        cap: int(Vocabulary.train(texts, 700, max_token_chars=cap, allow_smaller=True).bytes_per_id.max())
        for cap in (2, 3, 5, 10, 15, 21, 22)
    }
    assert all(length <= cap for cap, length in longest.items())
    assert longest[2] == 2
    assert longest[22] > 12
    vocabulary = Vocabulary.train(texts, 700, allow_smaller=True)
    for i in range(len(SPECIAL_TOKENS), vocabulary.size):
        entry = vocabulary.token_bytes(i)
        if any(b < 0x80 for b in entry):
            assert all(b < 0x80 for b in entry), entry


def test_saving_and_loading_and_pickling_keep_ids_and_identity(vocabulary: Vocabulary, tmp_path: Path) -> None:
    vocabulary.save(tmp_path / "v")
    text = "<|end|> 函数 returns\n\n  12345 rows"
    for again in (Vocabulary.load(tmp_path / "v"), Vocabulary.load(tmp_path / "v" / "tokenizer.json"),
                  pickle.loads(pickle.dumps(vocabulary))):  # fmt: skip
        assert again == vocabulary
        assert again.encode(text) == vocabulary.encode(text)
    assert Vocabulary.train(ENGLISH, 300) != vocabulary


def test_loading_what_is_not_a_vocabulary_says_so(vocabulary: Vocabulary, tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match="is not there"):
        Vocabulary.load(tmp_path / "absent")
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(VocabularyError, match="not a readable tokenizer file"):
        Vocabulary.load(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe")
    with pytest.raises(VocabularyError, match="cannot be read"):
        Vocabulary.load(tmp_path)
    vocabulary.save(tmp_path)
    broken = (tmp_path / "tokenizer.json").read_text(encoding="utf-8").replace("<|pad|>", "<|other|>")
    (tmp_path / "tokenizer.json").write_text(broken, encoding="utf-8")
    with pytest.raises(VocabularyError, match=r"no special token <\|pad\|>.*extend-tokenizer"):
        Vocabulary.load(tmp_path)


def test_transformers_opens_the_folder_and_gives_the_same_ids(vocabulary: Vocabulary, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    vocabulary.save(tmp_path, chat_template=template, model_max_length=128)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    odd = [" leading", "trailing ", "a  b\t\tc\r\n\r\n", "é e\u0301 𝒳 🏳️‍🌈", "", "I'll . , don 't !"]
    for text in [*ENGLISH, *CHINESE, *odd]:
        assert theirs(text)["input_ids"] == vocabulary.encode(text)
        assert theirs.decode(vocabulary.encode(text)) == text
    assert (theirs.pad_token_id, theirs.eos_token_id, len(theirs)) == (0, 1, vocabulary.size)
    assert theirs.model_max_length == 128
    ids = theirs.apply_chat_template([{"role": "user", "content": "返回 rows"}], return_dict=False)
    assert ids == [3, *vocabulary.encode("返回 rows"), 5]
    assert set(SPECIAL_TOKENS) <= set(theirs.all_special_tokens)
