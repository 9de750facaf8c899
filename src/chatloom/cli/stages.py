"""One command a stage kind: `chatloom sft SETTINGS.yaml --set optimizer.lr=1e-3 --out runs/sft`.

SETTINGS.yaml holds what a stage holds in a recipe (inputs as `{path: ...}`, settings) and may hold `out` and `seed`.
`--help` lists every setting with its type, default and meaning, read from the stage's own declaration.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from rich import box
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from chatloom import recipe
from chatloom import stages as registry
from chatloom.cli.frame import Quiet, Set, console, handled, relative
from chatloom.recipe import PlanRefused, RecipeError
from chatloom.settings import is_runtime, override, read_yaml
from chatloom.stage import Chain, Stage


def register(app: typer.Typer) -> None:
    """Add a command for each kind; a stage's module is loaded only when the command runs or explains itself."""
    chains = {kind: f"Stages: {chain.about}." for kind, chain in registry.CHAINS.items()}
    for kind, about in {**chains, **{kind: f"Stage: {text}." for kind, text in registry.kinds().items()}}.items():
        app.command(name=kind, help=about, cls=_command_class(kind), rich_help_panel="Stages, one at a time")(
            handled(_command(kind))
        )


def _command(kind: str) -> Any:
    def command(
        settings: Annotated[Path | None, typer.Argument(metavar="SETTINGS.yaml", help="Inputs and settings.")] = None,
        assignments: Set = None,
        out: Annotated[Path | None, typer.Option("--out", help="Folder to make; or `out:` in the file.")] = None,
        seed: Annotated[int | None, typer.Option("--seed", min=0, help="Or `seed:` in the file; default 0.")] = None,
        start_over: Annotated[
            bool, typer.Option("--start-over", help="Drop what is half done, make it again.")
        ] = False,
        quiet: Quiet = False,
    ) -> None:
        values = override(read_yaml(settings) if settings else {}, assignments or ())
        stated = values.pop("stage", kind)
        if stated != kind:
            raise RecipeError(f"{settings}: is for stage `{stated}`; run chatloom {stated} {settings}")
        target = out or values.pop("out", None)
        values.pop("out", None)
        if not target:
            raise RecipeError(f"chatloom {kind}: does not say where to write; give --out FOLDER or `out:` in the file")
        own_seed = values.pop("seed", 0) if seed is None else seed
        values.pop("seed", None)
        folder = Path(target).expanduser()
        try:
            made = recipe.run_stage(kind, values, {}, folder, seed=own_seed, start_over=start_over, quiet=quiet)
        except (RecipeError, PlanRefused) as error:
            # It speaks of a recipe's stages; here there is one kind, whose name in a recipe nobody gave.
            name = kind if kind in registry.CHAINS else folder.name
            told = re.sub(rf"--start-over {re.escape(name)}(\.[a-z-]+)?", "--start-over", str(error))
            raise type(error)(told.replace(f"stages.{name}.", f"{kind}.")) from None
        console().print(relative(made.path), markup=False, soft_wrap=True)

    return command


def _command_class(kind: str) -> type[TyperCommand]:
    class StageCommand(TyperCommand):
        def format_help(self, ctx: Any, formatter: Any) -> None:
            super().format_help(ctx, formatter)
            if kind in registry.CHAINS:
                describe_chain(registry.CHAINS[kind])
            else:
                describe(registry.find(kind))

    return StageCommand


def describe(stage: Stage) -> None:
    """Print a stage's inputs, output and settings."""
    out = console()
    if stage.inputs:
        out.print(_inputs_table(stage))
    table = _table(f"Settings of {stage.kind}, which makes: {stage.output}")
    table.caption = "* runtime setting: does not change the result"
    table.add_column("setting", no_wrap=True)  # a name is there to be copied
    for title, width in (("type", 14), ("default", 12), ("meaning", None)):
        table.add_column(title, overflow="fold", max_width=width)
    for row in setting_rows(stage.settings):
        table.add_row(*(Text(cell) for cell in row))
    out.print(table)


def describe_chain(chain: Chain) -> None:
    """Print a chain's inputs and its stages, each a group of the settings that its own command lists."""
    out = console()
    found = [registry.find(kind) for kind in chain.links]
    out.print(_inputs_table(found[0]))
    table = _table(f"Groups of {chain.kind}, which makes: {found[-1].output}")
    table.caption = f"For all groups: {', '.join(f'`{name}`' for name in chain.shared)}, `seed`."
    table.add_column("group", no_wrap=True)
    for title in ("stage", "holds what is listed by"):
        table.add_column(title, overflow="fold")
    for stage in found:
        table.add_row(stage.kind, Text(stage.about), f"chatloom {stage.kind} --help")
    out.print(table)


def _inputs_table(stage: Stage) -> Table:
    table = _table("Inputs: NAME: {from: STAGE} in a recipe, NAME: {path: PATH} anywhere")
    for title in ("input", "takes", "meaning"):
        table.add_column(title, overflow="fold")
    for name, item in stage.inputs.items():
        takes = " or ".join([*item.kinds, *(["files"] if item.files else [])]) + (" (list)" if item.many else "")
        table.add_row(name if item.required else f"{name} (optional)", takes, item.about)
    return table


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )


def setting_rows(
    model: type[BaseModel], prefix: str = "", within: BaseModel | None = None
) -> Iterator[tuple[str, str, str, str]]:
    """(dotted name, type, default, description) of every setting, nested ones included; `*` marks runtime ones.

    `within` is the default of the group that `model` describes: its values may differ from the class's own.
    """
    for name, field in model.model_fields.items():
        nested = _nested(field.annotation)
        default = (
            field.get_default(call_default_factory=True, validated_data={}) if within is None else getattr(within, name)
        )
        if nested is not None and not _is_optional(field.annotation):
            yield from setting_rows(nested, f"{prefix}{name}.", default if isinstance(default, BaseModel) else None)
            continue
        star = "*" if is_runtime(model, name) else ""
        shown = "required" if default is PydanticUndefined else _value_text(default)
        yield f"{prefix}{name}{star}", type_text(field.annotation), shown, field.description or ""
        if nested is not None:
            yield from setting_rows(nested, f"{prefix}{name}.")


def _nested(annotation: Any) -> type[BaseModel] | None:
    for item in (annotation, *typing.get_args(annotation)):
        if isinstance(item, type) and issubclass(item, BaseModel):
            return item if annotation is item or _is_optional(annotation) else None
    return None


def _is_optional(annotation: Any) -> bool:
    return type(None) in typing.get_args(annotation)


def _value_text(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "see below"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, tuple | list):
        return f"[{', '.join(_value_text(item) for item in value)}]"
    return str(value) if value != "" else '""'


def type_text(annotation: Any) -> str:
    """A type as a person reads it: `number`, `whole number`, `a | b`, `list of text`."""
    names = {int: "whole number", float: "number", str: "text", bool: "true/false", Path: "path", type(None): "null"}
    if annotation in names:
        return names[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " | ".join(str(item) for item in arguments)
    if origin is Annotated:
        return type_text(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_text(item) for item in arguments)
    if origin in (list, tuple, set, frozenset):
        kinds = dict.fromkeys(type_text(item) for item in arguments if item is not Ellipsis)
        return f"list of {' or '.join(kinds)}"
    if origin is dict:
        return f"mapping of {type_text(arguments[0])} to {type_text(arguments[1])}"
    return getattr(annotation, "__name__", str(annotation))
