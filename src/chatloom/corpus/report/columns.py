"""The labels that a selection reads: what each is called, how it is counted, who made it and what it says."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from chatloom.corpus.columns import ABOUT
from chatloom.corpus.record import schema_of

# How labels are counted: texts and conditions by value, numbers in bins, lists by their number of spans or of entries,
# kinds of spans by kind.
TEXT, NUMBER, CONDITION, SPANS, LIST, KINDS = "text", "number", "condition", "spans", "list", "kinds"


@dataclass(frozen=True)
class LabelColumn:
    """A label: its Arrow type's name, how it is counted, its labeller, what it says, what numbers of kinds mean."""

    name: str
    type: str
    kind: str
    labeller: str = ""
    about: str = ""
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether it stays with the documents; spans do not, for they are places in the text as it was."""
        return self.kind in (TEXT, NUMBER, CONDITION)

    @classmethod
    def of(
        cls, field_: pa.Field, labeller: str = "", about: str = "", names: Mapping[str, str] | None = None
    ) -> LabelColumn:
        """The label of a column; `names` are those of its kinds, where it holds kinds of spans."""
        kind = KINDS if names else kind_of(field_.type)
        return cls(field_.name, str(field_.type), kind, labeller, about, names or {})


def label_columns(folders: Iterable[Path], shard: str) -> list[LabelColumn]:
    """Every label of some folders of columns, in order; `shard` is the name of a file that each of them has."""
    found = []
    for folder in folders:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        meanings, names = about.get("meanings", {}), about.get("kinds", {})
        for item in schema_of(folder / shard):
            if item.name != "id":
                meaning = meanings.get(item.name, about.get("about", ""))
                found.append(LabelColumn.of(item, about["name"], meaning, names.get(item.name)))
    return found


def kind_of(type_: pa.DataType) -> str:
    """How a column of an Arrow type is counted."""
    if pa.types.is_list(type_):
        return SPANS if pa.types.is_int64(type_.value_type) else LIST
    if pa.types.is_boolean(type_):
        return CONDITION
    return TEXT if pa.types.is_string(type_) or pa.types.is_large_string(type_) else NUMBER
