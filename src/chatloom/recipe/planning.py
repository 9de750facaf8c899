"""What a run would do and cost, found before anything runs: states, figures, and every reason why it cannot work.

Figures follow one convention so that they can be added up: `parameters`, `tokens` (tokens), `flops` (FLOP), `memory`
(bytes), `disk` (bytes that stay), `disk_meanwhile` (bytes more while it runs), `time` (seconds). A stage that says
`flops` but no `time` gets `flops / flops_per_second`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from chatloom import artifact
from chatloom.artifact import Artifact, ArtifactError, Identity
from chatloom.errors import ChatloomError
from chatloom.recipe import hashes
from chatloom.recipe.graph import Node, Recipe, RecipeError, Source
from chatloom.recipe.inputs import Outside, follow, identify, values
from chatloom.settings import difference
from chatloom.stage import Line, Plan, PlanContext

DONE, STALE, HALF_DONE, TO_DO = "done", "stale", "half done", "to do"
_NOMINAL_SPEED = (2, 5e10)  # threads, FLOP/s


class PlanRefused(ChatloomError):
    """A run that cannot work; the message lists every reason. Nothing was started."""


@dataclass(frozen=True)
class StagePlan:
    """One stage of a plan. `difference` says why it is stale; `figures` is empty when the stage declares no plan."""

    node: Node
    state: str
    identity: Identity
    given: Mapping[str, list[Outside | Source]]
    difference: tuple[str, ...] = ()
    figures: Plan = field(default_factory=Plan)
    refusals: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlanReport:
    """The plan of a whole run: its stages in order, totals over what is still to do, refusals and warnings."""

    recipe: Recipe
    out: Path
    stages: tuple[StagePlan, ...]
    totals: Mapping[str, Line]
    refusals: tuple[str, ...]
    warnings: tuple[str, ...]

    def check(self) -> None:
        """Raise PlanRefused with all reasons, if there are any."""
        if self.refusals:
            reasons = "\n".join(f"  - {line}".replace("\n", "\n    ") for line in self.refusals)
            raise PlanRefused(f"recipe `{self.recipe.name}` cannot run, nothing was started:\n{reasons}")


def plan(
    recipe: Recipe,
    out: Path,
    *,
    until: str | None = None,
    start_over: Iterable[str] = (),
    measure: bool = True,
) -> PlanReport:
    """What running `recipe` into `out` would do; raises RecipeError when an outside input is missing or wrong.

    `until` limits it to a stage and what that needs; `start_over` names stages to make again. Without `measure` times
    are those of a nominal machine, and torch is not loaded to measure this one.
    """
    names = recipe.needed(recipe.named(until)) if until else list(recipe.nodes)
    again = {name for item in start_over for name in recipe.named(item)}
    known = hashes.of_run(out)
    given, mistakes = _follow_all((recipe.nodes[name] for name in names), known)
    if mistakes:
        raise PlanRefused("\n".join(mistakes))
    threads, speed = machine_speed() if measure else _NOMINAL_SPEED
    stages: dict[str, StagePlan] = {}
    made: dict[str, Artifact] = {}
    for name in names:
        node = recipe.nodes[name]
        prints = {key: item.identity.fingerprint for key, item in stages.items()}
        identity = identify(node, prints, given[name], known)
        stage = _state(StagePlan(node, TO_DO, identity, given[name]), out / name, start_over=name in again)
        if stage.state == DONE:
            made[name] = Artifact(out / name, artifact.read_manifest(out / name))
        context = PlanContext(
            node.settings, values(node, given[name], made), _plans_of_inputs(node, stages, made), threads, speed
        )
        stages[name] = _costed(stage, context)
    return _report(recipe, out, tuple(stages.values()))


def _follow_all(
    nodes: Iterable[Node], known: hashes.Hashes
) -> tuple[dict[str, dict[str, list[Outside | Source]]], list[str]]:
    given, mistakes = {}, []
    for node in nodes:
        try:
            given[node.name] = follow(node, known)
        except RecipeError as error:
            mistakes.append(str(error))
    return given, mistakes


def _plans_of_inputs(node: Node, stages: Mapping[str, StagePlan], made: Collection[str]) -> dict[str, Plan]:
    """The plans of the stages behind each input: `input` for the first, `input.N` for the N-th that is not made yet."""
    found: dict[str, Plan] = {}
    for key, sources in node.inputs.items():
        for number, source in enumerate(sources):
            if source.stage is not None:
                found.setdefault(key, stages[source.stage].figures)
                if source.stage not in made:
                    found[f"{key}.{number}"] = stages[source.stage].figures
    return found


def _state(stage: StagePlan, target: Path, *, start_over: bool) -> StagePlan:
    if start_over:
        return stage
    new = stage.identity
    if artifact.exists(target):
        manifest = artifact.read_manifest(target)
        if manifest["fingerprint"] == new.fingerprint:
            try:
                artifact.load(target)
            except ArtifactError as error:
                reason = (
                    f"stage `{stage.node.name}`: damaged: {str(error).removesuffix('; make the artifact again')}; "
                    f"put the file back, or make the stage again with --start-over {stage.node.name}"
                )
                return replace(stage, state=STALE, refusals=(reason,))
            return replace(stage, state=DONE)
        lines = _changes({key: manifest.get(key) for key in new.values()}, new.values())
        stage = replace(stage, state=STALE, difference=tuple(lines))
    elif _in_the_way(target):
        reason = (
            f"stage `{stage.node.name}`: {target} is there, and is nothing that a stage finished (no valid "
            f"{artifact.MANIFEST} in it); move it away, write elsewhere with --out, or drop it with "
            f"--start-over {stage.node.name}"
        )
        return replace(stage, refusals=(reason,))
    old = artifact.half_done(target)
    return stage if old is None or begun_in_vain(target, new) else _half_done(stage, old, new)


def _in_the_way(target: Path) -> bool:
    return target.is_file() or (target.is_dir() and any(target.iterdir()))


def begun_in_vain(target: Path, new: Identity) -> bool:
    """Whether what is half done at `target` has other settings and holds nothing yet, so that nothing is lost with it.

    A stage that refuses its input leaves such a folder; the next try has other settings.
    """
    old = artifact.half_done(target)
    if old is None or not difference(old, new.values()):
        return False
    return all(item.name.startswith(artifact.DRAFT) for item in artifact.partial_of(target).iterdir())


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lines of what differs; inputs that were made anew are told in short."""
    before, after = old.get("parents") or {}, new["parents"]
    lines = difference({**old, "parents": {}}, {**new, "parents": {}})
    return lines + [
        f"parents.{name}: {_short(before.get(name))} -> {_short(after.get(name))}"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]


def _short(prints: str | list[str] | None) -> str:
    """Fingerprints as in the names of folders that were moved aside; of a long list only how many."""
    if prints is None:
        return "(absent)"
    found = [prints] if isinstance(prints, str) else prints
    return ", ".join(item[:8] for item in found) if len(found) <= 3 else f"{len(found)} artifacts"


def _half_done(stage: StagePlan, old: Mapping[str, Any], new: Identity) -> StagePlan:
    lines = _changes(old, new.values())
    if not lines:
        return replace(stage, state=HALF_DONE)
    shown = "\n  ".join(lines)
    reason = (
        f"stage `{stage.node.name}` is half done with other settings:\n  {shown}\n"
        f"go back to them to go on with it, or drop what was done with --start-over {stage.node.name}"
    )
    return replace(stage, state=HALF_DONE, difference=tuple(lines), refusals=(reason,))


def _costed(stage: StagePlan, context: PlanContext) -> StagePlan:
    make = stage.node.stage.plan
    if make is None:
        return stage
    try:
        figures = make(context)
    except ChatloomError as error:
        return replace(stage, refusals=(*stage.refusals, f"stage `{stage.node.name}`: {error}"))
    has_time = any(line.name == "time" for line in figures.lines)
    if figures.value("flops") and not has_time and context.flops_per_second:
        seconds = figures.value("flops") / context.flops_per_second
        figures = replace(figures, lines=(*figures.lines, Line("time", seconds, "s")))
    refusals = tuple(f"stage `{stage.node.name}`: {reason}" for reason in figures.refusals)
    # What is done needs no more room or memory, so it cannot be refused any more.
    return replace(stage, figures=figures, refusals=stage.refusals + (() if stage.state == DONE else refusals))


def _report(recipe: Recipe, out: Path, stages: tuple[StagePlan, ...]) -> PlanReport:
    ahead = [stage for stage in stages if stage.state != DONE]
    totals = {
        name: Line(name, combine(lines), unit, exact=all(line.exact for line in lines))
        for name, unit, combine in _TOTALS
        if (lines := [line for stage in ahead for line in stage.figures.lines if line.name == name])
    }
    if "disk" in totals:
        # What stages need while they run is free again when they end.
        meanwhile = max(stage.figures.value("disk_meanwhile") for stage in ahead)
        totals["disk"] = replace(totals["disk"], value=totals["disk"].value + meanwhile)
    refusals = [reason for stage in stages for reason in stage.refusals]
    warnings = [f"stage `{stage.node.name}`: {text}" for stage in ahead for text in stage.figures.warnings]
    place = _existing(out)
    if ahead and not place.is_dir():
        refusals.append(f"{out}: {place} is a file, not a folder; choose another place with --out")
    elif ahead and not os.access(place, os.W_OK | os.X_OK):
        refusals.append(f"{out}: {place} cannot be written to; choose another place with --out")
    need = totals["disk"].value if "disk" in totals else 0.0
    free = shutil.disk_usage(place).free
    if need > free:
        refusals.append(
            f"{out}: needs about {_gigabytes(need)} of disk, {_gigabytes(free)} are free; make room or use --out"
        )
    memory = psutil.virtual_memory()
    for stage in ahead:
        wanted = stage.figures.value("memory")
        text = f"stage `{stage.node.name}`: needs about {_gigabytes(wanted)} of memory"
        if wanted > memory.total:
            refusals.append(f"{text}, this machine has {_gigabytes(memory.total)}; make the model or the batch smaller")
        elif wanted > memory.available:
            warnings.append(f"{text}, {_gigabytes(memory.available)} are free now; close other programs")
    return PlanReport(recipe, out, stages, totals, tuple(refusals), tuple(warnings))


def _sum(lines: list[Line]) -> float:
    return sum(line.value for line in lines)


def _largest(lines: list[Line]) -> float:
    return max(line.value for line in lines)


_TOTALS: tuple[tuple[str, str, Callable[[list[Line]], float]], ...] = (
    ("parameters", "", _largest),
    ("tokens", "tokens", _sum),
    ("flops", "FLOP", _sum),
    ("memory", "bytes", _largest),
    ("disk", "bytes", _sum),
    ("time", "s", _sum),
)


def _gigabytes(amount: float) -> str:
    return f"{amount / 1e9:.1f} GB" if amount >= 1e8 else f"{amount / 1e6:.1f} MB"


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


@cache
def machine_speed() -> tuple[int, float]:
    """Threads that torch uses, and FLOP/s of its fp32 matrix products, measured once in a third of a second."""
    import torch

    from chatloom.scaling.speed import measured_matmul_rate

    return torch.get_num_threads(), measured_matmul_rate()
