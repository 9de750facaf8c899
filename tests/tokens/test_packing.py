"""Promises of packing: nothing lost, nothing twice, no target across a border, groups whole, same input same rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatloom.tokens.packing import ALONE, Batch, PackingError, Segment, micro_batches, pack
from chatloom.tokens.rows import Rows

PAD = 0


def make_segment(n: int, length: int, group: int = ALONE, role: str = "") -> Segment:
    """Tokens that name their segment (n) and place, so that a stray one is seen; every third target is weightless."""
    tokens = 1 + n * 1000 + np.arange(length)
    supervised = (np.arange(length) % 3 != 1) * (0.5 + n % 4)
    return Segment(tokens, supervised, group=group, role=role)


@st.composite
def segment_lists(draw: st.DrawFn) -> list[Segment]:
    lengths = draw(st.lists(st.integers(1, 16), min_size=1, max_size=30))
    return [make_segment(n, length) for n, length in enumerate(lengths)]


def check_layout(batch: Batch, segments: list[Segment]) -> None:
    """Every promise of Batch's docstring, written out slowly."""
    assert batch.n_segments == len(segments)
    seen = torch.zeros(batch.tokens.shape, dtype=torch.bool)
    for i, segment in enumerate(segments):
        r, start, end = int(batch.segment_row[i]), int(batch.segment_start[i]), int(batch.segment_end[i])
        assert end - start + 1 == len(segment)
        assert not seen[r, start : end + 1].any()
        seen[r, start : end + 1] = True
        assert batch.tokens[r, start : end + 1].tolist() == segment.tokens.tolist()
        assert batch.segments[r, start : end + 1].tolist() == [i] * len(segment)
        assert batch.positions[r, start : end + 1].tolist() == list(range(len(segment)))
        assert batch.targets[r, start:end].tolist() == segment.tokens[1:].tolist()
        assert batch.weights[r, start:end].tolist() == segment.supervised[1:].tolist()
        assert batch.targets[r, end] == PAD
        assert batch.weights[r, end] == 0
    assert (batch.tokens[~seen] == PAD).all()
    assert (batch.segments[~seen] == -1).all()
    assert (batch.weights[~seen] == 0).all()
    assert batch.n_tokens == int(seen.sum())
    assert batch.total_weight == pytest.approx(float(batch.weights.sum()))
    assert int(batch.positions.max()) < batch.tokens.shape[1]


@settings(max_examples=150, deadline=None)
@given(segments=segment_lists(), trim=st.booleans())
def test_every_segment_lies_whole_in_one_row_with_its_own_targets(segments: list[Segment], trim: bool) -> None:
    batch = pack(segments, 16, PAD, trim=trim)
    check_layout(batch, segments)
    assert trim or batch.tokens.shape[1] == 16


@settings(max_examples=100, deadline=None)
@given(segments=segment_lists())
def test_best_fit_decreasing_is_never_worse_than_its_known_bound(segments: list[Segment]) -> None:
    batch = pack(segments, 16, PAD)
    needed = -(-sum(len(s) for s in segments) // 16)
    assert batch.tokens.shape[0] <= 1.5 * needed + 1
    again = pack(segments, 16, PAD)
    assert torch.equal(batch.tokens, again.tokens)


def test_best_fit_takes_the_fullest_row_that_has_room() -> None:
    batch = pack([make_segment(n, length) for n, length in enumerate([5, 8, 2, 3])], 10, PAD)
    # 8, then 5 in a new row, then 3 beside 5 (2 free left), then 2 beside 8 (2 free) or 5+3 (2 free): the latest
    assert batch.segment_row.tolist() == [1, 0, 1, 1]
    assert batch.tokens.shape == (2, 10)


@st.composite
def grouped_segments(draw: st.DrawFn) -> list[Segment]:
    groups = draw(st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=4), min_size=1, max_size=12))
    segments = [(g, length) for g, group in enumerate(groups) for length in group]
    order = draw(st.permutations(range(len(segments))))
    return [make_segment(n, segments[i][1], group=segments[i][0] if segments[i][0] % 5 else ALONE)
            for n, i in enumerate(order)]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(segments=grouped_segments(), rows=st.integers(4, 7))
def test_micro_batches_hold_every_segment_once_and_never_split_a_group(segments: list[Segment], rows: int) -> None:
    batches = micro_batches(segments, rows * 12 + 5, 12, PAD)
    found = []
    group_home: dict[int, int] = {}
    for b, batch in enumerate(batches):
        assert batch.tokens.shape[0] <= rows
        members = [int((batch.tokens[int(r), int(s)] - 1) // 1000)
                   for r, s in zip(batch.segment_row, batch.segment_start)]  # fmt: skip
        check_layout(batch, [segments[n] for n in members])
        found += members
        for n in members:
            if segments[n].group != ALONE:
                assert group_home.setdefault(segments[n].group, b) == b
    assert sorted(found) == list(range(len(segments)))
    assert sum(batch.total_weight for batch in batches) == pytest.approx(
        sum(float(s.supervised[1:].sum()) for s in segments)
    )


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(1, 10), min_size=1, max_size=4), max_size=12), st.integers(1, 4))
def test_a_group_that_does_not_fit_leaves_the_rows_as_they_were(groups: list[list[int]], max_rows: int) -> None:
    rows = Rows(10)
    item = 0
    sizes: dict[int, int] = {}
    for group in groups:
        lengths = sorted(group, reverse=True)
        items = list(range(item, item + len(lengths)))
        item += len(lengths)
        before = [list(r) for r in rows.members]
        if rows.place_all(items, lengths, max_rows):
            sizes |= dict(zip(items, lengths))
        else:
            assert rows.members == before
        free = sorted(10 - sum(sizes[i] for i in row) for row in rows.members)
        assert min(free, default=0) >= 0
        assert len(rows) <= max_rows
        assert rows._free_places() == sum(free)
        assert sorted(f for f, members in rows._rows_with.items() for _ in members) == [f for f in free if f > 0]


def test_scalars_roles_and_groups_follow_their_segments() -> None:
    a = Segment(np.array([1, 2]), np.array([0, 1]), group=7, role="chosen", scalars={"margin": 2.0})
    b = Segment(np.array([3, 4, 5]), np.array([0, 0, 1]), group=7, role="rejected", scalars={"reward": -1.0})
    batch = pack([a, b], 8, PAD)
    assert batch.role == ["chosen", "rejected"]
    assert batch.group.tolist() == [7, 7]
    assert batch.scalars["margin"][0] == 2.0
    assert torch.isnan(batch.scalars["margin"][1])
    assert batch.scalars["reward"][1] == -1.0
    assert batch.scalars["reward"].dtype == torch.float32
    moved = batch.to("meta")
    assert moved.tokens.device.type == moved.scalars["margin"].device.type == moved.group.device.type == "meta"
    assert batch.tokens.device.type == "cpu"


def test_what_does_not_fit_is_explained() -> None:
    with pytest.raises(PackingError, match=r"segment 1 .* has 11 tokens, more than a row of 10"):
        pack([make_segment(0, 3), make_segment(1, 11)], 10, PAD)
    with pytest.raises(PackingError, match=r"need 3 rows of 10 tokens, more than 2"):
        pack([make_segment(n, 6) for n in range(3)], 10, PAD, max_rows=2)
    with pytest.raises(PackingError, match="no segment"):
        pack([], 10, PAD)
    with pytest.raises(PackingError, match=r"group 4 has 3 segments of 18 tokens"):
        micro_batches([make_segment(n, 6, group=4) for n in range(3)], 20, 10, PAD)
    with pytest.raises(PackingError, match="holds no row of 10"):
        micro_batches([make_segment(0, 6)], 9, 10, PAD)
    with pytest.raises(PackingError, match=r"expected \[length\], not empty"):
        Segment(np.array([]), np.array([]))
    with pytest.raises(PackingError, match="supervised has shape"):
        Segment(np.array([1, 2]), np.array([1]))
    with pytest.raises(PackingError, match="negative or non-finite"):
        Segment(np.array([1, 2]), np.array([0, float("nan")]))
    assert micro_batches([], 10, 10, PAD) == []


def test_boundaries_and_supervised_places_are_those_of_segments_and_weights() -> None:
    draw = np.random.default_rng(3)
    segments = [Segment(draw.integers(1, 90, n), draw.integers(0, 2, n)) for n in draw.integers(1, 12, 40)]
    for trim in (True, False):
        batch = pack(segments, 16, 0, trim=trim)
        rows, time = batch.tokens.shape
        flat = batch.segments.tolist()
        begins = [r * time + t for r in range(rows) for t in range(time) if t == 0 or flat[r][t] != flat[r][t - 1]]
        found = batch.boundaries.tolist()
        assert found[: len(begins)] == begins
        assert set(found[len(begins) :]) == {rows * time}  # at least the end itself
        assert len(found) & (len(found) - 1) == 0
        assert batch.supervised.tolist() == batch.weights.flatten().nonzero().squeeze(1).tolist()


def test_a_batch_is_plain_only_when_every_row_is_one_segment() -> None:
    whole = [Segment(np.arange(8), np.ones(8)) for _ in range(3)]
    assert pack(whole, 8, 0).is_plain
    assert not pack([*whole, Segment(np.arange(4), np.ones(4))], 8, 0).is_plain
    assert not pack([Segment(np.arange(4), np.ones(4)), Segment(np.arange(4), np.ones(4))], 8, 0).is_plain


def test_a_prefix_is_marked_where_its_segment_lies_and_its_keys_are_counted() -> None:
    draw = np.random.default_rng(5)
    segments = []
    for number in range(30):
        length = int(draw.integers(1, 12))
        prefix = int(draw.integers(0, length + 1)) if number % 3 else 0
        segments.append(Segment(np.arange(1, length + 1), np.arange(length) >= prefix, prefix=prefix))
    batch = pack(segments, 16, PAD, trim=False)
    check_layout(batch, segments)
    assert batch.prefix is not None
    seen = 0
    expected = torch.zeros_like(batch.prefix)
    for number, segment in enumerate(segments):
        row, start = int(batch.segment_row[number]), int(batch.segment_start[number])
        expected[row, start : start + segment.prefix] = True
        seen += sum(
            k <= q or (k < segment.prefix and q < segment.prefix)
            for q in range(len(segment))
            for k in range(len(segment))
        )
    assert torch.equal(batch.prefix, expected)
    assert batch.n_keys == seen
    assert batch.to("meta").prefix.device.type == "meta"


def test_without_prefixes_there_are_no_marks_and_with_them_a_row_is_not_plainly_causal() -> None:
    assert pack([make_segment(0, 8)], 8, PAD).prefix is None
    marked = pack([Segment(np.arange(8), np.arange(8) >= 3, prefix=3)], 8, PAD)
    assert marked.prefix.tolist() == [[True] * 3 + [False] * 5]
    assert not marked.is_plain


def test_a_token_of_a_prefix_is_no_target() -> None:
    Segment(np.arange(4), np.array([1, 0, 1, 1]), prefix=2)  # nothing predicts the first, whatever its weight
    with pytest.raises(PackingError, match="prefix of 3 is a target"):
        Segment(np.arange(4), np.array([1, 0, 1, 1]), prefix=3)
    with pytest.raises(PackingError, match="a prefix of 5 tokens in a segment of 4"):
        Segment(np.arange(4), np.zeros(4), prefix=5)
