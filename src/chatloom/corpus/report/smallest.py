"""The few entries with the smallest keys: how examples are drawn without memory of the rest, in any order."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Entry = Mapping[str, Any]


class Smallest:
    """At most `size` entries of smallest (key, name), one a name; a name always comes with the same key."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._order: list[tuple[float, str]] = []
        self._entries: dict[str, Entry] = {}

    def add(self, key: float, name: str, make: Callable[[], Entry] = dict) -> None:
        """Offer an entry; it is made only if it is taken."""
        if name in self._entries or (len(self._order) == self.size and (key, name) > self._order[-1]):
            return
        bisect.insort(self._order, (key, name))
        self._entries[name] = make()
        if len(self._order) > self.size:
            del self._entries[self._order.pop()[1]]

    def merge(self, values: Sequence[Any]) -> None:
        """Offer the entries of another, given as JSON."""
        for key, name, entry in values:
            self.add(key, name, lambda entry=entry: entry)  # type: ignore[misc]

    @property
    def names(self) -> list[str]:
        """Names in the order of their keys."""
        return [name for _, name in self._order]

    @property
    def entries(self) -> list[Entry]:
        """Entries in the order of their keys."""
        return [self._entries[name] for name in self.names]

    def values(self) -> list[Any]:
        """As JSON: key, name, entry."""
        return [[key, name, dict(self._entries[name])] for key, name in self._order]
