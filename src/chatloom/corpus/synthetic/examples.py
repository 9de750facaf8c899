"""Some replies of every outcome to be looked at, chosen by a keyed hash: what stayed, and what each filter took."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chatloom.corpus.record import SHARDS, Document, Dropped, read_documents, read_dropped
from chatloom.corpus.split import keyed_value
from chatloom.corpus.synthetic.making import prompts_of
from chatloom.corpus.synthetic.output import DROPPED
from chatloom.corpus.synthetic.seeds import Lowest

EACH = 8
EXCERPT = 1500
KEPT = "kept"


def examples(path: Path, seed: int, each: int = EACH) -> list[dict[str, Any]]:
    """Rows of outcome, id, template, prompt, text (its beginning) and detail; what stayed first."""
    lowest = Lowest(each)
    for file in sorted((path / SHARDS).glob("*.parquet")):
        for document in read_documents(file):
            _offer(lowest, f"0{KEPT}", document, seed, "")
    for file in sorted((path / DROPPED).glob("*.parquet")):
        for dropped in read_dropped(file):
            _offer(lowest, f"1{dropped.reason}", dropped, seed, dropped.detail)
    rows = [row for _, found in lowest.groups() for row in found]
    wanted = {_number(row["id"]) for row in rows}
    prompts = {prompt.number: prompt.text for prompt in prompts_of(path) if prompt.number in wanted}
    return [{**row, "prompt": prompts[_number(row["id"])]} for row in rows]


def _offer(lowest: Lowest, group: str, item: Document | Dropped, seed: int, detail: str) -> None:
    rank = keyed_value("chatloom example", item.id, seed)
    if lowest.wants(group, rank, item.id):
        row = {
            "outcome": group[1:],
            "id": item.id,
            "template": item.source.partition("/")[2],
            "text": item.text[:EXCERPT],
            "detail": detail,
        }
        lowest.add(group, rank, item.id, row)


def _number(name: str) -> int:
    return int(name.split("/")[1])
