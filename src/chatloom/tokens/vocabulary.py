"""The vocabulary: text to token ids and back, by byte-level BPE that is trained on the user's own text.

Any Unicode text makes the round trip unchanged (there is no unknown token), and no text can ever produce one of the
six special ids: those are put in by the chat template only. A vocabulary folder is an ordinary Hugging Face tokenizer.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from chatloom.errors import ChatloomError

SPECIAL_TOKENS = ("<|pad|>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
SMALLEST_VOCABULARY = len(SPECIAL_TOKENS) + 256

# Han and kana run on for whole clauses without a space, so they get a branch of their own: no piece mixes scripts.
_CJK = r"\p{Han}\p{Hiragana}\p{Katakana}ー々〆"
_CJK_PUNCTUATION = "\u3000-\u303f\uff00-\uffef"


class VocabularyError(ChatloomError):
    """A vocabulary cannot be trained, read, or used on this text."""


def split_pattern(digits: int = 2, han: int = 0) -> str:
    """The regular expression that cuts text into pieces before any merge, in the manner of GPT-4's.

    Branches, first match wins: English contractions; Han and kana, in runs of at most `han` (0: of any length); a word
    with at most one leading space or sign; up to `digits` digits; signs with the line ends that follow; line ends;
    spaces (the last goes to the word).
    """
    if digits not in (1, 2, 3):
        raise VocabularyError(f"digits is {digits}; digits are grouped by 1, 2 or 3")
    if han < 0:
        raise VocabularyError(f"han is {han}; expected the longest run of Han characters, or 0 for no limit")
    run = f"{{1,{han}}}" if han else "+"
    word = rf"[\p{{L}}\p{{M}}&&[^{_CJK}]]"
    return "|".join(
        (
            r"'(?i:s|t|re|ve|m|ll|d)(?![\p{L}\p{N}])",
            rf"[{_CJK}]{run}",
            rf"[^\r\n\p{{L}}\p{{M}}\p{{N}}{_CJK_PUNCTUATION}]?{word}+",
            rf"\p{{N}}{{1,{digits}}}",
            r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
            r"\s*[\r\n]+",
            r"\s+(?!\S)",
            r"\s+",
        )
    )


class Vocabulary:
    """A trained byte-level BPE vocabulary; ids 0..5 are the special tokens, 6..261 the single bytes.

    BPE: Sennrich et al. 2016; on bytes: Radford et al. 2019 (GPT-2), section 2.2.
    """

    SPECIAL_TOKENS = SPECIAL_TOKENS

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Wrap a `tokenizers.Tokenizer` of this layout; raises VocabularyError where the layout is another."""
        tokenizer.encode_special_tokens = True  # "<|end|>" typed by a person is seven characters, not the end token
        self._tokenizer = tokenizer
        self._bytes = _bytes_of_entries(tokenizer)
        self.size: int = len(self._bytes)
        self.pad_id: int = self.id_of("<|pad|>")
        self.eos_id: int = self.id_of("<|endoftext|>")
        self.bytes_per_id = np.array([len(b) for b in self._bytes], dtype=np.int32)
        self.bytes_per_id[: len(SPECIAL_TOKENS)] = 0
        self.bytes_per_id.setflags(write=False)
        self.sha256: str = _identity(tokenizer)

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        *,
        digits: int = 2,
        han: int = 0,
        max_token_chars: int = 24,
        min_count: int = 2,
        allow_smaller: bool = False,
    ) -> Vocabulary:
        """Learn `vocab_size` entries (specials and the 256 bytes included) from texts; same texts, same vocabulary.

        The order of the texts does not matter. No entry is longer than `max_token_chars` bytes (24 bytes are 24 Latin
        letters or 8 Han characters). A merge must be seen `min_count` times. When the texts support fewer entries than
        asked for, raises VocabularyError that says how many, unless `allow_smaller`. Also raises on no text at all.
        """
        if vocab_size < SMALLEST_VOCABULARY:
            raise VocabularyError(
                f"vocab_size is {vocab_size}; the smallest is {SMALLEST_VOCABULARY} "
                f"({len(SPECIAL_TOKENS)} special tokens and the 256 bytes)"
            )
        if max_token_chars < 2 or min_count < 1:
            raise VocabularyError(f"max_token_chars is {max_token_chars}, min_count {min_count}; at least 2 and 1")
        tokenizer = _empty_tokenizer(split_pattern(digits, han))
        seen = _Counted(texts)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=min_count,
            special_tokens=[AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            max_token_length=max_token_chars + 1,  # the library keeps entries strictly below its limit
            show_progress=False,
        )
        tokenizer.train_from_iterator(seen, trainer)
        if seen.characters == 0:
            raise VocabularyError(
                f"no text to learn a vocabulary from: {seen.texts} texts with no character among them; "
                "check the input path and what the corpus stage kept"
            )
        learned = tokenizer.get_vocab_size()
        if learned < vocab_size and not allow_smaller:
            raise VocabularyError(
                f"a vocabulary of {vocab_size} entries was asked for, but these {seen.texts} texts "
                f"({seen.characters} characters) support only {learned} with min_count {min_count}; "
                f"set vocab_size to {learned} or less, or give more text"
            )
        return cls(tokenizer)

    @classmethod
    def from_json(cls, text: str, where: str = "tokenizer.json") -> Vocabulary:
        """Read the content of a tokenizer.json; raises VocabularyError when it is not one of this layout."""
        try:
            tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise VocabularyError(f"{where} is not a readable tokenizer file: {error}") from error
        try:
            return cls(tokenizer)
        except VocabularyError as error:
            raise VocabularyError(f"{where}: {error}") from error

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Read a vocabulary folder (or its tokenizer.json); raises VocabularyError when it is not one."""
        file = Path(path)
        if file.is_dir():
            file = file / "tokenizer.json"
        try:
            text = file.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise VocabularyError(f"no vocabulary at {path}: {file.name} is not there") from None
        except (OSError, UnicodeDecodeError) as error:
            raise VocabularyError(f"{file} cannot be read: {error}") from error
        return cls.from_json(text, str(file))

    def save(
        self, folder: str | Path, *, chat_template: str | None = None, model_max_length: int | None = None
    ) -> None:
        """Write tokenizer.json and tokenizer_config.json, which `transformers.AutoTokenizer` opens.

        `chat_template` is the Jinja text that `apply_chat_template` will use; `model_max_length` is in tokens.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": "<|pad|>",
            "eos_token": "<|endoftext|>",
            "additional_special_tokens": list(SPECIAL_TOKENS[2:]),
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
        }
        if model_max_length is not None:
            config["model_max_length"] = model_max_length
        if chat_template is not None:
            config["chat_template"] = chat_template
        (folder / "tokenizer.json").write_text(self._tokenizer.to_str(pretty=True), encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(
            json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
        )

    def encode(self, text: str) -> list[int]:
        """Token ids of text; never a special id, whatever the text says. Raises VocabularyError on lone surrogates."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of many texts at once, on all cores; the same ids as `encode` one by one."""
        try:
            return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts), False)]
        except TypeError:
            raise VocabularyError(_why_not_text(texts)) from None

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """Text of ids; special tokens are left out unless `special`. Bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids, special=special).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int], *, special: bool = False) -> bytes:
        """The exact bytes that ids stand for; raises VocabularyError on an id outside the vocabulary."""
        parts = []
        for i in ids:
            if not 0 <= i < self.size:
                raise VocabularyError(f"token id {i} is outside the vocabulary (0..{self.size - 1})")
            if special or i >= len(SPECIAL_TOKENS):
                parts.append(self._bytes[i])
        return b"".join(parts)

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Text of ids as they come, one string an id (maybe empty): a character is held back until it is whole."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for i in ids:
            yield decoder.decode(self.decode_bytes([i]))
        yield decoder.decode(b"", final=True)

    def id_of(self, token: str) -> int:
        """Id of a special token such as "<|end|>"; raises VocabularyError for any other name."""
        if token not in SPECIAL_TOKENS:
            raise VocabularyError(f"{token!r} is not a special token; there are {', '.join(SPECIAL_TOKENS)}")
        return SPECIAL_TOKENS.index(token)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one id stands for (a special token: its name); raises VocabularyError outside the vocabulary."""
        return self.decode_bytes([token_id], special=True)

    def __len__(self) -> int:
        return self.size

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __repr__(self) -> str:
        return f"Vocabulary(size={self.size}, sha256={self.sha256[:12]})"

    def __reduce__(self) -> tuple[Any, ...]:
        # The library forgets `encode_special_tokens` when a tokenizer travels to another process.
        return Vocabulary.from_json, (self._tokenizer.to_str(),)


class _Counted:
    """Texts on their way to the trainer, counted."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._source = texts
        self.texts = 0
        self.characters = 0

    def __iter__(self) -> Iterator[str]:
        for text in self._source:
            if not isinstance(text, str) or _has_surrogate(text):
                raise VocabularyError(f"text number {self.texts + 1}: {_why_not_text([text])}")
            self.texts += 1
            self.characters += len(text)
            yield text


def _has_surrogate(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _why_not_text(texts: Sequence[object]) -> str:
    for text in texts:
        if not isinstance(text, str):
            return f"expected a str, found {type(text).__name__}"
        if _has_surrogate(text):
            return f"found a lone surrogate in {text[:40]!r}, which is no Unicode text; read it with errors='replace'"
    return "expected a list of str"


def _empty_tokenizer(pattern: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _byte_of_letter() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte: printable Latin-1 stands for itself, the rest is moved to U+0100.."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in visible]
    return {chr(b): b for b in visible} | {chr(0x100 + n): b for n, b in enumerate(hidden)}


def _bytes_of_entries(tokenizer: Tokenizer) -> list[bytes]:
    """Bytes of every id in order; raises VocabularyError unless this is a byte-level BPE with our special tokens."""
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    for i, token in enumerate(SPECIAL_TOKENS):
        if vocabulary.get(token) != i:
            raise VocabularyError(
                f"expected the special token {token} at id {i}, found it at {vocabulary.get(token, 'no id')}; "
                "only vocabularies trained by chatloom can be loaded"
            )
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise VocabularyError("ids have gaps or repeats; expected 0..size-1, each once")
    byte_of = _byte_of_letter()
    entries = [b""] * len(vocabulary)
    for token, i in vocabulary.items():
        if i < len(SPECIAL_TOKENS):
            entries[i] = token.encode("utf-8")
            continue
        unknown = [c for c in token if c not in byte_of]
        if unknown:
            raise VocabularyError(f"entry {i} ({token!r}) is not made of byte-level letters ({unknown[0]!r})")
        entries[i] = bytes(byte_of[c] for c in token)
    missing = set(range(256)) - {entry[0] for entry in entries if len(entry) == 1}
    if missing:
        raise VocabularyError(f"byte {min(missing):#04x} has no entry, so some text could not be encoded")
    return entries


def _identity(tokenizer: Tokenizer) -> str:
    """sha256 of what decides the ids (entries, merges, split pattern), not of how a library version writes its file."""
    content = json.loads(tokenizer.to_str())
    decisive = {
        "entries": sorted(content["model"]["vocab"].items(), key=lambda item: item[1]),
        "merges": content["model"]["merges"],
        "split": content["pre_tokenizer"],
        "normalizer": content["normalizer"],
    }
    return hashlib.sha256(json.dumps(decisive, ensure_ascii=True, sort_keys=True).encode("ascii")).hexdigest()
