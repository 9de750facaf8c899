"""Vocabularies made elsewhere: GPT-2's two files, or a byte-level tokenizer.json such as those of Llama 3 and Qwen.

Every id, merge, split pattern and special token of the file stays. chatloom's six special tokens are given ids of
tokens already there where `rename` says so, and are put at the end otherwise.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from chatloom.tokens.layout import SPECIAL_TOKENS, Layout, VocabularyError, byte_of_letter, read_layout
from chatloom.tokens.vocabulary import Vocabulary

GPT2_SPECIAL = "<|endoftext|>"


@dataclass(frozen=True)
class Imported:
    """A vocabulary made elsewhere; ids from `n_entries` on are special tokens that were put at its end."""

    vocabulary: Vocabulary
    n_entries: int


def import_vocabulary(path: str | Path, *, rename: Mapping[str, str] | None = None) -> Vocabulary:
    """The vocabulary alone of what `read_foreign` reads."""
    return read_foreign(path, rename=rename).vocabulary


def read_foreign(path: str | Path, *, rename: Mapping[str, str] | None = None) -> Imported:
    """A vocabulary from a tokenizer.json, or from a folder that holds one, or GPT-2's vocab.json and merges.txt.

    `rename` maps special tokens of the file to names that chatloom uses, for example {"<|im_end|>": "<|end|>"}: such a
    token keeps its id and what a model learnt of it. Raises VocabularyError for a file that cannot serve.
    """
    path = Path(path)
    if path.is_dir() and not (path / "tokenizer.json").is_file():
        tokenizer = _gpt2_tokenizer(_one(path, "vocab", ".json"), _one(path, "merges", ".txt"))
        return adapt(str(tokenizer.to_str()), rename=rename, where=str(path))
    file = path / "tokenizer.json" if path.is_dir() else path
    return adapt(_text(file), rename=rename, where=str(file))


def import_gpt2(vocab: str | Path, merges: str | Path, *, rename: Mapping[str, str] | None = None) -> Vocabulary:
    """A vocabulary from GPT-2's two files (vocab.json or encoder.json, merges.txt or vocab.bpe; .gz too)."""
    tokenizer = _gpt2_tokenizer(Path(vocab), Path(merges))
    return adapt(str(tokenizer.to_str()), rename=rename, where=str(vocab)).vocabulary


def adapt(text: str, *, rename: Mapping[str, str] | None = None, where: str = "tokenizer.json") -> Imported:
    """A vocabulary from the content of a tokenizer.json; see `read_foreign`.

    What would add tokens to a text (post-processor), cut it off (truncation) or fill it up (padding) is taken out.
    """
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise VocabularyError(f"{where} is not a readable tokenizer file: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    try:
        layout = read_layout(tokenizer)
        content = with_listed_tokens(tokenizer)
        _rename(content, rename or {}, layout.special)
        _append_missing(content, len(layout.entries))
        content["post_processor"] = None
        if layout.alphabet == "bytes":
            content["decoder"] = json.loads(decoders.ByteLevel().__getstate__())
        made = Vocabulary(Tokenizer.from_str(json.dumps(content, ensure_ascii=False)))
        _check_ids(layout, made.layout, rename or {})
    except VocabularyError as error:
        raise VocabularyError(f"{where}: {error}") from None
    return Imported(made, len(layout.entries))


def with_listed_tokens(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of tokenizer.json with every added token among the model's entries, at its id.

    A file gives added tokens ids, but the library counts them anew after the model's entries when it reads it; so ids
    would move as soon as the model gets more entries. Those that the model knows as well stay where they are.
    """
    content: dict[str, Any] = json.loads(tokenizer.to_str())
    entries = content["model"]["vocab"]
    for i, token in sorted(tokenizer.get_added_tokens_decoder().items()):
        if isinstance(entries, dict):
            entries.setdefault(token.content, i)
        elif i == len(entries):
            entries.append([token.content, 0.0])
    return content


def append_special(content: dict[str, Any], name: str, token_id: int) -> None:
    """Add a special token to the content of a tokenizer.json at an id that follows all others."""
    entries = content["model"]["vocab"]
    if isinstance(entries, dict):
        entries[name] = token_id
    else:
        entries.append([name, 0.0])
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"].append({"id": token_id, "content": name, **flags})


def _append_missing(content: dict[str, Any], size: int) -> None:
    there = {token["content"]: token for token in content["added_tokens"]}
    entries = content["model"]["vocab"]
    names = set(entries) if isinstance(entries, dict) else {entry[0] for entry in entries}
    for name in SPECIAL_TOKENS:
        if name in there:
            there[name]["special"] = True
        elif name in names:
            raise VocabularyError(f"{name} is an ordinary entry of the file; chatloom needs it as a special token")
        else:
            append_special(content, name, size)
            size += 1


def _rename(content: dict[str, Any], rename: Mapping[str, str], special: Mapping[str, int]) -> None:
    for old, new in rename.items():
        if new not in SPECIAL_TOKENS:
            raise VocabularyError(
                f"rename: {new!r} is none of the tokens that chatloom uses: {', '.join(SPECIAL_TOKENS)}"
            )
        if old not in special:
            raise VocabularyError(
                f"rename: the file has no special token {old!r}; it has {', '.join(list(special)[:12]) or 'none'}"
            )
        if new in special:
            raise VocabularyError(f"rename: the file has {new!r} already, at id {special[new]}; leave {old!r} as it is")
    if len(set(rename.values())) < len(rename):
        raise VocabularyError("rename: two tokens get the same name; each needs one of its own")
    for token in content["added_tokens"]:
        token["content"] = rename.get(token["content"], token["content"])
    entries = content["model"]["vocab"]
    if isinstance(entries, dict):
        content["model"]["vocab"] = {rename.get(name, name): i for name, i in entries.items()}
    else:
        content["model"]["vocab"] = [[rename.get(name, name), score] for name, score in entries]


def _check_ids(before: Layout, after: Layout, rename: Mapping[str, str]) -> None:
    """No id may have moved on the way."""
    renamed = {before.special[old] for old in rename}
    for i, (was, now) in enumerate(zip(before.entries, after.entries)):
        if was != now and i not in renamed:
            raise VocabularyError(f"entry {was!r} would move from id {i}; this file's ids cannot be kept")
    for name, i in before.special.items():
        if after.special.get(rename.get(name, name)) != i:
            raise VocabularyError(f"special token {name} would move from id {i}; this file's ids cannot be kept")


def _gpt2_tokenizer(vocab: Path, merges: Path) -> Tokenizer:
    try:
        entries = json.loads(_text(vocab))
        if not isinstance(entries, dict) or not all(isinstance(i, int) for i in entries.values()):
            raise ValueError("expected one JSON object of entries and ids")
    except ValueError as error:
        raise VocabularyError(f"{vocab}: not a vocabulary file: {error}") from None
    pairs: list[tuple[str, str]] = []
    for number, line in enumerate(_text(merges).split("\n"), start=1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, space, right = line.partition(" ")
        if not space or " " in right or left + right not in entries:
            raise VocabularyError(
                f"{merges}:{number}: found {line!r}; expected two entries with a space between, whose sum is an entry"
            )
        pairs.append((left, right))
    letters = byte_of_letter()
    tokenizer = Tokenizer(models.BPE(entries, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    odd = [name for name in entries if any(c not in letters for c in name)]
    known = [name for name in entries if name == GPT2_SPECIAL or name in odd]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in known])
    return tokenizer


def _one(folder: Path, word: str, ending: str) -> Path:
    names = {"vocab": ("vocab", "encoder"), "merges": ("merges", "vocab.bpe")}[word]
    endings = (ending, f"{ending}.gz", ".bpe", ".bpe.gz") if word == "merges" else (ending, f"{ending}.gz")
    found = [
        item
        for item in sorted(folder.iterdir())
        if item.is_file() and item.name.endswith(endings) and any(name in item.name for name in names)
    ]
    if len(found) != 1:
        raise VocabularyError(
            f"{folder}: has no tokenizer.json, and {len(found) or 'no'} files that could be GPT-2's {word}{ending}"
            f"{': ' + ', '.join(item.name for item in found) if found else ''}; expected a tokenizer.json, or one "
            "vocab.json with one merges.txt"
        )
    return found[0]


def _text(file: Path) -> str:
    try:
        data = file.read_bytes()
        return (gzip.decompress(data) if file.suffix == ".gz" else data).decode("utf-8")
    except FileNotFoundError:
        raise VocabularyError(f"no vocabulary at {file}: the file is not there") from None
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise VocabularyError(f"{file} cannot be read: {error}") from error
