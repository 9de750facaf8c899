"""Which side a document is on depends on its cluster and the seed, on nothing else."""

from __future__ import annotations

from chatloom.corpus.split import HELD_OUT, TRAIN, side_of, sides_of_clusters, split_value


def test_the_share_is_kept_and_growing_it_only_adds() -> None:
    names = [f"文档-{i}" for i in range(5000)]
    small, large = ({name: side_of(name, share, seed=0) for name in names} for share in (0.05, 0.2))
    assert 0.04 < sum(side == HELD_OUT for side in small.values()) / 5000 < 0.06
    assert all(large[name] == HELD_OUT for name in names if small[name] == HELD_OUT)
    assert small != {name: side_of(name, 0.05, seed=1) for name in names}


def test_the_hash_is_the_same_on_every_machine() -> None:
    assert split_value("textwrap", 0) == split_value("textwrap", 0)
    assert 0 <= split_value("textwrap", 0) < 1
    assert round(split_value("textwrap", 0), 9) == 0.551730363


def clusters(n: int) -> list[tuple[str, list[str]]]:
    return [(f"c{i}", [f"c{i}-{copy}" for copy in range(2 + i % 4)]) for i in range(n)]


def test_no_cluster_is_on_both_sides() -> None:
    sides = dict(sides_of_clusters(clusters(500), 0.3, seed=1))
    for _, documents in clusters(500):
        assert len({sides[document] for document in documents}) == 1
    assert set(sides.values()) == {TRAIN, HELD_OUT}
    held_out = sum(side == HELD_OUT for side in sides.values()) / len(sides)
    assert 0.22 < held_out < 0.38  # a big cluster is no likelier to be held out than a small one


def test_a_document_keeps_its_side_when_documents_are_added() -> None:
    before = {name: side_of(name, 0.2, seed=5) for name in (f"d{i}" for i in range(2000))}
    before |= dict(sides_of_clusters(clusters(300), 0.2, seed=5))
    grown = [(name, ["AAA-" + name, *documents]) for name, documents in clusters(300)]
    grown += [(f"d{i}", [f"000-{i}", f"d{i}"]) for i in range(2000)]
    after = dict(sides_of_clusters(grown, 0.2, seed=5, previous=before))
    assert all(after[name] == side for name, side in before.items())
    assert set(after) - set(before)


def test_without_the_old_sides_a_new_copy_moves_few_documents_whatever_its_id() -> None:
    names = [f"d{i}" for i in range(3000)]
    alone = {name: side_of(name, 0.1, seed=2) for name in names}
    assert dict(sides_of_clusters([(name, [name]) for name in names], 0.1, seed=2)) == alone
    for copy in ("000", "zzz"):
        joined = dict(sides_of_clusters([(name, [copy + name, name]) for name in names], 0.1, seed=2))
        # Half have a new leader, which is on the other side with a chance of 2 x 0.1 x 0.9.
        assert 0.06 < sum(joined[name] != alone[name] for name in names) / len(names) < 0.12


def test_clusters_that_grow_together_train_where_one_of_them_trained() -> None:
    old = {"a": TRAIN, "b": HELD_OUT, "c": HELD_OUT}
    tied = [("x", ["new", "a", "b"]), ("y", ["c", "new too"])]
    sides = dict(sides_of_clusters(tied, 0.5, seed=0, previous=old))
    assert sides == {"new": TRAIN, "a": TRAIN, "b": TRAIN, "c": HELD_OUT, "new too": HELD_OUT}
