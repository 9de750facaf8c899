"""Other ways to learn a vocabulary: the own BPE trainer, entries in characters with a fallback to bytes, Unigram.

| | merges by the `tokenizers` library | by chatloom's trainer |
|---|---|---|
| BPE over bytes (GPT-2, GPT-4, Llama 3, Qwen) | `Vocabulary.train` | `train_bpe` |
| BPE over characters, rare ones as bytes (SentencePiece, Llama 1 and 2) | | `train_bpe(alphabet="characters")` |
| Unigram over bytes or characters (Kudo 2018; T5) | `train_unigram` | |
| WordPiece (BERT) | `wordpiece.py`: not lossless, for encoders and teaching | |

All give back every text unchanged. Spaces stay spaces: SentencePiece's stand-in U+2581 would come back as a space.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from chatloom.tokens.bpe import Pieces, Ties, learn_merges
from chatloom.tokens.layout import SPECIAL_TOKENS, Alphabet, VocabularyError, byte_of_letter
from chatloom.tokens.splitting import CheckedTexts, check_size, count_pieces, split_pattern
from chatloom.tokens.vocabulary import SMALLEST_VOCABULARY, Vocabulary, byte_level_tokenizer

Texts = Callable[[], Iterable[str]]
_BYTE_NAMES = [f"<0x{byte:02X}>" for byte in range(256)]


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    *,
    alphabet: Alphabet = "bytes",
    coverage: float = 0.9995,
    ties: Ties = "lower_ids",
    digits: int = 2,
    han: int = 0,
    max_token_bytes: int = 24,
    min_count: int = 2,
    allow_smaller: bool = False,
) -> Vocabulary:
    """Learn `vocab_size` entries with chatloom's own trainer; same texts in any order, same vocabulary.

    Over bytes and with ties to lower ids the result is that of `Vocabulary.train`, unless two ways of merging lead to
    the same entry. `alphabet="characters"`: entries are made of characters, of which the most frequent that make up
    `coverage` of the text get entries; all others are spelt in bytes. Raises VocabularyError as `Vocabulary.train`.
    """
    _check(vocab_size, max_token_bytes, min_count)
    seen = CheckedTexts(texts)
    pattern = split_pattern(digits, han)
    counts = count_pieces(seen, pattern)
    seen.check()
    if alphabet == "bytes":
        symbols, pieces = _bytes_of(counts)
    else:
        kept = covered_characters(counts, coverage, vocab_size - SMALLEST_VOCABULARY)
        symbols, pieces = [character.encode("utf-8") for character in kept], _characters_of(counts, kept)
    room = vocab_size - (SMALLEST_VOCABULARY if alphabet == "bytes" else SMALLEST_VOCABULARY + len(symbols))
    merges = learn_merges(pieces, symbols, room, ties=ties, min_count=min_count, max_bytes=max_token_bytes)
    contents = list(symbols)
    for merge in merges:
        if merge.made == len(contents):
            contents.append(contents[merge.left] + contents[merge.right])
    tokenizer = _bpe_tokenizer(pattern, alphabet, contents, [(m.left, m.right) for m in merges])
    check_size(tokenizer.get_vocab_size(), vocab_size, seen, min_count, allow_smaller)
    return Vocabulary(tokenizer)


def train_unigram(
    texts: Texts,
    vocab_size: int,
    *,
    alphabet: Alphabet = "bytes",
    coverage: float = 0.9995,
    digits: int = 2,
    han: int = 0,
    max_token_bytes: int = 24,
    allow_smaller: bool = False,
) -> Vocabulary:
    """Learn a Unigram vocabulary through the `tokenizers` library; `texts()` gives the texts, and is called twice.

    Kudo 2018, "Subword Regularization", section 3.2. The library's last digits vary from run to run, so scores are
    rounded to four decimals. Pieces of characters are at most a third of `max_token_bytes` characters long.
    """
    _check(vocab_size, max_token_bytes, 1)
    pattern = split_pattern(digits, han)
    kept: list[str] = []
    seen = CheckedTexts(texts())
    if alphabet == "bytes":
        tokenizer = byte_level_tokenizer(pattern, models.Unigram())
        source: Iterable[str] = seen
        start, size, longest = sorted(byte_of_letter()), vocab_size, max_token_bytes
    else:
        characters: Counter[str] = Counter()
        for text in seen:
            characters.update(text)
        kept = covered_characters(characters, coverage, vocab_size - SMALLEST_VOCABULARY)
        rare = {ord(character): "\n" for character in set(characters) - set(kept)}  # a line end parts its neighbours
        source = (text.translate(rare) for text in texts())
        tokenizer = _character_tokenizer(pattern, models.Unigram())
        start, size, longest = kept, vocab_size - 256, max(2, max_token_bytes // 3)
    trainer = trainers.UnigramTrainer(
        vocab_size=size,
        special_tokens=_special(),
        initial_alphabet=start,
        max_piece_length=longest,
        show_progress=False,
    )
    tokenizer.train_from_iterator(source, trainer)
    seen.check()
    entries = _steady(json.loads(tokenizer.to_str())["model"]["vocab"])
    if alphabet == "characters":
        lowest = min(score for _, score in entries) - 1.0
        known = {*kept}
        entries = [item for item in entries if len(item[0]) > 1 or item[0] in known]
        entries = [*((name, lowest) for name in _BYTE_NAMES), *entries]
    vocab = [*((name, 0.0) for name in SPECIAL_TOKENS), *entries]
    # An entry for the unknown must be named; with all bytes there, nothing is ever unknown.
    tokenizer.model = (
        models.Unigram(vocab, unk_id=0, byte_fallback=True) if alphabet == "characters" else models.Unigram(vocab)
    )
    check_size(len(vocab), vocab_size, seen, 1, allow_smaller)
    return Vocabulary(tokenizer)


def covered_characters(counts: Counter[str], coverage: float, room: int) -> list[str]:
    """The fewest characters, most frequent first, that make up `coverage` of the text; in order of code points.

    `counts` counts characters or pieces. Raises VocabularyError when they are more than `room`.
    """
    if not 0 < coverage <= 1:
        raise VocabularyError(
            f"character coverage is {coverage}; expected a share above 0 and at most 1, such as 0.9995"
        )
    characters: Counter[str] = Counter()
    for piece, count in counts.items():
        for character in piece:
            characters[character] += count
    ranked = sorted(characters.items(), key=lambda item: (-item[1], item[0]))
    wanted = coverage * sum(characters.values())
    kept: list[str] = []
    covered = 0
    for character, count in ranked:
        if covered >= wanted:
            break
        kept.append(character)
        covered += count
    if len(kept) > room:
        raise VocabularyError(
            f"{len(kept)} characters make up {coverage:.4%} of the text, but a vocabulary of "
            f"{room + SMALLEST_VOCABULARY} entries has room for {max(room, 0)} beside the bytes; raise vocab_size, "
            "lower the character coverage, or use the alphabet `bytes`"
        )
    return sorted(kept)


def _check(vocab_size: int, max_token_bytes: int, min_count: int) -> None:
    if vocab_size < SMALLEST_VOCABULARY:
        raise VocabularyError(
            f"vocab_size is {vocab_size}; the smallest is {SMALLEST_VOCABULARY} "
            f"({len(SPECIAL_TOKENS)} special tokens and the 256 bytes)"
        )
    if max_token_bytes < 2 or min_count < 1:
        raise VocabularyError(f"max_token_bytes is {max_token_bytes}, min_count {min_count}; at least 2 and 1")


def _bytes_of(counts: Counter[str]) -> tuple[list[bytes], Pieces]:
    """Bytes in the order in which the library numbers them, by their letters; and the pieces made of them."""
    letters = byte_of_letter()
    order = [letters[letter] for letter in sorted(letters)]
    number = np.empty(256, dtype=np.int32)
    number[order] = np.arange(256)
    encoded = [piece.encode("utf-8") for piece in counts]
    symbols = number[np.frombuffer(b"".join(encoded), dtype=np.uint8)]
    return [bytes([byte]) for byte in order], Pieces.of(symbols, _lengths(encoded), list(counts.values()))


def _characters_of(counts: Counter[str], kept: Sequence[str]) -> Pieces:
    points = np.frombuffer("".join(counts).encode("utf-32-le"), dtype="<u4")
    known = np.array([ord(character) for character in kept], dtype=np.uint32)
    places = np.minimum(np.searchsorted(known, points), len(known) - 1)
    symbols = np.where(known[places] == points, places, -1)
    return Pieces.of(symbols, _lengths(list(counts)), list(counts.values()))


def _lengths(pieces: Sequence[str] | Sequence[bytes]) -> np.ndarray:
    return np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces))


def _bpe_tokenizer(
    pattern: str, alphabet: Alphabet, contents: Sequence[bytes], merges: Sequence[tuple[int, int]]
) -> Tokenizer:
    if alphabet == "bytes":
        letter = {byte: name for name, byte in byte_of_letter().items()}
        names = ["".join(letter[byte] for byte in content) for content in contents]
        fixed = list(SPECIAL_TOKENS)
    else:
        names = [content.decode("utf-8") for content in contents]
        fixed = [*SPECIAL_TOKENS, *_BYTE_NAMES]
    entries = {name: i for i, name in enumerate([*fixed, *names])}
    pairs = [(names[left], names[right]) for left, right in merges]
    if alphabet == "bytes":
        tokenizer = byte_level_tokenizer(pattern, models.BPE(entries, pairs))
    else:
        tokenizer = _character_tokenizer(pattern, models.BPE(entries, pairs, byte_fallback=True))
    tokenizer.add_special_tokens(_special())
    return tokenizer


def _character_tokenizer(pattern: str, model: models.Model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _special() -> list[AddedToken]:
    return [AddedToken(name, special=True, normalized=False) for name in SPECIAL_TOKENS]


def _steady(entries: Sequence[Sequence]) -> list[tuple[str, float]]:
    """Pieces with rounded scores, best first, without the special tokens.

    The library gives characters that it did not choose scores in steps of 0.0001 up from the lowest, in the order of a
    hash table that is another on every run; here they, and those beside the lowest, share one score below all others.
    """
    scores = {str(name): float(score) for name, score in entries if name not in SPECIAL_TOKENS}
    lowest = sorted((score, name) for name, score in scores.items() if len(name) == 1)
    unchosen = {name for _, name in lowest[:1]}
    for (below, _), (score, name) in pairwise(lowest):
        if score - below > 1.01e-4:
            break
        unchosen.add(name)
    floor = min((score for name, score in scores.items() if name not in unchosen), default=0.0) - 1.0
    pieces = [(name, round(floor if name in unchosen else score, 4)) for name, score in scores.items()]
    return sorted(pieces, key=lambda item: (-item[1], item[0]))
