"""Files that the tasks of a step write, as plain values that travel to the tasks of other steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


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


def paths_of(series: Mapping[str, Any], part: int = 0) -> list[Path]:
    """The files of a series in a task's arguments that hold the records of one range."""
    return Series.of(series).paths(part)


def all_paths(series: Sequence[Mapping[str, Any]]) -> list[Path]:
    """The files of several series without ranges in a task's arguments."""
    return [path for values in series for path in paths_of(values)]


def within(arguments: Mapping[str, Any]) -> dict[str, int]:
    """What a function that works on one range is told: which of how many, and its memory."""
    return {"part": arguments["part"], "parts": arguments["parts"], "memory_bytes": arguments["memory"]}
