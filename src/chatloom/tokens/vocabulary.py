"""The vocabulary: text to token ids and back, by byte-level BPE that is trained on the user's own text.

Any Unicode text makes the round trip unchanged (there is no unknown token), and no text can ever produce a special
id: those are put in by the chat template only. A vocabulary folder is an ordinary Hugging Face tokenizer. Other
algorithms are in `algorithms.py`, vocabularies made elsewhere in `importing.py`.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from chatloom.tokens.layout import SPECIAL_TOKENS, Layout, VocabularyError, read_layout
from chatloom.tokens.splitting import CheckedTexts, check_size, split_pattern, why_not_text

__all__ = ["SMALLEST_VOCABULARY", "SPECIAL_TOKENS", "Vocabulary", "VocabularyError", "split_pattern"]

SMALLEST_VOCABULARY = len(SPECIAL_TOKENS) + 256
_BROKEN = re.compile("([\udc80-\udcff]+)")  # how Python marks bytes that are no UTF-8


class Vocabulary:
    """A vocabulary that gives back every text unchanged; trained here, ids 0..5 are the special tokens, 6..261 bytes.

    One taken in from elsewhere has its own ids, and chatloom's six special tokens wherever they were put; ask `id_of`.
    `lossless` is False for files that compose characters first (Unicode NFC, as Qwen's do): what comes back is then
    the composed text. BPE: Sennrich et al. 2016; on bytes: Radford et al. 2019 (GPT-2), section 2.2.
    """

    SPECIAL_TOKENS = SPECIAL_TOKENS

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Wrap a `tokenizers.Tokenizer`; raises VocabularyError where text would not come back or a token lacks."""
        tokenizer.encode_special_tokens = True  # "<|end|>" typed by a person is seven characters, not the end token
        layout = read_layout(tokenizer)
        absent = [name for name in SPECIAL_TOKENS if name not in layout.special]
        if absent:
            raise VocabularyError(
                f"there is no special token {absent[0]}; a tokenizer made elsewhere is taken in by "
                "`chatloom.tokens.importing.import_vocabulary` or the stage `extend-tokenizer`, which add the six that "
                "chatloom needs or give them the ids of tokens already there"
            )
        self._tokenizer = tokenizer
        self._layout = layout
        self._bytes = layout.entries
        self._id_of_byte = {entry[0]: i for i, entry in reversed(list(enumerate(self._bytes))) if len(entry) == 1}
        self._special_ids = frozenset(layout.special.values())
        self.size: int = len(self._bytes)
        self.pad_id: int = self.id_of("<|pad|>")
        self.eos_id: int = self.id_of("<|endoftext|>")
        self.bytes_per_id = np.array([len(b) for b in self._bytes], dtype=np.int32)
        self.bytes_per_id[list(self._special_ids)] = 0
        self.bytes_per_id.setflags(write=False)
        self.sha256: str = layout.sha256
        self._check_not_forged()

    def _check_not_forged(self) -> None:
        names = [
            f"{before}{name}{after}" for name in self.special_tokens for before in ("", " ", "a") for after in ("", "a")
        ]
        for name, ids in zip(names, self.encode_batch(names), strict=True):
            if self._special_ids.intersection(ids):
                raise VocabularyError(f"typed as text, {name!r} turns into a special token; text could forge it")

    @property
    def special_tokens(self) -> dict[str, int]:
        """Name -> id of every special token, in order of ids; chatloom's own six are among them."""
        return dict(self._layout.special)

    @property
    def layout(self) -> Layout:
        """Algorithm, alphabet and entries."""
        return self._layout

    @property
    def lossless(self) -> bool:
        """Whether every text comes back as it is; else in Unicode's composed form (NFC)."""
        return self._layout.normalizer is None

    def is_special(self, token_id: int) -> bool:
        """Whether an id is that of a special token."""
        return token_id in self._special_ids

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
        tokenizer = byte_level_tokenizer(split_pattern(digits, han))
        seen = CheckedTexts(texts)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=min_count,
            special_tokens=[AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            max_token_length=max_token_chars + 1,  # the library keeps entries strictly below its limit
            show_progress=False,
        )
        tokenizer.train_from_iterator(seen, trainer)
        seen.check()
        check_size(tokenizer.get_vocab_size(), vocab_size, seen, min_count, allow_smaller)
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
            "additional_special_tokens": [n for n in self.special_tokens if n not in ("<|pad|>", "<|endoftext|>")],
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
        }
        if model_max_length is not None:
            config["model_max_length"] = model_max_length
        if chat_template is not None:
            config["chat_template"] = chat_template
        (folder / "tokenizer.json").write_text(self.to_json(), encoding="utf-8")
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
            raise VocabularyError(why_not_text(texts)) from None

    def encode_bytes(self, data: bytes) -> list[int]:
        """Token ids of any bytes; what is no UTF-8 becomes single-byte tokens, and `decode_bytes` undoes it."""
        ids: list[int] = []
        for part in _BROKEN.split(data.decode("utf-8", errors="surrogateescape")):
            if part and _BROKEN.match(part):
                ids += [self._id_of_byte[ord(character) - 0xDC00] for character in part]
            elif part:
                ids += self.encode(part)
        return ids

    def encode_trusted(self, text: str) -> list[int]:
        """Token ids of text in which the names of special tokens are those tokens, as `transformers` reads it.

        Only for text that a program wrote: in text from people anybody could forge the end of a turn.
        """
        names = sorted(self._layout.special, key=len, reverse=True)
        ids: list[int] = []
        for part in re.split(f"({'|'.join(map(re.escape, names))})", text):
            special = self._layout.special.get(part)
            ids += self.encode(part) if special is None else [special]
        return ids

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """Text of ids; special tokens are left out unless `special`. Bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids, special=special).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int], *, special: bool = False) -> bytes:
        """The exact bytes that ids stand for; raises VocabularyError on an id outside the vocabulary."""
        parts = []
        for i in ids:
            if not 0 <= i < self.size:
                raise VocabularyError(f"token id {i} is outside the vocabulary (0..{self.size - 1})")
            if special or i not in self._special_ids:
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
        found = self._layout.special.get(token)
        if found is None:
            raise VocabularyError(
                f"{token!r} is not a special token; there are {', '.join(list(self._layout.special)[:12])}"
            )
        return found

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one id stands for (a special token: its name); raises VocabularyError outside the vocabulary."""
        return self.decode_bytes([token_id], special=True)

    def to_json(self) -> str:
        """The content of tokenizer.json."""
        return str(self._tokenizer.to_str(pretty=True))

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


def byte_level_tokenizer(pattern: str, model: models.Model | None = None) -> Tokenizer:
    """A tokenizer that cuts text by a pattern and spells the pieces in bytes."""
    tokenizer = Tokenizer(models.BPE() if model is None else model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
