"""Round trips of odd text: whatever goes in must come out, and no text may become a special token."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Sequence
from typing import Any

from chatloom.tokens.layout import VocabularyError
from chatloom.tokens.vocabulary import Vocabulary

# Code points of scripts and signs that tokenizers are known to stumble over; surrogates apart.
RANGES = (
    (0x00, 0x1F), (0x20, 0x7E), (0x30, 0x39), (0x41, 0x7A), (0x7F, 0xA0), (0xA1, 0xFF), (0x100, 0x24F), (0x300, 0x36F),
    (0x370, 0x3FF), (0x400, 0x4FF), (0x590, 0x5FF), (0x600, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F), (0x1100, 0x11FF),
    (0x2000, 0x206F), (0x2580, 0x259F), (0x3000, 0x303F), (0x3040, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3),
    (0xE000, 0xE0FF), (0xFE00, 0xFE0F), (0xFF00, 0xFFEF), (0xFFF0, 0xFFFF), (0x10000, 0x100FF), (0x1D400, 0x1D7FF),
    (0x1F300, 0x1FAFF), (0x20000, 0x2A6DF), (0xE0001, 0xE007F), (0x10FFF0, 0x10FFFF),
)  # fmt: skip
_SNIPPETS = ("<0x41>", "▁", "\r\n", "\ufeff", "\u200d", "\ufffd", "  ", "Ġ", "##", "[UNK]", "e\u0301", "ﬁ")


def round_trips(vocabulary: Vocabulary, n: int = 1000, *, seed: int = 0) -> dict[str, Any]:
    """Send `n` random texts and `n` random byte strings (mostly no UTF-8) there and back; counts, and what failed."""
    generator = random.Random(seed)
    names = list(vocabulary.special_tokens)
    texts = [random_text(generator, names) for _ in range(n)]
    failed: list[str] = []
    forged = 0
    for text, ids in zip(texts, vocabulary.encode_batch(texts), strict=True):
        forged += any(vocabulary.is_special(i) for i in ids)
        wanted = text if vocabulary.lossless else unicodedata.normalize("NFC", text)
        if vocabulary.decode(ids) != wanted:
            failed.append(ascii(text))
    broken: list[str] = []
    for _ in range(n):
        data = random_bytes(generator)
        if vocabulary.lossless and vocabulary.decode_bytes(vocabulary.encode_bytes(data)) != data:
            broken.append(data.hex(" "))
    return {
        "texts": n,
        "failed": len(failed),
        "examples": failed[:5],
        "special_tokens_forged": forged,
        "byte_strings": n if vocabulary.lossless else 0,
        "byte_strings_failed": len(broken),
        "byte_string_examples": broken[:5],
        "lone_surrogate_refused": _refuses(vocabulary, "a\ud800b"),
        "composed": not vocabulary.lossless,
    }


def random_text(generator: random.Random, names: Sequence[str] = ()) -> str:
    """A text of a few scripts, with names of special tokens and the stand-ins of other tokenizers in it."""
    parts = []
    for _ in range(generator.randint(1, 8)):
        chance = generator.random()
        if chance < 0.12 and names:
            parts.append(generator.choice(names))
        elif chance < 0.25:
            parts.append(generator.choice(_SNIPPETS))
        else:
            low, high = generator.choice(RANGES)
            parts.append("".join(chr(generator.randint(low, high)) for _ in range(generator.randint(1, 6))))
    return "".join(parts)


def random_bytes(generator: random.Random) -> bytes:
    """Bytes that are partly UTF-8: whole characters, halves of them, and anything."""
    parts = []
    for _ in range(generator.randint(1, 6)):
        chance = generator.random()
        if chance < 0.4:
            parts.append(generator.randbytes(generator.randint(1, 5)))
        else:
            whole = random_text(generator).encode("utf-8")
            parts.append(whole if chance < 0.7 else whole[: generator.randint(0, len(whole))])
    return b"".join(parts)


def _refuses(vocabulary: Vocabulary, text: str) -> bool:
    try:
        vocabulary.encode(text)
    except VocabularyError:
        return True
    return False
