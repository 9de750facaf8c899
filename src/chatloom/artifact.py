"""Artifact folders: what every stage reads and writes.

An artifact is a folder with `artifact.json`, written last. While it is made it is called `name.partial`; one rename
makes it exist. A folder without a valid manifest does not exist for readers, so a kill at any moment leaves either
the old state or the new one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from chatloom.errors import ChatloomError
from chatloom.settings import difference, digest

MANIFEST = "artifact.json"
DRAFT = "draft.json"
FORMAT = 1
KINDS = (
    "documents", "labels", "duplicates", "selection", "ngram-model", "quality-model", "vocabulary", "tokens",
    "conversations", "preferences", "rollouts", "model", "reward-model", "checkpoint", "evaluation", "report",
)  # fmt: skip


class ArtifactError(ChatloomError):
    """A folder that is not the artifact it should be."""


class NewerFormat(ArtifactError):
    """An artifact that only a newer chatloom can read."""


@dataclass(frozen=True)
class Artifact:
    """A complete artifact: its folder and what its manifest says."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Folder name."""
        return self.path.name

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return str(self.manifest["kind"])

    @property
    def fingerprint(self) -> str:
        """16 hex digits that stand for stage, settings, parents and outside data."""
        return str(self.manifest["fingerprint"])

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Numbers the stage reported."""
        return dict(self.manifest["metrics"])

    def file(self, name: str) -> Path:
        """Path of a file of this artifact; raises ArtifactError naming what is there when it is missing."""
        path = self.path / name
        if not path.exists():
            raise ArtifactError(
                f"{self.path}: has no `{name}`; it holds {', '.join(sorted(self.manifest['files'])[:8])}"
            )
        return path


@dataclass(frozen=True)
class Identity:
    """All that decides what an artifact contains; `fingerprint` is its hash.

    `parents` maps input names to fingerprints, `data` maps outside files to content hashes (never absolute paths).
    """

    kind: str
    stage: str
    stage_version: int
    settings: Mapping[str, Any]
    seed: int
    parents: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "kind": self.kind,
            "stage": self.stage,
            "stage_version": self.stage_version,
            "settings": dict(self.settings),
            "seed": self.seed,
            "parents": dict(self.parents),
            "data": dict(self.data),
        }

    @property
    def fingerprint(self) -> str:
        """16 hex digits."""
        return digest(self.values())[:16]


def exists(path: Path) -> bool:
    """Whether a folder holds a readable manifest."""
    try:
        read_manifest(path)
    except ArtifactError:
        return False
    return True


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of an artifact folder; raises ArtifactError when there is none or it is not valid."""
    file = path / MANIFEST
    if not file.is_file():
        if partial_of(path).is_dir():
            raise ArtifactError(f"{path}: not finished yet; run the same command again to go on")
        raise ArtifactError(f"{path}: no artifact here (no {MANIFEST}); give the folder that a stage wrote")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(manifest, dict):
            raise ValueError("not an object")
        missing = {"format", "kind", "fingerprint", "files", "metrics"} - set(manifest)
        if missing:
            raise ValueError(f"lacks {', '.join(sorted(missing))}")
    except ValueError as error:
        raise ArtifactError(f"{file}: not a valid manifest ({error})") from None
    if manifest["format"] > FORMAT:
        raise NewerFormat(f"{file}: written by a newer chatloom (format {manifest['format']}); upgrade chatloom")
    return manifest


def load(path: Path, *kinds: str, verify: bool = False) -> Artifact:
    """Open an artifact; raises ArtifactError when missing, of another kind, or (with `verify`) damaged.

    Sizes are always compared with the manifest; `verify` also compares every sha256.
    """
    manifest = read_manifest(path)
    if kinds and manifest["kind"] not in kinds:
        raise ArtifactError(f"{path}: is a {manifest['kind']} artifact, expected {' or '.join(kinds)}")
    for name, entry in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise ArtifactError(f"{path}: `{name}` is missing; make the artifact again")
        if file.stat().st_size != entry["bytes"]:
            raise ArtifactError(f"{file}: has {file.stat().st_size} bytes, the manifest says {entry['bytes']}")
    found = Artifact(path, manifest)
    return verified(found) if verify else found


def verified(found: Artifact) -> Artifact:
    """The same artifact, once every file's sha256 is as its manifest says; raises ArtifactError for one that is not."""
    for name, entry in found.manifest["files"].items():
        if sha256_file(found.path / name) != entry["sha256"]:
            raise ArtifactError(
                f"{found.path / name}: content differs from the manifest's sha256; the file was changed or damaged: "
                "make the artifact again"
            )
    return found


def partial_of(path: Path) -> Path:
    """Where an artifact is while it is being made."""
    return path.with_name(path.name + ".partial")


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in pieces of 1 MiB."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            state.update(piece)
    return state.hexdigest()


def sha256_tree(path: Path, hash_file: Callable[[Path], str] = sha256_file) -> str:
    """Content hash of a file, or of a folder's files by relative name; independent of where the folder lies."""
    if path.is_file():
        return hash_file(path)
    names = sorted(item.relative_to(path).as_posix() for item in path.rglob("*") if item.is_file())
    return digest([[name, hash_file(path / name)] for name in names])


def fsync_file(path: Path) -> None:
    """Flush a file, or a folder's entry table, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error of writing says that there is no room: no space, quota, limit of a file's size."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    # safetensors and arrow raise errors of their own with the system's sentence in them.
    return any(os.strerror(code) in str(error) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


def write_json(path: Path, value: Any) -> None:
    """Write JSON to a temporary name, flush, rename."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, indent=1, sort_keys=True)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def versions() -> dict[str, str]:
    """Versions of what decides numbers: chatloom, Python and the libraries installed."""
    found = {"python": platform.python_version()}
    for name in ("chatloom", "torch", "numpy", "tokenizers", "safetensors", "pyarrow"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the right to write `path`; raises ArtifactError when another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_name(f".{path.name}.lock")
    with file.open("a+", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            handle.seek(0)
            owner = handle.read().strip() or "unknown"
            raise ArtifactError(
                f"{path}: another process ({owner}) is writing it; wait for it, or end it and run again"
            ) from None
        handle.seek(0)
        handle.truncate()
        handle.write(f"pid {os.getpid()} on {platform.node()}")
        handle.flush()
        yield


@dataclass
class Draft:
    """An artifact being made; write files below `path`, then `commit`."""

    target: Path
    path: Path
    identity: Identity
    extra: dict[str, Any]
    resumed: bool
    started: float = field(default_factory=time.time)

    def spoil(self, data: Mapping[str, str]) -> None:
        """Note that what was made is of other outside `data` than was planned, so that no later run goes on with it."""
        values = self.identity.values()
        write_json(self.path / DRAFT, {**values, "data": {**values["data"], **data}})

    def commit(self, metrics: Mapping[str, Any], **manifest: Any) -> Artifact:
        """Flush every file, write the manifest last, rename; moves an older artifact of that name to `name@hash`."""
        values = {
            **self.extra,
            **self.identity.values(),
            "format": FORMAT,
            "fingerprint": self.identity.fingerprint,
            "versions": versions(),
            "metrics": dict(metrics),
            "started": self.started,
            "finished": time.time(),
            **manifest,
        }
        return commit_folder(self.path, self.target, values)


def commit_folder(partial: Path, target: Path, manifest: Mapping[str, Any]) -> Artifact:
    """Turn a partial folder into an artifact: fsync files, write the manifest, fsync folders, rename."""
    files: dict[str, Any] = {}
    for name in (MANIFEST, DRAFT):
        (partial / f"{name}.tmp").unlink(missing_ok=True)  # left by a kill inside `write_json`
    for file in sorted(partial.rglob("*")):
        if file.is_file() and file.name not in (MANIFEST, DRAFT):
            fsync_file(file)
            name = file.relative_to(partial).as_posix()
            files[name] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
    for folder in sorted(item for item in partial.rglob("*") if item.is_dir()):
        fsync_file(folder)
    write_json(partial / MANIFEST, {**manifest, "files": files})
    # Only now: without manifest and draft nothing would tell for which settings a half-done folder was made.
    (partial / DRAFT).unlink(missing_ok=True)
    fsync_file(partial)
    return _rename(partial, target)


def _rename(partial: Path, target: Path) -> Artifact:
    if target.exists():
        old = read_manifest(target)["fingerprint"] if exists(target) else "unfinished"
        aside = target.with_name(f"{target.name}@{old[:8]}")
        if aside.exists():
            shutil.rmtree(aside)
        os.rename(target, aside)
    os.rename(partial, target)
    fsync_file(target.parent)
    return Artifact(target, read_manifest(target))


def begin(
    target: Path, identity: Identity, *, start_over: bool = False, extra: Mapping[str, Any] | None = None
) -> Artifact | Draft:
    """Start or go on with an artifact; returns the finished one when it is already there with the same fingerprint.

    Call it while holding `locked(target)`. A partial folder with other settings is refused with the difference,
    unless `start_over`. A commit that was cut off between manifest and rename is finished here.
    """
    if exists(target) and read_manifest(target)["fingerprint"] == identity.fingerprint and not start_over:
        return load(target)
    partial = partial_of(target)
    if start_over and partial.exists():
        shutil.rmtree(partial)
    resumed = partial.is_dir()
    if resumed:
        if exists(partial) and read_manifest(partial)["fingerprint"] == identity.fingerprint:
            return _rename(partial, target)
        _refuse_other_settings(partial, target, identity)
    partial.mkdir(parents=True, exist_ok=True)
    write_json(partial / DRAFT, identity.values())
    return Draft(target, partial, identity, dict(extra or {}), resumed)


def half_done(target: Path) -> Mapping[str, Any] | None:
    """The identity that a half-done (or not yet renamed) artifact was begun with; None when nothing tells."""
    partial = partial_of(target)
    for file in (partial / DRAFT, partial / MANIFEST):
        try:
            old = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(old, dict):
            return {key: old.get(key) for key in Identity.__dataclass_fields__}
    return None


def _refuse_other_settings(partial: Path, target: Path, identity: Identity) -> None:
    old = half_done(target)
    if old is None:
        # The draft is the first file of a folder, so one without it was left by a kill before any work.
        shutil.rmtree(partial)
        return
    lines = difference(old, identity.values())
    if lines:
        raise ArtifactError(
            f"{target}: half done with other settings:\n  "
            + "\n  ".join(lines)
            + "\nGo back to the old settings to go on with it, or use --start-over to drop what was done."
        )
