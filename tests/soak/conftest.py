"""Fixtures of the fault matrix."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from bench import Bench

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sources, and every stage of the chapter run on them undisturbed."""
    import small_crawl
    from bench import STAGES, Bench

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if base.name.startswith("popen-") else base) / "small-crawl"
    folder.mkdir(exist_ok=True)
    maker = Bench(folder, folder, lambda name, value: None)
    with (folder / ".making").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several workers of pytest-xdist share the folder
        if not (folder / "sources").exists():
            small_crawl.write(folder / "sources")
        for stage in STAGES:
            command = maker.command(stage)
            command[-1] = str(folder / stage)
            subprocess.run(command, check=True, env=maker.environment(), capture_output=True)
    return folder


@pytest.fixture
def bench(
    whole: Path, tmp_path: Path, record_property: Callable[[str, object], None], request: pytest.FixtureRequest
) -> Iterator[Bench]:
    """A folder for one fault; at the end, whether the row counts."""
    from bench import Bench

    found = Bench(whole, tmp_path, record_property)
    yield found
    if not getattr(request.node, "failed", False):
        found.finish()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Tell the fixture whether its test has failed: an error of the row itself would only hide that."""
    report = yield
    if report.when == "call":
        item.failed = not report.passed  # type: ignore[attr-defined]
    return report
