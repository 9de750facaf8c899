"""The work that every side of benchmarks/pretrain.py does: shapes of models, and steps of tokens. NumPy alone.

A step is some rows of `row` tokens, each full: one text that fills it, or short documents that fill it together. Packed
or padded, the same documents are read, and a document predicts all of its tokens but the first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

VOCAB, PAD, FIRST = 32_768, 0, 1
SHORT = (4.5, 0.8)  # mean and deviation of the logarithm of a short document's length: 124 tokens on the mean
SHORTEST = 8
GROUPS = 4  # micro-batches of documents of about one length, where they are padded


@dataclass(frozen=True)
class Shape:
    """A decoder in Llama's layout with tied embeddings, and the rows of a step."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    row: int
    rows: int

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.row * self.rows


SHAPES = {
    "10m": Shape(hidden=256, layers=3, heads=4, intermediate=688, row=512, rows=8),
    "125m": Shape(hidden=768, layers=12, heads=12, intermediate=2560, row=1024, rows=2),
    "quick": Shape(hidden=64, layers=2, heads=2, intermediate=176, row=128, rows=4),
}
# for the curves: rows of other lengths at 10m, and other sizes in rows of 512, 4,096 tokens a step
LENGTHS = (128, 256, 512, 1024, 2048)
SIZES = ((128, 2, 2, 344), (256, 3, 4, 688), (384, 6, 6, 1024), (512, 8, 8, 1376), (640, 10, 10, 1712))


def texts(shape: Shape, short: bool, step: int) -> list[list[np.ndarray]]:
    """Of each row of a step its documents; random tokens, the same ones for every side."""
    draw = np.random.default_rng([step, short])
    found = []
    for _ in range(shape.rows):
        row, left = [], shape.row
        while left:
            wanted = max(SHORTEST, int(np.exp(draw.normal(*SHORT)))) if short else left
            length = left if wanted + SHORTEST > left else wanted
            row.append(draw.integers(FIRST, VOCAB, length))
            left -= length
        found.append(row)
    return found


def n_targets(rows: list[list[np.ndarray]]) -> int:
    """Tokens that are predicted."""
    return sum(len(text) - 1 for row in rows for text in row)


def mean_keys(rows: list[list[np.ndarray]]) -> float:
    """Keys that a token sees on the mean when no document sees another."""
    lengths = [len(text) for row in rows for text in row]
    return sum(n * (n + 1) / 2 for n in lengths) / sum(lengths)


def packed(rows: list[list[np.ndarray]]) -> dict[str, np.ndarray]:
    """input_ids, labels, position_ids [rows, row]; -100 where a document begins, positions from 0 in each."""
    ids = np.stack([np.concatenate(row) for row in rows])
    starts = [np.concatenate([np.arange(len(text)) for text in row]) for row in rows]
    positions = np.stack(starts)
    return {"input_ids": ids, "labels": np.where(positions == 0, -100, ids), "position_ids": positions}


def padded(rows: list[list[np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """The documents of a step by length in GROUPS micro-batches of about as many tokens; each padded to its longest."""
    documents = sorted((text for row in rows for text in row), key=len)
    up_to = np.cumsum([len(text) for text in documents])
    cuts = [0]
    for number in range(1, GROUPS):
        wanted = int(np.searchsorted(up_to, up_to[-1] * number / GROUPS))
        cuts.append(min(max(wanted, cuts[-1] + 1), len(documents) - GROUPS + number))  # none is empty
    found = []
    for start, end in zip(cuts, [*cuts[1:], len(documents)]):
        group = documents[start:end]
        ids = np.full((len(group), max(map(len, group))), PAD)
        for place, text in enumerate(group):
            ids[place, : len(text)] = text
        real = np.arange(ids.shape[1]) < np.array([len(text) for text in group])[:, None]
        found.append({"input_ids": ids, "attention_mask": real.astype(np.int64), "labels": np.where(real, ids, -100)})
    return found
