"""A small real vocabulary and real documentation pages, made once for all tests of the room."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from chatloom.corpus.extraction.extract import extract
from chatloom.corpus.extraction.pydoc_pages import render
from chatloom.dialogue.documentation import DocumentationSettings, Sets, write_sets
from chatloom.tokens.vocabulary import Vocabulary

MODULES = (
    "abc argparse array base64 bisect calendar collections colorsys configparser contextlib copy csv datetime difflib "
    "fnmatch functools getpass glob gzip hashlib heapq html inspect io ipaddress itertools json keyword linecache "
    "locale math mimetypes operator os pathlib platform plistlib posixpath pprint queue random secrets shlex shutil "
    "statistics string subprocess tempfile textwrap threading time uuid weakref zipfile zlib"
)


@dataclass(frozen=True)
class Page:
    """What the question writer needs of a document."""

    id: str
    text: str


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    texts = [
        "What does `textwrap.dedent` do? Remove any common leading whitespace from every line in `text`.\n",
        "`os.path` 是做什么的？官方说明：它处理路径。请解释一下这个函数的作用。\n",
    ]
    return Vocabulary.train(texts * 20, 400, allow_smaller=True)


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Page]:
    folder = tmp_path_factory.mktemp("pydoc")
    render(folder, tuple(MODULES.split(" ")))
    return [Page(f"pydoc/{file.name}", extract(file.read_bytes(), "blocks").text) for file in _html(folder)]


def _html(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.html"))


SETTINGS = DocumentationSettings(
    n_facts=80, heldout_facts=12, test_invented=40, test_multi_turn=20, questions_per_fact=5, pairs_per_fact=6, seed=3
)


@pytest.fixture(scope="session")
def settings() -> DocumentationSettings:
    return SETTINGS


@pytest.fixture(scope="session")
def sets(pages: list[Page]) -> Sets:
    return write_sets(pages, SETTINGS)
