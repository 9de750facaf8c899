"""A labeller measures documents and decides nothing: its columns travel with the documents, selection reads them.

Each labeller is a small class with a name, a version and columns; what it returns depends on its settings, its outside
files and the document only, so that a column can be kept as long as these stay the same.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import pyarrow as pa

from chatloom.corpus.record import Document
from chatloom.settings import Settings

S = TypeVar("S", bound=Settings)
SPANS = pa.list_(pa.int64())  # [start, end, start, end, ...] in characters, sorted, not overlapping


def meanings(labeller: Labeller[Any]) -> dict[str, str]:
    """What a labeller's docstring says of its columns, as `name: meaning; name, name: meaning` to a sentence's end."""
    text = " ".join((type(labeller).__doc__ or "").split())
    name = "|".join(sorted(map(re.escape, labeller.columns), key=len, reverse=True))
    names = rf"(?:{name})(?:, (?:{name}))*"
    found: dict[str, str] = {}
    for match in re.finditer(rf"(?<![\w`])({names}): (.+?)(?=; {names}[:;]|\. (?:[A-Z`]|{names}:)|\.?$)", text):
        found |= dict.fromkeys(match.group(1).split(", "), match.group(2))
    return found


class NoSettings(Settings):
    """A labeller without settings."""


class Labeller(ABC, Generic[S]):
    """Measures documents. `name` starts its columns' names (`name`, or `name_part`); `version` rises when results do.

    `columns` maps each label to its Arrow type; `needs` names labels of earlier labellers that it reads; `kinds` says
    what the numbers mean in a column that holds one for each span. A labeller that must have seen all documents before
    it labels one is a `Surveying`.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    columns: Mapping[str, pa.DataType]
    needs: ClassVar[tuple[str, ...]] = ()
    kinds: ClassVar[Mapping[str, Mapping[int, str]]] = {}
    Settings: type[S]

    def __init__(self, settings: S) -> None:
        self.settings = settings

    def files(self) -> Sequence[Path]:
        """Outside files whose content decides the labels, and so belongs to their fingerprint."""
        return ()

    @abstractmethod
    def label(self, documents: Sequence[Document]) -> list[dict[str, Any]]:
        """Labels of each document, in order; every name of `columns`, None where there is nothing to measure."""


class Surveying(Labeller[S]):
    """A labeller that must have seen all documents before it labels one.

    `survey` is the setting (a path or None) that takes the file which `write_survey`, shard by shard, and then
    `sum_surveys` make.
    """

    survey: ClassVar[str]

    @abstractmethod
    def write_survey(self, documents: Iterable[Sequence[Document]], path: Path) -> int:
        """What the documents of one shard, in batches, tell for the survey; returns how much that is."""

    @abstractmethod
    def sum_surveys(self, paths: Iterable[Path], path: Path) -> int:
        """One survey of all shards' files, in any order; memory must not grow with their number."""
