"""Promises of the own BPE trainer: the same merges as counting everything anew, as the reference, as the library."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from chatloom.errors import ChatloomError
from chatloom.tokens import bpe
from chatloom.tokens.algorithms import train_bpe
from chatloom.tokens.bpe import Merge, Pieces, Ties, expand, learn_merges
from chatloom.tokens.layout import byte_of_letter
from chatloom.tokens.splitting import GPT2_PATTERN, count_pieces
from chatloom.tokens.vocabulary import Vocabulary

Word = tuple[int, ...]


def table(words: Mapping[Word, int]) -> Pieces:
    flat = np.array([symbol for word in words for symbol in word], dtype=np.int32)
    return Pieces.of(flat, np.array([*map(len, words)], dtype=np.int64), list(words.values()))


def counted_anew(
    words: Mapping[Word, int],
    symbols: Sequence[bytes],
    n: int,
    ties: Ties,
    min_count: int,
    max_bytes: int | None,
    admit: Callable[[int, int, bytes], bool] | None,
) -> list[Merge]:
    """The algorithm as it is written down: count all pairs, merge the best one everywhere, begin again."""
    words, symbols, refused = dict(words), list(symbols), set()
    merges: list[Merge] = []
    while len(merges) < n:
        counts: Counter[tuple[int, int]] = Counter()
        for word, times in words.items():
            for left, right in pairwise(word):
                whole = left >= 0 and right >= 0 and len(symbols[left] + symbols[right]) <= (max_bytes or 99)
                if whole and (left, right) not in refused:
                    counts[left, right] += times
        if not counts:
            break
        if ties == "lower_ids":
            best = min(counts, key=lambda pair: (-counts[pair], pair))
        else:
            best = max(counts, key=lambda pair: (counts[pair], symbols[pair[0]], symbols[pair[1]]))
        content = symbols[best[0]] + symbols[best[1]]
        if counts[best] < min_count:
            break
        if admit is not None and not admit(*best, content):
            refused.add(best)
            continue
        if content not in symbols:
            symbols.append(content)
        made = symbols.index(content)
        merges.append(Merge(*best, made, counts[best]))
        again: Counter[Word] = Counter()
        for word, times in words.items():
            again[merged(word, best, made)] += times
        words = dict(again)
    return merges


def merged(word: Word, pair: tuple[int, int], made: int) -> Word:
    out, place = [], 0
    while place < len(word):
        if word[place : place + 2] == pair:
            out.append(made)
            place += 2
        else:
            out.append(word[place])
            place += 1
    return tuple(out)


@pytest.mark.parametrize("step", [2, 8, 10**9])
def test_merges_are_those_of_counting_every_pair_anew(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe, "FLOOR_STEP", step)
    two_ways = 0
    for seed in range(250):
        chance = random.Random(seed)
        symbols = [bytes([97 + i]) for i in range(chance.randint(1, 4))]
        symbols += [b"ab"] if chance.random() < 0.3 else []
        choices = [*range(len(symbols)), *([-1] if chance.random() < 0.2 else [])]
        words = {
            tuple(chance.choices(choices, k=chance.randint(0, 14))): chance.randint(1, 5)
            for _ in range(chance.randint(1, 12))
        }
        ties: Ties = chance.choice(["lower_ids", "greater_bytes"])
        min_count, max_bytes = chance.choice([1, 2, 3]), chance.choice([None, None, 3, 5])
        odd = chance.random() < 0.4
        admit = (lambda left, right, content: (7 * left + 3 * right + len(content)) % 4 != 0) if odd else None
        found = learn_merges(
            table(words), symbols, 30, ties=ties, min_count=min_count, max_bytes=max_bytes, admit=admit
        )
        assert found == counted_anew(words, symbols, 30, ties, min_count, max_bytes, admit), seed
        two_ways += len({merge.made for merge in found}) < len(found)
    assert two_ways > 3  # two merges that make the same bytes are the hard case


def test_the_reference_training_is_reproduced_merge_for_merge(shared_data: Path) -> None:
    folder = shared_data / "tokenizer"
    text = (folder / "bpe_train_corpus_en.txt").read_text(encoding="utf-8")
    expected = (folder / "bpe_train_reference_merges.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")
    counts = count_pieces(text.split("<|endoftext|>"), GPT2_PATTERN)
    words = {tuple(piece.encode("utf-8")): count for piece, count in counts.items()}
    symbols = [bytes([byte]) for byte in range(256)]
    merges = learn_merges(table(words), symbols, 243, ties="greater_bytes", min_count=1)
    letter = {byte: name for name, byte in byte_of_letter().items()}
    contents = [*symbols, *(bytes(part) for part in expand(merges, 256))]
    spelt = ["".join(letter[byte] for byte in content) for content in contents]
    assert [f"{spelt[merge.left]} {spelt[merge.right]}" for merge in merges] == expected
    other = learn_merges(table(words), symbols, 243, ties="lower_ids", min_count=1)
    assert other != merges  # so the tie rule decides something in this text


@pytest.mark.parametrize("options", [{}, {"han": 1}, {"digits": 3, "max_token_bytes": 9}, {"min_count": 5}])
def test_the_file_is_that_of_the_library_byte_for_byte(options: dict[str, int]) -> None:
    texts = [
        "The reader returns 12345 rows; don't read the rows twice. The reader is a reader of rows.\n" * 3,
        "这个函数返回去掉缩进的文本，文本的每一行都去掉共同的缩进。文本的顺序就是列表的顺序。" * 4,
        "for row in reader:\n    print(row, row.rows, 2024, 2025)\n\n\naaaaaa aaaaaaa ------------ ---------",
    ]
    theirs = {("max_token_chars" if key == "max_token_bytes" else key): value for key, value in options.items()}
    library = Vocabulary.train(texts, 600, allow_smaller=True, **theirs)
    assert train_bpe(texts, 600, allow_smaller=True, **options).to_json() == library.to_json()
    assert library.size > 290


def test_the_file_is_that_of_the_library_on_real_text(shared_data: Path) -> None:
    import gzip

    texts = []
    for name in ("en_peps", "zh_oiwiki"):
        with gzip.open(shared_data / "pretrain" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            texts += [json.loads(next(file))["text"] for _ in range(12)]
    assert train_bpe(texts, 3000).to_json() == Vocabulary.train(texts, 3000).to_json()


def test_counts_beyond_32_bits_are_exact() -> None:
    words = {(0, 1): 2**40 + 3, (1, 2): 2**40 + 2, (2, 0): 2**32 - 1, (0, 2): 2**32 + 1}
    merges = learn_merges(table(words), [b"a", b"b", b"c"], 4)
    assert [(merge.left, merge.right, merge.count) for merge in merges] == [
        (0, 1, 2**40 + 3), (1, 2, 2**40 + 2), (0, 2, 2**32 + 1), (2, 0, 2**32 - 1)
    ]  # fmt: skip
    with pytest.raises(ChatloomError, match="more than 2\\*\\*62"):
        table({(0, 1): 2**61})


def test_runs_of_one_symbol_merge_from_the_left() -> None:
    merges = learn_merges(table({(0,) * 5: 3, (0,) * 4: 1}), [b"a"], 3, min_count=1)
    assert [(merge.left, merge.right) for merge in merges] == [(0, 0), (1, 1), (2, 0)]
    assert merges[0].count == 4 * 3 + 3
    assert merges[2].count == 3


def test_nothing_to_merge_gives_nothing() -> None:
    assert learn_merges(table({}), [b"a"], 5) == []
    assert learn_merges(table({(0,): 9, (): 2}), [b"a"], 5) == []
    assert learn_merges(table({(0, -1, 0): 9}), [b"a"], 5) == []


def test_new_symbols_come_apart_into_the_old_ones() -> None:
    merges = learn_merges(table({(0, 1, 2): 5, (1, 2): 4}), [b"a", b"b", b"c"], 2)
    assert list(expand(merges, 3)) == [[1, 2], [0, 1, 2]]
