"""Promises of the draws and sketches: bounded, the same in any order and for any parts, nothing frequent is missed."""

from __future__ import annotations

import json
import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from chatloom.corpus.report.frequent import SHARE, Sketch
from chatloom.corpus.report.smallest import Smallest
from chatloom.corpus.report.tally import Tally, read_tallies, write_tally

ENTRIES = st.dictionaries(st.text(max_size=3), st.floats(0, 1), max_size=30)


@given(ENTRIES, st.integers(1, 8), st.randoms(use_true_random=False), st.integers(0, 30))
def test_the_smallest_are_kept_in_any_order_and_from_any_parts(
    entries: dict[str, float], size: int, rng: random.Random, cut: int
) -> None:
    order = rng.sample(sorted(entries), len(entries))
    parts = Smallest(size), Smallest(size)
    for place, name in enumerate(order):
        parts[place >= cut].add(entries[name], name, lambda name=name: {"name": name})
    whole = Smallest(size)
    for part in parts:
        whole.merge(json.loads(json.dumps(part.values())))
    expected = sorted((value, name) for name, value in entries.items())[:size]
    assert whole.names == [name for _, name in expected]
    assert whole.entries == [{"name": name} for _, name in expected]


def test_an_entry_is_only_made_when_it_is_taken() -> None:
    few, made = Smallest(1), []
    for value, name in ((0.5, "a"), (0.9, "b"), (0.1, "c"), (0.1, "c")):
        few.add(value, name, lambda name=name: made.append(name) or {})
    assert made == ["a", "c"]


@given(st.integers(0, 10_000))
def test_what_is_frequent_is_found_and_little_else(seed: int) -> None:
    rng = random.Random(seed)
    counts = Counter({f"值 {number}": 1 for number in range(300)})
    total = len(counts) + 40
    frequent = [f"frequent {number}" for number in range(4)]
    for name in frequent:
        counts[name] = 10
    parts = Sketch(), Sketch()
    for name, n in counts.items():
        first = rng.randint(0, n)
        parts[0].add(name, first)
        parts[1].add(name, n - first)
    whole = Sketch()
    for part in parts:
        whole.merge(Sketch.of(json.loads(json.dumps(part.values()))))
    assert int(whole.counts[0].sum()) == total
    test = whole.frequent()
    assert all(name in test for name, n in counts.items() if n * SHARE >= total)
    assert sum(name in test for name in counts) < 60


def test_tallies_written_by_shards_add_up(tmp_path) -> None:  # type: ignore[no-untyped-def]
    whole = Tally()
    for part in range(3):
        tally = Tally()
        for each in (tally, whole):
            each.count("table", ("键", str(part % 2)), (1, part))
            each.spread("label", "zh", [part, None], [True, False])
            each.sample(("removed", "a"), 1 / (part + 1), f"d{part}", lambda part=part: {"text": f"文 {part}"})  # type: ignore[misc]
        write_tally(tally, tmp_path, f"{part:05d}")
    found = read_tallies(tmp_path, [f"{part:05d}" for part in (2, 0, 1)])
    assert found.values() == whole.values()
    assert found.rows("table") == {("键", "0"): [2, 2], ("键", "1"): [1, 1]}
    assert [entry["text"] for entry in found.examples("removed", "a")] == ["文 2", "文 1", "文 0"]
