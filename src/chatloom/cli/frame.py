"""What all commands share: errors as one red sentence and an exit code, Ctrl-C as a way to go on, figures as text."""

from __future__ import annotations

import errno
import functools
import shlex
import sys
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer
from rich.console import Console
from rich.text import Text

from chatloom import artifact
from chatloom.errors import ChatloomError
from chatloom.recipe import PlanRefused, Stopped

DEBUG: ContextVar[bool] = ContextVar("debug", default=False)
Arguments = ParamSpec("Arguments")

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Change a setting, dotted: optimizer.lr=1e-3. May be repeated."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")]


_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}


class _Console(Console):
    """Leaves a closed pipe to `handled`; rich would end the process with status 1."""

    def on_broken_pipe(self) -> None:
        raise  # rich calls it where it has caught the BrokenPipeError


def console(*, error: bool = False) -> Console:
    """Standard output, or standard error, as they are now (tests replace them)."""
    return _Console(stderr=error, highlight=False)


def handled(command: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """A command whose errors end as a sentence on standard error and an exit code, without a traceback."""

    @functools.wraps(command)
    def run(*arguments: Arguments.args, **named: Arguments.kwargs) -> None:
        try:
            command(*arguments, **named)
        except ChatloomError as error:
            if DEBUG.get():
                raise
            complain(str(error))
            raise typer.Exit(2 if isinstance(error, PlanRefused) else 1) from None
        except Stopped as stop:
            console(error=True).print(
                f"\nStopped in stage `{stop.stage}`; what was saved stays. To go on:", markup=False
            )
            console(error=True).print(f"  {_this_command()}", markup=False, soft_wrap=True)
            raise typer.Exit(stop.exit_code) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # `chatloom inspect ... | head`: the reader has seen enough. Nothing may be flushed into the closed pipe.
            sys.stdout = None
            raise typer.Exit(0) from None
        except OSError as error:
            if error.filename is not None or error.errno not in _UNWRITABLE:
                raise
            sys.stdout = None
            complain(f"standard output cannot be written to ({error.strerror}); what was made is there")
            raise typer.Exit(1) from None

    return run


def complain(message: str) -> None:
    """One error in red on standard error."""
    console(error=True).print(Text(f"error: {message}", style="red"), soft_wrap=True)


def _this_command() -> str:
    # Without --start-over, which would drop what was just saved; it has a value where a recipe has several stages.
    given, kept, skip = sys.argv[1:], [], False
    has_value = not {"run", "demo"}.isdisjoint(given[:2])
    for item in given:
        if item == "--start-over":
            skip = has_value
        elif skip:
            skip = False
        elif not item.startswith("--start-over="):
            kept.append(item)
    return shlex.join(["chatloom", *kept])


def amount(value: float, unit: str) -> str:
    """A figure as people read it: `1.5 M`, `2.1 GB`, `3.2 PFLOP`, `4m 10s`."""
    from chatloom.progress import duration

    if unit == "s":
        return duration(value)
    billion = "B" if unit in ("", "tokens") else "G"
    prefixes = ((1e15, "P"), (1e12, "T"), (1e9, billion), (1e6, "M"), (1e3, "k"))
    unit = {"bytes": "B", "tokens": ""}.get(unit, unit)
    size, prefix = next(((size, sign) for size, sign in prefixes if abs(value) >= size), (1.0, ""))
    number = f"{value / size:.3g}" if size > 1 or value != int(value) else f"{int(value)}"
    return f"{number} {prefix}{unit}".strip()


def inside(folder: Path, *, chat: bool = False) -> str:
    """What to name instead of a folder that is no artifact itself: `; it holds ...`, or nothing.

    The artifacts of a run's folder, or the newest checkpoint of one that is not finished; with `chat` chat models only.
    """
    partial = folder if folder.name.endswith(".partial") else artifact.partial_of(folder)
    checkpoints = [path for path in partial.glob("checkpoints/step-*") if path.name.removeprefix("step-").isdigit()]
    if checkpoints:
        newest = max(checkpoints, key=lambda path: int(path.name.removeprefix("step-")))
        return f"; its newest checkpoint is {relative(newest)}"
    within = sorted(folder.iterdir()) if folder.is_dir() else []
    found = [path for path in within if artifact.exists(path) and "@" not in path.name]
    if chat:
        found = [path for path in found if (path / "chat_template.json").is_file() and (path / "config.json").is_file()]
        found = [path for path in found if artifact.read_manifest(path)["kind"] != "reward-model"]
    names = [relative(path) for path in found]
    return f"; it holds {', '.join(names)}" if names else ""


def relative(path: Path) -> str:
    """A path as the user would type it."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def register(app: typer.Typer, command: Callable[..., None], name: str, panel: str, **options: Any) -> None:
    """Add a command with error handling to a panel of the help."""
    app.command(name=name, rich_help_panel=panel, **options)(handled(command))
