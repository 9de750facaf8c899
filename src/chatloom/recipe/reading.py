"""Reading a recipe: the YAML file, the recipe it builds upon, overrides, its chains and its matrix.

name: demo
seed: 0
extends: other-recipe         # optional: start from it; this file's values win
stages:
  corpus: {stage: corpus, pages: {path: "pages/*.html"}}
  tokenizer: {stage: tokenizer, documents: {from: corpus}, vocab_size: 4096}
matrix: {values: {seed: [0, 1, 2]}, stages: [tokenizer]}
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from chatloom.recipe.chains import unfold, unfold_matrix
from chatloom.recipe.graph import Recipe, RecipeError, build, hint, kind_of
from chatloom.settings import override, read_yaml

_KEYS = ("name", "seed", "about", "matrix", "stages")


def packaged() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    folder = Path(str(resources.files("chatloom"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def locate(recipe: str | Path) -> Path:
    """A recipe's file from a path, or from the name of a packaged recipe (`demo`, `recipes/demo.yaml`)."""
    path = Path(recipe).expanduser()
    if path.is_file():
        return path
    known = packaged()
    if path.stem in known and path in (Path(path.stem), Path("recipes") / f"{path.stem}.yaml"):
        return known[path.stem]
    raise RecipeError(f"{recipe}: no such file, and no recipe of that name comes with chatloom{hint(path.stem, known)}")


def read(recipe: str | Path, assignments: Sequence[str] = ()) -> Recipe:
    """A checked Recipe from a file or a packaged name, with `--set` assignments applied.

    An assignment may leave out the leading `stages.`: `sft.optimizer.lr=1e-3`. Raises RecipeError or SettingsError.
    """
    path = locate(recipe)
    values = read_values(path)
    _check_keys(values, str(path))
    values = override(values, [_full_name(item, values["stages"]) for item in assignments])
    try:
        return from_values(values, default_name=path.stem)
    except RecipeError as error:
        raise RecipeError(f"{path}:\n{error}" if "\n" in str(error) else f"{path}: {error}") from None


def _full_name(assignment: str, entries: Collection[str]) -> str:
    head, dot, _ = assignment.partition("=")[0].strip().partition(".")
    if head in _KEYS:
        return assignment
    if not dot:
        raise RecipeError(f"--set {assignment}: put the stage before the setting, as in `sft.epochs=2`")
    if head not in entries:
        raise RecipeError(f"--set {assignment}: there is no stage `{head}`{hint(head, entries)}")
    return f"stages.{assignment}"


def read_values(path: Path, trail: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The plain values of a recipe file, laid over what it `extends` (a path beside the file, or a packaged name)."""
    if path.resolve() in trail:
        raise RecipeError(f"{path}: extends itself: {' -> '.join(item.name for item in (*trail, path))}")
    values = read_yaml(path)
    lower = values.pop("extends", None)
    if lower is None:
        return values
    beside = path.parent / str(lower)
    below = read_values(beside if beside.is_file() else locate(str(lower)), (*trail, path.resolve()))
    return merge(below, {"name": path.stem, **values})


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`, mapping by mapping; a null removes what is below."""
    result = dict(below)
    for key, value in above.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(result.get(key), Mapping) and not _is_source(value):
            result[key] = merge(result[key], value)
        else:
            result[key] = value
    return result


def _is_source(value: Mapping[str, Any]) -> bool:
    # `{path: x}` replaces `{from: y}` as a whole; merged they would be both.
    return bool({"from", "path"} & set(value))


def from_values(values: Mapping[str, Any], default_name: str = "recipe") -> Recipe:
    """A checked Recipe from plain values (what the YAML holds); raises RecipeError."""
    _check_keys(values, "recipe")
    name, seed = str(values.get("name") or default_name), values.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise RecipeError(f"seed: expected a whole number of 0 or more, found {seed!r}")
    single, chains = unfold(values["stages"])
    entries, repeated = expand(single, unfold_matrix(values.get("matrix"), chains))
    bases: dict[str, tuple[str, ...]] = {}
    for made in entries:
        before = repeated.get(made, made)
        found = [repeated.get(made), chains.get(before)]
        bases[made] = tuple(base for base in found if base is not None)
    return build(name, seed, str(values.get("about") or ""), entries, bases)


def _check_keys(values: Mapping[str, Any], where: str) -> None:
    for key in values:
        if key not in _KEYS:
            raise RecipeError(f"{where}: a recipe has no `{key}`{hint(str(key), _KEYS)}")
    if not isinstance(values.get("stages"), Mapping) or not values["stages"]:
        raise RecipeError(f"{where}: `stages` must map names to stages, found {values.get('stages')!r}")


def expand(
    entries: Mapping[str, Any], matrix: Mapping[str, Any] | None
) -> tuple[dict[str, Mapping[str, Any]], dict[str, str]]:
    """The entries with the matrix's stages, and all that depend on them, repeated per combination of its values.

    `values` maps a setting to its list. `seed` goes to every repeated stage; `STAGE.setting` to that stage; any other
    setting to the stages listed. A stage that takes an input with `gather: true` gets the whole list instead of being
    repeated. Returns the entries and, for each, its name before expansion.
    """
    if not matrix:
        return {name: _gathered(name, entry, entries, {}) for name, entry in entries.items()}, {}
    values, listed = _check_matrix(matrix, entries)
    repeated = _dependents(entries, listed)
    combinations = [dict(zip(values, items)) for items in itertools.product(*values.values())]
    suffixes = ["-".join(f"{key.split('.')[-1]}{value}" for key, value in item.items()) for item in combinations]
    made = {name: [f"{name}-{suffix}" for suffix in suffixes] for name in repeated}
    result: dict[str, Mapping[str, Any]] = {}
    bases: dict[str, str] = {}
    for name, entry in entries.items():
        gathered = _gathered(name, entry, entries, made)
        if name not in repeated:
            result[name] = gathered
            continue
        for suffix, combination in zip(suffixes, combinations):
            inputs = kind_of(name, entry, entries, f"stages.{name}").inputs
            own = _renamed(gathered, inputs, repeated, suffix)
            result[f"{name}-{suffix}"] = override(own, _assigned(name, combination, listed, entries))
            bases[f"{name}-{suffix}"] = name
    return result, bases


def _check_matrix(matrix: Any, entries: Mapping[str, Any]) -> tuple[dict[str, list[Any]], list[str]]:
    if not isinstance(matrix, Mapping) or set(matrix) != {"values", "stages"}:
        raise RecipeError("matrix: expected `{values: {seed: [0, 1, 2]}, stages: [NAME, ...]}`")
    values, listed = matrix["values"], matrix["stages"]
    if not isinstance(values, Mapping) or not all(isinstance(item, list) and item for item in values.values()):
        raise RecipeError(f"matrix.values: expected settings with lists of values, found {values!r}")
    if not isinstance(listed, list) or not listed:
        raise RecipeError(f"matrix.stages: expected a list of stages, found {listed!r}")
    for name in listed:
        if name not in entries:
            raise RecipeError(f"matrix.stages: there is no stage `{name}`{hint(str(name), entries)}")
    return dict(values), listed


def _references(name: str, entry: Any, entries: Iterable[str]) -> list[tuple[str, bool]]:
    """(stage, gathered?) for everything an entry takes from other stages."""
    stage = kind_of(name, entry, entries, f"stages.{name}")
    found = []
    for key in stage.inputs:
        given = entry.get(key)
        for item in given if isinstance(given, list) else [given]:
            if isinstance(item, Mapping) and "from" in item:
                found.append((str(item["from"]), bool(item.get("gather"))))
    return found


def _dependents(entries: Mapping[str, Any], listed: Iterable[str]) -> list[str]:
    repeated = set(listed)
    references = {name: _references(name, entry, entries) for name, entry in entries.items()}
    grown = True
    while grown:
        more = {
            name
            for name, items in references.items()
            if name not in repeated and any(target in repeated and not gather for target, gather in items)
        }
        repeated |= more
        grown = bool(more)
    return [name for name in entries if name in repeated]


def _gathered(name: str, entry: Any, entries: Iterable[str], made: Mapping[str, list[str]]) -> dict[str, Any]:
    """An entry whose `{from: X, gather: true}` are replaced by one `{from: ...}` for each stage made of X."""
    stage = kind_of(name, entry, entries, f"stages.{name}")
    result = dict(entry)
    for key, declared in stage.inputs.items():
        given = entry.get(key)
        items = given if isinstance(given, list) else [given]
        if not any(isinstance(item, Mapping) and item.get("gather") for item in items):
            continue
        if not declared.many:
            raise RecipeError(f"stages.{name}.{key}: takes one artifact, so it cannot `gather` several")
        sources: list[Any] = []
        for item in items:
            if isinstance(item, Mapping) and item.get("gather"):
                sources += [{"from": each} for each in made.get(str(item.get("from")), [item.get("from")])]
            else:
                sources.append(item)
        result[key] = sources
    return result


def _renamed(
    entry: Mapping[str, Any], inputs: Collection[str], repeated: Collection[str], suffix: str
) -> dict[str, Any]:
    def renamed(item: Any) -> Any:
        if isinstance(item, list):
            return [renamed(each) for each in item]
        if isinstance(item, Mapping) and str(item.get("from")) in repeated:
            return {**item, "from": f"{item['from']}-{suffix}"}
        return item

    return {key: renamed(value) if key in inputs else value for key, value in entry.items()}


def _assigned(name: str, combination: Mapping[str, Any], listed: list[str], entries: Iterable[str]) -> list[str]:
    found = []
    for key, value in combination.items():
        # The longest, because the stages of a chain have a dot in their names.
        stage = max((other for other in entries if key.startswith(f"{other}.")), key=len, default=None)
        if key == "seed" or (name in listed and stage is None):
            found.append(f"{key}={json.dumps(value)}")
        elif stage == name:
            found.append(f"{key.removeprefix(f'{name}.')}={json.dumps(value)}")
    return found
