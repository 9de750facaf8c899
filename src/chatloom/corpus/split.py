"""Train or held out: decided once for a cluster of duplicates, by a keyed hash that no order of reading changes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

TRAIN, HELD_OUT = "train", "held_out"


def split_value(cluster: str, seed: int) -> float:
    """A number in [0, 1) that depends on the cluster's name and the seed only (BLAKE2b, keyed)."""
    key = f"chatloom split {seed}".encode()
    digest = hashlib.blake2b(cluster.encode("utf-8", "surrogatepass"), digest_size=8, key=key[:64]).digest()
    return int.from_bytes(digest, "big") / 2.0**64


def assign(clusters: Sequence[str], held_out_share: float, seed: int) -> Mapping[str, str]:
    """`train` or `held_out` for each cluster's name.

    A cluster's side never depends on which other clusters there are, with one exception: of a corpus so small that the
    hash leaves a side empty, the cluster nearest the border changes sides; a single cluster is for training.
    """
    values = {name: split_value(name, seed) for name in clusters}
    sides = {name: HELD_OUT if value < held_out_share else TRAIN for name, value in values.items()}
    if held_out_share > 0 and len(values) > 1 and HELD_OUT not in sides.values():
        sides[min(values, key=lambda name: (values[name], name))] = HELD_OUT
    if values and TRAIN not in sides.values():
        sides[max(values, key=lambda name: (values[name], name))] = TRAIN
    return sides
