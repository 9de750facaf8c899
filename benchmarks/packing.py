"""How documents become rows: our packing index beside two ways that other stacks take, on the same lengths, one core.

    python benchmarks/packing.py [--documents 300000] [--row-length 2048] [--store FOLDER] [--repeats 5] [--write]

best-fit-crop: a buffer of 1,000 documents; into each row the longest that fits whole, again and again; when none fits,
the shortest is cropped to fill the row and its rest thrown away. concat-chunk: all documents one after another, cut
every `row-length` tokens, wherever that is. Lengths are log-normal with a mean of 1,000 tokens, as web text has them,
or those of a real store. Medians of all ways in turn.
"""

from __future__ import annotations

import bisect
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from measure import Report, arguments, in_turn

from chatloom.tokens.packing_index import PackingIndex

BUFFER = 1000
TARGET = 300


def main() -> None:
    """Measure, print one JSON document, and write it if asked to."""
    parser = arguments(__doc__ or "", repeats=5)
    parser.add_argument("--documents", type=int, default=300_000)
    parser.add_argument("--row-length", type=int, default=2048)
    parser.add_argument("--store", type=Path, help="folder of a `tokens` artifact whose lengths are taken")
    options = parser.parse_args()
    report = Report("numpy")
    lengths = lengths_of(options.store, options.documents)
    few = lengths[: min(len(lengths), 30_000)]  # the slow one is measured on fewer; its shares do not change
    work = {
        "packing index": (index, lengths),
        "concat-chunk": (concat_chunk, lengths),
        "best-fit-crop": (best_fit_crop, few),
    }
    times = in_turn({name: partial(way, own, options.row_length) for name, (way, own) in work.items()}, options.repeats)
    results = {
        name: {
            "million_tokens_per_second": times[name].rates(float(own.sum()) / 1e6, 1),
            "peak_bytes_a_document": peak(way, own[:30_000], options.row_length),
            **way(own, options.row_length),
        }
        for name, (way, own) in work.items()
    }
    about = {"documents": len(lengths), "tokens": int(lengths.sum()), "row_length": options.row_length}
    report.finish({**about, "target_million_tokens_per_second": TARGET, "results": results}, options)


def lengths_of(store: Path | None, documents: int) -> np.ndarray:
    """Tokens of each document: int64 [documents]."""
    if store is not None:
        return np.diff(np.load(store / "train.idx.npy").astype(np.int64))
    return np.random.default_rng(0).lognormal(6.3, 1.1, documents).astype(np.int64) + 2


def peak(way: Callable[[np.ndarray, int], dict[str, float]], lengths: np.ndarray, row_length: int) -> int:
    """Peak bytes a document, in a run of its own, since watching memory takes time."""
    tracemalloc.start()
    way(lengths, row_length)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return round(most / len(lengths))


def index(lengths: np.ndarray, row_length: int) -> dict[str, float]:
    """Ours."""
    made = PackingIndex(lengths, row_length)
    return {
        "padding": made.padding,
        "cropped": 1 - (made.n_targets + len(lengths) - made.n_skipped) / float(lengths.sum()),
        "cut_though_they_fit_a_row": (made.n_split - int((lengths > row_length).sum())) / len(lengths),
        "rows": made.n_rows,
        "bytes_a_document": made.nbytes / len(lengths),
    }


def concat_chunk(lengths: np.ndarray, row_length: int) -> dict[str, float]:
    """Where documents begin and end in the chunks says what is cut."""
    ends = np.cumsum(lengths)
    first, last = (ends - lengths) // row_length, (ends - 1) // row_length
    whole = int(ends[-1]) // row_length
    return {
        "padding": 0.0,
        "cropped": float(ends[-1] - whole * row_length) / float(ends[-1]),
        "cut_though_they_fit_a_row": float(((last > first) & (lengths <= row_length)).mean()),
        "rows": whole,
    }


def best_fit_crop(lengths: np.ndarray, row_length: int) -> dict[str, float]:
    """Rows until the documents are used up; the last row may stay unfilled."""
    waiting = iter(lengths.tolist())
    buffer = sorted(length for length, _ in zip(waiting, range(BUFFER)))
    rows = used = cut = 0
    free = 0
    while buffer:
        if not free:
            rows, free = rows + 1, row_length
        place = bisect.bisect_right(buffer, free) - 1
        length = buffer.pop(max(place, 0))
        if place < 0:  # none fits: the shortest is cropped
            cut += length <= row_length
            length = free
        used += length
        free -= length
        if (following := next(waiting, None)) is not None:
            bisect.insort(buffer, following)
    total = float(lengths.sum())
    return {
        "padding": 1 - used / (rows * row_length),
        "cropped": 1 - used / total,
        "cut_though_they_fit_a_row": cut / len(lengths),
        "rows": rows,
    }


if __name__ == "__main__":
    main()
