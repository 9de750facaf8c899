"""What a launcher (torchrun) says in the environment, read without loading torch."""

from __future__ import annotations

import os


def launched() -> bool:
    """Whether torchrun (or another launcher with its variables) started this process."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= set(os.environ)


def world_size() -> int:
    """How many processes were started; 1 without a launcher."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def rank() -> int:
    """Number of this process among all, from 0; 0 without a launcher."""
    return int(os.environ["RANK"]) if launched() else 0


def local_rank() -> int:
    """Number of this process on its machine, which is also that of its accelerator; 0 without a launcher."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def restarts() -> int:
    """How often torchrun has restarted this job (--max-restarts)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
