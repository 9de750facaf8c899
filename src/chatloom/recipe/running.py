"""Running a recipe: stage after stage, skipping what is done, going on with what is half done, measuring each.

The state of a run is its folder alone, so the same command, given again after any kind of end, goes on from there.
"""

from __future__ import annotations

import contextlib
import errno
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from chatloom import artifact, progress, stages
from chatloom.artifact import Artifact, Draft
from chatloom.errors import ChatloomError
from chatloom.evaluation.stage_page import write_stage_page
from chatloom.model.allocator import keep_freed_memory
from chatloom.recipe import hashes
from chatloom.recipe.following import Crew
from chatloom.recipe.graph import Recipe, build_node
from chatloom.recipe.inputs import lineage, outside_data, values
from chatloom.recipe.meter import Meter
from chatloom.recipe.planning import DONE, STALE, PlanReport, StagePlan, begun_in_vain, plan
from chatloom.recipe.reading import from_values
from chatloom.stage import Context

SUMMARY = "summary.json"
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


class StageFailed(ChatloomError):
    """An error inside a stage; the message starts with the stage's name."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or SIGUSR1: what stages had saved lies in `.partial` folders and the same command goes on."""

    def __init__(self, stage: str, signal_number: int) -> None:
        super().__init__(f"stopped in stage `{stage}`")
        self.stage = stage
        self.exit_code = 128 + signal_number


class _Terminated(KeyboardInterrupt):
    """SIGTERM or SIGUSR1, seen by stages as the Ctrl-C they already know how to save at."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def run(
    recipe: Recipe,
    out: Path,
    *,
    until: str | None = None,
    start_over: Iterable[str] = (),
    quiet: bool = False,
) -> dict[str, Artifact]:
    """Make every stage of `recipe` (or `until` one of them and what it needs) in `out/NAME`; returns them by name.

    Raises PlanRefused before anything runs, StageFailed from inside a stage, Stopped on Ctrl-C and SIGTERM. Writes
    `out/summary.json`: every stage's metrics, wall seconds and peak memory.
    """
    crew = Crew.assemble(node.settings for node in recipe.nodes.values())
    if not crew.leads:
        return crew.follow()
    with crew.leading():
        report = plan(recipe, out, until=until, start_over=start_over, measure=False)
        report.check()
        hashes.of_run(out).save()
        keep_freed_memory()
        again = {name for item in start_over for name in recipe.named(item)}
        made: dict[str, Artifact] = {}
        with _termination_as_interrupt():
            for number, stage in enumerate(report.stages, 1):
                title = f"[{number}/{len(report.stages)}] {stage.node.name}"
                made[stage.node.name] = _run_stage(stage, out, made, title, stage.node.name in again, quiet, crew)
                _write_summary(report, made)
        crew.end(made)
    return made


def run_stage(
    kind: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Any],
    out: Path,
    *,
    seed: int = 0,
    start_over: bool = False,
    quiet: bool = False,
) -> Artifact:
    """Make one artifact at `out`; `inputs` maps names to an Artifact, a path, `{path: ...}`, or a list of these.

    The same rules as in a recipe: skipped when done, gone on with when half done, refused when half done otherwise. Of
    a kind that stands for several stages each is made in a folder of its own inside `out`; returns the last.
    """
    given = {
        name: [_as_source(item) for item in value] if isinstance(value, list | tuple) else _as_source(value)
        for name, value in inputs.items()
        if value is not None
    }
    entry = {"stage": kind, **settings, **given}
    if kind in stages.CHAINS:
        graph = from_values({"name": out.name, "seed": seed, "stages": {kind: entry}})
        return list(run(graph, out, start_over=[kind] if start_over else [], quiet=quiet).values())[-1]
    node = build_node(out.name, entry, seed, where=kind)
    recipe = Recipe(node.name, node.seed, "", {node.name: node})
    again = [node.name] if start_over else []
    crew = Crew.assemble([node.settings])
    if not crew.leads:
        return crew.follow()[node.name]
    with crew.leading():
        report = plan(recipe, out.parent, start_over=again, measure=False)
        report.check()
        hashes.of_run(out.parent).save()
        keep_freed_memory()
        with _termination_as_interrupt():
            made = _run_stage(report.stages[0], out.parent, {}, node.name, start_over, quiet, crew)
        crew.end({node.name: made})
    return made


def _as_source(item: Any) -> Any:
    if isinstance(item, Artifact):
        return {"path": str(item.path)}
    return {"path": str(item)} if isinstance(item, str | Path) else item


def _run_stage(
    stage: StagePlan,
    out: Path,
    made: Mapping[str, Artifact],
    title: str,
    start_over: bool,
    quiet: bool,
    crew: Crew,
) -> Artifact:
    node, target = stage.node, out / stage.node.name

    def say(message: str) -> None:
        if not quiet:
            progress.say(message)

    try:
        with artifact.locked(target):
            extra = lineage(target, node, stage.given, made)
            afresh = start_over or (stage.state != DONE and begun_in_vain(target, stage.identity))
            state = artifact.begin(target, stage.identity, start_over=afresh, extra=extra)
            if isinstance(state, Artifact):
                say(f"{title}: done before, {state.fingerprint}")
                return state
            say(f"{title}: {_beginning(stage, state)}")
            return _make(stage, state, values(node, stage.given, made), start_over, quiet, say, title, crew)
    except KeyboardInterrupt as error:
        raise Stopped(node.name, error.number if isinstance(error, _Terminated) else signal.SIGINT) from error
    except ChatloomError as error:
        named = f"stage `{node.name}`: "
        raise StageFailed(named + str(error).removeprefix(named)) from error
    except Exception as error:
        told = _of_the_machine(error, out)
        if told is None:
            raise
        raise StageFailed(f"stage `{node.name}`: {told}") from error


def _of_the_machine(error: Exception, out: Path) -> str | None:
    """What an error says that comes from the machine and not from a mistake in the program; None for any other."""
    if isinstance(error, MemoryError):
        return (
            "it needs more memory than this process may have; what was saved before is intact: give it more, or less "
            "work at once, and run the same command to go on"
        )
    if artifact.is_disk_full(error):
        return (
            f"the disk is full at {out} ({error}); what was saved before is intact: make room and run the same "
            "command to go on"
        )
    if isinstance(error, OSError) and error.errno in _FORBIDDEN:
        return (
            f"{error.filename}: {error.strerror}; give the right to read or write it, or choose another folder with "
            "--out"
        )
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"{error.filename}: is not there any more; put it back and run the same command to go on"
    return None


def _beginning(stage: StagePlan, draft: Draft) -> str:
    if draft.resumed:
        return "goes on"
    if stage.state == STALE:
        old = artifact.read_manifest(draft.target)["fingerprint"][:8] if artifact.exists(draft.target) else "?"
        shown = "; ".join(stage.difference[:3]) or "damaged"
        return f"made again ({shown}); the old one moves to {draft.target.name}@{old}"
    return stage.node.stage.about


def _make(
    stage: StagePlan,
    draft: Draft,
    inputs: Mapping[str, Any],
    start_over: bool,
    quiet: bool,
    say: Any,
    title: str,
    crew: Crew,
) -> Artifact:
    node = stage.node
    context = Context(
        settings=node.settings,
        inputs=inputs,
        path=draft.path,
        seed=node.seed,
        name=node.name,
        kind=node.stage.kind,
        quiet=quiet,
        identity=stage.identity.values(),
    )
    with Meter(draft.target, go_on=draft.resumed and not start_over) as meter:
        crew.share(context)
        node.stage.run(context)
        crew.back()
    _check_unchanged(stage, draft)
    write_stage_page(
        draft.path, node.name, node.stage.about, node.settings.everything(), context.metrics, meter.seconds, meter.peak
    )
    finished = draft.commit(
        context.metrics,
        settings_all=node.settings.everything(),
        wall_seconds=round(meter.seconds, 3),
        peak_memory_bytes=meter.peak,
        attempts=meter.attempts,
    )
    meter.forget()
    say(f"{title}: {progress.duration(meter.seconds)}, {meter.peak / 1e9:.2f} GB at most, {finished.path}")
    return finished


def _check_unchanged(stage: StagePlan, draft: Draft) -> None:
    """Refuse to finish an artifact whose outside files are not those any more that its fingerprint names."""
    planned = stage.identity.data
    try:
        now = outside_data(stage.node, stage.given, hashes.of_run(draft.target.parent))
    except (OSError, ChatloomError) as error:
        now = {name: str(error) for name in planned}
    changed = sorted(name for name in planned if now.get(name) != planned[name])
    if changed:
        draft.spoil(dict.fromkeys(changed, "changed while it was read"))
        raise ChatloomError(
            f"{', '.join(name.partition('/')[2] for name in changed)} changed while the stage ran, so what was made "
            f"is of no known input; leave the files as they are and run again with --start-over {stage.node.name}"
        )


def _write_summary(report: PlanReport, made: Mapping[str, Artifact]) -> None:
    rows: dict[str, dict[str, Any]] = {
        name: {
            "kind": item.kind,
            "stage": item.manifest.get("stage"),
            "fingerprint": item.fingerprint,
            "seed": item.manifest.get("seed"),
            "wall_seconds": item.manifest.get("wall_seconds"),
            "peak_memory_bytes": item.manifest.get("peak_memory_bytes"),
            "metrics": dict(item.metrics),
        }
        for name, item in made.items()
    }
    artifact.write_json(
        report.out / SUMMARY,
        {
            "recipe": report.recipe.name,
            "seed": report.recipe.seed,
            "versions": artifact.versions(),
            "complete": len(made) == len(report.recipe.nodes),
            "written": time.time(),
            "wall_seconds": round(sum(row["wall_seconds"] or 0.0 for row in rows.values()), 3),
            "peak_memory_bytes": max((row["peak_memory_bytes"] or 0 for row in rows.values()), default=0),
            "stages": rows,
        },
    )


@contextlib.contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """SIGTERM and SIGUSR1 (a batch system's warning) raise like Ctrl-C meanwhile.

    Only the main thread may set handlers; elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        del frame
        raise _Terminated(number)

    before = {number: signal.signal(number, terminate) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
