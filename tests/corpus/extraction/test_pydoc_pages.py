"""The demo's input: the pages of pydoc, from an allow-list, the same bytes for everybody."""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

import pytest

from chatloom.corpus.extraction import pydoc_child, pydoc_pages
from chatloom.corpus.extraction.pydoc_pages import MODULES, render
from chatloom.errors import ChatloomError

LEAKS = re.compile(rb"href=.file:|at(&nbsp;| )0x[0-9a-f]{6,}")


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_all_pages_are_rendered_and_hold_the_promised_amount_of_documentation(tmp_path: Path) -> None:
    rendering = render(tmp_path)
    assert len(rendering.pages) >= 190
    assert rendering.html_bytes >= 7_500_000
    described = [page.read_bytes().count(b"</dt><dd><span") for page in rendering.pages]
    assert sum(described) >= 4000
    assert [page.stem for page in rendering.pages] == [name for name in MODULES if name not in rendering.skipped]
    homes = [str(Path.home()).encode(), sys.prefix.encode(), sys.base_prefix.encode(), b"PYTHONHASHSEED", b"chatloom"]
    homes = [home for home in homes if home not in (b"/", b"/root", b"/usr")]
    for page in rendering.pages:
        data = page.read_bytes()
        assert not LEAKS.search(data), page.name
        assert not [home for home in homes if home in data], page.name
    assert not list(tmp_path.glob("*.partial"))


def test_nothing_that_acts_on_import_is_on_the_list() -> None:
    acting = {"antigravity", "this", "idlelib", "turtledemo", "turtle", "tkinter", "test", "lib2to3", "__main__"}
    assert not [name for name in MODULES if name.split(".")[0] in acting]
    assert len(set(MODULES)) == len(MODULES)


def test_the_bytes_do_not_depend_on_who_renders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("os", "platform", "sys", "time", "ctypes", "tempfile", "mimetypes", "keyword", "site", "pdb")
    render(tmp_path / "one", names)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("HOME", str(elsewhere))
    monkeypatch.setenv("TZ", "Asia/Shanghai")
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    monkeypatch.setenv("SECRET_KEY", "do-not-show-this")
    monkeypatch.chdir(elsewhere)
    interpreter = Path(sys.executable)
    other = next(
        path for path in sorted(interpreter.parent.glob("python3*")) if path.name[6:].replace(".", "").isdigit()
    )
    monkeypatch.setattr(
        sys, "executable", str(other if other.name != interpreter.name else interpreter.parent / "python")
    )
    render(tmp_path / "two", names)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert b"do-not-show-this" not in b"".join(path.read_bytes() for path in (tmp_path / "two").iterdir())


def test_a_page_is_headed_by_the_name_it_was_asked_for(pages: Path) -> None:
    assert b"<title>Python: os.path</title>" in (pages / "os.path.html").read_bytes()
    assert b"posixpath</strong>" not in (pages / "os.path.html").read_bytes()


def test_a_module_that_cannot_be_imported_is_named_and_the_others_are_rendered(tmp_path: Path) -> None:
    rendering = render(tmp_path, ("bisect", "no_such_module_here", "heapq"))
    assert [page.name for page in rendering.pages] == ["bisect.html", "heapq.html"]
    assert "ModuleNotFoundError" in rendering.skipped["no_such_module_here"]


@pytest.mark.parametrize("body", ["import time; time.sleep(60)", "import os; os._exit(3)", "raise SystemExit(2)"])
def test_a_module_that_hangs_or_dies_costs_only_its_own_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    # The child script is replaced by one that can import a module of this test's making.
    (tmp_path / "troublesome.py").write_text(body, encoding="utf-8")
    child = tmp_path / "child.py"
    source, folder = Path(pydoc_child.__file__).read_text(encoding="utf-8"), str(tmp_path)
    found_here = f"import importlib\nimport sys\nsys.path.append({folder!r})\n"
    child.write_text(source.replace("import importlib\n", found_here), encoding="utf-8")
    monkeypatch.setattr(pydoc_pages, "CHILD", child)
    rendering = render(tmp_path / "out", ("bisect", "troublesome", "heapq"), module_seconds=2.0)
    assert [page.stem for page in rendering.pages] == ["bisect", "heapq"]
    assert list(rendering.skipped) == ["troublesome"]


def test_no_page_at_all_and_no_time_left_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(ChatloomError, match="rendered none of 1 modules"):
        render(tmp_path, ("no_such_module_here",))
    with pytest.raises(ChatloomError, match="too long"):
        render(tmp_path, ("bisect",), total_seconds=0.0)


def test_a_name_that_would_leave_the_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ChatloomError, match="not a module's name"):
        render(tmp_path, ("../../etc/passwd",))


def test_addresses_and_paths_are_scrubbed_but_documentation_is_not() -> None:
    page = "&lt;object at 0x7f00aa&gt; f(x=<C&nbsp;at&nbsp;0x7f00aa>) /opt/py/lib/x.py /opt/python3 bytes at 0"
    assert pydoc_child.scrub(page, ["/opt/py"]) == (
        "&lt;object at 0x...&gt; f(x=<C&nbsp;at&nbsp;0x...>) .../lib/x.py /opt/python3 bytes at 0"
    )
