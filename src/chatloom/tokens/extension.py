"""Extension by continued BPE: new merges after the old ones, learnt on new text that the old merges have cut up.

Old ids, old merges and their order stay. A new merge is admitted only if its pair never occurs in the segmentation of
a sample of the old text, so that sample is cut as before, whatever is added (also in files that look up whole pieces
before any merge, as Llama 3's: the first merge inside such a piece would be of a pair of it). Text like the sample
nearly always is; `segmentation_changes` counts where it is not. The result is an ordinary tokenizer.json whose merges
go on (tokens added beside the merges, as `add_tokens` does, would cut words apart wherever they occur).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from chatloom.tokens.bpe import Pieces, Ties, expand, learn_merges
from chatloom.tokens.importing import with_listed_tokens
from chatloom.tokens.layout import VocabularyError
from chatloom.tokens.splitting import CheckedTexts, check_size
from chatloom.tokens.vocabulary import Vocabulary

BATCH = 256


@dataclass(frozen=True)
class Extension:
    """An extended vocabulary; `pieces[i]` are the old ids that new entry `first_new_id + i` used to be.

    `refused` counts the pairs that were frequent enough but occur in the old text; `merges` the ones admitted.
    """

    vocabulary: Vocabulary
    first_new_id: int
    pieces: list[list[int]]
    refused: int

    @property
    def merges(self) -> int:
        """Merges added."""
        return len(self.pieces)


@dataclass(frozen=True)
class SegmentationChanges:
    """How many of some documents two vocabularies cut differently; `examples` shows places where they do."""

    documents: int
    changed: int
    examples: list[dict[str, str]]

    @property
    def share(self) -> float:
        """Changed documents of all."""
        return self.changed / self.documents if self.documents else 0.0


def extend_vocabulary(
    old: Vocabulary,
    new_texts: Iterable[str],
    old_texts: Iterable[str],
    n_new: int,
    *,
    ties: Ties = "lower_ids",
    min_count: int = 2,
    max_token_bytes: int = 24,
    allow_smaller: bool = False,
) -> Extension:
    """Add `n_new` entries learnt from `new_texts`; `old_texts` is the sample whose segmentation must not change.

    Works on byte-level BPE, own or imported. Raises VocabularyError on another algorithm, on no text on either side,
    and when the texts support fewer entries than asked for, unless `allow_smaller`.
    """
    if (old.layout.algorithm, old.layout.alphabet) != ("bpe", "bytes"):
        raise VocabularyError(
            f"continued BPE extends byte-level BPE vocabularies; this one is {old.layout.algorithm} over "
            f"{old.layout.alphabet}: train a new one instead"
        )
    cutter = _Cutter(old)
    before, seen = CheckedTexts(old_texts), CheckedTexts(new_texts)
    old_pieces = cutter.count(before)
    if before.characters == 0:
        raise VocabularyError(
            "there is no sample of the old text: without it nothing tells which merges would cut old text anew; give "
            "some of the documents that the vocabulary (or its model) was trained on"
        )
    pairs = cutter.pairs(old_pieces)
    new_pieces = cutter.count(seen)
    seen.check()
    taken = set(old.layout.entries)
    refused = 0

    def admit(left: int, right: int, content: bytes) -> bool:
        nonlocal refused
        if left << 32 | right in pairs or content in taken:
            refused += 1
            return False
        taken.add(content)
        return True

    merges = learn_merges(
        cutter.table(new_pieces),
        old.layout.entries,
        n_new,
        ties=ties,
        min_count=min_count,
        max_bytes=max_token_bytes,
        admit=admit,
    )
    check_size(old.size + len(merges), old.size + n_new, seen, min_count, allow_smaller)
    made = _with_merges(old, [(merge.left, merge.right) for merge in merges])
    return Extension(made, old.size, list(expand(merges, old.size)), refused)


def segmentation_changes(
    old: Vocabulary, new: Vocabulary, texts: Iterable[str], *, examples: int = 10
) -> SegmentationChanges:
    """Encode texts with both vocabularies and count those whose ids differ."""
    documents = changed = 0
    shown: list[dict[str, str]] = []
    for batch in _batches(texts):
        for was, now in zip(old.encode_batch(batch), new.encode_batch(batch), strict=True):
            documents += 1
            if was == now:
                continue
            changed += 1
            if len(shown) < examples:
                shown.append(_first_difference(was, now, old, new))
    return SegmentationChanges(documents, changed, shown)


def pieces_of_new_entries(first_new_id: int, new: Vocabulary) -> list[list[int]]:
    """Of every entry from `first_new_id` on, the ids below it that it consists of, found from the file's merges alone.

    A special token has no merges: its pieces are those of its name as text. Raises VocabularyError when an entry cannot
    be taken apart.
    """
    model = json.loads(new.to_json())["model"]
    ids = model["vocab"]
    parts: dict[int, list[int]] = {i: [i] for i in range(first_new_id)}
    for merge in model["merges"]:
        left, right = merge if isinstance(merge, list) else merge.split(" ")
        made = ids[left + right]
        if made not in parts and ids[left] in parts and ids[right] in parts:
            parts[made] = parts[ids[left]] + parts[ids[right]]
    for name, i in new.special_tokens.items():
        if i >= first_new_id:
            parts[i] = [part for piece in new.encode(name) for part in parts.get(piece, [])]
    lost = [i for i in range(first_new_id, new.size) if not parts.get(i)]
    if lost:
        raise VocabularyError(
            f"entry {lost[0]} ({new.token_bytes(lost[0])!r}) is not made of entries below {first_new_id}; "
            "the vocabulary was not extended from one of that size"
        )
    return [parts[i] for i in range(first_new_id, new.size)]


def entries_sha256(vocabulary: Vocabulary, n_entries: int) -> str:
    """sha256 of the bytes of ids 0 to n_entries - 1; special tokens count by their place, for they may be renamed."""
    state = hashlib.sha256()
    for i in range(n_entries):
        entry = b"" if vocabulary.is_special(i) else vocabulary.token_bytes(i)
        state.update(len(entry).to_bytes(4, "little") + entry)
    return state.hexdigest()


class _Cutter:
    """Texts as pieces in the file's own letters, cut exactly as the tokenizer itself cuts them, and as old ids."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._tokenizer = Tokenizer.from_str(vocabulary.to_json())
        content = json.loads(vocabulary.to_json())
        plain = [token["content"] for token in content["added_tokens"] if not token["special"]]
        self._apart = re.compile("|".join(map(re.escape, sorted(plain, key=len, reverse=True)))) if plain else None

    def count(self, texts: Iterable[str]) -> Counter[str]:
        """How often each piece occurs."""
        counts: Counter[str] = Counter()
        normalizer, cut = self._tokenizer.normalizer, self._tokenizer.pre_tokenizer.pre_tokenize_str
        for text in texts:
            for part in [text] if self._apart is None else self._apart.split(text):
                composed = normalizer.normalize_str(part) if normalizer is not None else part
                counts.update([piece for piece, _ in cut(composed)])
        return counts

    def table(self, counts: Counter[str]) -> Pieces:
        """The pieces as old ids."""
        cut = self._tokenizer.model.tokenize
        ids = [[token.id for token in cut(piece)] for piece in counts]
        flat = np.fromiter((i for piece in ids for i in piece), dtype=np.int32)
        return Pieces.of(flat, np.fromiter(map(len, ids), dtype=np.int64, count=len(ids)), list(counts.values()))

    def pairs(self, counts: Counter[str]) -> set[int]:
        """Every pair of ids, left << 32 | right, that stands side by side in a piece."""
        symbols = self.table(counts).symbols
        left, right = symbols[:-1].astype(np.int64), symbols[1:].astype(np.int64)
        inside = (left >= 0) & (right >= 0)
        return set(np.unique(left[inside] << 32 | right[inside]).tolist())


def _with_merges(old: Vocabulary, merges: Sequence[tuple[int, int]]) -> Vocabulary:
    """The same file with more merges; raises VocabularyError if an old entry or special token would change."""
    content = with_listed_tokens(Tokenizer.from_str(old.to_json()))
    model = content["model"]
    name = {i: entry for entry, i in model["vocab"].items()}
    for left, right in merges:
        whole = name[left] + name[right]
        name[len(name)] = whole
        model["vocab"][whole] = len(model["vocab"])
        model["merges"].append([name[left], name[right]])
    made = Vocabulary.from_json(json.dumps(content, ensure_ascii=False), "the extended vocabulary")
    if made.layout.entries[: old.size] != old.layout.entries or made.special_tokens != old.special_tokens:
        raise VocabularyError("the extended vocabulary would give old entries other ids; this file cannot be extended")
    return made


def _first_difference(was: Sequence[int], now: Sequence[int], old: Vocabulary, new: Vocabulary) -> dict[str, str]:
    start = next((i for i, (a, b) in enumerate(zip(was, now)) if a != b), min(len(was), len(now)))
    shown = [" | ".join(_readable(v, i) for i in ids[start : start + 4]) for v, ids in ((old, was), (new, now))]
    return {"text": old.decode(was[max(0, start - 8) : start + 8]), "before": shown[0], "after": shown[1]}


def _readable(vocabulary: Vocabulary, token_id: int) -> str:
    return vocabulary.token_bytes(token_id).decode("utf-8", errors="backslashreplace")


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
