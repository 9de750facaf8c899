"""The tasks of the search for copied documents: each calls one step's function on one shard or one range.

`arguments` are plain values; files are named by Series. Which task comes after which stands in `search.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from chatloom.corpus.columns import write_rows
from chatloom.corpus.duplicates import clusters, exact, members, near, places, sets
from chatloom.corpus.duplicates.minhash import Banding
from chatloom.corpus.duplicates.series import Series, all_paths, file_name, paths_of, within
from chatloom.corpus.record import LABEL, read_fields
from chatloom.corpus.split import side_of
from chatloom.corpus.text.units import U64

Arguments = Mapping[str, Any]
URL = "url"  # kind of copies by their address
COLUMNS = {
    "cluster": pa.string(),
    "cluster_size": pa.int64(),
    "duplicate_kind": pa.string(),
    "similarity": pa.float64(),
    "split": pa.string(),
}


def write_keys(arguments: Arguments, folder: Path) -> dict[str, int]:
    """A shard's `names`, and its `hashes` (where `exact`) and `urls` (where `url`)."""
    shard, number, memory = Path(arguments["shard"]), arguments["number"], arguments["memory"]
    ids = (name for (name,) in read_fields(shard, "id"))
    counts = {"documents": places.write_names(number, ids, folder / file_name("names", number))}
    if arguments["exact"]:
        exact.write_hashes(read_fields(shard, "id", "text"), folder / file_name("hashes", number), memory_bytes=memory)
    if arguments["url"]:
        exact.write_urls(read_fields(shard, "id", "url"), folder / file_name("urls", number), memory_bytes=memory)
    return counts


def write_equals(arguments: Arguments, folder: Path) -> dict[str, int]:
    """Of one range of hashes: names are seen to be distinct; edges of equal texts and of equal addresses."""
    part, bounds = arguments["part"], within(arguments)
    places.check_names(paths_of(arguments["names"], part), **bounds)
    counts = {}
    for name, kind in (("hashes", exact.HASHES), ("urls", exact.URLS)):
        if arguments[name]:
            path = folder / file_name(f"equal {name}", part)
            counts[name] = exact.write_equals(paths_of(arguments[name], part), path, kind, **bounds)
    return counts


def write_located(arguments: Arguments, folder: Path) -> dict[str, int]:
    """Of one range of names: `wanted` (name of the result -> kind and series of runs) by place."""
    part, bounds = arguments["part"], within(arguments)
    known = paths_of(arguments["names"], part)
    counts = {}
    for name, (kind, series) in arguments["wanted"].items():
        counts[name] = places.locate(known, all_paths(series), kind, folder / file_name(name, part), **bounds)
    return counts


def write_bands(arguments: Arguments, folder: Path) -> dict[str, int]:
    """A shard's `bands`; of documents of equal text the first only takes part."""
    number = arguments["number"]
    copies = {int(row) for row in rows_located(arguments["equals"], number)[:, 0]}
    texts = _texts(arguments)
    some = ((name, text) for row, (name, text) in enumerate(texts) if row not in copies)
    path, banding = folder / file_name("bands", number), Banding(arguments["bands"], arguments["rows"])
    return {"records": near.write_bands(some, path, banding, memory_bytes=arguments["memory"])}


def write_pairs(arguments: Arguments, folder: Path) -> dict[str, int]:
    """Of one range of keys: `pairs`, and the names `wanted` for them."""
    part = arguments["part"]
    pairs, wanted = (folder / file_name(name, part) for name in ("pairs", "wanted"))
    runs, most = paths_of(arguments["bands"], part), arguments["most_compared"]
    return {"pairs": near.write_pairs(runs, pairs, wanted, most_compared=most, **within(arguments))}


def write_sets(arguments: Arguments, folder: Path) -> dict[str, int]:
    """The `sets` of a shard's documents that are in pairs."""
    number = arguments["number"]
    name_of = {int(row): int(name) for row, name in rows_located(arguments["wanted"], number)[:, :2].tolist()}
    texts = ((name_of[row], text) for row, (_, text) in enumerate(_texts(arguments)) if row in name_of)
    return {"sets": sets.write_sets(number, texts, folder / file_name("sets", number))}


def write_edges(arguments: Arguments, folder: Path) -> dict[str, int]:
    """Of one range of names: `edges`."""
    part, threshold = arguments["part"], arguments["threshold"]
    path = folder / file_name("edges", part)
    return near.write_edges(all_paths([arguments["pairs"]]), sets_of(arguments), path, threshold=threshold,
                            **within(arguments))  # fmt: skip


def write_clusters(arguments: Arguments, folder: Path) -> dict[str, int]:
    """All edges of some series -> the file `name` of clusters."""
    path = folder / file_name(arguments["name"], 0)
    return clusters.write_clusters(all_paths(arguments["edges"]), path, memory_bytes=arguments["memory"])


def write_members(arguments: Arguments, folder: Path) -> dict[str, int]:
    """A shard's members of the clusters of each name of `clusters`."""
    shard, number, priority = Path(arguments["shard"]), arguments["number"], arguments["priority"]
    equals = rows_located(arguments["equals"], number)
    fields = ("id", LABEL + priority) if priority else ("id",)
    counts = {}
    for name, located in arguments["clusters"].items():
        documents = ((row[0], row[1] if priority else 0) for row in read_fields(shard, *fields))
        path = folder / f"{file_name(name, number)}.parquet"
        counts[name] = members.write_members(
            number, documents, rows_located(located, number), equals, path, parts=arguments["parts"]
        )
    return counts


def resolve(arguments: Arguments, folder: Path) -> dict[str, int]:
    """Of one range of clusters: `copies` (name -> members and kind) and `groups` (name -> members), by place."""
    part, counts = arguments["part"], {}
    for name, (series, kind) in arguments["copies"].items():
        found = sets_of(arguments) if kind == members.NEAR and arguments["index"] else None
        path = folder / f"{file_name(name, part)}.parquet"
        counts[name] = members.write_copies(all_paths([series]), found, path, kind=kind, **within(arguments))
    for name, series in arguments["groups"].items():
        counts[name] = members.write_groups(
            all_paths([series]), folder / f"{file_name(name, part)}.parquet", part=part, parts=arguments["parts"],
            held_out_share=arguments["held_out_share"], seed=arguments["seed"],
        )  # fmt: skip
    return counts


def write_columns(arguments: Arguments, folder: Path) -> dict[str, int]:
    """A shard's columns `cluster`, `cluster_size`, `duplicate_kind`, `similarity`, `split`; returns their counts."""
    shard, number = Path(arguments["shard"]), arguments["number"]
    share, seed = arguments["held_out_share"], arguments["seed"]
    groups = {found["row"]: found for found in found_rows(arguments["groups"], number)}
    sides = groups
    if arguments["sides"]:
        sides = {found["row"]: found for found in found_rows(arguments["sides"], number)}
    copies: dict[int, dict[str, Any]] = {}
    for series in arguments["copies"]:  # a document may be a copy by its text and by its address; the text says more
        for found in found_rows(series, number):
            copies.setdefault(found["row"], found)
    counts = {"clusters": sum(found["leads"] for found in groups.values())}

    def rows() -> Iterator[tuple[str, dict[str, Any]]]:
        for row, (name,) in enumerate(read_fields(shard, "id")):
            group, copy = groups.get(row), copies.get(row, dict[str, Any]())
            side = sides[row]["side"] if row in sides else side_of(name, share, seed)
            for key in (f"split:{side}", *([f"kind:{copy['kind']}"] if copy else ())):
                counts[key] = counts.get(key, 0) + 1
            yield (
                name,
                {
                    "cluster": group["cluster"] if group else None,
                    "cluster_size": group["size"] if group else 1,
                    "duplicate_kind": copy.get("kind"),
                    "similarity": copy.get("similarity"),
                    "split": side,
                },
            )

    counts["documents"] = write_rows(folder / shard.name, COLUMNS, rows())
    return counts


def _texts(arguments: Arguments) -> Iterator[tuple[str, str]]:
    return read_fields(Path(arguments["shard"]), "id", "text")


def rows_located(series: Mapping[str, Any] | None, number: int) -> U64:
    """Located records of a shard; none where nothing was located."""
    return places.rows_of(all_paths([series]), number) if series else members.NO_ROWS


def found_rows(series: Mapping[str, Any] | None, number: int) -> Iterator[dict[str, Any]]:
    """Rows of copies or groups of a shard; none where nothing was searched for."""
    return members.rows_of_shard(Series.of(series).paths(), number) if series else iter(())


def sets_of(arguments: Arguments) -> sets.Sets:
    files = Series.of(arguments["sets"])
    (index,) = paths_of(arguments["index"], 0)
    return sets.Sets(index, files.path)
