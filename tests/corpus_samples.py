"""Real texts for tests of models, and how well a score tells two groups apart."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from chatloom.corpus.ngrams.units import Words


def texts_of(path: Path) -> list[tuple[str, str]]:
    """Id and text of each record of a packed JSON lines file."""
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    return [(record["id"], record["text"]) for record in map(json.loads, filter(None, lines))]


def shuffled(text: str, cutter: Words, seed: int) -> str:
    """The same units in random order."""
    units = cutter([text]).units
    assert units is not None
    words = [units.spelling(i) for i in range(len(units.hashes))]
    random.Random(seed).shuffle(words)
    return " ".join(words)


def auc(high: Sequence[float] | np.ndarray, low: Sequence[float] | np.ndarray) -> float:
    """Share of pairs in which the first group's value is the higher one; equal values count half."""
    a, b = np.asarray(high)[:, None], np.asarray(low)[None, :]
    return float(((a > b) + 0.5 * (a == b)).mean())
