"""Packing: token sequences of any length laid side by side into rows, so that hardly any computation goes to padding.

The one way every stage makes batches. A segment is one sequence (a document piece, a conversation, an answer); it lies
whole in one row, positions start at 0 in it, and attention never crosses its borders, so packing changes no result.
Best-fit decreasing: longest first, each into the fullest row that still has room.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from chatloom.tokens.rows import PackingError, Rows, longest_first

ALONE = -1


@dataclass
class Segment:
    """One token sequence with its loss weights.

    tokens      int [length]
    supervised  bool or float [length]: weight of tokens[i] as a target; entry 0 is never used, as nothing predicts it
    group       segments of one group (a pair, K answers, n samples) stay in one micro-batch; ALONE (-1) has no others
    role        free word for the objective ("chosen", "rejected", ...)
    scalars     numbers that travel with the segment (label, margin, reward); a name some lack is NaN for them
    prefix      the first tokens, this many, see one another whichever comes first (a prefix decoder's input part); so
                none of them is a target
    """

    tokens: np.ndarray
    supervised: np.ndarray
    group: int = ALONE
    role: str = ""
    scalars: dict[str, float] = field(default_factory=dict)
    prefix: int = 0

    def __post_init__(self) -> None:
        self.tokens = np.asarray(self.tokens, dtype=np.int64)
        self.supervised = np.asarray(self.supervised, dtype=np.float32)
        if self.tokens.ndim != 1 or len(self.tokens) == 0:
            raise PackingError(f"a segment's tokens have shape {list(self.tokens.shape)}; expected [length], not empty")
        if self.supervised.shape != self.tokens.shape:
            raise PackingError(f"{len(self.tokens)} tokens but supervised has shape {list(self.supervised.shape)}")
        if not (np.isfinite(self.supervised).all() and (self.supervised >= 0).all()):
            raise PackingError("supervised holds a negative or non-finite weight")
        if not 0 <= self.prefix <= len(self.tokens):
            raise PackingError(f"a prefix of {self.prefix} tokens in a segment of {len(self.tokens)}")
        if self.supervised[1 : self.prefix].any():
            raise PackingError(
                f"a token of the prefix of {self.prefix} is a target, and the place before it sees it; "
                "give the tokens of a prefix the weight 0"
            )

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass
class Batch:
    """Packed rows with the table of their segments; all tensors on one device.

    tokens, targets, positions, segments: int64 [rows, time]; weights: float32 [rows, time].
    targets[r, t] is the token after t in the same segment, weights[r, t] its supervised weight; at a segment's last
    token and in padding the weight is 0 and the target pad_id. `segments` indexes the segment table, -1 in padding.
    supervised int64 [n]: places in the flattened rows whose weight is not 0. boundaries int32: where segments (and
    padding) begin in the flattened rows, then their end, which is repeated up to a power of two.
    prefix bool [rows, time]: places in their segment's prefix, which see one another; None where no segment has one.
    Segment table: row, start and end (position of the LAST token): int64 [n_segments]; scalars: float32 [n_segments].
    """

    tokens: torch.Tensor
    targets: torch.Tensor
    positions: torch.Tensor
    segments: torch.Tensor
    weights: torch.Tensor
    supervised: torch.Tensor
    boundaries: torch.Tensor
    segment_row: torch.Tensor
    segment_start: torch.Tensor
    segment_end: torch.Tensor
    group: torch.Tensor
    role: list[str]
    scalars: dict[str, torch.Tensor]
    n_tokens: int
    total_weight: float
    prefix: torch.Tensor | None = None

    @property
    def n_segments(self) -> int:
        """Number of segments in the batch."""
        return len(self.role)

    @property
    def padding(self) -> float:
        """Share of the batch's places that hold no token."""
        return 1.0 - self.n_tokens / self.tokens.numel()

    @property
    def n_keys(self) -> int:
        """Keys that all tokens see together: at place t of its segment t + 1, in a prefix as many as the prefix has."""
        lengths = self.segment_end - self.segment_start + 1
        seen = int((lengths * (lengths + 1) // 2).sum())
        if self.prefix is None:
            return seen
        owners = self.segments[self.prefix].cpu()
        prefixes = torch.bincount(owners, minlength=self.n_segments)
        return seen + int((prefixes * (prefixes - 1) // 2).sum())

    @property
    def is_plain(self) -> bool:
        """Whether every row is one segment without a prefix from end to end, so that attention is causal in a row."""
        whole = self.n_segments == self.tokens.shape[0] and self.n_tokens == self.tokens.numel()
        return whole and self.prefix is None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device; from pinned memory without waiting for the copy."""
        return self._each(lambda value: value.to(device, non_blocking=value.is_pinned()))

    def pinned(self) -> Batch:
        """The same batch in memory that CUDA copies from while it computes."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        changed: dict[str, Any] = {
            name: change(value) for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        }
        changed["scalars"] = {name: change(value) for name, value in self.scalars.items()}
        return replace(self, **changed)


def pack(
    segments: Sequence[Segment], row_length: int, pad_id: int, *, max_rows: int | None = None, trim: bool = True
) -> Batch:
    """Pack segments into as few rows of at most `row_length` tokens as best-fit decreasing finds, ties by input order.

    The segment table keeps the order of `segments`. With `trim` the rows are cut to the longest one in use. Raises
    PackingError for a segment longer than a row, no segment at all, or more than `max_rows` rows.
    """
    if not segments:
        raise PackingError("no segment to pack")
    _check_fits(segments, row_length)
    rows = Rows(row_length)
    for i in longest_first([len(s) for s in segments]):
        rows.place(i, len(segments[i]))
    if max_rows is not None and len(rows) > max_rows:
        raise PackingError(
            f"{len(segments)} segments need {len(rows)} rows of {row_length} tokens, more than {max_rows}"
        )
    return build(segments, rows.members, row_length, pad_id, trim=trim)


def micro_batches(
    segments: Sequence[Segment], tokens_per_micro_batch: int, row_length: int, pad_id: int
) -> list[Batch]:
    """Share segments out to micro-batches of at most `tokens_per_micro_batch` places; a group is never split.

    Groups go longest first into the first micro-batch that still has room, so the last ones fill the gaps; inside a
    micro-batch segments keep their input order. Raises PackingError for a segment longer than a row, or a group that
    no micro-batch can hold.
    """
    _check_fits(segments, row_length)
    max_rows = tokens_per_micro_batch // row_length
    if max_rows < 1:
        raise PackingError(
            f"a micro-batch of {tokens_per_micro_batch} tokens holds no row of {row_length}; "
            "make the micro-batch at least as large as a row"
        )
    groups = _groups(segments)
    totals = [sum(len(segments[i]) for i in group) for group in groups]
    packed: list[Rows] = []
    for g in longest_first(totals):
        order = sorted(groups[g], key=lambda i: -len(segments[i]))
        lengths = [len(segments[i]) for i in order]
        for rows in packed:
            if rows.place_all(order, lengths, max_rows):
                break
        else:
            rows = Rows(row_length)
            if not rows.place_all(order, lengths, max_rows):
                raise PackingError(
                    f"group {segments[order[0]].group} has {len(order)} segments of {totals[g]} tokens together, more "
                    f"than a micro-batch of {max_rows} rows of {row_length} tokens holds; raise the micro-batch size"
                )
            packed.append(rows)
    batches = []
    for rows in packed:
        chosen = sorted(i for row in rows.members for i in row)
        place = {i: n for n, i in enumerate(chosen)}
        members = [[place[i] for i in row] for row in rows.members]
        batches.append(build([segments[i] for i in chosen], members, row_length, pad_id))
    return batches


def build(
    segments: Sequence[Segment], rows: Sequence[Sequence[int]], row_length: int, pad_id: int, *, trim: bool = True
) -> Batch:
    """Lay segments out as `rows` says: rows[r] lists indices into `segments` from left to right."""
    used = [sum(len(segments[i]) for i in row) for row in rows]
    time = max(used) if trim else row_length
    shape = (len(rows), time)
    tokens = np.full(shape, pad_id, dtype=np.int64)
    targets = np.full(shape, pad_id, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    owner = np.full(shape, -1, dtype=np.int64)
    prefix = np.zeros(shape, dtype=np.bool_)
    weights = np.zeros(shape, dtype=np.float32)
    table = np.zeros((3, len(segments)), dtype=np.int64)
    for r, row in enumerate(rows):
        start = 0
        for i in row:
            segment = segments[i]
            end = start + len(segment)
            tokens[r, start:end] = segment.tokens
            targets[r, start : end - 1] = segment.tokens[1:]
            weights[r, start : end - 1] = segment.supervised[1:]
            positions[r, start:end] = np.arange(len(segment))
            owner[r, start:end] = i
            prefix[r, start : start + segment.prefix] = True
            table[:, i] = (r, start, end - 1)
            start = end
        positions[r, start:] = np.arange(time - start)  # small and valid, whatever table of positions a model has
    names = sorted({name for segment in segments for name in segment.scalars})
    return Batch(
        tokens=torch.from_numpy(tokens),
        targets=torch.from_numpy(targets),
        positions=torch.from_numpy(positions),
        segments=torch.from_numpy(owner),
        weights=torch.from_numpy(weights),
        supervised=torch.from_numpy(np.flatnonzero(weights)),
        boundaries=torch.from_numpy(_boundaries(table, used, time)),
        segment_row=torch.from_numpy(table[0].copy()),
        segment_start=torch.from_numpy(table[1].copy()),
        segment_end=torch.from_numpy(table[2].copy()),
        group=torch.tensor([segment.group for segment in segments], dtype=torch.int64),
        role=[segment.role for segment in segments],
        scalars={
            name: torch.tensor([s.scalars.get(name, float("nan")) for s in segments], dtype=torch.float32)
            for name in names
        },
        n_tokens=sum(used),
        total_weight=float(weights.sum(dtype=np.float64)),
        prefix=torch.from_numpy(prefix) if prefix.any() else None,
    )


def _boundaries(table: np.ndarray, used: Sequence[int], time: int) -> np.ndarray:
    """See `Batch`; few lengths of the array, so that what is compiled for one is soon compiled for all."""
    padding = [row * time + size for row, size in enumerate(used) if size < time]
    starts = np.sort(np.concatenate((table[0] * time + table[1], np.array(padding, dtype=np.int64))))
    size = 1 << int(np.ceil(np.log2(len(starts) + 1)))
    boundaries = np.full(size, len(used) * time, dtype=np.int32)
    boundaries[: len(starts)] = starts
    return boundaries


def _groups(segments: Sequence[Segment]) -> list[list[int]]:
    """Indices of the segments of each group, groups in order of first appearance."""
    groups: dict[tuple[str, int], list[int]] = {}
    for i, segment in enumerate(segments):
        key = ("alone", i) if segment.group == ALONE else ("group", segment.group)
        groups.setdefault(key, []).append(i)
    return list(groups.values())


def _check_fits(segments: Iterable[Segment], row_length: int) -> None:
    for i, segment in enumerate(segments):
        if len(segment) > row_length:
            raise PackingError(
                f"segment {i} (group {segment.group}, role {segment.role!r}) has {len(segment)} tokens, more than "
                f"a row of {row_length}; shorten or leave out such records before packing"
            )
