"""Which one of each cluster of copies stays, and which books go for another: chosen among what passed everything else.

    candidates  (a shard, beside the verdicts)  documents in clusters, by ranges of these; books that have a piece here
    standing    (once)                          books of which a document passed: for these alone others go
    kept        (a range of clusters)           of each cluster the document that stays

The book rule is first: a document that goes with its book is none that could stay of its cluster.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from chatloom.corpus.ranged import ranges_of, read_ranged, write_ranged
from chatloom.corpus.text.units import U64

CANDIDATES, STANDING, KEPT = "candidates", "standing", "kept"
CLUSTER, BOOK, COPY_OF, BOOK_SHARE = "cluster", "book", "book_copy_of", "book_share"  # labels
SCHEMA = pa.schema(
    [
        pa.field("cluster", pa.uint64(), nullable=False),
        pa.field("preference", pa.float64()),
        pa.field("id", pa.string(), nullable=False),
        pa.field("copy_of", pa.uint64()),  # the book that stays for this one's
    ]
)
STAYING = pa.schema(
    [pa.field("cluster", pa.uint64(), nullable=False), pa.field("kept", pa.large_string(), nullable=False)]
)


def id_hash(name: str) -> int:
    """64-bit hash of the name of a document, a cluster or a book."""
    return int(xxhash.xxh3_64_intdigest(name.encode("utf-8", "surrogatepass")))


class Candidates:
    """What a shard tells of its documents that passed; `write` makes the files of its steps."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._books: set[int] = set()

    def add(self, name: str, labels: Mapping[str, Any], preference: float | None) -> None:
        """A document that passed, with its labels."""
        copy_of = labels.get(COPY_OF)
        if labels.get(BOOK) is not None and copy_of is None:
            self._books.add(id_hash(labels[BOOK]))
        if labels.get(CLUSTER) is not None:
            row = {"cluster": id_hash(labels[CLUSTER]), "preference": preference, "id": name}
            self._rows.append(row | {"copy_of": None if copy_of is None else id_hash(copy_of)})

    def write(self, folder: Path, stem: str, parts: int) -> None:
        """`candidates/` and `standing/` of this shard."""
        for name in (CANDIDATES, STANDING):
            (folder / name).mkdir()
        keys = np.array([row["cluster"] for row in self._rows], np.uint64)
        write_ranged(folder / CANDIDATES / f"{stem}.parquet", pa.Table.from_pylist(self._rows, SCHEMA), keys, parts)
        np.save(folder / STANDING / f"{stem}.npy", np.array(sorted(self._books), np.uint64), allow_pickle=False)


def write_standing(arguments: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """The task: hashes of all books of which a document passed. `arguments`: folder, shards (their stems)."""
    found = np.empty(0, np.uint64)
    for stem in arguments["shards"]:
        found = np.union1d(found, _load(Path(arguments["folder"]) / STANDING / f"{stem}.npy"))
    np.save(folder / f"{STANDING}.npy", found, allow_pickle=False)
    return {"books": len(found)}


def write_kept(arguments: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """The task: of each cluster of one range the document that stays, the most preferred, then the first by id.

    Writes hash of the cluster and id of the document, by the hash. `arguments`: folder, shards (their stems), part,
    parts, standing (the file).
    """
    part, parts = arguments["part"], arguments["parts"]
    standing = set(_load(Path(arguments["standing"])).tolist())
    files = (Path(arguments["folder"]) / CANDIDATES / f"{stem}.parquet" for stem in arguments["shards"])
    best = _best((row for table in read_ranged(files, part, parts) for row in table.to_pylist()), standing)
    clusters = sorted(best)
    table = pa.table([clusters, [best[cluster] for cluster in clusters]], schema=STAYING)
    with pa.ipc.new_file(str(folder / kept_file(part)), STAYING) as writer:
        writer.write_table(table)
    return {"clusters": len(table)}


def kept_file(part: int) -> str:
    """Name of the file that `write_kept` makes for a range."""
    return f"{KEPT}-{part:05d}.arrow"


def _best(rows: Iterable[Mapping[str, Any]], standing: set[int]) -> dict[int, str]:
    best: dict[int, tuple[float, str]] = {}
    for row in rows:
        if row["copy_of"] in standing:
            continue
        wanted = row["preference"]
        rank = (-wanted if wanted is not None else float("inf"), row["id"])
        if row["cluster"] not in best or rank < best[row["cluster"]]:
            best[row["cluster"]] = rank
    return {cluster: name for cluster, (_, name) in best.items()}


class Chosen:
    """What `write_standing` and `write_kept` chose, looked up in files that are mapped into memory."""

    def __init__(self, standing: Path, kept: Path, parts: int) -> None:
        self._standing, self._parts = _load(standing), parts
        self._kept = [_load_kept(kept / kept_file(part)) for part in range(parts)]

    def goes_for_book(self, copy_of: str | None) -> bool:
        """Whether a document goes because the book that holds its own stays."""
        if copy_of is None:
            return False
        key = np.uint64(id_hash(copy_of))
        place = int(np.searchsorted(self._standing, key))
        return place < len(self._standing) and bool(self._standing[place] == key)

    def kept(self, cluster: str) -> str | None:
        """Id of the document that stays of a cluster; None where none passed."""
        key = np.array([id_hash(cluster)], np.uint64)
        clusters, kept = self._kept[int(ranges_of(key, self._parts)[0])]
        place = int(np.searchsorted(clusters, key[0]))
        return str(kept[place].as_py()) if place < len(clusters) and clusters[place] == key[0] else None


def _load_kept(path: Path) -> tuple[U64, pa.ChunkedArray]:
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all().combine_chunks()
    return table["cluster"].to_numpy(), table["kept"]


def _load(path: Path) -> U64:
    return np.load(path, mmap_mode="r", allow_pickle=False)
