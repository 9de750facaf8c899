"""Several processes of one run, on this machine, over gloo: what tests start and compare.

found = results(folder, 2, ["replicate", "zero3"])     # runs the cases of parallel_cases.py once, in two processes
found["zero3"][1]                                      # what the second process returned
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SECONDS = 120


def environments(n: int) -> list[dict[str, str]]:
    """What torchrun would set for each of n processes."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(n)}
    shared["OMP_NUM_THREADS"] = "1"
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(n)]


def start(n: int, command: Sequence[str], **options: Any) -> list[subprocess.Popen[str]]:
    """n processes of a command, started as torchrun would; their output is kept."""
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8", **options}
    return [subprocess.Popen(list(command), env=env, **how) for env in environments(n)]


def ends_of(processes: Sequence[subprocess.Popen[str]], seconds: float = SECONDS) -> list[str]:
    """What each has printed, when all have ended; those that have not after some time are killed."""
    try:
        return [process.communicate(timeout=seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()


def results(folder: Path, n: int, cases: Sequence[str]) -> dict[str, list[Any]]:
    """What each case returned in each process; run once for all workers of pytest that share `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".running").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        files = [folder / f"rank-{rank}.json" for rank in range(n)]
        if not all(file.is_file() for file in files):
            command = [sys.executable, str(HERE / "parallel_cases.py"), str(folder), *cases]
            processes = start(n, command)
            texts = ends_of(processes)
            assert all(process.returncode == 0 for process in processes), "\n".join(texts)
    found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return {case: [one[case] for one in found] for case in cases}
