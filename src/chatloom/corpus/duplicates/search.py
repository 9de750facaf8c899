"""The whole search for copied documents: its steps in order, each a list of tasks over shards or ranges.

    keys (a shard) -> equals (a range) -> [bands (a shard, one of equal documents only) -> pairs (a range)
    -> sets (a shard) -> edges (a range)] -> clusters (once) -> members (a shard) -> resolve (a range)

`CopySearch` lists the steps for an engine, `search` runs them here and now; the result is the same for any number and
order of shards and ranges.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from chatloom.corpus.duplicates import near
from chatloom.corpus.duplicates.clusters import CLUSTERS
from chatloom.corpus.duplicates.external_sort import MEMORY
from chatloom.corpus.duplicates.layout import FAN_IN, Layout
from chatloom.corpus.duplicates.members import COPIES, NEAR, cluster_members
from chatloom.corpus.duplicates.near import BANDING, MOST_COMPARED
from chatloom.corpus.duplicates.series import Series
from chatloom.corpus.duplicates.tasks import URL
from chatloom.corpus.engine.local import InProcess
from chatloom.corpus.engine.steps import Step, Task
from chatloom.corpus.record import Document, write_documents
from chatloom.settings import Settings, runtime

Shard = Callable[[], Iterable[Document]]  # reads the shard's documents from the beginning
TASKS = "chatloom.corpus.duplicates.tasks"
TEXT, ALL, SPLIT = "text", "all", "split"  # clusters by text; by text and address; by whatever ties documents
PRIORITY = "priority"


class CopySettings(Settings):
    """Which documents are copies of each other."""

    exact: bool = Field(True, description="search for documents of equal text (lower-cased, white space collapsed)")
    url: bool = Field(True, description="search for documents of the same address (normalised)")
    near: bool = Field(True, description="search for documents of nearly equal text")
    threshold: float = Field(
        0.7, gt=0.0, le=1.0, description="Jaccard similarity of 5-gram shingles from which two documents are copies"
    )
    bands: int = Field(BANDING.bands, ge=1, le=256, description="bands of a MinHash signature: more find more")
    rows: int = Field(BANDING.rows, ge=1, le=64, description="hashes in a band: fewer find more, and cost more")
    most_compared: int = Field(
        MOST_COMPARED, ge=1, description="members of a bucket that every other member is compared with"
    )
    memory_megabytes: int = runtime(MEMORY >> 20, ge=1, description="megabytes of records that a step holds at once")


@dataclass
class CopySearch:
    """The steps of the search, and the files that they leave.

    `copies`: Parquet of members.COPIES by range: by text, then by address. `groups`: of GROUPS, for the clusters by
    text and address (and `split`, where there are edges besides).
    """

    layout: Layout
    settings: CopySettings
    held_out_share: float = 0.0
    seed: int = 0
    priority: str = ""  # label that ranks documents before their ids do; the least is kept
    steps: list[Step] = field(default_factory=list)
    names: Series = field(init=False)
    edges: dict[str, list[Series]] = field(default_factory=dict)  # name of the clusters -> by what
    members: dict[str, Series] = field(default_factory=dict)
    copies: list[Series] = field(default_factory=list)
    groups: dict[str, Series] = field(default_factory=dict)
    _equals: Series | None = None
    _sets: dict[str, Any] = field(default_factory=lambda: {"sets": None, "index": None})

    def __post_init__(self) -> None:
        self._keys()
        if self.settings.near:
            self._near()

    def _keys(self) -> None:
        chosen, layout = self.settings, self.layout
        self.steps.append(layout.by_shard("keys", f"{TASKS}:write_keys", exact=chosen.exact, url=chosen.url))
        self.names = self.gather(layout.of_shards("keys", "names"))
        wanted = {name: asked for name, asked in (("hashes", chosen.exact), ("urls", chosen.url)) if asked}
        runs = {name: self.gather(layout.of_shards("keys", name)).values() for name in wanted}
        given = {"hashes": None, "urls": None, **runs}
        self.steps.append(layout.by_range("equals", f"{TASKS}:write_equals", names=self.names.values(), **given))
        equal = {name: layout.of_ranges("equals", f"equal {name}") for name in wanted}
        if chosen.exact:
            self.edges[TEXT] = [equal["hashes"]]
            self._equals = self.locate("located equals", {"equals": (near.EDGES, [equal["hashes"]])})["equals"]
        if chosen.url:
            self.edges[URL] = [equal["urls"]]

    def _near(self) -> None:
        chosen, layout = self.settings, self.layout
        banding = {"bands": chosen.bands, "rows": chosen.rows}
        self.steps.append(layout.by_shard("bands", f"{TASKS}:write_bands", equals=_values(self._equals), **banding))
        bands = self.gather(layout.of_shards("bands", "bands"))
        most = chosen.most_compared
        self.steps.append(layout.by_range("pairs", f"{TASKS}:write_pairs", bands=bands.values(), most_compared=most))
        wanted = {"wanted": (near.WANTED, [layout.of_ranges("pairs", "wanted")])}
        located = self.locate("located pairs", wanted)["wanted"]
        self.steps.append(layout.by_shard("sets", f"{TASKS}:write_sets", wanted=located.values()))
        self._sets = self.index_of("sets")
        pairs = layout.of_ranges("pairs", "pairs").values()
        self.steps.append(
            layout.by_range("edges", f"{TASKS}:write_edges", pairs=pairs, threshold=chosen.threshold, **self._sets)
        )
        self.edges.setdefault(TEXT, []).append(layout.of_ranges("edges", "edges"))

    def finish(self) -> None:
        """Clusters, who is in them, which one is kept."""
        joined = self._joined()
        self._resolve({**self.edges, **({ALL: joined} if joined else {})}, "")

    def join(self, edges: Sequence[Series]) -> None:
        """After `finish`: clusters of the split alone, in which documents are tied by more than text and address."""
        self._resolve({SPLIT: [*self._joined(), *edges]}, f"{SPLIT}: ")

    def _joined(self) -> list[Series]:
        return [series for found in self.edges.values() for series in found]

    def _resolve(self, edges: Mapping[str, Sequence[Series]], which: str) -> None:
        """Steps from edges (of the clusters of each name) to copies and groups."""
        if not edges:
            return
        layout = self.layout
        folder, memory = layout.folder / f"{which}clusters", layout.memory
        given = {name: [series.values() for series in found] for name, found in edges.items()}
        tasks = [
            Task(name, f"{TASKS}:write_clusters", {"name": name, "edges": found, "memory": memory})
            for name, found in given.items()
        ]
        self.steps.append(Step(f"{which}clusters", folder, tasks))
        wanted = {name: (CLUSTERS, [Series(str(folder), name, 1)]) for name in edges}
        located = self.locate(f"{which}located clusters", wanted)
        self.steps.append(
            layout.by_shard(
                f"{which}members",
                f"{TASKS}:write_members",
                priority=self.priority,
                parts=layout.ranges,
                equals=_values(self._equals),
                clusters={name: series.values() for name, series in located.items()},
            )
        )
        self.members |= {name: layout.of_shards(f"{which}members", name, ".parquet") for name in edges}
        kinds = {name: kind for name, kind in ((TEXT, NEAR), (URL, URL)) if name in edges}
        grouped = [name for name in (ALL, SPLIT) if name in edges]
        step = f"{which}resolve"
        self.steps.append(
            layout.by_range(
                step,
                f"{TASKS}:resolve",
                **self.sides,
                **self._sets,
                copies={f"copies by {name}": (self.members[name].values(), kind) for name, kind in kinds.items()},
                groups={f"groups {name}": self.members[name].values() for name in grouped},
            )
        )
        self.copies += [layout.of_ranges(step, f"copies by {name}", ".parquet") for name in kinds]
        self.groups |= {name: layout.of_ranges(step, f"groups {name}", ".parquet") for name in grouped}

    @property
    def sides(self) -> dict[str, Any]:
        """What the side of a cluster depends on."""
        return {"held_out_share": self.held_out_share, "seed": self.seed}

    def columns(self, name: str, folder: Path) -> Step:
        """The last step: a file of tasks.COLUMNS for each shard, in `folder`."""
        return self.layout.columns(
            name,
            folder,
            f"{TASKS}:write_columns",
            groups=_values(self.groups.get(ALL)),
            sides=_values(self.groups.get(SPLIT)),
            copies=[series.values() for series in self.copies],
            **self.sides,
        )

    def gather(self, series: Series, *, scale: int = 1) -> Series:
        """Few enough runs for a task on one range; adds the steps for it."""
        steps, found = self.layout.gathered(series, scale=scale)
        self.steps += steps
        return found

    def index_of(self, name: str) -> dict[str, Any]:
        """The arguments `sets` and `index` for whoever compares the sets of a step; adds the steps that index them."""
        steps, index = self.layout.gathered_to_one(self.layout.of_shards(name, name, ".index"))
        self.steps += steps
        return {"sets": self.layout.of_shards(name, name).values(), "index": index.values()}

    def locate(self, step: str, wanted: Mapping[str, tuple[str, Sequence[Series]]]) -> dict[str, Series]:
        """Runs by name -> runs by place, for each of several results (kind and series)."""
        given = {name: (kind, [series.values() for series in found]) for name, (kind, found) in wanted.items()}
        names = self.names.values()
        self.steps.append(self.layout.by_range(step, f"{TASKS}:write_located", names=names, wanted=given))
        return {name: self.layout.of_ranges(step, name) for name in wanted}


def search(
    shards: Sequence[Shard],
    folder: Path,
    settings: CopySettings,
    *,
    parts: int = 1,
    priority: Callable[[Document], int] | None = None,
    fan_in: int = FAN_IN,
) -> tuple[pa.Table, list[tuple[str, list[str]]]]:
    """All copies (members.COPIES without places), and the clusters by text and address as (name, ids).

    Of a cluster the document with the lowest (priority, id) is kept. `folder` is for files between the steps and is
    emptied at the end. Raises ChatloomError for ids that are not distinct and for damaged files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        paths = [folder / f"documents-{number:05d}.parquet" for number in range(len(shards))]
        labels = {PRIORITY: pa.int64()} if priority else {}
        for shard, path in zip(shards, paths):
            ranked = (replace(d, labels={PRIORITY: priority(d)} if priority else {}) for d in shard())
            write_documents(path, ranked, labels)
        layout = Layout(paths, folder, parts, settings.memory_megabytes << 20, fan_in)
        found = CopySearch(layout, settings, priority=PRIORITY if priority else "")
        found.finish()
        for step in found.steps:
            step.run(InProcess())
        tables = [pq.read_table(path) for series in found.copies for path in series.paths()]
        groups = [
            group
            for part in range(parts if ALL in found.members else 0)
            for group in cluster_members(found.members[ALL].paths(), part=part, parts=parts)
        ]
        return pa.concat_tables([COPIES.empty_table(), *tables]).drop_columns(["place"]), groups
    finally:
        shutil.rmtree(folder)


def _values(series: Series | None) -> dict[str, Any] | None:
    return None if series is None else series.values()
