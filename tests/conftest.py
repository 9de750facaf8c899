"""Fixtures shared by all tests."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from toys import World

sys.path.insert(0, str(Path(__file__).parent))  # for modules that tests share; tests are not a package


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background of a script: the children that tests interrupt would inherit the deafness.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data kept outside the repository; tests that want it skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared data folder is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Every stage run once on a tiny corpus, in one folder for all workers; see `toys.py`."""
    from toys import INPUTS, World

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if base.name.startswith("popen-") else base) / "toy-world"
    folder.mkdir(exist_ok=True)
    made = World(folder)
    for name in INPUTS:  # at once, so that none is made while a test has replaced some function
        made[name]
    return made
