"""What a stage's inputs are on disk: artifacts of the run, artifacts and files from outside, and what identifies them.

Fingerprints follow from settings and content alone, so they are known before anything runs.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatloom import artifact
from chatloom.artifact import Artifact, ArtifactError, Identity
from chatloom.recipe.graph import Node, RecipeError, Source, resolve_path
from chatloom.recipe.hashes import Hashes
from chatloom.settings import digest
from chatloom.stage import Input


@dataclass(frozen=True)
class Outside:
    """An input from outside the recipe: an artifact (or a model folder taken for one), or a plain file or folder."""

    artifact: Artifact | None
    path: Path


def outside(declared: Input, source: Source, where: str, hashes: Hashes) -> list[Outside]:
    """What a `{path: ...}` leads to; raises RecipeError when it is missing or of a kind that is not taken here."""
    found = []
    try:
        for path in resolve_path(str(source.path)):
            if declared.kinds and (path / artifact.MANIFEST).is_file():
                found.append(Outside(artifact.load(path, *declared.kinds), path))
            elif adopted := _adopt(path, declared.kinds, hashes):
                found.append(Outside(adopted, path))
            elif declared.files:
                found.append(Outside(None, path))
            else:
                artifact.load(path, *declared.kinds)  # says what is missing
    except (ArtifactError, RecipeError) as error:
        raise RecipeError(f"{where}: {error}") from None
    if len(found) > 1 and not (declared.many or declared.files):
        raise RecipeError(f"{where}: takes one input, `{source.path}` leads to {len(found)}")
    return found


def _adopt(path: Path, kinds: Collection[str], hashes: Hashes) -> Artifact | None:
    """A model or vocabulary folder that some other program wrote, seen as an artifact identified by its content."""
    if not path.is_dir() or (path / artifact.MANIFEST).exists():
        return None
    kind = None
    config = path / "config.json"
    if config.is_file():
        scorer = "ForSequenceClassification" in config.read_text(encoding="utf-8", errors="replace")
        kind = "reward-model" if scorer else "model"
    if kind not in kinds and "vocabulary" in kinds and (path / "tokenizer.json").is_file():
        kind = "vocabulary"
    if kind is None or kind not in kinds:
        return None
    files = {
        item.relative_to(path).as_posix(): {"bytes": item.stat().st_size, "sha256": hashes.content(item)}
        for item in sorted(path.rglob("*"))
        if item.is_file()
    }
    fingerprint = digest([[name, entry["sha256"]] for name, entry in files.items()])[:16]
    manifest = {"format": artifact.FORMAT, "kind": kind, "fingerprint": fingerprint, "files": files, "metrics": {}}
    return Artifact(path, manifest)


def identify(
    node: Node, fingerprints: Mapping[str, str], given: Mapping[str, list[Outside | Source]], hashes: Hashes
) -> Identity:
    """What decides a node's artifact; `fingerprints` are those of the stages before it."""
    parents: dict[str, Any] = {}
    for key, items in given.items():
        prints: list[str] = []
        for item in items:
            if isinstance(item, Source):
                prints.append(fingerprints[str(item.stage)])
            elif item.artifact is not None:
                prints.append(item.artifact.fingerprint)
        if prints:
            parents[key] = prints if node.stage.inputs[key].many else prints[0]
    stage, data = node.stage, outside_data(node, given, hashes)
    return Identity(stage.output, stage.kind, stage.version, node.settings.result(), node.seed, parents, data)


def outside_data(node: Node, given: Mapping[str, list[Outside | Source]], hashes: Hashes) -> dict[str, str]:
    """Content hash of every outside file and folder that a node reads, by input (or `settings`), number and name."""
    data: dict[str, str] = {}
    for key, items in given.items():
        for number, item in enumerate(items):
            if isinstance(item, Outside) and item.artifact is None:
                data[f"{key}.{number}/{item.path.resolve().name}"] = hashes.content(item.path)
    for number, file in enumerate(node.stage.files(node.settings) if node.stage.files is not None else ()):
        if not file.is_file():
            raise RecipeError(f"stages.{node.name}: {file}: no such file; its settings name it")
        data[f"settings.{number}/{file.name}"] = hashes.content(file)
    return data


def follow(node: Node, hashes: Hashes) -> dict[str, list[Outside | Source]]:
    """Every input of a node with its outside paths opened; raises RecipeError with one line per mistake."""
    given: dict[str, list[Outside | Source]] = {}
    mistakes = []
    for key, sources in node.inputs.items():
        given[key] = []
        for source in sources:
            if source.stage is not None:
                given[key].append(source)
                continue
            try:
                given[key] += outside(node.stage.inputs[key], source, f"stages.{node.name}.{key}", hashes)
            except RecipeError as error:
                mistakes.append(str(error))
    if mistakes:
        raise RecipeError("\n".join(mistakes))
    return given


def values(
    node: Node, given: Mapping[str, list[Outside | Source]], made: Mapping[str, Artifact]
) -> dict[str, Artifact | list[Artifact | Path]]:
    """Inputs as a stage gets them: a list where it takes `many` or files, else one artifact; absent ones left out."""
    result: dict[str, Artifact | list[Artifact | Path]] = {}
    for key, items in given.items():
        declared = node.stage.inputs[key]
        found: list[Artifact | Path] = []
        for item in items:
            if isinstance(item, Outside):
                found.append(item.artifact or item.path)
            elif str(item.stage) in made:
                found.append(made[str(item.stage)])
        if declared.many or any(isinstance(item, Path) for item in found):
            result[key] = found
        elif found and isinstance(found[0], Artifact):
            result[key] = found[0]
    return result


def lineage(
    target: Path, node: Node, given: Mapping[str, list[Outside | Source]], made: Mapping[str, Artifact]
) -> dict[str, Any]:
    """What a manifest says of where its artifact comes from.

    `inputs` maps an input to what was given under it (name, kind, fingerprint, path relative to the artifact's folder);
    `lineage` maps the fingerprint of every ancestor to its name, kind, stage, seed and its own inputs' fingerprints.
    """
    inputs: dict[str, list[dict[str, Any]]] = {}
    ancestors: dict[str, Any] = {}
    for key, items in given.items():
        inputs[key] = []
        for item in items:
            parent, path = _place(item, made)
            entry = {"name": path.resolve().name, "path": Path(os.path.relpath(path, target)).as_posix()}
            if parent is not None:
                entry |= {"kind": parent.kind, "fingerprint": parent.fingerprint}
                ancestors |= parent.manifest.get("lineage", {})
                ancestors[parent.fingerprint] = {
                    "name": parent.path.resolve().name,
                    "kind": parent.kind,
                    "stage": parent.manifest.get("stage"),
                    "seed": parent.manifest.get("seed"),
                    "inputs": parent.manifest.get("parents", {}),
                    "data": sorted(parent.manifest.get("data", {})),
                }
            inputs[key].append(entry)
    return {"name": node.name, "inputs": inputs, "lineage": ancestors}


def _place(item: Outside | Source, made: Mapping[str, Artifact]) -> tuple[Artifact | None, Path]:
    if isinstance(item, Source):
        parent = made[str(item.stage)]
        return parent, parent.path
    return item.artifact, item.path
