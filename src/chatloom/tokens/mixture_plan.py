"""What a mixture reads, worked out before anything runs: weights and passes of each source in each stage, in rows.

    sources   who is in: the documents that a condition over labels holds for, of a source named earlier first
    stages    one after another (`early`, `stable`, `annealing`): tokens, and shares or passes of the sources

Rows are counted through all stages, so rounding never adds up, and one pass is every row once. A plan that would read a
source more often than its `max_epochs`, or that has no document for a source, is refused with all reasons.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from chatloom.errors import ChatloomError
from chatloom.settings import Settings, nearest

_ROUNDING = 1e-6


class MixtureError(ChatloomError):
    """A mixture that contradicts itself or asks for more than there is."""


class MixtureSource(Settings):
    """One source of a mixture."""

    name: str = Field(description="what stages and tables call it")
    where: str = Field(
        "",
        description='condition over labels, such as language == "zh" and source == "peps"; empty: every document '
        "that no source before it took",
    )
    max_epochs: float = Field(
        4.0, gt=0, description="most passes over it in all stages; up to 4 repeats are worth almost as much as new text"
    )


class MixtureStage(Settings):
    """One stage of a mixture."""

    name: str = Field(description="early, stable, annealing, or any other name")
    tokens: float | None = Field(None, gt=0, description="tokens of this stage; null: what `epochs` come to")
    weights: dict[str, float] = Field({}, description="share of each source in the tokens that `epochs` leave")
    epochs: dict[str, float] = Field({}, description="passes over a source in this stage, instead of a weight")


class MixtureSettings(Settings):
    """Sources and the stages that read them; nothing given: all documents alike, `epochs` times."""

    sources: tuple[MixtureSource, ...] = Field((), description="who is in, first match first (see docs/tokens.md)")
    stages: tuple[MixtureStage, ...] = Field((), description="how much of each source is read when")


@dataclass(frozen=True)
class Size:
    """What there is of a source: documents, tokens that one pass predicts, rows that they take, bytes on disk."""

    documents: int
    tokens: int
    rows: int
    disk: int


@dataclass(frozen=True)
class PlannedStage:
    """Rows and tokens of each source (in their order) in one stage; tokens as asked for, before whole rows."""

    name: str
    rows: tuple[int, ...]
    tokens: tuple[float, ...]


@dataclass(frozen=True)
class MixturePlan:
    """A mixture that works."""

    names: tuple[str, ...]
    sizes: tuple[Size, ...]
    stages: tuple[PlannedStage, ...]

    @property
    def n_tokens(self) -> float:
        """Tokens of all stages."""
        return sum(sum(stage.tokens) for stage in self.stages)

    def table(self) -> str:
        """The plan as GPT-3 (table 2.2) and LLaMA (table 1) print theirs: weight, epochs, tokens, disk."""
        parts = [self._lines(f"stage `{stage.name}`", stage.rows, stage.tokens) for stage in self.stages]
        if len(self.stages) > 1:
            rows = [sum(stage.rows[k] for stage in self.stages) for k in range(len(self.names))]
            tokens = [sum(stage.tokens[k] for stage in self.stages) for k in range(len(self.names))]
            parts.append(self._lines("all stages", rows, tokens))
        widths = [max(len(line[i]) for part in parts for line in part) for i in range(len(parts[0][0]))]
        return "\n\n".join("\n".join(_aligned(line, widths) for line in part) for part in parts)

    def _lines(self, title: str, rows: Sequence[int], tokens: Sequence[float]) -> list[tuple[str, ...]]:
        total = sum(tokens)
        lines: list[tuple[str, ...]] = [(title, "weight", "epochs", "tokens", "of", "documents", "disk")]
        for name, size, n, m in zip(self.names, self.sizes, rows, tokens, strict=True):
            share, passes = m / total if total else 0.0, n / size.rows if size.rows else 0.0
            there = short(size.tokens), f"{size.documents:,}", f"{short(size.disk)}B"
            lines.append((f"  {name}", f"{share:.1%}", f"{passes:.2f}", short(m), *there))
        documents = f"{sum(size.documents for size in self.sizes):,}"
        disk = f"{short(sum(size.disk for size in self.sizes))}B"
        there = short(sum(size.tokens for size in self.sizes)), documents, disk
        return [*lines, ("  total", "100.0%", "", short(total), *there)]


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))])


def short(amount: float) -> str:
    """A number in three or four digits: 950, 12.5 k, 300 M, 1.40 T."""
    for sign in ("", " k", " M", " G", " T"):
        if abs(amount) < 999.5 or sign == " T":
            break
        amount /= 1000
    return f"{amount:.0f}{sign}" if not sign or amount >= 99.95 else f"{amount:.3g}{sign}"


def check_names(settings: MixtureSettings) -> None:
    """What can be said before any document is known; raises MixtureError with one line for each mistake."""
    mistakes: list[str] = []
    names = [source.name for source in settings.sources]
    if bool(names) != bool(settings.stages):
        mistakes.append("mixture: give both `sources` and `stages`, or neither")
    for what, found in (("sources", names), ("stages", [stage.name for stage in settings.stages])):
        mistakes += [
            f"mixture.{what}: `{name}` is there twice" for name in sorted({n for n in found if found.count(n) > 1})
        ]
    open_end = [place for place, source in enumerate(settings.sources) if not source.where.strip()]
    if open_end and open_end[0] != len(names) - 1:
        mistakes.append(
            f"mixture.sources: `{names[open_end[0]]}` has no `where` and takes every document, so nothing is left for "
            f"`{names[open_end[0] + 1]}`; put it last"
        )
    for stage in settings.stages:
        mistakes += _check_stage(stage, names)
    if mistakes:
        raise MixtureError("\n".join(mistakes))


def _check_stage(stage: MixtureStage, names: Sequence[str]) -> list[str]:
    where = f"mixture stage `{stage.name}`"
    mistakes = []
    for name, value in [*stage.weights.items(), *stage.epochs.items()]:
        if name not in names:
            match = nearest(name, names)
            hint = f"did you mean `{match}`?" if match else f"sources are {', '.join(f'`{n}`' for n in names)}"
            mistakes.append(f"{where}: there is no source `{name}`; {hint}")
        if not (math.isfinite(value) and value >= 0):
            mistakes.append(f"{where}: `{name}: {value}`; expected a number from 0 up")
    for name in stage.weights.keys() & stage.epochs.keys():
        mistakes.append(f"{where}: `{name}` has a weight and a number of epochs; give one of them")
    weighted = sum(stage.weights.values())
    if weighted and stage.tokens is None:
        mistakes.append(f"{where}: has weights but no `tokens` to share out; say how many")
    if not weighted and stage.tokens is not None:
        mistakes.append(f"{where}: has `tokens` but no weight to share them out by; leave `tokens` out or give weights")
    if not weighted and not any(stage.epochs.values()):
        mistakes.append(f"{where}: reads nothing; give `weights` or `epochs`")
    return mistakes


def asked_tokens(stage: MixtureStage, sizes: Mapping[str, Size]) -> dict[str, float]:
    """Tokens of each source that a stage asks for; raises MixtureError when its `epochs` exceed its `tokens`."""
    asked = {name: passes * sizes[name].tokens for name, passes in stage.epochs.items() if passes}
    if stage.tokens is None:
        return asked
    left = stage.tokens - sum(asked.values())
    if left < 0:
        raise MixtureError(
            f"mixture stage `{stage.name}`: its `epochs` come to {short(sum(asked.values()))} tokens, its `tokens` are "
            f"{short(stage.tokens)}; raise `tokens` or lower `epochs`"
        )
    whole = sum(stage.weights.values())
    return asked | {name: left * weight / whole for name, weight in stage.weights.items() if weight}


def plan_mixture(settings: MixtureSettings, sizes: Mapping[str, Size]) -> MixturePlan:
    """Rows of each source in each stage; raises MixtureError with every reason why it cannot be done."""
    check_names(settings)
    names = tuple(source.name for source in settings.sources)
    mistakes: list[str] = []
    totals = dict.fromkeys(names, 0.0)
    rows_before = dict.fromkeys(names, 0)
    stages = []
    for stage in settings.stages:
        try:
            asked = asked_tokens(stage, sizes)
        except MixtureError as error:
            mistakes.append(str(error))
            continue
        rows = []
        for name in names:
            totals[name] += asked.get(name, 0.0)
            size = sizes[name]
            up_to = round(totals[name] * size.rows / size.tokens) if size.tokens else 0
            rows.append(max(0, up_to - rows_before[name]))
            rows_before[name] += rows[-1]
        stages.append(PlannedStage(stage.name, tuple(rows), tuple(asked.get(name, 0.0) for name in names)))
    for source in settings.sources:
        mistakes += _refusals(source, sizes[source.name], totals[source.name])
    empty = [stage.name for stage in stages if not sum(stage.rows)]
    mistakes += [f"mixture stage `{name}`: asks for less than one row; raise its `tokens`" for name in empty]
    if mistakes:
        raise MixtureError("\n".join(mistakes))
    return MixturePlan(names, tuple(sizes[name] for name in names), tuple(stages))


def _refusals(source: MixtureSource, size: Size, asked: float) -> list[str]:
    where = f"mixture source `{source.name}`"
    if not asked:
        return []
    if not size.tokens:
        condition = f"no document fits `{source.where}`" if source.where else "no document is left for it"
        return [f"{where}: {condition}, but stages ask for {short(asked)} tokens of it"]
    passes = asked / size.tokens
    if passes > source.max_epochs * (1 + _ROUNDING):
        return [
            f"{where}: stages ask for {short(asked)} tokens, {passes:.2f} passes over its {short(size.tokens)}; "
            f"max_epochs is {source.max_epochs:g}, which gives {short(source.max_epochs * size.tokens)}. Lower its "
            f"weight or the stages' tokens, or raise max_epochs to {math.ceil(passes * 100) / 100:g}"
        ]
    return []
