"""What all benchmarks share: the folder of real data, honest timing, and the report with how it was measured.

Times are medians of repeats of all sides in turn, after one round that is not counted. Beside wall time stands
processor time (of the process and of its children that have ended), which other work on the machine disturbs little.
What share of the machine others used meanwhile is measured, printed and written down.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from chatloom import __version__
from chatloom.corpus.engine.choice import usable_cpus

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "shared" / "data"
NOT_POSSIBLE = 3  # exit status where something is missing that a benchmark needs; `make bench` goes on
Key = TypeVar("Key")
QUIET = 0.05  # share of the machine that others may use before a report says that it was busy


def arguments(text: str, *, repeats: int | None = None) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes: --data, --write and, where times are measured, --repeats."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, metavar="FOLDER", help="of real texts (../shared/data)")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/NAME-DATE.json")
    if repeats is not None:
        parser.add_argument("--repeats", type=int, default=repeats)
    return parser


def find(data: Path, name: str) -> Path:
    """A file somewhere below the folder of data; ends the benchmark where it is not there."""
    found = next(iter(sorted(data.rglob(name))), None) if data.is_dir() else None
    if found is None:
        not_possible(f"{data}: there is no {name}; give the folder of real texts as --data FOLDER")
    return found


def not_possible(reason: str) -> Any:
    """End: the benchmark needs what is not there."""
    print(f"{Path(sys.argv[0]).name}: {reason}", file=sys.stderr)
    raise SystemExit(NOT_POSSIBLE)


def records(path: Path) -> Iterator[dict[str, Any]]:
    """Records of a file of JSON lines, packed or not."""
    with (
        gzip.open(path, "rt", encoding="utf-8", newline="\n")
        if path.suffix == ".gz"
        else open(path, encoding="utf-8", newline="\n") as lines
    ):
        yield from map(json.loads, lines)


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> int:
    """Write records as JSON lines; the number of bytes."""
    return path.write_bytes("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


@dataclass(frozen=True)
class Times:
    """Seconds of each repeat."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def rates(self, amount: float, digits: int = 0) -> dict[str, float]:
        """Amount a second of processor time and of wall time, by the medians."""
        return {name: rounded(amount / statistics.median(getattr(self, name)), digits) for name in ("cpu", "wall")}

    def seconds(self) -> dict[str, Any]:
        """The medians, and all values."""
        found: dict[str, Any] = {name: round(statistics.median(getattr(self, name)), 3) for name in ("cpu", "wall")}
        return found | {"all_wall": [round(value, 3) for value in self.wall]}


def in_turn(sides: Mapping[Key, Callable[[], object]], repeats: int, *, warm_up: int = 1) -> dict[Key, Times]:
    """Run all sides one after the other, again and again; the first `warm_up` rounds are not counted."""
    found = {name: Times() for name in sides}
    for number in range(warm_up + repeats):
        for name, run in sides.items():
            cpu, wall = processor_seconds(), time.perf_counter()
            run()
            cpu, wall = processor_seconds() - cpu, time.perf_counter() - wall
            if number >= warm_up:
                found[name].cpu.append(max(cpu, 1e-9))
                found[name].wall.append(wall)
    return found


def ratio(above: Times, below: Times) -> dict[str, float]:
    """How many times as long the first takes, by processor time and by wall time, of medians."""
    return {
        name: round(statistics.median(getattr(above, name)) / statistics.median(getattr(below, name)), 2)
        for name in ("cpu", "wall")
    }


def rounded(value: float, digits: int) -> float:
    """An int where no digit is asked for."""
    return round(value, digits) if digits else round(value)


def processor_seconds() -> float:
    """Of this process and of its children that have ended."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


class Report:
    """What is printed and written: how and where it was measured, then the results. Made before measuring begins."""

    def __init__(self, *packages: str) -> None:
        self.head: dict[str, Any] = {
            "date": date.today().isoformat(),
            "command": command(),
            "versions": {"chatloom": __version__, "python": platform.python_version()}
            | {name: found for name in packages if (found := version(name)) is not None},
            "machine": machine(),
        }
        self._before = _machine_seconds()
        self._own = processor_seconds()

    def finish(self, results: Mapping[str, Any], options: argparse.Namespace) -> dict[str, Any]:
        """Print one JSON document, write it where asked to, and say aloud when the machine was busy; the document."""
        document = {**self.head, "others_used": self._others(), **results}
        text = json.dumps(document, ensure_ascii=False, indent=1)
        print(text)
        share = document["others_used"]
        if share is None or share > QUIET:
            told = "an unknown share" if share is None else f"{share:.0%}"
            print(
                f"MEASURED UNDER LOAD: others used {told} of the machine; wall times are worth little", file=sys.stderr
            )
        if options.write:
            target = HERE / "results" / f"{Path(sys.argv[0]).stem}-{document['date']}.json"
            target.parent.mkdir(exist_ok=True)
            target.write_text(text + "\n", encoding="utf-8")
        return document

    def _others(self) -> float | None:
        """Share of all processors' time that went to anything but this benchmark and its children; None unknown."""
        after = _machine_seconds()
        if self._before is None or after is None:
            return None
        busy, whole = (b - a for a, b in zip(self._before, after))
        return round(max(0.0, busy - (processor_seconds() - self._own)) / max(whole, 1e-9), 3)


def command() -> str:
    """What was typed; of a path only its last part, since folders differ from machine to machine."""
    words = [Path(word).name if os.sep in word else word for word in sys.argv[1:]]
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def version(package: str) -> str | None:
    """Of an installed package; None where it is not."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    """Processor, how many may be used, memory, system."""
    name = platform.processor() or platform.machine()
    with_names = Path("/proc/cpuinfo")
    if with_names.is_file():
        lines = with_names.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {
        "processor": name,
        "processors": usable_cpus(),
        "memory_gb": round(memory, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _machine_seconds() -> tuple[float, float] | None:
    """Seconds that all processors were busy (or taken by other guests of the host), and all seconds; Linux only."""
    try:
        fields = Path("/proc/stat").read_text(encoding="utf-8").split("\n")[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, idle, waiting, interrupts, soft, stolen = (float(field) for field in fields)
    ticks = os.sysconf("SC_CLK_TCK")
    busy = user + nice + system + interrupts + soft + stolen
    return busy / ticks, (busy + idle + waiting) / ticks
