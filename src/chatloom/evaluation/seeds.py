"""Several runs that differ in their seed alone: what holds in all of them, and how far they spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chatloom.evaluation.statistics import EvaluationError, mean_or_none
from chatloom.reporting.tables import Column

Row = Mapping[str, Any]

COLUMNS = [
    Column("method", "method"),
    Column("kl", "KL to SFT", ".2f", about="mean over seeds, nats per answer"),
    Column("f1", "gold F1", ".1%", low="f1_lowest", high="f1_highest", best="max", about="mean and range"),
    Column("exact", "exact", ".1%", low="exact_lowest", high="exact_highest", best="max",
           about="mean and range"),
    Column("polite", "polite", ".1%", low="polite_lowest", high="polite_highest", best="max", about="mean and range"),
    Column("ended", "ended", ".0%"),
    Column("better", "better than SFT", about="seeds whose paired interval of the gain lies above zero"),
]  # fmt: skip


def across_seeds(
    tables: Sequence[Sequence[Row]], *, group: str | None = None, score: str | None = None
) -> list[dict[str, Any]]:
    """One row per method from the tables of several seeds: means, lowest and highest, seeds with a sure gain.

    `group` None takes the headline, which comes first in every table. `gains` counts the seeds in which the interval of
    the gain lies above zero, `better` says it in words ("3 of 3"; empty for the baseline). The gain is of `score`; None
    takes what `evaluate` compares by: gold F1, or politeness where no prompt has a true answer. Raises EvaluationError
    if the tables hold different methods.
    """
    if group is None and tables and tables[0]:
        group = str(tables[0][0]["group"])
    chosen = [{str(row["method"]): row for row in table if row["group"] == group} for table in tables]
    if not chosen or not chosen[0]:
        raise EvaluationError(f"no rows of the group {group!r} in {len(tables)} tables: expected a table for each seed")
    methods = list(chosen[0])
    for number, table in enumerate(chosen):
        if set(table) != set(methods):
            raise EvaluationError(f"seed {number} has the methods {sorted(table)}, the first has {sorted(methods)}")
    if score is None:
        score = "f1" if any(row.get("f1") is not None for table in chosen for row in table.values()) else "polite"
    result = []
    for method in methods:
        rows = [table[method] for table in chosen]
        row: dict[str, Any] = {"method": method, "seeds": len(rows)}
        for name in (
            "kl",
            "reward",
            "f1",
            "exact",
            "polite",
            "refused",
            "length",
            "ended",
            "win_rate",
            f"{score}_gain",
        ):
            values = [found.get(name) for found in rows]
            present = [float(value) for value in values if value is not None]
            row[name] = mean_or_none(values)
            row[f"{name}_lowest"] = min(present, default=None)
            row[f"{name}_highest"] = max(present, default=None)
        lows = [found.get(f"{score}_gain_low") for found in rows]
        compared = [low for low in lows if low is not None]
        row["gains"] = sum(low > 0 for low in compared) if compared else None
        row["better"] = f"{row['gains']} of {len(compared)}" if compared else None
        result.append(row)
    return result
