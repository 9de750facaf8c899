"""The graph of a recipe: which stages there are, what each takes from which, in an order that works.

Everything that can be wrong with a recipe on paper is found here, before anything runs: unknown kinds, keys and
references, inputs of the wrong kind, missing inputs, cycles.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatloom import stages
from chatloom.errors import ChatloomError
from chatloom.settings import Settings, nearest
from chatloom.stage import Input, Stage

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class RecipeError(ChatloomError):
    """A recipe that cannot mean anything: the message names the place and the cure."""


@dataclass(frozen=True)
class Source:
    """Where an input comes from: another stage of the recipe, or a path outside it (exactly one of the two)."""

    stage: str | None = None
    path: str | None = None


@dataclass(frozen=True)
class Node:
    """One stage of a recipe, ready to run. `bases` are the names it also goes by: of the chain that it is part of, and
    of the stage that a matrix made several of."""

    name: str
    bases: tuple[str, ...]
    stage: Stage
    settings: Settings
    seed: int
    inputs: Mapping[str, tuple[Source, ...]]

    @property
    def parents(self) -> tuple[str, ...]:
        """Names of the stages it takes something from, each once."""
        sources = (source.stage for given in self.inputs.values() for source in given)
        return tuple(dict.fromkeys(name for name in sources if name is not None))


@dataclass(frozen=True)
class Recipe:
    """A checked graph of stages; `nodes` lists parents before children."""

    name: str
    seed: int
    about: str
    nodes: Mapping[str, Node]

    def named(self, name: str) -> list[str]:
        """The nodes meant by a name: the stage itself, or all that a chain or a matrix made of it.

        Raises RecipeError for none.
        """
        found = [node.name for node in self.nodes.values() if name in (node.name, *node.bases)]
        if not found:
            known = [*self.nodes, *(base for node in self.nodes.values() for base in node.bases)]
            raise RecipeError(f"recipe `{self.name}` has no stage `{name}`{hint(name, known)}")
        return found

    def needed(self, targets: Iterable[str]) -> list[str]:
        """`targets` and all they depend on, in running order."""
        wanted, todo = set[str](), list(targets)
        while todo:
            name = todo.pop()
            if name not in wanted:
                wanted.add(name)
                todo += self.nodes[name].parents
        return [name for name in self.nodes if name in wanted]


def hint(name: str, known: Iterable[str]) -> str:
    """`; did you mean ...?`, or the list of what there is when nothing is near."""
    known = list(dict.fromkeys(known))
    match = nearest(name, known)
    if match:
        return f"; did you mean `{match}`?"
    return f"; there is {', '.join(f'`{item}`' for item in known)}" if known else ""


def build(
    name: str,
    seed: int,
    about: str,
    entries: Mapping[str, Mapping[str, Any]],
    bases: Mapping[str, tuple[str, ...]] | None = None,
) -> Recipe:
    """Check plain stage entries and put them in order; raises RecipeError with one line per mistake."""
    nodes: dict[str, Node] = {}
    mistakes: list[str] = []
    for key, entry in entries.items():
        try:
            nodes[key] = build_node(key, entry, seed, bases=(bases or {}).get(key, ()), others=entries)
        except ChatloomError as error:
            mistakes.append(str(error))
    for node in nodes.values():
        mistakes += _wrong_kinds(node, nodes)
    if mistakes:
        raise RecipeError("\n".join(mistakes))
    return Recipe(name, seed, about, {key: nodes[key] for key in _order(nodes)})


def build_node(
    name: str,
    entry: Mapping[str, Any],
    seed: int,
    *,
    bases: tuple[str, ...] = (),
    others: Iterable[str] = (),
    where: str | None = None,
) -> Node:
    """One stage entry `{stage: kind, inputs..., settings...}` as a Node; `others` are the names it may refer to."""
    where = where or f"stages.{name}"
    others = list(others)
    if not _NAME.fullmatch(name) or name.endswith(".partial"):
        raise RecipeError(f"{where}: a stage's name becomes a folder: letters, digits, `-`, `_` and `.` only")
    stage = kind_of(name, entry, others, where)
    known = [*stage.inputs, *stage.settings.model_fields, "seed", "about"]
    unknown = [key for key in entry if key not in known and key != "stage"]
    if unknown:
        raise RecipeError(
            "\n".join(
                f"{where}.{key}: `{stage.kind}` has no such setting or input{hint(str(key), known)}" for key in unknown
            )
        )
    inputs = {
        key: _sources(declared, entry.get(key), f"{where}.{key}", stage, others)
        for key, declared in stage.inputs.items()
        if entry.get(key) is not None or declared.required
    }
    own_seed = entry.get("seed", seed)
    if isinstance(own_seed, bool) or not isinstance(own_seed, int) or own_seed < 0:
        raise RecipeError(f"{where}.seed: expected a whole number of 0 or more, found {own_seed!r}")
    values = {key: value for key, value in entry.items() if key in stage.settings.model_fields}
    return Node(name, bases, stage, stage.settings.parse(values, where=where), own_seed, inputs)


def kind_of(name: str, entry: Any, others: Iterable[str], where: str) -> Stage:
    """The kind of stage that an entry asks for."""
    if not isinstance(entry, Mapping):
        raise RecipeError(f"{where}: expected `{{stage: KIND, ...}}`, found {entry!r}")
    if "stage" not in entry:
        near = nearest(name, [other for other in others if other != name])
        raise RecipeError(
            f"{where}: does not say what it is; add `stage: KIND`"
            + (f", or did you mean the stage `{near}`?" if near else "")
        )
    try:
        return stages.find(str(entry["stage"]))
    except ChatloomError as error:
        raise RecipeError(f"{where}.stage: {error}") from None


def _sources(declared: Input, given: Any, where: str, stage: Stage, others: list[str]) -> tuple[Source, ...]:
    wanted = " or ".join(declared.kinds) + (
        " or files" if declared.kinds and declared.files else "files" * declared.files
    )
    if given is None:
        raise RecipeError(
            f"{where}: `{stage.kind}` needs this input ({declared.about}; {wanted}); "
            "give `{from: STAGE}` or `{path: PATH}`"
        )
    items = given if isinstance(given, list) else [given]
    if not items:
        raise RecipeError(f"{where}: the list is empty; give at least one `{{from: STAGE}}` or `{{path: PATH}}`")
    if len(items) > 1 and not (declared.many or declared.files):
        raise RecipeError(f"{where}: takes one {wanted}, found a list of {len(items)}")
    found: list[Source] = []
    for item in items:
        keys = set(item) if isinstance(item, Mapping) else set()
        if not keys or len(keys & {"from", "path"}) != 1 or keys - {"from", "path", "gather"}:
            raise RecipeError(f"{where}: expected `{{from: STAGE}}` or `{{path: PATH}}`, found {item!r}")
        if "path" in item:
            paths = item["path"] if isinstance(item["path"], list) else [item["path"]]
            found += [Source(path=str(path)) for path in paths]
        elif item["from"] not in others:
            raise RecipeError(f"{where}: there is no stage `{item['from']}`{hint(str(item['from']), others)}")
        elif not declared.kinds:
            raise RecipeError(f"{where}: takes files only; give `{{path: PATH}}`, not `{{from: {item['from']}}}`")
        else:
            found.append(Source(stage=str(item["from"])))
    return tuple(found)


def _wrong_kinds(node: Node, nodes: Mapping[str, Node]) -> list[str]:
    lines = []
    for key, sources in node.inputs.items():
        kinds = node.stage.inputs[key].kinds
        for source in sources:
            maker = nodes.get(source.stage or "")
            if maker is not None and maker.stage.output not in kinds:
                makers = [other.name for other in nodes.values() if other.stage.output in kinds]
                lines.append(
                    f"stages.{node.name}.{key}: expected {' or '.join(kinds)}, but stage `{maker.name}` makes "
                    f"{maker.stage.output}"
                    + (f"; made by {', '.join(f'`{item}`' for item in makers)}" if makers else "")
                )
    return lines


def _order(nodes: Mapping[str, Node]) -> list[str]:
    """Parents before children, otherwise as written; raises RecipeError naming a cycle."""
    done: dict[str, None] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in done:
            return
        if name in trail:
            raise RecipeError(f"these stages wait for each other: {' -> '.join([*trail[trail.index(name) :], name])}")
        for parent in nodes[name].parents:
            visit(parent, (*trail, name))
        done[name] = None

    for name in nodes:
        visit(name, ())
    return list(done)


def resolve_path(text: str) -> list[Path]:
    """The files or folders that a path of a recipe means, sorted; `*`, `?` and `[` make it a pattern, `~` is home.

    Relative paths start at the current directory, as everywhere on the command line. Raises RecipeError for none.
    """
    path = Path(text).expanduser()
    if path.exists():
        return [path]
    if not any(sign in text for sign in "*?["):
        raise RecipeError(f"{text}: no such file or folder (looked in {Path.cwd()})")
    anchor = Path(path.anchor) if path.is_absolute() else Path()
    found = sorted(anchor.glob(str(path.relative_to(anchor) if path.is_absolute() else path)))
    if not found:
        raise RecipeError(f"{text}: no file matches this pattern (looked in {Path.cwd()})")
    return found
