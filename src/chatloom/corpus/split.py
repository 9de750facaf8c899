"""Train or held out: decided once for a cluster of duplicates, by a keyed hash that no order of reading changes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

TRAIN, HELD_OUT = "train", "held_out"


def split_value(cluster: str, seed: int) -> float:
    """A number in [0, 1) that depends on the cluster's name and the seed only (BLAKE2b, keyed)."""
    return keyed_value("chatloom split", cluster, seed)


def sample_value(name: str, seed: int) -> float:
    """A number in [0, 1) by which examples are drawn; it is independent of the split."""
    return keyed_value("chatloom sample", name, seed)


def side_of(document: str, held_out_share: float, seed: int) -> str:
    """The side of a document without copies."""
    return HELD_OUT if split_value(document, seed) < held_out_share else TRAIN


def sides_of_clusters(
    clusters: Iterable[tuple[str, Sequence[str]]],
    held_out_share: float,
    seed: int,
    previous: Mapping[str, str] | None = None,
) -> Iterator[tuple[str, str]]:
    """(document id, side) of every document of clusters (name, ids), all of a cluster on one side.

    `previous` is the side each document had before documents were added. A cluster keeps the side of its old members;
    where they were on both (a new document tied two clusters together) all go to training, as some were trained on.
    Without it the side is that of the cluster's leader, the document with the lowest hash under a second key: a new
    copy becomes the leader of m documents with a chance of 1 in m + 1, whatever its id, and a document without copies
    is its own leader.
    """
    for _, documents in clusters:
        known = {previous[document] for document in documents if document in previous} if previous else set()
        if known:
            side = TRAIN if TRAIN in known else HELD_OUT
        else:
            side = side_of(min(documents, key=lambda name: (leader_value(name, seed), name)), held_out_share, seed)
        for document in documents:
            yield document, side


def leader_value(document: str, seed: int) -> float:
    """A number in [0, 1); the document of a cluster that has the lowest is its leader, whose side the cluster has."""
    return keyed_value("chatloom leader", document, seed)


def keyed_value(purpose: str, name: str, seed: int) -> float:
    """A number in [0, 1) that depends on the name, the seed and what it is for only."""
    key = f"{purpose} {seed}".encode()
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8, key=key[:64]).digest()
    return int.from_bytes(digest, "big") / 2.0**64
