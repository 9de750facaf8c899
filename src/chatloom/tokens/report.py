"""What a vocabulary does to text, in numbers: compression by language and source, entries that are never used, digits.

Measured best on text that the vocabulary was not trained on. A word is a run of letters and digits, and each Han
character or kana is one, so that fertility means something in Chinese too.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import regex

from chatloom.tokens.layout import VocabularyError
from chatloom.tokens.vocabulary import Vocabulary

ALL = "all"
RARE = 5  # an entry used less often than this on the measured text is called under-trained
BATCH = 256
_WORD = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}]|(?:[\p{L}\p{M}\p{N}--[\p{Han}\p{Hiragana}\p{Katakana}]])+", regex.V1
)
_MARKS = {" ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥", "\u3000": "⎵"}
NUMBERS = ("7", "42", "365", "2024", "12345", "299792458", "3.14159", "1,000,000", "-17", "0x1F", "１２３")


@dataclass
class Counts:
    """Sums over some texts; characters are Unicode code points."""

    texts: int = 0
    bytes: int = 0
    characters: int = 0
    words: int = 0
    tokens: int = 0

    def add(self, other: Counts) -> None:
        """Add another's sums."""
        for name in ("texts", "bytes", "characters", "words", "tokens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def figures(self) -> dict[str, Any]:
        """Sums and ratios: bytes per token, tokens per character, tokens per word (fertility)."""
        return {
            "texts": self.texts,
            "bytes": self.bytes,
            "characters": self.characters,
            "words": self.words,
            "tokens": self.tokens,
            "bytes_per_token": _ratio(self.bytes, self.tokens),
            "tokens_per_character": _ratio(self.tokens, self.characters),
            "fertility": _ratio(self.tokens, self.words),
        }


@dataclass
class Measured:
    """Counts of all text, by language and by source; how often each id was used; seconds that encoding took."""

    uses: np.ndarray
    seconds: float = 0.0
    total: Counts = field(default_factory=Counts)
    languages: dict[str, Counts] = field(default_factory=dict)
    sources: dict[str, Counts] = field(default_factory=dict)

    @property
    def megabytes_per_second(self) -> float:
        """Text encoded in a second, batches of 256 texts on all threads."""
        return self.total.bytes / 1e6 / self.seconds if self.seconds else 0.0

    def figures(self) -> dict[str, Any]:
        """JSON-ready, largest language and source first; without the time, which is another on every run."""
        return {
            ALL: self.total.figures(),
            "languages": _largest_first(self.languages),
            "sources": _largest_first(self.sources),
        }


def measure(vocabulary: Vocabulary, items: Iterable[tuple[str, str, str]]) -> Measured:
    """Encode (language, source, text) triples and count. Raises VocabularyError on no text at all."""
    found = Measured(np.zeros(vocabulary.size, dtype=np.int64))
    for batch in _batches(items):
        texts = [text for _, _, text in batch]
        begun = time.perf_counter()
        encoded = vocabulary.encode_batch(texts)
        found.seconds += time.perf_counter() - begun
        for (language, source, text), ids in zip(batch, encoded, strict=True):
            counts = Counts(1, len(text.encode("utf-8")), len(text), count_words(text), len(ids))
            found.total.add(counts)
            found.languages.setdefault(language, Counts()).add(counts)
            found.sources.setdefault(source, Counts()).add(counts)
        flat = np.fromiter((i for ids in encoded for i in ids), dtype=np.int64)
        found.uses += np.bincount(flat, minlength=vocabulary.size)
    if not found.total.tokens:
        raise VocabularyError("no text to measure the vocabulary on")
    return found


def count_words(text: str) -> int:
    """Runs of letters, marks and digits; each Han character and kana on its own."""
    return sum(1 for _ in _WORD.finditer(text))


def entry_figures(vocabulary: Vocabulary, uses: np.ndarray, *, examples: int = 24) -> dict[str, Any]:
    """Entries that the measured text never or hardly used, those no text can use, and single-byte tokens.

    `uses` counts each id. "Learnt" entries are those that are neither special nor a single byte. An unreachable entry
    is text that encodes to something else (Land & Bartolo 2024, "Fishing for Magikarp", section 3).
    """
    entries = vocabulary.layout.entries
    ordinary = [i for i in range(vocabulary.size) if not vocabulary.is_special(i)]
    learnt = [i for i in ordinary if len(entries[i]) > 1]
    single = [i for i in ordinary if len(entries[i]) == 1]
    broken = [i for i in single if entries[i][0] >= 0x80]
    total = max(int(uses[ordinary].sum()), 1)
    unused = [i for i in learnt if uses[i] == 0]
    rare = [i for i in learnt if 0 < uses[i] < RARE]
    unreachable = _unreachable(vocabulary, learnt)
    most = sorted(learnt, key=lambda i: (-int(uses[i]), i))[:examples]
    longest = sorted(learnt, key=lambda i: (-len(entries[i]), i))[:examples]
    return {
        "learnt": len(learnt),
        "unused": len(unused),
        "unused_share": _ratio(len(unused), len(learnt)),
        "unused_examples": [readable(entries[i]) for i in unused[:examples]],
        "under_trained": len(rare),
        "under_trained_share": _ratio(len(rare), len(learnt)),
        "under_trained_below": RARE,
        "under_trained_examples": [readable(entries[i]) for i in rare[:examples]],
        "unreachable": len(unreachable),
        "unreachable_examples": [readable(entries[i]) for i in unreachable[:examples]],
        "single_byte_share": _ratio(int(uses[single].sum()), total),
        "broken_character_share": _ratio(int(uses[broken].sum()), total),
        "most_used": [{"entry": readable(entries[i]), "uses": int(uses[i])} for i in most],
        "longest": [{"entry": readable(entries[i]), "bytes": len(entries[i])} for i in longest],
    }


def readable(content: bytes) -> str:
    """An entry as a person can read it: blanks and controls as signs, bytes that are part of a character as ⟨E4⟩."""
    text = content.decode("utf-8", errors="surrogateescape")
    out = []
    for character in text:
        if "\udc80" <= character <= "\udcff":
            out.append(f"⟨{ord(character) - 0xDC00:02X}⟩")
        elif character in _MARKS:
            out.append(_MARKS[character])
        elif not character.isprintable():
            out.append(f"⟨U+{ord(character):04X}⟩")
        else:
            out.append(character)
    return "".join(out)


def digit_figures(vocabulary: Vocabulary) -> dict[str, Any]:
    """How numbers are cut, the longest run of digits in one token, and how many whole numbers are one token each."""
    sizes = {
        f"{n}_digits": sum(len(ids) == 1 for ids in vocabulary.encode_batch([f"{i:0{n}d}" for i in range(10**n)]))
        for n in (1, 2, 3)
    }
    longest = max(
        (len(entry) for i, entry in enumerate(vocabulary.layout.entries) if entry.isdigit() and entry.isascii()),
        default=0,
    )
    cut = {
        number: [readable(vocabulary.token_bytes(i)) for i in ids]
        for number, ids in zip(NUMBERS, vocabulary.encode_batch(list(NUMBERS)), strict=True)
    }
    return {"longest_run": longest, "one_token": sizes, "examples": cut}


def compare(vocabulary: Vocabulary, other: Vocabulary, items: Sequence[tuple[str, str, str]]) -> dict[str, Any]:
    """Bytes per token of both on the same text by language (ratio above 1: fewer tokens with `vocabulary`), and how
    many of the learnt entries the other has as well."""
    sides = [measure(v, items) for v in (vocabulary, other)]
    rows = {
        name: {
            "ours": _ratio(ours.bytes, ours.tokens),
            "theirs": _ratio(theirs.bytes, theirs.tokens),
            "ratio": _ratio(theirs.tokens, ours.tokens),
        }
        for name, ours, theirs in [
            (ALL, sides[0].total, sides[1].total),
            *((name, sides[0].languages[name], sides[1].languages[name]) for name in sorted(sides[0].languages)),
        ]
    }
    own, theirs_ = (_learnt(v) for v in (vocabulary, other))
    return {"size": other.size, "bytes_per_token": rows, "shared_entries": _ratio(len(own & theirs_), len(own))}


def _learnt(vocabulary: Vocabulary) -> set[bytes]:
    return {e for i, e in enumerate(vocabulary.layout.entries) if len(e) > 1 and not vocabulary.is_special(i)}


def _unreachable(vocabulary: Vocabulary, learnt: Sequence[int]) -> list[int]:
    texts = {}
    for i in learnt:
        try:
            texts[i] = vocabulary.layout.entries[i].decode("utf-8")
        except UnicodeDecodeError:
            continue  # part of a character: reached from inside a text only
    encoded = vocabulary.encode_batch(list(texts.values()))
    return [i for i, ids in zip(texts, encoded, strict=True) if ids != [i]]


def _batches(items: Iterable[tuple[str, str, str]]) -> Iterator[list[tuple[str, str, str]]]:
    batch: list[tuple[str, str, str]] = []
    for item in items:
        batch.append(item)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _largest_first(groups: dict[str, Counts]) -> dict[str, Any]:
    return {
        name: counts.figures() for name, counts in sorted(groups.items(), key=lambda item: (-item[1].bytes, item[0]))
    }


def _ratio(above: float, below: float) -> float:
    return round(above / below, 4) if below else 0.0
