"""Pages of pydoc, rendered once, and the measure of what a text kept of them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from chatloom.corpus.extraction import pydoc_pages

SOME_MODULES = (
    "base64", "bisect", "calendar", "csv", "difflib", "errno", "fractions", "functools", "heapq", "itertools", "json",
    "math", "os.path", "posixpath", "random", "re", "shlex", "statistics", "string", "textwrap", "threading", "zlib",
)  # fmt: skip


def load_docstrings() -> ModuleType:
    """The module beside this file; tests are not a package that could be imported from."""
    path = Path(__file__).with_name("docstrings.py")
    spec = importlib.util.spec_from_file_location("corpus_docstrings", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def docstrings() -> ModuleType:
    return load_docstrings()


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pages of SOME_MODULES."""
    folder = tmp_path_factory.mktemp("rendered") / "pages"
    rendering = pydoc_pages.render(folder, SOME_MODULES)
    assert rendering.skipped == {}
    return folder
