"""The fault matrix, disks: full, read-only, forbidden, files that may not grow; and the folder for temporary files."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench import IDENTICAL, STOP, Bench

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

# A root user without the right to pass over permissions; of anybody else nothing needs to be taken.
PLAIN_RIGHTS = ["setpriv", "--inh-caps=-all", "--bounding-set=-dac_override,-dac_read_search"]
# Who finds the disk full, and when: others fill it in the middle of the work.
FILLED = {
    "documents": ("worker", 8),
    "labels": ("worker", 8),
    "duplicates": ("worker", 20),
    "selection": ("driver", 12),
    "tokenizer": ("driver", 8),
    "tokens": ("driver", 8),
}


@pytest.fixture
def small_disk(bench: Bench) -> Iterator[Path]:
    """A file system of 16 MB at the run's folder."""
    folder = bench.folder / "run"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("stage", FILLED)
def test_disk_full(bench: Bench, small_disk: Path, stage: str) -> None:
    bench.row("disk full in the middle of the work", stage, STOP)
    role, number = FILLED[stage]
    filler = small_disk / "filler"
    ended = bench.run(stage, fault=bench.fault(role, f"fill {filler}", number=number))
    bench.happened(1)
    bench.prove(shutil.disk_usage(small_disk).free < 65536, "the disk is full")
    bench.stopped(ended, stage, "No space left on device|disk is full", "run the same command")
    filler.unlink()
    bench.again(stage)


def test_disk_too_small(bench: Bench, small_disk: Path) -> None:
    bench.row("disk full before the start", "documents", STOP)
    with open(small_disk / "filler", "wb") as file, contextlib.suppress(OSError):
        file.write(bytes(16 << 20))
    bench.prove(shutil.disk_usage(small_disk).free < 65536, "the disk is full")
    bench.stopped(bench.run("documents"), "documents", "needs about", "make room", code=2)
    (small_disk / "filler").unlink()
    bench.again("documents")


@pytest.mark.parametrize("stage", ["labels", "tokens"])
def test_files_may_not_grow(bench: Bench, stage: str) -> None:
    bench.row("limit on the size of a file (quota)", stage, STOP)
    limit = 4096
    ended = bench.run(stage, before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    bench.prove(any(file.stat().st_size > limit for file in (bench.whole / stage).rglob("*")), "it needs longer files")
    bench.stopped(ended, stage, "File too large|disk is full", "run the same command")
    bench.again(stage)


@pytest.mark.parametrize("stage", ["documents", "tokens"])
def test_folder_is_read_only(bench: Bench, stage: str) -> None:
    bench.row("run's folder is read-only", stage, STOP)
    folder = bench.target(stage).parent
    folder.mkdir(parents=True)
    folder.chmod(0o555)
    bench.prove(subprocess.run([*plain_rights(), "touch", str(folder / "x")], check=False).returncode, "it is")
    ended = bench.run(stage, wrap=plain_rights())
    bench.stopped(ended, stage, "cannot be written to", "--out", code=2)
    folder.chmod(0o755)
    bench.again(stage, wrap=plain_rights())


def test_partial_folder_becomes_read_only(bench: Bench) -> None:
    bench.row("half-done folder becomes read-only", "documents", STOP)
    ended = bench.run("documents", fault=bench.fault("driver", "power-cut", number=30))
    bench.happened(1)
    assert ended.code < 0
    folders = [bench.partial("documents"), *(item for item in bench.partial("documents").rglob("*") if item.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    bench.stopped(bench.run("documents", wrap=plain_rights()), "documents", "Permission denied", "give the right")
    for folder in folders:
        folder.chmod(0o755)
    bench.again("documents")


@pytest.mark.parametrize("name", ["talks.jsonl", "pages"])
def test_source_may_not_be_read(bench: Bench, name: str) -> None:
    bench.row(f"{'folder among the sources' if name == 'pages' else 'source'} may not be read", "documents", STOP)
    sources = bench.folder / "sources"
    shutil.copytree(bench.whole / "sources", sources)
    mode = (sources / name).stat().st_mode
    (sources / name).chmod(0)
    bench.prove(subprocess.run([*plain_rights(), "test", "-r", sources / name], check=False).returncode, "it is so")
    inputs = {"pages": sources}
    bench.stopped(bench.run("documents", wrap=plain_rights(), inputs=inputs), "documents", name, "give the right")
    (sources / name).chmod(mode)
    bench.again("documents", inputs=inputs)


@pytest.mark.parametrize("stage", ["documents", "duplicates"])
def test_no_folder_for_temporary_files(bench: Bench, stage: str) -> None:
    bench.row("TMPDIR, TMP and HOME lead nowhere", stage, IDENTICAL)
    nowhere = "/dev/null/nowhere"
    environment = {"TMPDIR": nowhere, "TMP": nowhere, "HOME": nowhere, "XDG_CACHE_HOME": nowhere}
    ended = bench.run(stage, environment=environment)
    bench.prove(not os.path.exists(nowhere), "the folder is not there and cannot be made")
    bench.identical(ended, stage)


@pytest.mark.parametrize("stage", ["duplicates"])
def test_few_files_may_be_open(bench: Bench, stage: str) -> None:
    bench.row("at most 40 open files", stage, IDENTICAL)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))

    told = subprocess.run(["sh", "-c", "ulimit -n"], preexec_fn=limit, stdout=subprocess.PIPE, check=True).stdout
    bench.prove(int(told) == 40, "no more may be open")
    bench.identical(bench.run(stage, before=limit), stage)


@pytest.mark.parametrize("stage", ["documents", "labels"])
def test_memory_limit_of_workers(bench: Bench, stage: str) -> None:
    bench.row("workers' memory limit (engine.gigabytes) far too low", stage, STOP)
    ended = bench.run(stage, engine={"workers": 2, "gigabytes": 0.05})
    bench.prove(ended.code, "it is too low")
    bench.stopped(ended, stage, "memory", "gigabytes")
    bench.again(stage)


@pytest.mark.parametrize("stage", ["tokens", "selection"])
def test_memory_limit_of_the_driver(bench: Bench, stage: str) -> None:
    bench.row("driver allocates without end (4 GB allowed)", stage, STOP)
    limit = 4 << 30
    ended = bench.run(
        stage,
        fault=bench.fault("driver", "memory", number=8),
        before=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    bench.happened(1)
    bench.stopped(ended, stage, "memory")
    bench.again(stage)


def plain_rights() -> list[str]:
    """What to put before a command so that permissions hold for it."""
    if os.geteuid():
        return []
    if not shutil.which("setpriv"):
        pytest.skip("setpriv (util-linux) is not installed, and root passes over permissions")
    return PLAIN_RIGHTS
