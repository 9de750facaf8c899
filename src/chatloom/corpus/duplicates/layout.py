"""How a search is cut into steps of tasks over shards and ranges; and runs put together in groups.

Reading a run takes a block of memory at least, so a task never opens more than FAN_IN of them: where more shards have
one, steps before it merge them in groups, range by range (`gathered`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from chatloom.corpus.duplicates.external_sort import MEMORY, merge_runs
from chatloom.corpus.duplicates.runs import Run
from chatloom.corpus.duplicates.series import Series, file_name
from chatloom.corpus.engine.steps import Step, Task
from chatloom.corpus.ranged import partition

FAN_IN = 256  # runs that a task opens at once: 8 to 20 MB of blocks


@dataclass(frozen=True)
class Layout:
    """How a search is cut into tasks: the files of documents, where its own files go, and how many ranges there are.

    Nothing here changes what is found.
    """

    shards: Sequence[Path]
    folder: Path
    ranges: int
    memory: int = MEMORY
    fan_in: int = FAN_IN

    def by_shard(self, name: str, function: str, **arguments: Any) -> Step:
        """A step of one task a shard, told its `shard` and `number`."""
        shared = {**arguments, "memory": self.memory}
        tasks = [
            Task(f"{number:05d}", function, {"shard": str(shard), "number": number, **shared})
            for number, shard in enumerate(self.shards)
        ]
        return Step(name, self.folder / name, tasks)

    def by_range(self, name: str, function: str, **arguments: Any) -> Step:
        """A step of one task a range, told its `part` of `parts`."""
        shared = {**arguments, "parts": self.ranges, "memory": self.memory}
        tasks = [Task(f"{part:05d}", function, {"part": part, **shared}) for part in range(self.ranges)]
        return Step(name, self.folder / name, tasks)

    def columns(self, name: str, folder: Path, function: str, **arguments: Any) -> Step:
        """A last step: of each shard a file of columns, of the shard's name, in `folder`."""
        step = self.by_shard(name, function, **arguments)
        tasks = [replace(task, key=shard.stem) for task, shard in zip(step.tasks, self.shards)]
        return Step(name, folder, tasks)

    def of_shards(self, step: str, name: str, suffix: str = "") -> Series:
        """The files `name` of a step by shard."""
        return Series(str(self.folder / step), name, len(self.shards), suffix=suffix)

    def of_ranges(self, step: str, name: str, suffix: str = "") -> Series:
        """The files `name` of a step by range."""
        return Series(str(self.folder / step), name, self.ranges, suffix=suffix)

    def gathered(self, series: Series, *, scale: int = 1) -> tuple[list[Step], Series]:
        """Runs of all shards, so few that a task on one range can open them."""
        return gathered(series, self.folder, ranges=self.ranges, memory=self.memory, scale=scale, fan_in=self.fan_in)

    def gathered_to_one(self, series: Series) -> tuple[list[Step], Series]:
        """Runs of all shards, as one."""
        return gathered(series, self.folder, ranges=1, memory=self.memory, most=1, fan_in=self.fan_in)


def gathered(
    series: Series, folder: Path, *, ranges: int, memory: int, scale: int = 1, most: int = 0, fan_in: int = FAN_IN
) -> tuple[list[Step], Series]:
    """Steps after which no range has more than `most` runs (default: `fan_in`), and where these are.

    `scale`: the records fill that part of the hashes only (`books.py`), and so do the ranges.
    """
    steps: list[Step] = []
    name = f"{Path(series.folder).name} {series.name}{series.suffix} gathered"
    while series.count > (most or fan_in):
        into = folder / f"{name} {len(steps)}"
        tasks = [
            Task(
                f"{group:05d}",
                "chatloom.corpus.duplicates.layout:gather",
                {
                    "series": series.values(),
                    "first": first,
                    "last": min(first + fan_in, series.count),
                    "group": group,
                    "ranges": ranges,
                    "scale": scale,
                    "memory": memory,
                },
            )
            for group, first in enumerate(range(0, series.count, fan_in))
        ]
        steps.append(Step(name, into, tasks))
        series = Series(str(into), series.name, len(tasks), ranges, series.suffix)
    return steps, series


def gather(arguments: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """Merge files first to last - 1 of each range of a series into one for each range."""
    series, ranges, scale = Series.of(arguments["series"]), arguments["ranges"], arguments["scale"]
    count = 0
    for part in range(ranges):
        low, high = (bound // scale for bound in partition(part, ranges))
        files = series.paths(part)[arguments["first"] : arguments["last"]]
        runs = [Run(path, within=(low, high)) for path in files]
        path = folder / f"{file_name(file_name(series.name, part), arguments['group'])}{series.suffix}"
        count += merge_runs(runs, path, low=low, high=high, memory_bytes=arguments["memory"])
    return {"records": count}
