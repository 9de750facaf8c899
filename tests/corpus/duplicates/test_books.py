"""The book rule goes by what of a book is in another one, however both are cut into pieces."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest

from chatloom.corpus.duplicates.books import (
    CONTAINED,
    SIZES,
    BookCopy,
    decide,
    write_candidates,
    write_contained,
    write_counts,
    write_samples,
    write_sums,
)
from chatloom.corpus.duplicates.external_sort import external_sort, merge_runs, open_runs
from chatloom.corpus.duplicates.places import names
from chatloom.corpus.duplicates.runs import RunError
from chatloom.corpus.duplicates.sets import SETS, Sets, index_of, write_sets

Books = dict[str, list[str]]
WORDS = [f"word{i}" for i in range(5000)]


def words(seed: int, n: int) -> list[str]:
    return random.Random(seed).choices(WORDS, k=n)


def pieces_of(content: list[str], size: int) -> list[str]:
    return [" ".join(content[start : start + size]) for start in range(0, len(content), size)]


def find(
    books: Books, folder: Path, *, n: int = 2, parts: int = 1, scale: int = 4, share: float = 0.9,
    priority: dict[str, int] | None = None,
) -> list[BookCopy]:  # fmt: skip
    """The rule over `n` shards among which the pieces of all books are dealt out in turn."""
    pieces = [(book, text) for book, texts in books.items() for text in texts]
    shards = [pieces[number::n] for number in range(n)]
    for number, shard in enumerate(shards):
        write_samples(shard, folder / f"samples-{number}", scale=scale, memory_bytes=10_000)
        named = zip(names([book for book, _ in shard]).tolist(), (text for _, text in shard))
        write_sets(number, named, folder / f"sets-{number}")
    merge_runs(open_runs([index_of(folder / f"sets-{number}") for number in range(n)], SETS), folder / "index")
    sets = Sets(folder / "index", lambda number: folder / f"sets-{number}")
    samples = [folder / f"samples-{number}" for number in range(n)]
    made = ("counts", "pairs", "sizes", "candidates", "wanted", "contained")
    counts, pairs, sizes, candidates, wanted, contained = (
        [folder / f"{name}-{part}" for part in range(parts)] for name in made
    )
    for part, path in enumerate(counts):
        write_counts(samples, path, scale=scale, part=part, parts=parts, memory_bytes=10_000)
    for part in range(parts):
        write_sums(counts, pairs[part], sizes[part], part=part, parts=parts, memory_bytes=10_000)
    merge_runs(open_runs(sizes, SIZES), folder / "sizes")
    for part in range(parts):
        write_candidates(pairs[part], folder / "sizes", candidates[part], wanted[part], share=share)
        write_contained(candidates[part], sets, contained[part], share=share, memory_bytes=100_000)
    return decide(contained, [(book, (priority or {}).get(book, 0)) for book in books], share=share)


@pytest.fixture
def books() -> Books:
    one, two = words(1, 6000), words(2, 4000)
    return {
        "whole": pieces_of(one, 500),
        "same, cut elsewhere": pieces_of(one, 777),
        "excerpt": pieces_of(one[1000:2500], 300),
        "half of it and another half": pieces_of(one[:2000] + words(3, 2000), 500),
        "z mostly it": pieces_of([w for i, w in enumerate(one) if i % 70] + words(4, 10), 400),
        "another": pieces_of(two, 500),
    }


def test_copies_and_excerpts_go_and_halves_stay(books: Books, tmp_path: Path) -> None:
    found = {copy.book: copy for copy in find(books, tmp_path)}
    assert set(found) == {"whole", "excerpt", "z mostly it"}
    assert {copy.kept for copy in found.values()} == {"same, cut elsewhere"}
    assert found["excerpt"].share > 0.99
    assert 0.9 <= found["z mostly it"].share < 0.96


def test_the_result_does_not_depend_on_shards_or_ranges(books: Books, tmp_path: Path) -> None:
    results = []
    for n, parts in ((1, 1), (3, 2), (5, 4)):
        folder = tmp_path / f"{n}"
        folder.mkdir()
        results.append(find(books, folder, n=n, parts=parts))
    assert results[0]
    assert results.count(results[0]) == 3


def test_of_two_equal_ones_priority_decides_but_an_excerpt_never_stays_for_its_book(
    books: Books, tmp_path: Path
) -> None:
    first = {"whole": -1, "excerpt": -2}
    found = {copy.book: copy for copy in find(books, tmp_path, priority=first)}
    assert found["same, cut elsewhere"].kept == "whole"
    assert found["excerpt"].kept == "whole"
    assert "whole" not in found


def test_every_chain_ends_at_a_book_that_stays(tmp_path: Path) -> None:
    content = words(9, 3000)
    # Each holds 93 % of the one before it; together they drift apart.
    books = {f"{i}": pieces_of(content[i * 200 :] + words(100 + i, i * 200), 300) for i in range(6)}
    found = find(books, tmp_path, n=1)
    gone = {copy.book for copy in found}
    assert gone
    assert {copy.kept for copy in found} <= set(books) - gone


def test_books_that_would_go_for_each_other_in_a_circle_do_not_all_go(tmp_path: Path) -> None:
    one, two, three = names(["1", "2", "3"]).tolist()
    sizes = {one: 100, two: 105, three: 110}
    # 1 and 2 contain each other, 2 and 3 as well; 3 contains 1, but 1 not 3: by rank 2 goes for 1 and 3 for 2.
    common = {(one, two): 95, (two, three): 99, (one, three): 95}
    edges = [(a, b, n, sizes[a], sizes[b]) for (a, b), n in common.items()]
    columns = ("a", "b", "common", "size_a", "size_b")
    external_sort([np.array(edges, np.uint64)], tmp_path / "contained", CONTAINED, columns)
    found = decide([tmp_path / "contained"], [("1", 0), ("2", 0), ("3", 0)])
    assert [(copy.book, copy.target, copy.kept) for copy in found] == [("1", "3", "2"), ("3", "2", "2")]


def test_a_phrase_that_all_books_have_makes_no_copies(tmp_path: Path) -> None:
    licence = words(50, 300)
    books = {f"{i}": pieces_of(licence + words(60 + i, 1500), 400) for i in range(8)}
    assert find(books, tmp_path) == []
    assert find({}, tmp_path, n=1) == []


def test_samples_of_another_scale_are_refused(tmp_path: Path) -> None:
    write_samples([("a", "x " * 100)], tmp_path / "samples", scale=4)
    with pytest.raises(RunError, match="one shingle in 4"):
        write_counts([tmp_path / "samples"], tmp_path / "counts", scale=8)


def test_a_novel_cut_otherwise_is_found_among_novels(shared_data: Path, tmp_path: Path) -> None:
    books: Books = {}
    with gzip.open(shared_data / "pretrain" / "en_novels_a.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            books.setdefault(row["source"], []).append(row["text"])
            if len(books) > 6:
                break
    name, texts = next(iter(books.items()))
    whole = "\n".join(texts)
    books["copy"] = [whole[start : start + 200_000] for start in range(3000, int(0.95 * len(whole)), 200_000)]
    found = find(books, tmp_path, n=3, parts=2, scale=64)
    assert [(copy.book, copy.kept) for copy in found] == [("copy", name)]
    assert found[0].share > 0.99
