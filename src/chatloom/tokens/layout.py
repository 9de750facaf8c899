"""What a tokenizer file must be so that it can serve as a vocabulary: checked once, when it is opened.

Text must come back unchanged (every byte has an entry, nothing is dropped or added) and no text may turn into a
special token. Byte-level BPE files of the GPT-2, Llama 3 and Qwen kind pass, and what chatloom trains itself.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tokenizers import Tokenizer

from chatloom.errors import ChatloomError

SPECIAL_TOKENS = ("<|pad|>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
BYTE_ENTRY = re.compile(r"<0x([0-9A-F]{2})>")
# Cutters that drop and add nothing, with the settings under which that is so.
_CUTTERS: dict[str, dict[str, tuple[Any, ...]]] = {
    "ByteLevel": {"add_prefix_space": (False,)},
    "Split": {"behavior": ("Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")},
    "Digits": {},
    "Punctuation": {"behavior": ("Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")},
    "UnicodeScripts": {},
}

Alphabet = Literal["bytes", "characters"]


class VocabularyError(ChatloomError):
    """A vocabulary cannot be trained, read, or used on this text."""


@dataclass(frozen=True)
class Layout:
    """What a tokenizer file holds.

    `entries[i]` are the bytes of id i (a special token: its name); `special` maps names to ids, in order of ids.
    `alphabet` says whether entries are spelt in bytes (GPT-2) or in characters with a fallback to bytes
    (SentencePiece). `normalizer` is "NFC" where the file composes characters first, so text comes back composed.
    """

    algorithm: str
    alphabet: Alphabet
    entries: list[bytes]
    special: dict[str, int]
    normalizer: str | None
    sha256: str


def read_layout(tokenizer: Tokenizer) -> Layout:
    """Check a tokenizer and list its entries; raises VocabularyError saying what cannot work and what to do."""
    content = json.loads(tokenizer.to_str())
    model = content["model"]
    algorithm = str(model.get("type", "BPE")).lower()
    if algorithm not in ("bpe", "unigram"):
        raise VocabularyError(
            f"this is a {model.get('type')} vocabulary, which has an unknown token and drops white space: text does "
            "not come back, so no chat model can be trained on it; train a tokenizer with `algorithm: bpe` or `unigram`"
        )
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise VocabularyError(f"model.{key} is {model[key]!r}; expected none: text would not come back unchanged")
    normalizer = _normalizer(content["normalizer"])
    alphabet = _alphabet(content["pre_tokenizer"], model)
    added = {token.content: (i, token) for i, token in tokenizer.get_added_tokens_decoder().items()}
    special = {name: i for name, (i, token) in sorted(added.items(), key=lambda item: item[1][0]) if token.special}
    for name, (_, token) in added.items():
        if not token.special and (token.lstrip or token.rstrip):
            raise VocabularyError(
                f"the added token {name!r} swallows the spaces beside it; such text does not come back"
            )
    entries = _entries(tokenizer, alphabet, {name: i for name, (i, _) in added.items()})
    own = {i for i, _ in added.values()}
    missing = set(range(256)) - {entry[0] for i, entry in enumerate(entries) if len(entry) == 1 and i not in own}
    if missing:
        raise VocabularyError(f"byte {min(missing):#04x} has no entry, so some text could not be encoded")
    _check_unreachable(special, model)
    return Layout(algorithm, alphabet, entries, special, normalizer, _identity(content, special))


def byte_of_letter() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte: printable Latin-1 stands for itself, the rest is moved to U+0100.."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in visible]
    return {chr(b): b for b in visible} | {chr(0x100 + n): b for n, b in enumerate(hidden)}


def _normalizer(value: Mapping[str, Any] | None) -> str | None:
    """None or "NFC"; any other changes text beyond what Unicode calls the same."""
    parts = _flat(value, "normalizers")
    kinds = [part["type"] for part in parts]
    if not kinds:
        return None
    if set(kinds) == {"NFC"}:
        return "NFC"
    raise VocabularyError(
        f"the file changes text before it is cut ({', '.join(kinds)}), so text does not come back unchanged; "
        "only byte-level files (GPT-2, Llama 3, Qwen) can be used, not SentencePiece or BERT ones"
    )


def _alphabet(value: Mapping[str, Any] | None, model: Mapping[str, Any]) -> Alphabet:
    parts = _flat(value, "pretokenizers")
    for part in parts:
        kind = part["type"]
        if kind not in _CUTTERS:
            raise VocabularyError(
                f"the file cuts text by {kind}, which drops or adds spaces, so text does not come back unchanged; "
                "only byte-level files (GPT-2, Llama 3, Qwen) can be used, not SentencePiece or BERT ones"
            )
        for key, allowed in _CUTTERS[kind].items():
            if part.get(key) not in allowed:
                raise VocabularyError(
                    f"{kind}.{key} is {part.get(key)!r} in the file's pre_tokenizer, which drops or adds text; "
                    f"expected {' or '.join(map(repr, allowed))}"
                )
    if any(part["type"] == "ByteLevel" for part in parts):
        return "bytes"
    if model.get("byte_fallback"):
        return "characters"
    raise VocabularyError(
        "entries are neither byte-level nor do unknown characters fall back to bytes, so some text cannot be encoded"
    )


def _flat(value: Mapping[str, Any] | None, key: str) -> list[Mapping[str, Any]]:
    if value is None:
        return []
    if value["type"] == "Sequence":
        return [inner for part in value[key] for inner in _flat(part, key)]
    return [value]


def _entries(tokenizer: Tokenizer, alphabet: Alphabet, added: Mapping[str, int]) -> list[bytes]:
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise VocabularyError("ids have gaps or repeats; expected 0..size-1, each once")
    letters = byte_of_letter()
    entries = [b""] * len(vocabulary)
    for token, i in vocabulary.items():
        if token in added:
            entries[i] = token.encode("utf-8")
        elif alphabet == "bytes":
            try:
                entries[i] = bytes([letters[character] for character in token])
            except KeyError as error:
                raise VocabularyError(
                    f"entry {i} ({token!r}) is not made of byte-level letters ({error.args[0]!r})"
                ) from None
        else:
            byte = BYTE_ENTRY.fullmatch(token)
            entries[i] = bytes([int(byte[1], 16)]) if byte else token.encode("utf-8")
    return entries


def _check_unreachable(special: Mapping[str, int], model: Mapping[str, Any]) -> None:
    """No merge may end in the name of a special token, or text that spells it would turn into it."""
    for merge in model.get("merges") or []:
        whole = "".join(merge if isinstance(merge, list) else merge.split(" "))
        if whole in special:
            raise VocabularyError(f"a merge makes the special token {whole}; typed text could forge it")


def _identity(content: Mapping[str, Any], special: Mapping[str, int]) -> str:
    """sha256 of what decides the ids (entries, merges, split pattern), not of how a library version writes its file."""
    model = content["model"]
    entries = model["vocab"]
    decisive: dict[str, Any] = {
        "entries": sorted(entries.items(), key=lambda item: item[1]) if isinstance(entries, dict) else entries,
        "merges": model.get("merges"),
        "split": content["pre_tokenizer"],
        "normalizer": content["normalizer"],
    }
    # What chatloom's first files did not have is left out where it is as it was there, so that they keep their hash.
    options = {
        key: model.get(key) for key in ("ignore_merges", "byte_fallback", "unk_token", "unk_id") if model.get(key)
    }
    if model.get("type") == "Unigram":
        options["type"] = "Unigram"
    if options:
        decisive["options"] = options
    plain = [token for token in content["added_tokens"] if not token["special"]]
    if plain or special != {name: i for i, name in enumerate(SPECIAL_TOKENS)}:
        decisive["added"] = [special, *([token["content"], token["id"]] for token in plain)]
    return hashlib.sha256(json.dumps(decisive, ensure_ascii=True, sort_keys=True).encode("ascii")).hexdigest()
