"""Hashes of outside files, remembered in the run's folder: what has not changed is not read again by every plan.

A file counts as unchanged while its path, size, time of change and inode are the same. One that was changed less than
two seconds before it was hashed is not remembered, since a second change might leave all of these as they are (git's
index has the same rule). What is remembered saves time only: without it, or where it cannot be read, files are hashed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from chatloom import artifact
from chatloom.artifact import ArtifactError

NAME = ".hashes.json"
FORMAT = 1
FRESH_NS = 2_000_000_000

State = tuple[int, int, int]  # size (bytes), time of change (ns), inode


class Hashes:
    """The sha256 of outside files by absolute path; looked up, added to, and written to `folder` by `save` alone."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / NAME
        self._known = _read(self._file)
        self._saved = bool(self._known)

    def content(self, path: Path) -> str:
        """Content hash of a file or folder, as `artifact.sha256_tree` gives it; raises ArtifactError if unreadable."""
        try:
            return artifact.sha256_tree(path, self._of_file)
        except OSError as error:
            raise ArtifactError(
                f"{error.filename or path}: cannot be read ({error.strerror}); give the right to read it, or mend it"
            ) from error

    def _of_file(self, path: Path) -> str:
        name, before, begun = str(path.absolute()), _state(path), time.time_ns()
        state, sha256 = self._known.get(name, (None, ""))
        if state == before:
            return sha256
        sha256 = artifact.sha256_file(path)
        if before == _state(path) and before[1] < begun - FRESH_NS:
            self._known[name] = before, sha256
            self._saved = False
        return sha256

    def save(self) -> None:
        """Write what is remembered, in one rename; where that is not possible, later plans take longer."""
        if not self._known or (self._saved and self._file.is_file()):
            return
        files = {name: [*state, sha256] for name, (state, sha256) in sorted(self._known.items())}
        temporary = self._file.with_name(f"{NAME}.{os.getpid()}.tmp")  # another run may be writing its own
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps({"format": FORMAT, "files": files}), encoding="utf-8")
            os.replace(temporary, self._file)
            self._saved = True
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def of_run(folder: Path) -> Hashes:
    """The hashes remembered in a run's folder; in one process always the same, so that `run` knows what `plan` read."""
    return _of_folder(folder.absolute())


@lru_cache(maxsize=64)
def _of_folder(folder: Path) -> Hashes:
    return Hashes(folder)


def _state(path: Path) -> State:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


def _read(file: Path) -> dict[str, tuple[State, str]]:
    """What an earlier run wrote; nothing where any of it is not as `save` writes it."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            return {}
        return {str(name): _entry(*entry) for name, entry in values["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _entry(size: Any, changed: Any, inode: Any, sha256: Any) -> tuple[State, str]:
    if not (type(size) is type(changed) is type(inode) is int and re.fullmatch("[0-9a-f]{64}", sha256)):
        raise ValueError("not an entry")
    return (size, changed, inode), sha256
