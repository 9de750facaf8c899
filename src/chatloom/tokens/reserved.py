"""Special tokens that denoising needs: sentinels that stand for what was taken out, and mode tokens that say how.

They are reserved when a vocabulary is made (or extended), at its end, under T5's and UL2's names. Like every special
token, no text can produce them.
"""

from __future__ import annotations

import json
from itertools import count, takewhile

from tokenizers import Tokenizer

from chatloom.tokens.denoising import Mode
from chatloom.tokens.importing import append_special, with_listed_tokens
from chatloom.tokens.layout import VocabularyError
from chatloom.tokens.vocabulary import Vocabulary

SENTINELS = "sentinels"  # in plans: how many a vocabulary has
MODE_TOKENS: dict[Mode, str] = {"R": "[NLU]", "X": "[NLG]", "S": "[S2S]"}


def sentinel(number: int) -> str:
    """T5's name of a sentinel, counted from 0."""
    return f"<extra_id_{number}>"


def n_reserved(sentinels: int) -> int:
    """Entries that a vocabulary gives to denoising: the sentinels and, where there are any, three mode tokens."""
    return sentinels + len(MODE_TOKENS) if sentinels else 0


def reserve(vocabulary: Vocabulary, sentinels: int) -> Vocabulary:
    """The vocabulary with `sentinels` sentinels and the mode tokens; those that it has stay where they are.

    All other ids stay too. Raises VocabularyError where one of these names is an ordinary entry.
    """
    if not sentinels:
        return vocabulary
    content = with_listed_tokens(Tokenizer.from_str(vocabulary.to_json()))
    entries = content["model"]["vocab"]
    names = set(entries) if isinstance(entries, dict) else {entry[0] for entry in entries}
    size = vocabulary.size
    for name in (*map(sentinel, range(sentinels)), *MODE_TOKENS.values()):
        if name in vocabulary.special_tokens:
            continue
        if name in names:
            raise VocabularyError(f"{name} is an ordinary entry of the vocabulary; it is needed as a special token")
        append_special(content, name, size)
        size += 1
    return Vocabulary.from_json(json.dumps(content, ensure_ascii=False), "the vocabulary with reserved tokens")


def sentinel_ids(vocabulary: Vocabulary) -> list[int]:
    """Ids of <extra_id_0>, <extra_id_1>, ... as far as they go."""
    special = vocabulary.special_tokens
    return [special[name] for name in takewhile(special.__contains__, map(sentinel, count()))]


def mode_ids(vocabulary: Vocabulary) -> dict[Mode, int]:
    """Ids of the mode tokens that the vocabulary has."""
    special = vocabulary.special_tokens
    return {mode: special[name] for mode, name in MODE_TOKENS.items() if name in special}
