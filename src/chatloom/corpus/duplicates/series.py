"""Files that the tasks of a step write, as plain values that travel to other tasks; and runs put together in groups.

Reading a run takes a block of memory at least, so a task never opens more than FAN_IN of them: where more shards have
one, steps before it merge them in groups, range by range (`gathered`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chatloom.corpus.duplicates.external_sort import merge_runs
from chatloom.corpus.duplicates.runs import Run
from chatloom.corpus.engine.steps import Step, Task
from chatloom.corpus.ranged import partition

FAN_IN = 256  # runs that a task opens at once: 8 to 20 MB of blocks


@dataclass(frozen=True)
class Series:
    """`count` files NAME-00000, NAME-00001 ... in a folder; with `ranges`, as many for each range (NAME-RANGE-...)."""

    folder: str
    name: str
    count: int
    ranges: int = 0
    suffix: str = ""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Series:
        """The inverse of `values`."""
        return cls(**values)

    def values(self) -> dict[str, Any]:
        """As a task's arguments hold it."""
        return asdict(self)

    def path(self, number: int) -> Path:
        """One file of a series without ranges."""
        return Path(self.folder) / f"{file_name(self.name, number)}{self.suffix}"

    def paths(self, part: int = 0) -> list[Path]:
        """The files that hold the records of one range (and of others, where there are none for each)."""
        if not self.ranges:
            return [self.path(number) for number in range(self.count)]
        stem = file_name(self.name, part)
        return [Path(self.folder) / f"{file_name(stem, number)}{self.suffix}" for number in range(self.count)]


def file_name(name: str, number: int) -> str:
    """What a file of a series is called, without its suffix."""
    return f"{name}-{number:05d}"


def gathered(
    series: Series, folder: Path, *, ranges: int, memory: int, scale: int = 1, most: int = 0, fan_in: int = FAN_IN
) -> tuple[list[Step], Series]:
    """Steps after which no range has more than `most` runs (default: `fan_in`), and where these are.

    `scale`: the records fill that part of the hashes only (`books.py`), and so do the ranges.
    """
    steps: list[Step] = []
    while series.count > (most or fan_in):
        name, level = f"{series.name}{series.suffix}", len(steps)
        into = folder / f"{name} gathered {level}"
        tasks = [
            Task(
                f"{group:05d}",
                "chatloom.corpus.duplicates.series:gather",
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
        steps.append(Step(f"{name}, gathered", into, tasks))
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
