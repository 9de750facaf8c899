"""Kinds that stand for several stages in a row: a recipe that names one is read as the stages it stands for.

    corpus: {stage: corpus, pages: {path: crawl}, selection: {rules: {preset: web}}}

becomes the stages `corpus.documents`, `corpus.labels`, `corpus.duplicates` and `corpus.selection`, and `{from: corpus}`
means the last of them. A group named after a stage holds what that stage holds anywhere; inputs that an earlier stage
of the chain makes are filled in where the group does not give them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from chatloom import stages
from chatloom.recipe.graph import RecipeError, hint, kind_of
from chatloom.stage import Chain


def unfold(entries: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Entries of a recipe with every chain replaced by its stages, and every reference to it by one to its last.

    Returns the entries and, for each stage of a chain, the chain's name. Raises RecipeError for what a chain's entry
    cannot mean, and for a name that is there already.
    """
    result: dict[str, Any] = {}
    bases: dict[str, str] = {}
    ends: dict[str, str] = {}
    for name, entry in entries.items():
        chain = _chain_of(entry)
        if chain is None:
            result[name] = entry
            continue
        for kind, part in _parts(name, entry, chain):
            own = f"{name}.{kind}"
            if own in entries:
                raise RecipeError(f"stages.{own}: `{name}` makes a stage of this name; call one of them otherwise")
            result[own], bases[own], ends[name] = part, name, own
    if ends:
        result = {name: _led_on(name, entry, result, ends) for name, entry in result.items()}
    return result, bases


def unfold_matrix(matrix: Any, bases: Mapping[str, str]) -> Any:
    """A matrix whose list of stages names the stages of a chain in the chain's place."""
    if not isinstance(matrix, Mapping) or not isinstance(matrix.get("stages"), list):
        return matrix
    listed: list[Any] = []
    for name in matrix["stages"]:
        listed += [own for own, base in bases.items() if base == name] or [name]
    return {**matrix, "stages": listed}


def _chain_of(entry: Any) -> Chain | None:
    return stages.CHAINS.get(str(entry.get("stage"))) if isinstance(entry, Mapping) else None


def _parts(name: str, entry: Mapping[str, Any], chain: Chain) -> Iterator[tuple[str, dict[str, Any]]]:
    """(kind, entry) of each stage of a chain."""
    found = {kind: stages.find(kind) for kind in chain.links}
    outside = list(found[chain.first].inputs)
    mistakes = []
    for key, value in entry.items():
        known = [*outside, *chain.links, *chain.shared, "seed", "about"]
        owner = next((kind for kind, stage in found.items() if key in stage.settings.model_fields), None)
        if key not in (*known, "stage"):
            told = f"`{chain.kind}` has no such setting, group or input"
            told += f"; write `{owner}: {{{key}: ...}}`" if owner else hint(str(key), known)
            mistakes.append(f"stages.{name}.{key}: {told}")
        elif key in chain.links and not isinstance(value, Mapping):
            mistakes.append(f"stages.{name}.{key}: expected a group with what `{key}` holds, found {value!r}")
    if mistakes:
        raise RecipeError("\n".join(mistakes))
    for kind, wiring in chain.links.items():
        shared = {key: entry[key] for key in chain.shared if key in entry and key in found[kind].settings.model_fields}
        given = {key: entry[key] for key in outside if key in entry} if kind == chain.first else {}
        wired = {key: {"from": f"{name}.{maker}"} for key, maker in wiring.items()}
        seed = {"seed": entry["seed"]} if "seed" in entry else {}
        yield kind, {"stage": kind, **given, **wired, **shared, **seed, **entry.get(kind, {})}


def _led_on(name: str, entry: Any, entries: Mapping[str, Any], ends: Mapping[str, str]) -> Any:
    """An entry whose inputs come from the last stage of a chain where they named the chain."""

    def led(item: Any) -> Any:
        if isinstance(item, list):
            return [led(each) for each in item]
        if isinstance(item, Mapping) and item.get("from") in ends:
            return {**item, "from": ends[item["from"]]}
        return item

    inputs = kind_of(name, entry, entries, f"stages.{name}").inputs
    return {key: led(value) if key in inputs else value for key, value in entry.items()}
