"""`chatloom inspect ARTIFACT`: what it is, where it came from, whether it is whole, and samples of what it holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from chatloom import artifact
from chatloom.artifact import Artifact, ArtifactError
from chatloom.cli import batches, frame, samples
from chatloom.cli.frame import amount, complain, console
from chatloom.progress import duration, value_text


def register(app: typer.Typer) -> None:
    """Add the command."""
    frame.register(app, inspect, "inspect", "Results")


def inspect(
    folder: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Folder that a stage wrote.")],
    n: Annotated[int, typer.Option("--samples", "-n", min=0, help="How many samples to show.")] = 3,
    skip: Annotated[int, typer.Option("--skip", min=0, help="Leave out this many samples first.")] = 0,
    vocabulary: Annotated[
        Path | None, typer.Option("--vocabulary", help="Vocabulary or model folder, to show dialogues as tokens.")
    ] = None,
    verify: Annotated[bool, typer.Option(help="Compare every file's sha256 with the manifest.")] = True,
    step: Annotated[
        int | None,
        typer.Option("--step", min=1, help="Of a pretrained model: the documents and labels of this step's batch."),
    ] = None,
) -> None:
    """Show an artifact: kind, lineage, settings, metrics, files, and samples (training data: token by token)."""
    try:
        item = artifact.load(folder)
    except ArtifactError as error:
        raise ArtifactError(f"{error}{frame.inside(folder)}") from None
    if step is not None:
        batches.show_step(item, step, n)
        return
    out = console()
    out.print(_head(item))
    out.print(_lineage(item))
    _section(
        "settings", yaml.safe_dump(_plain(item.manifest.get("settings_all") or item.manifest.get("settings") or {}))
    )
    if item.metrics:
        _section("metrics", "\n".join(_metric_lines(item.metrics)))
    whole = _files(item, verify)
    if n:
        samples.show(item, n, skip, vocabulary)
    if not whole:
        raise typer.Exit(1)


def _section(title: str, text: str) -> None:
    console().print(Text(title, style="bold"))
    console().print(Text("  " + text.strip().replace("\n", "\n  ")), soft_wrap=True)


def _head(item: Artifact) -> Text:
    manifest = item.manifest
    text = Text.assemble((str(item.path), "bold"), f": {item.kind}, made by stage `{manifest.get('stage', '?')}`, ")
    text.append(f"seed {manifest.get('seed')}, fingerprint {item.fingerprint}")
    if manifest.get("wall_seconds") is not None:
        text.append(f", in {duration(manifest['wall_seconds'])}")
        text.append(f" with at most {amount(manifest.get('peak_memory_bytes') or 0, 'bytes')}")
    made_with = ", ".join(f"{name} {version}" for name, version in manifest.get("versions", {}).items())
    return text.append(f"\nmade with {made_with}" if made_with else "")


def _lineage(item: Artifact) -> Tree:
    """The tree of parents; a part that was shown above is not repeated."""
    known: Mapping[str, Any] = item.manifest.get("lineage", {})
    shown: set[str] = set()
    tree = Tree(Text("lineage", style="bold"))

    def grow(branch: Tree, inputs: Mapping[str, Any]) -> None:
        for name, prints in inputs.items():
            for fingerprint in prints if isinstance(prints, list) else [prints]:
                parent = known.get(fingerprint, {})
                label = f"{name}: {parent.get('name', '?')} ({parent.get('kind', '?')}, {str(fingerprint)[:8]})"
                if fingerprint in shown:
                    branch.add(Text(f"{label}, as above", style="dim"))
                    continue
                shown.add(fingerprint)
                twig = branch.add(Text(label))
                grow(twig, parent.get("inputs") or {})
                _add_data(twig, parent.get("data") or [])

    grow(tree, item.manifest.get("parents", {}))
    _add_data(tree, sorted(item.manifest.get("data", {})))
    if not tree.children:
        tree.add(Text("nothing: made from settings alone" if item.manifest.get("stage") else "unknown", style="dim"))
    return tree


def _add_data(branch: Tree, names: list[str]) -> None:
    for name in names[:5]:
        branch.add(Text(f"file {name.partition('/')[2]} (as {name.partition('.')[0]})"))
    if len(names) > 5:
        branch.add(Text(f"and {len(names) - 5} more files", style="dim"))


def _plain(value: Any) -> Any:
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _metric_lines(metrics: Mapping[str, Any], prefix: str = "") -> list[str]:
    lines = []
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            lines += _metric_lines(value, f"{prefix}{name}.")
        elif value is None:
            lines.append(f"{prefix}{name}: null")
        elif isinstance(value, int | float):
            lines.append(f"{prefix}{name}: {value_text(value)}")
        elif isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
            lines.append(f"{prefix}{name}: {len(value)} rows of {', '.join(map(str, value[0]))}")
        else:
            text = str(value)
            lines.append(f"{prefix}{name}: {text if len(text) <= 200 else text[:200] + ' ...'}")
    return lines


def _files(item: Artifact, verify: bool) -> bool:
    """List the files; with `verify` compare hashes. Returns whether all are as the manifest says."""
    table = Table(title="files", title_justify="left", title_style="bold")
    table.add_column("file", overflow="fold")
    table.add_column("size", justify="right")
    table.add_column("sha256" if verify else "")
    damaged = []
    files = item.manifest["files"]
    for number, (name, entry) in enumerate(files.items()):
        state = Text("")
        if verify:
            whole = artifact.sha256_file(item.path / name) == entry["sha256"]
            state = Text("as recorded", style="green") if whole else Text("DIFFERS", style="red")
            damaged += [] if whole else [name]
        if number < 30:
            table.add_row(name, amount(entry["bytes"], "bytes"), state)
    if len(files) > 30:
        table.caption = f"and {len(files) - 30} more"
    console().print(table)
    if damaged:
        complain(f"{item.path}: changed or damaged since it was made: {', '.join(damaged)}")
    return not damaged
