"""WordPiece as in BERT: for encoders and for teaching. It loses text, so no chat model can be trained on it.

White space is dropped, and a word with a character that was never seen becomes "[UNK]". (Devlin et al. 2019, section 3.
As in the `tokenizers` library, merges are chosen by their count; but the library's trainer numbers its characters in
the order of a hash table and so gives another vocabulary on every run, which this one does not.)
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from chatloom.tokens.bpe import Pieces, learn_merges
from chatloom.tokens.layout import SPECIAL_TOKENS, VocabularyError
from chatloom.tokens.splitting import CheckedTexts, check_size

UNKNOWN = "[UNK]"
WARNING = (
    "a WordPiece vocabulary drops white space and has an unknown token, so no chat model can be trained on it; it is "
    "for encoders and for teaching"
)
_START = b"\x01"  # stands before what begins a word; all else is written with "##"


class WordPiece:
    """A WordPiece vocabulary; Han characters and signs are words of their own, "##" goes on with a word."""

    lossless = False

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self.size: int = tokenizer.get_vocab_size()
        self.unknown_id: int = tokenizer.get_vocab()[UNKNOWN]

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        *,
        max_token_bytes: int = 24,
        min_count: int = 2,
        allow_smaller: bool = False,
    ) -> WordPiece:
        """Learn `vocab_size` entries, special tokens and all characters (at the start of a word and in it) included.

        Same texts in any order, same vocabulary. Raises VocabularyError on no text, when the characters alone do not
        fit, and when the texts support fewer entries than asked for, unless `allow_smaller`.
        """
        normalizer = normalizers.BertNormalizer(strip_accents=False, lowercase=False)
        cutter = pre_tokenizers.BertPreTokenizer()
        seen = CheckedTexts(texts)
        words: Counter[str] = Counter()
        for text in seen:
            words.update(word for word, _ in cutter.pre_tokenize_str(normalizer.normalize_str(text)))
        seen.check()
        symbols = sorted(
            {_START + word[0].encode() for word in words} | {c.encode() for word in words for c in word[1:]}
        )
        fixed = (*SPECIAL_TOKENS, UNKNOWN)
        room = vocab_size - len(fixed) - len(symbols)
        if room < 0:
            raise VocabularyError(
                f"vocab_size is {vocab_size}, but the characters of this text, at the start of words and inside them, "
                f"take {len(symbols)} entries, with {len(fixed)} special tokens beside them; raise vocab_size"
            )
        number = {symbol: i for i, symbol in enumerate(symbols)}
        flat = [
            i for word in words for i in (number[_START + word[0].encode()], *(number[c.encode()] for c in word[1:]))
        ]
        pieces = Pieces.of(np.array(flat, dtype=np.int32), np.array([*map(len, words)]), list(words.values()))
        for merge in learn_merges(pieces, symbols, room, min_count=min_count, max_bytes=max_token_bytes + len(_START)):
            if merge.made == len(symbols):
                symbols.append(symbols[merge.left] + symbols[merge.right])
        names = [s[1:].decode() if s.startswith(_START) else "##" + s.decode() for s in symbols]
        vocab = {name: i for i, name in enumerate([*fixed, *names])}
        check_size(len(vocab), vocab_size, seen, min_count, allow_smaller)
        tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=UNKNOWN))
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, cutter
        tokenizer.decoder = decoders.WordPiece(cleanup=False)
        tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in fixed])
        return cls(tokenizer)

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which `transformers.AutoTokenizer` opens."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": "<|pad|>",
            "eos_token": "<|endoftext|>",
            "unk_token": UNKNOWN,
            "additional_special_tokens": list(SPECIAL_TOKENS[2:]),
            "clean_up_tokenization_spaces": False,
        }
        (folder / "tokenizer.json").write_text(self._tokenizer.to_str(pretty=True), encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(
            json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
        )

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts; what is unknown is `unknown_id`."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts), False)]

    def decode(self, ids: Iterable[int]) -> str:
        """Words of ids with single spaces between: not the text that was encoded."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))
