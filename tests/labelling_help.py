"""What tests of labellers share: one text in, its labels out, checked against what the labeller promises."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pyarrow as pa

from chatloom.corpus.labellers import load_labeller
from chatloom.corpus.labelling import SPANS, Labeller
from chatloom.corpus.record import Document


def labeller(use: str, **settings: Any) -> Labeller[Any]:
    kind = load_labeller(use)
    return kind(kind.Settings.parse(settings))


def labels(
    use: str | Labeller[Any],
    text: str,
    language: str = "en",
    url: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Labels of one document, after a look at their names, types and spans."""
    own = labeller(use, **settings) if isinstance(use, str) else use
    document = Document("d", text, url=url, metadata=metadata or {}, labels={"language": language})
    (row,) = own.label([document])
    check(own, row, text)
    return row


def check(own: Labeller[Any], row: Mapping[str, Any], text: str) -> None:
    """The columns that were declared, of the types that were declared, spans in order and inside the text."""
    assert set(row) == set(own.columns)
    assert own.label([]) == []
    schema = pa.schema([pa.field(name, kind) for name, kind in own.columns.items()])
    assert pa.Table.from_pylist([dict(row)], schema=schema).to_pylist() == [dict(row)]
    for name, kind in own.columns.items():
        if kind == SPANS and row[name]:
            flat = row[name]
            assert len(flat) % 2 == 0
            assert all(a < b for a, b in zip(flat[::2], flat[1::2], strict=True))
            assert all(a <= b for a, b in pairwise(flat))
            assert flat[0] >= 0
            assert flat[-1] <= len(text)
    assert pickle.loads(pickle.dumps(own.settings)) == own.settings


def parts(text: str, spans: list[int]) -> list[str]:
    return [text[start:end] for start, end in zip(spans[::2], spans[1::2], strict=True)]
