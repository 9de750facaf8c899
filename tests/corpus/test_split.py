"""Which side a document is on depends on its cluster and the seed, on nothing else."""

from __future__ import annotations

from chatloom.corpus.split import HELD_OUT, TRAIN, assign, split_value


def test_the_side_does_not_depend_on_the_others_or_their_order() -> None:
    names = [f"doc-{i}" for i in range(2000)]
    sides = assign(names, 0.1, seed=3)
    assert assign(names[::-1], 0.1, seed=3) == sides
    assert all(assign(names[:500], 0.1, seed=3)[name] == sides[name] for name in names[:500])
    assert sides != assign(names, 0.1, seed=4)


def test_the_share_is_kept_and_growing_it_only_adds() -> None:
    names = [f"文档-{i}" for i in range(5000)]
    small, large = assign(names, 0.05, seed=0), assign(names, 0.2, seed=0)
    assert 0.04 < sum(side == HELD_OUT for side in small.values()) / 5000 < 0.06
    assert all(large[name] == HELD_OUT for name in names if small[name] == HELD_OUT)


def test_a_small_corpus_has_both_sides_and_a_single_document_trains() -> None:
    for size in range(2, 12):
        sides = set(assign([f"d{i}" for i in range(size)], 0.01, seed=0).values())
        assert sides == {TRAIN, HELD_OUT}
    assert assign(["only"], 0.5, seed=0) == {"only": TRAIN}
    assert set(assign(["a", "b"], 0.999, seed=0).values()) == {TRAIN, HELD_OUT}
    assert set(assign(["a", "b", "c"], 0.0, seed=0).values()) == {TRAIN}
    assert assign([], 0.1, seed=0) == {}


def test_the_hash_is_the_same_on_every_machine() -> None:
    assert split_value("textwrap", 0) == split_value("textwrap", 0)
    assert 0 <= split_value("textwrap", 0) < 1
    assert round(split_value("textwrap", 0), 9) == 0.551730363
