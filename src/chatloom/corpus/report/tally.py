"""Counts, spreads and examples that add up: what each shard writes, and what all of them together are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import zstandard

from chatloom.corpus.report.bins import Spread
from chatloom.corpus.report.smallest import Entry, Smallest

EXAMPLES = 20
SIZES = {"cluster": 4}  # by the key's first word; else EXAMPLES
Key = tuple[str, ...]
Amounts = Sequence[int]


class Tally:
    """Tables of whole numbers by key, spreads of labels (of all documents, and of those that stay), drawn examples."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[Key, list[int]]] = {}
        self.spreads: dict[tuple[str, str], tuple[Spread, Spread]] = {}
        self.samples: dict[Key, Smallest] = {}

    def count(self, table: str, key: Key, amounts: Amounts) -> None:
        """Add amounts to a row; a table's rows have one number of amounts."""
        rows = self.tables.setdefault(table, {})
        row = rows.get(key)
        if row is None:
            rows[key] = list(amounts)
        else:
            for place, amount in enumerate(amounts):
                row[place] += amount

    def spread(self, label: str, group: str, values: Sequence[Any], stays: Sequence[bool]) -> None:
        """Count a label's values in a group of documents."""
        whole, kept = self.spreads.setdefault((label, group), (Spread(), Spread()))
        whole.add(values)
        kept.add([value for value, stay in zip(values, stays, strict=True) if stay])

    def sample(self, key: Key, value: float, name: str, make: Callable[[], Entry]) -> None:
        """Offer an example drawn by `value`; it is made only if it is taken."""
        self._drawn(key).add(value, name, make)

    def rows(self, table: str) -> Mapping[Key, Amounts]:
        """A table; empty where nothing was counted."""
        return self.tables.get(table, {})

    def examples(self, *key: str) -> list[Entry]:
        """The examples of a kind in the order of the draw."""
        return self.samples[key].entries if key in self.samples else []

    def values(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "tables": {
                name: [[list(key), rows[key]] for key in sorted(rows)] for name, rows in sorted(self.tables.items())
            },
            "spreads": [[*key, *(spread.values() for spread in pair)] for key, pair in sorted(self.spreads.items())],
            "samples": [[list(key), drawn.values()] for key, drawn in sorted(self.samples.items())],
        }

    def merge(self, values: Mapping[str, Any]) -> None:
        """Add the counts of other documents, given as JSON."""
        for table, rows in values["tables"].items():
            for key, amounts in rows:
                self.count(table, tuple(key), amounts)
        for label, group, *pair in values["spreads"]:
            mine = self.spreads.setdefault((label, group), (Spread(), Spread()))
            for own, other in zip(mine, pair, strict=True):
                own.merge(Spread.of(other))
        for key, drawn in values["samples"]:
            self._drawn(tuple(key)).merge(drawn)

    def _drawn(self, key: Key) -> Smallest:
        if key not in self.samples:
            self.samples[key] = Smallest(SIZES.get(key[0], EXAMPLES))
        return self.samples[key]


def write_tally(tally: Tally, folder: Path, stem: str) -> None:
    """`<stem>.json.zst`."""
    values = json.dumps(tally.values(), ensure_ascii=False).encode("utf-8")
    (folder / f"{stem}.json.zst").write_bytes(zstandard.compress(values))


def read_tallies(folder: Path, stems: Iterable[str]) -> Tally:
    """All that `write_tally` wrote, added up; in memory is one at a time."""
    tally = Tally()
    for stem in stems:
        tally.merge(json.loads(zstandard.decompress((folder / f"{stem}.json.zst").read_bytes())))
    return tally
