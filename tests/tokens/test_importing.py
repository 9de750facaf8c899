"""Promises of taking vocabularies in: ids of GPT-2's own, no id moves, what would lose text is refused by name."""

from __future__ import annotations

import gzip
import json
import unicodedata
from pathlib import Path

import foreign_tokenizers as foreign
import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from chatloom.dialogue.record import Message
from chatloom.dialogue.template import ChatTemplate
from chatloom.tokens.fuzz import round_trips
from chatloom.tokens.importing import adapt, import_gpt2, import_vocabulary, read_foreign
from chatloom.tokens.vocabulary import SPECIAL_TOKENS, Vocabulary, VocabularyError

TEXTS = [
    *foreign.ENGLISH, *foreign.CHINESE, "", " ", "a  b\r\n\r\n\tc", "e\u0301 ﬁ 🏳️‍🌈 𝒳", "<|eot_id|> <|im_end|>", "龘"
]  # fmt: skip


@pytest.fixture(scope="module")
def gpt2(shared_data: Path) -> Vocabulary:
    folder = shared_data / "tokenizer"
    return import_gpt2(folder / "gpt2_vocab.json.gz", folder / "gpt2_merges.txt.gz")


def golden(shared_data: Path) -> list[dict[str, object]]:
    with gzip.open(shared_data / "tokenizer" / "gpt2_encode_golden.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file.read().split("\n") if line]


def test_gpt2_gives_the_golden_ids(gpt2: Vocabulary, shared_data: Path) -> None:
    rows = golden(shared_data)
    assert len(rows) == 272
    for row in rows:
        text = str(row["text"])
        assert gpt2.encode(text) == row["ids_special_as_text"]
        assert gpt2.encode_trusted(text) == row["ids"]
        assert gpt2.decode(gpt2.encode(text)) == text
    assert any(row["ids"] != row["ids_special_as_text"] for row in rows)
    assert (gpt2.eos_id, gpt2.id_of("<|pad|>"), gpt2.size) == (50256, 50257, 50262)


def test_gpt2_is_found_in_a_folder_of_its_two_files(gpt2: Vocabulary, shared_data: Path, tmp_path: Path) -> None:
    for name, source in (("vocab.json", "gpt2_vocab.json.gz"), ("merges.txt", "gpt2_merges.txt.gz")):
        data = gzip.decompress((shared_data / "tokenizer" / source).read_bytes())
        (tmp_path / name).write_bytes(b"#version: 0.2\n" + data if name == "merges.txt" else data)
    found = read_foreign(tmp_path)
    assert found.vocabulary == gpt2
    assert found.n_entries == 50257
    from transformers import AutoTokenizer

    gpt2.save(tmp_path / "saved")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert all(theirs(text)["input_ids"] == gpt2.encode(text) for text in TEXTS[:-2])


@pytest.mark.parametrize("make", [foreign.byte_level, foreign.llama3, foreign.qwen2])
def test_no_id_moves_and_transformers_gives_the_same_ids(make: object, tmp_path: Path) -> None:
    tokenizer: Tokenizer = make()  # type: ignore[operator]
    tokenizer.no_truncation()
    before = tokenizer.get_vocab(with_added_tokens=True)
    ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS if "<|" not in text]
    found = adapt(foreign.text_of(make()))  # type: ignore[operator]
    vocabulary = found.vocabulary
    assert [vocabulary.encode(text) for text in TEXTS if "<|" not in text] == ids
    assert found.n_entries == len(before)
    for name in SPECIAL_TOKENS:
        assert vocabulary.id_of(name) == before.get(name, vocabulary.id_of(name))
        assert name in before or vocabulary.id_of(name) >= len(before)
    assert all(vocabulary.special_tokens[name] == before[name] for name in before if name.startswith("<|"))
    vocabulary.save(tmp_path)
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert theirs(text, split_special_tokens=True)["input_ids"] == vocabulary.encode(text)
    assert len(theirs) == vocabulary.size
    assert theirs.eos_token_id == vocabulary.eos_id
    assert Vocabulary.load(tmp_path) == vocabulary


def test_the_chat_template_works_on_what_was_taken_in(tmp_path: Path) -> None:
    vocabulary = adapt(foreign.text_of(foreign.llama3())).vocabulary
    template = ChatTemplate()
    rendered = template.render([Message("user", "rows <|end|>"), Message("assistant", "12")], vocabulary)
    assert rendered.ids.count(vocabulary.id_of("<|end|>")) == 2
    vocabulary.save(tmp_path)
    template.save(tmp_path)
    assert ChatTemplate.load(tmp_path) == template  # the Jinja form gives the same ids, too


def test_a_renamed_token_keeps_its_id_and_what_was_appended_follows() -> None:
    before = foreign.llama3().get_vocab(with_added_tokens=True)
    rename = {"<|eot_id|>": "<|end|>", "<|end_of_text|>": "<|endoftext|>", "<|reserved_0|>": "<|user|>"}
    found = adapt(foreign.text_of(foreign.llama3()), rename=rename)
    assert {old: found.vocabulary.id_of(new) for old, new in rename.items()} == {old: before[old] for old in rename}
    assert found.vocabulary.size == len(before) + 3
    assert found.vocabulary.eos_id == before["<|end_of_text|>"]
    for wrong, why in (
        ({"<|eot_id|>": "<|stop|>"}, "none of the tokens that chatloom uses"),
        ({"<|no|>": "<|end|>"}, "no special token '<|no|>'"),
        ({"<|eot_id|>": "<|end|>", "<|reserved_1|>": "<|end|>"}, "same name"),
    ):
        with pytest.raises(VocabularyError) as caught:
            adapt(foreign.text_of(foreign.llama3()), rename=wrong)
        assert why in str(caught.value)
    with pytest.raises(VocabularyError, match="has '<\\|endoftext\\|>' already"):
        adapt(foreign.text_of(foreign.qwen2()), rename={"<|im_end|>": "<|endoftext|>"})


def test_a_file_that_composes_characters_says_so_and_gives_back_composed_text() -> None:
    vocabulary = adapt(foreign.text_of(foreign.qwen2())).vocabulary
    assert not vocabulary.lossless
    assert vocabulary.decode(vocabulary.encode("e\u0301")) == unicodedata.normalize("NFC", "e\u0301") == "é"
    assert round_trips(vocabulary, 200)["failed"] == 0
    # An added token that is not special is text: it has an id, and it comes back.
    assert vocabulary.decode(vocabulary.encode("a<tool_call>b")) == "a<tool_call>b"
    assert len(vocabulary.encode("<tool_call>")) == 1
    assert adapt(foreign.text_of(foreign.llama3())).vocabulary.lossless


def test_own_vocabularies_are_taken_in_unchanged() -> None:
    own = Vocabulary.train(foreign.ENGLISH * 3, 330)
    found = adapt(own.to_json())
    assert found.vocabulary == own
    assert found.n_entries == own.size
    assert found.vocabulary.to_json() == own.to_json()


def _padded() -> Tokenizer:
    tokenizer = foreign.byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


def _swallowing() -> Tokenizer:
    tokenizer = foreign.byte_level()
    tokenizer.add_tokens([AddedToken("<mask>", lstrip=True)])
    return tokenizer


def _lower() -> Tokenizer:
    tokenizer = foreign.byte_level()
    tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


def _white_space() -> Tokenizer:
    tokenizer = foreign.byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def _forgeable() -> Tokenizer:
    tokenizer = foreign.byte_level()
    left, right = json.loads(tokenizer.to_str())["model"]["merges"][0]
    tokenizer.add_special_tokens([AddedToken(left + right, special=True, normalized=False)])
    return tokenizer


def _forgeable_whole() -> Tokenizer:
    tokenizer = foreign.llama3()
    tokenizer.add_special_tokens([AddedToken("PAD", special=True, normalized=False)])
    content = json.loads(tokenizer.to_str())
    content["model"]["vocab"] |= {token["content"]: token["id"] for token in content["added_tokens"]}
    return Tokenizer.from_str(json.dumps(content))


def _gap() -> Tokenizer:
    content = json.loads(foreign.byte_level().to_str())
    content["model"]["vocab"] = {name: i + (i > 300) for name, i in content["model"]["vocab"].items()}
    return Tokenizer.from_str(json.dumps(content))


def _without_a_byte() -> Tokenizer:
    content = json.loads(foreign.byte_level().to_str())
    names = sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)
    names.remove("Ā")
    content["model"]["vocab"] = {name: i for i, name in enumerate(names)}
    return Tokenizer.from_str(json.dumps(content))


def _ordinary() -> Tokenizer:
    content = json.loads(foreign.byte_level().to_str())
    content["model"]["vocab"]["<|end|>"] = len(content["model"]["vocab"])
    return Tokenizer.from_str(json.dumps(content))


def _word_level() -> Tokenizer:
    return Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (foreign.llama2, "changes text before it is cut .Prepend, Replace.*only byte-level files"),
        (_padded, "add_prefix_space is True.*expected False"),
        (_swallowing, "'<mask>' swallows the spaces"),
        (_lower, "changes text before it is cut .Lowercase"),
        (_white_space, "cuts text by WhitespaceSplit, which drops or adds spaces"),
        (_forgeable, "a merge makes the special token"),
        (_forgeable_whole, "'PAD' turns into a special token"),
        (_gap, "ids have gaps or repeats"),
        (_without_a_byte, "byte 0x00 has no entry"),
        (_ordinary, "<\\|end\\|> is an ordinary entry"),
        (_word_level, "WordLevel vocabulary, which has an unknown token"),
    ],
)
def test_what_would_lose_text_or_could_be_forged_is_refused_by_name(make: object, why: str) -> None:
    with pytest.raises(VocabularyError, match=why):
        adapt(foreign.text_of(make()), where="some/tokenizer.json")  # type: ignore[operator]


def test_dropout_and_word_endings_are_refused() -> None:
    for key, value in (("model__dropout", 0.1), ("model__end_of_word_suffix", "</w>")):
        with pytest.raises(VocabularyError, match=key.split("__")[1]):
            adapt(foreign.text_of(foreign.byte_level(), **{key: value}))


def test_a_file_of_another_layout_says_how_to_take_it_in() -> None:
    with pytest.raises(VocabularyError, match=r"no special token <\|pad\|>.*import_vocabulary.*extend-tokenizer"):
        Vocabulary.from_json(foreign.text_of(foreign.llama3()))


def test_files_that_are_not_gpt2s_are_explained(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match=r"has no tokenizer.json, and no files that could be GPT-2's vocab.json"):
        import_vocabulary(tmp_path)
    with pytest.raises(VocabularyError, match="the file is not there"):
        import_vocabulary(tmp_path / "tokenizer.json")
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1}', encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n", encoding="utf-8")
    with pytest.raises(VocabularyError, match=r"merges.txt:2: found 'a b'; expected two entries"):
        import_vocabulary(tmp_path)
    (tmp_path / "vocab.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(VocabularyError, match=r"vocab.json: not a vocabulary file"):
        import_vocabulary(tmp_path)
    (tmp_path / "vocab.json.gz").write_bytes(b"no gzip")
    with pytest.raises(VocabularyError, match="2 files that could be"):
        import_vocabulary(tmp_path)
    with pytest.raises(VocabularyError, match="cannot be read"):
        import_gpt2(tmp_path / "vocab.json.gz", tmp_path / "merges.txt")
