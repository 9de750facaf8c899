"""A selection without a stage: all its steps over shards of documents with labels, as the stage does them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from chatloom.corpus.columns import ColumnWriter
from chatloom.corpus.engine.local import InProcess
from chatloom.corpus.engine.steps import total
from chatloom.corpus.record import Document, read_documents, read_dropped, write_documents
from chatloom.corpus.report.columns import LabelColumn
from chatloom.corpus.report.figures import report_figures
from chatloom.corpus.report.survey import FRAME, Frame, read_frame
from chatloom.corpus.report.tally import Tally, read_tallies
from chatloom.corpus.selection.choice import SelectionSettings
from chatloom.corpus.selection.funnel import selection_funnel
from chatloom.corpus.selection.tasks import TALLIES, selection_steps


@dataclass
class Selected:
    """Documents that stay by id, reasons of those that go ("step/rule"), counts of the tasks, the tally, the labels."""

    kept: dict[str, Document]
    gone: dict[str, str]
    counts: dict[str, int]
    frame: Frame
    tally: Tally
    settings: SelectionSettings
    labels: list[LabelColumn]

    def figures(self, *, tokens: bool = False) -> dict[str, Any]:
        """The figures of the report."""
        before = [amounts for (by, _), amounts in self.tally.rows("before").items() if by == "language"]
        documents = {unit: sum(row[place] for row in before) for place, unit in enumerate(("documents", "characters"))}
        return report_figures(
            self.tally, self.frame, self.settings, self.labels, selection_funnel(self.counts, documents), tokens=tokens
        )


def select(
    folder: Path,
    shards: Sequence[Sequence[Document]],
    settings: SelectionSettings,
    types: Mapping[str, pa.DataType],
    *,
    seed: int = 0,
    names: Mapping[str, Mapping[str, str]] | None = None,
    vocabulary: Path | None = None,
    ranges: int = 2,
) -> Selected:
    """Select from documents in shards; `types` are those of their labels, `names` what numbers of kinds mean."""
    paths, columns = [], folder / "in" / "all"
    for number, documents in enumerate(shards):
        paths.append(folder / "in" / f"{number}.parquet")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        write_documents(paths[-1], [Document(d.id, d.text, d.source, d.url) for d in documents], {})
        with ColumnWriter(columns / paths[-1].name, types) as writer:
            writer.add(documents, [dict(d.labels) for d in documents])
    labels = [LabelColumn.of(pa.field(name, kind), names=(names or {}).get(name)) for name, kind in types.items()]
    out, scratch = folder / "out", folder / "scratch"
    steps = selection_steps(
        "chosen",
        paths,
        [columns],
        settings,
        folder=out,
        scratch=scratch,
        seed=seed,
        labels=labels,
        vocabulary=vocabulary,
        ranges=ranges,
    )
    for step in steps:
        counts = total(step.run(InProcess()))
    return Selected(
        {d.id: d for path in paths for d in read_documents(out / "shards" / path.name)},
        {d.id: f"{d.stage}/{d.reason}" for path in paths for d in read_dropped(out / "dropped" / path.name)},
        counts,
        read_frame(scratch / FRAME),
        read_tallies(out / TALLIES, (path.stem for path in paths)),
        settings,
        labels,
    )
