"""A labeller measures documents and decides nothing: its columns travel with the documents, selection reads them.

Each labeller is a small class with a name, a version and columns; what it returns depends on its settings, its outside
files and the document only, so that a column can be kept as long as these stay the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import pyarrow as pa

from chatloom.corpus.record import Document
from chatloom.settings import Settings

S = TypeVar("S", bound=Settings)
SPANS = pa.list_(pa.int64())  # [start, end, start, end, ...] in characters, sorted, not overlapping


class NoSettings(Settings):
    """A labeller without settings."""


class Labeller(ABC, Generic[S]):
    """Measures documents. `name` starts its columns' names (`name`, or `name_part`); `version` rises when results do.

    `columns` maps each label to its Arrow type; `needs` names labels of earlier labellers that it reads.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    columns: Mapping[str, pa.DataType]
    needs: ClassVar[tuple[str, ...]] = ()
    Settings: type[S]

    def __init__(self, settings: S) -> None:
        self.settings = settings

    def files(self) -> Sequence[Path]:
        """Outside files whose content decides the labels, and so belongs to their fingerprint."""
        return ()

    @abstractmethod
    def label(self, documents: Sequence[Document]) -> list[dict[str, Any]]:
        """Labels of each document, in order; every name of `columns`, None where there is nothing to measure."""
