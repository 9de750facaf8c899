"""Toy tasks of corpus steps, in a module of their own so that worker processes find them by name."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chatloom.corpus.engine.steps import Step, Task

TESTS = str(Path(__file__).parent)


def count_words(arguments: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """A toy of a task: one file with the number of words, and a log of who ran."""
    if log := arguments.get("log"):
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{arguments['key']}\n")
    words = len(str(arguments["text"]).split())
    (folder / "words").mkdir()
    (folder / "words" / f"{arguments['key']}.json").write_text(json.dumps(words), encoding="utf-8")
    return {"words": words}


def die_once(arguments: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """Dies the hard way unless it is done carefully."""
    if arguments["key"] == "b" and not arguments.get("careful"):
        os.kill(os.getpid(), signal.SIGKILL)
    return count_words(arguments, folder)


def hang(arguments: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """Never ends for one key."""
    while arguments["key"] == "b":
        time.sleep(0.05)
    return count_words(arguments, folder)


def eat_memory(arguments: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """Wants 64 GB."""
    return {"bytes": len(bytearray(64 << 30))}


def tell_process(arguments: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """Writes which process it runs in."""
    (folder / f"{arguments['key']}.txt").write_text(str(os.getpid()), encoding="utf-8")
    return {}


def refuse(arguments: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """Raises for one key."""
    if arguments["key"] == "b":
        raise ValueError("b will not do")
    return count_words(arguments, folder)


def step(folder: Path, function: str = "count_words", keys: str = "abcd", **more: Any) -> Step:
    tasks = [
        Task(k, f"toy_tasks:{function}", {"key": k, "text": "one two " * (i + 1), **more}) for i, k in enumerate(keys)
    ]
    return Step("toy", folder, tasks)


def files(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and "receipts" not in p.parts
    }
