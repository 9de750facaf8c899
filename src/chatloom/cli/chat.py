"""`chatloom chat MODEL`: talk to a model, token by token, on the terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from chatloom import artifact
from chatloom.cli import frame
from chatloom.cli.frame import complain, console
from chatloom.errors import ChatloomError

_HELP = "/clear forgets what was said, /quit (or Ctrl-D) leaves, Ctrl-C stops a reply."


def register(app: typer.Typer) -> None:
    """Add the command."""
    frame.register(app, chat, "chat", "Results")


def chat(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder: a stage's artifact or a checkpoint.")],
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Ask this, print the reply, leave.")] = None,
    system: Annotated[str | None, typer.Option("--system", help="System message.")] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest reply, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0: always the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of sampling, where the temperature is above 0.")] = 0,
) -> None:
    """Talk to a chat model; the same seed and words give the same reply."""
    from chatloom import api

    _check_is_model(model)
    opening = [{"role": "system", "content": system}] if system else []
    talker = api.load_chat(model)

    def reply(messages: list[dict[str, str]]) -> Iterator[str]:
        return iter(
            talker.stream(
                messages, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed + len(messages) // 2
            )
        )

    if prompt is not None:
        _say(reply([*opening, {"role": "user", "content": prompt}]))
        return
    console(error=True).print(f"{model}: {_HELP}", markup=False, style="dim")
    _converse(opening, reply)


def _check_is_model(folder: Path) -> None:
    """Say of a folder without a model what it is, or where a model lies near it; the rest is for the loader to say."""
    if (folder / "config.json").is_file():
        return
    if artifact.exists(folder):
        kind = artifact.read_manifest(folder)["kind"]
        raise ChatloomError(f"{folder}: is an artifact of kind `{kind}`, not a chat model")
    near = frame.inside(folder, chat=True)
    if near or folder.is_dir():
        raise ChatloomError(f"{folder}: holds no model (no config.json){near}")


def _converse(opening: list[dict[str, str]], reply: Any) -> None:
    messages = list(opening)
    while True:
        try:
            line = _ask()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if line in ("/quit", "/exit"):
            return
        if line == "/clear":
            messages = list(opening)
            console(error=True).print("forgotten", style="dim")
        elif line.startswith("/"):
            console(error=True).print(f"there is no command {line}; {_HELP}", markup=False, style="dim")
        elif line:
            asked = [*messages, {"role": "user", "content": line}]
            try:
                text = _say(reply(asked))
            except ChatloomError as error:
                complain(str(error))  # the conversation may have grown too long; it can be cleared
                continue
            messages = [*asked, {"role": "assistant", "content": text}]


def _ask() -> str:
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (line editing and history, where the platform has it)
        return input("> ").strip()
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.strip()


def _say(pieces: Iterator[str]) -> str:
    """Print pieces as they come; Ctrl-C ends the reply, not the program. Returns the whole text."""
    text = ""
    try:
        for piece in pieces:
            text += piece
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        text = text or "..."
    sys.stdout.write("\n")
    return text
