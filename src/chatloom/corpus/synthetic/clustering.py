"""Documents -> clusters: sparse vectors are brought to a few dense columns, then spherical k-means.

The columns are the leading right singular vectors (latent semantic analysis, Deerwester et al. 1990), found by random
projection with power iterations (Halko, Martinsson & Tropp 2011, algorithm 4.4). k-means compares by the cosine
(Dhillon & Modha 2001), starts from k-means++ (Arthur & Vassilvitskii 2007) and takes the best of a few starts.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from chatloom.corpus.synthetic.vectors import F32, Sparse

CELLS_AT_ONCE = 1 << 24  # cells of a sparse matrix that are written out at once: 64 MB
OVERSAMPLING, POWER_ITERATIONS = 10, 4
STARTS, ROUNDS = 3, 50
Labels = NDArray[np.int32]


def leading_columns(rows: Sparse, n_columns: int, rank: int, seed: int) -> F32:
    """Orthonormal columns [n_columns, at most rank] that keep most of the rows' squares; project with `project`."""
    width = min(rank + OVERSAMPLING, n_columns, len(rows))
    generator = np.random.Generator(np.random.PCG64(seed))
    basis = generator.standard_normal((n_columns, width)).astype(np.float32)
    for _ in range(POWER_ITERATIONS):
        basis = np.linalg.qr(basis)[0]
        onward = np.zeros_like(basis)
        for _, block in _blocks(rows, n_columns):
            onward += block.T @ (block @ basis)
        basis = onward
    basis = np.linalg.qr(basis)[0]
    # Within this space the best axes are the eigenvectors of the rows' Gram matrix.
    projected = project(rows, basis).astype(np.float64)
    values, axes = np.linalg.eigh(projected.T @ projected)
    order = np.argsort(-values)[:rank]
    return basis @ axes[:, order].astype(np.float32)


def project(rows: Sparse, columns: F32) -> F32:
    """The rows' products with the columns: [rows, columns]."""
    parts = [block @ columns for _, block in _blocks(rows, len(columns))]
    return np.concatenate([np.zeros((0, columns.shape[1]), np.float32), *parts])


def _blocks(rows: Sparse, n_columns: int) -> Iterator[tuple[int, F32]]:
    """The rows written out, a few at a time, with the number of the first."""
    step = max(1, CELLS_AT_ONCE // max(n_columns, 1))
    for first in range(0, len(rows), step):
        part = rows.take(first, min(first + step, len(rows)))
        block = np.zeros((len(part), n_columns), np.float32)
        block[part.rows, part.columns] = part.values
        yield first, block


def unit_rows(rows: NDArray[np.floating]) -> F32:
    """Rows at length 1; a row of zeros stays one."""
    lengths = np.sqrt((rows.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
    return (rows / np.maximum(lengths, 1e-12)).astype(np.float32)


def cluster(rows: F32, n_clusters: int, seed: int) -> F32:
    """Centres [clusters, columns] of rows of length 1; fewer clusters where there are fewer different rows."""
    best, best_total = np.zeros((0, rows.shape[1]), np.float32), -np.inf
    for start in range(STARTS if len(rows) else 0):
        centres = _first_centres(rows, n_clusters, np.random.Generator(np.random.PCG64([seed, start])))
        labels, nearness = nearest(rows, centres)
        for _ in range(ROUNDS):
            centres = _means(rows, labels, nearness, len(centres))
            before, (labels, nearness) = labels, nearest(rows, centres)
            if np.array_equal(before, labels):
                break
        total = float(nearness.sum(dtype=np.float64))
        if total > best_total:
            best, best_total = centres, total
    return best


def nearest(rows: F32, centres: F32) -> tuple[Labels, F32]:
    """For each row the nearest centre, the first of equally near ones, and the cosine to it."""
    cosines = rows @ centres.T
    labels = cosines.argmax(axis=1).astype(np.int32)
    return labels, cosines[np.arange(len(rows)), labels]


def _first_centres(rows: F32, n_clusters: int, generator: np.random.Generator) -> F32:
    """k-means++, of a few drawn rows each time the one that brings the others nearest (greedy, as its authors try)."""
    chosen: list[int] = []
    distance = np.ones(len(rows))  # 1 - cosine, half the squared distance
    trials = 2 + int(np.log(n_clusters))
    while len(chosen) < n_clusters and distance.sum() > 1e-6:
        total = distance.cumsum()
        drawn = np.searchsorted(total, generator.random(trials) * total[-1], side="right")
        drawn = np.unique(np.minimum(drawn, len(rows) - 1))
        after = np.minimum(distance, np.maximum(1.0 - rows[drawn] @ rows.T, 0.0))  # [drawn, rows]
        best = int(after.sum(axis=1).argmin())
        chosen.append(int(drawn[best]))
        distance = after[best]
    return rows[chosen]


def _means(rows: F32, labels: Labels, nearness: F32, n_clusters: int) -> F32:
    sums = np.zeros((n_clusters, rows.shape[1]))
    np.add.at(sums, labels, rows)
    empty = np.flatnonzero(np.bincount(labels, minlength=n_clusters) == 0)
    sums[empty] = rows[np.argsort(nearness, kind="stable")[: len(empty)]]  # the rows that are worst off begin anew
    return unit_rows(sums)
