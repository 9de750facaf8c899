"""The command line: `chatloom demo | run | plan | STAGE | chat | inspect | doctor`. Commands only."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from chatloom import __version__
from chatloom.cli import chat, inspect, machine, recipes, stages
from chatloom.cli.frame import DEBUG, console
from chatloom.training.parallel import launch

app = typer.Typer(
    name="chatloom",
    help="From raw web pages to an aligned chat model: clean, tokenize, pretrain, instruct, align, evaluate, chat.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with [bold]chatloom demo[/bold]: a chat model out of raw HTML, on this machine, without a network.",
)


def _version(wanted: bool) -> None:
    if wanted:
        console().print(f"chatloom {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where in the program an error came from.")] = False,
) -> None:
    del version
    DEBUG.set(debug)


recipes.register(app)
chat.register(app)
inspect.register(app)
machine.register(app)
stages.register(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (default: the process's); returns the exit code.

    0 done, 1 an error, 2 a plan that cannot work or a wrong command line, 128 + n stopped by signal n
    (130: Ctrl-C, 143: SIGTERM, 138: SIGUSR1).
    """
    # Threads that wait by spinning starve each other as soon as anything else runs: on two busy cores training was four
    # to eight times slower than with threads that sleep. Must be set before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if launch.rank():  # of several processes the first one prints
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - as long as the process lives
    given = list(sys.argv[1:] if arguments is None else arguments)
    if "--debug" in given:  # accepted anywhere, though it belongs to the program, not to a command
        given = ["--debug", *(item for item in given if item != "--debug")]
    try:
        app(args=given, prog_name="chatloom")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0
