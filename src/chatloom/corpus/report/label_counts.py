"""Labels into a tally: values by how often they occur, numbers into bins; of all documents, and of those that stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from chatloom.corpus.record import Document
from chatloom.corpus.report.columns import CONDITION, KINDS, LIST, NUMBER, SPANS, TEXT
from chatloom.corpus.report.survey import Frame, label_key, language_of, value_of
from chatloom.corpus.report.tally import Tally
from chatloom.corpus.selection.copies import CLUSTER

AT_ONCE = 4096  # documents whose numbers are put into bins together
STAYS = ""  # no label is called so
VALUE, REST, ABSENT = "value", "rest", "absent"


class LabelCounts:
    """Adds the labels of documents to the tables and spreads of a tally; `Counting` says what its arguments are."""

    def __init__(
        self, tally: Tally, frame: Frame, columns: Mapping[str, str], names: Mapping[str, Mapping[str, str]]
    ) -> None:
        self.tally, self.frame, self.columns, self.names = tally, frame, columns, names
        self._numbers = [name for name, kind in columns.items() if kind in (NUMBER, SPANS, LIST)]
        self._values = [name for name, kind in columns.items() if kind in (TEXT, CONDITION, KINDS) and name != CLUSTER]
        self._held: dict[str, dict[str, list[Any]]] = {}  # group -> label, or STAYS -> values not yet in bins
        self._n_held = 0

    def add(self, documents: Sequence[Document], stays: Sequence[bool]) -> None:
        """Count documents."""
        for name in self._values:
            values = [document.labels.get(name) for document in documents]
            for (value, stay), n in Counter(_singly(values, stays)).items():
                kind, text = self._value(name, value)
                self.tally.count("values", (name, kind, text), (n, n * stay))
        groups: dict[str, list[int]] = {}
        for place, document in enumerate(documents):
            groups.setdefault(self.frame.group(language_of(document)), []).append(place)
        for group, places in groups.items():
            held = self._held.setdefault(group, {name: [] for name in (STAYS, *self._numbers)})
            held[STAYS] += [stays[place] for place in places]
            labels = [documents[place].labels for place in places]
            for name in self._numbers:
                held[name] += self._sizes(name, [row.get(name) for row in labels])
        self._n_held += len(documents)
        if self._n_held >= AT_ONCE:
            self.finish()

    def finish(self) -> None:
        """Put what is held into bins."""
        for group, held in self._held.items():
            for name in self._numbers:
                self.tally.spread(name, group, held[name], held[STAYS])
        self._held, self._n_held = {}, 0

    def _value(self, name: str, value: Any) -> tuple[str, str]:
        """How a value is counted, and as what."""
        if value is None:
            return ABSENT, ""
        if isinstance(value, bool):
            return VALUE, "yes" if value else "no"
        if self.columns[name] == KINDS:
            return VALUE, self.names.get(name, {}).get(str(value), str(value))
        text = value_of(str(value))
        return (VALUE, text) if text in self.frame.frequent[label_key(name)] else (REST, "")

    def _sizes(self, name: str, values: Sequence[Any]) -> Sequence[Any]:
        """Numbers as they are, of lists how many entries or spans they have."""
        kind = self.columns[name]
        if kind == NUMBER:
            return values
        return [None if value is None else len(value) // (2 if kind == SPANS else 1) for value in values]


def _singly(values: Sequence[Any], stays: Sequence[bool]) -> Iterator[tuple[Any, bool]]:
    """Values with whether their documents stay; entries of lists one by one."""
    for value, stay in zip(values, stays, strict=True):
        if isinstance(value, list):
            yield from ((entry, stay) for entry in value)
        else:
            yield value, stay
