"""Renders pydoc's HTML pages; run as a script in a child interpreter, so that no module's import touches the parent.

    python -s -P -S -X utf8 pydoc_child.py FOLDER        (allow-list as a JSON list of names on stdin)

Importing a module runs its code, so this happens in a process of its own that can be killed. Standard library only.
For each module one JSON line goes to the original stdout: {"begin": name}, then {"done": name, "bytes": n} or
{"failed": name, "reason": text}. What modules print themselves goes to stderr.
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import os
import pydoc
import re
import sys
import tempfile
import warnings
from typing import Any

# Module values that describe the machine or this very process, not the library. Their names stay, their values go.
MACHINE_VALUES = {
    "gc": {"garbage"},
    "linecache": {"cache"},
    "mimetypes": {"knownfiles"},
    "os": {"environ", "environb"},
    "platform": {"_uname_cache"},
    "pydoc": {"pager"},
    "site": {"PREFIXES", "USER_BASE", "USER_SITE", "ENABLE_USER_SITE"},
    "sys": {
        "__stderr__", "__stdin__", "__stdout__", "_base_executable", "_framework", "_git", "_stdlib_dir",
        "abiflags", "argv", "base_exec_prefix", "base_prefix", "builtin_module_names", "copyright", "exec_prefix",
        "executable", "flags", "implementation", "meta_path", "modules", "orig_argv", "path", "path_hooks",
        "path_importer_cache", "prefix", "pycache_prefix", "stderr", "stdin", "stdout", "thread_info", "version",
        "warnoptions",
    },
    "tempfile": {"tempdir"},
    "time": {"altzone", "daylight", "timezone", "tzname"},
    "warnings": {"filters"},
    "zoneinfo": {"TZPATH"},
}  # fmt: skip
SPACE = r"(?:\s|&nbsp;)"
ADDRESS = re.compile(rf"({SPACE}at{SPACE})0x[0-9a-fA-F]+|({SPACE}handle{SPACE})[0-9a-fA-F]+")
# Roots that every machine of the kind has: they give nobody away, and replacing them would damage documentation.
COMMON_PATHS = {"", "/", "/usr", "/usr/bin", "/usr/local", "/usr/local/bin", "/bin", "/tmp", "/var", "/home", "/root"}


def machine_paths() -> list[str]:
    """Folders of this machine that must not appear in a page, longest first."""
    found = {sys.prefix, sys.base_prefix, sys.exec_prefix, os.path.dirname(sys.executable), os.getcwd()}
    found |= {os.path.dirname(os.__file__), os.path.expanduser("~"), tempfile.gettempdir()}
    found |= {os.path.dirname(os.path.abspath(__file__))}
    found |= {os.path.realpath(path) for path in found}
    return sorted(found - COMMON_PATHS, key=lambda path: (-len(path), path))


def scrub(page: str, paths: list[str]) -> str:
    """Page without memory addresses, without the given paths, and with one name for the interpreter that renders it."""
    page = page.replace(sys.executable, ".../python")  # `python`, `python3` and `python3.11` are the same one
    page = ADDRESS.sub(lambda found: (found[1] or found[2]) + "0x...", page)
    for path in paths:
        # Only a whole path: after it comes a separator or the end of a word.
        page = re.sub(re.escape(path) + r"(?![\w.-])", "...", page)
    return page


class PageWriter(pydoc.HTMLDoc):
    """pydoc's own renderer without links to this machine's files and without values that are not documentation."""

    module_name = ""

    def docmodule(self, object: Any, name: Any = None, mod: Any = None, *ignored: Any) -> str:  # noqa: ARG002
        self.module_name = object.__name__
        return super().docmodule(object, name, mod)

    def docother(self, object: Any, name: Any = None, mod: Any = None, *ignored: Any) -> str:  # noqa: ARG002
        # pydoc passes no `mod` for a module's own values, and passes it for values inside classes.
        if mod is None and name in MACHINE_VALUES.get(self.module_name, ()):
            return f"<strong>{self.escape(str(name))}</strong>"
        return super().docother(object, name, mod)

    def heading(self, title: str, extras: str = "") -> str:  # noqa: ARG002
        return super().heading(title, "")  # `extras` holds the index link, the file's path and a version-bound link

    def filelink(self, url: str, path: str) -> str:  # noqa: ARG002
        return ""


def document(writer: PageWriter, module: Any, name: str) -> str:
    """The page's body under the name that was asked for: pydoc heads `os.path` with `posixpath`."""
    own_name = module.__name__
    module.__name__ = name
    try:
        return writer.document(module, name)
    finally:
        module.__name__ = own_name


def remembered(getdoc: Any) -> Any:
    """`pydoc.getdoc` that looks once for what a method says: it stands on the page of every class that inherits it."""
    known: dict[int, tuple[Any, str]] = {}

    @functools.wraps(getdoc)  # the page of pydoc itself shows it
    def wrapper(object: Any) -> str:
        if id(object) not in known:
            known[id(object)] = object, getdoc(object)  # held, so that no other object gets its id
        return known[id(object)][1]

    return wrapper


def main() -> None:
    """Render every module named on stdin into the folder given as the only argument."""
    folder = sys.argv[1]
    report = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a module prints on import must not mix with the report
    names = json.loads(sys.stdin.read())
    warnings.simplefilter("ignore")
    gc.disable()  # a tenth of the time, and the process ends soon
    pydoc.getdoc = remembered(pydoc.getdoc)
    writer, paths = PageWriter(), machine_paths()

    def say(**fields: Any) -> None:
        report.write(json.dumps(fields) + "\n")
        report.flush()

    for name in names:
        say(begin=name)
        try:
            page = scrub(writer.page(name, document(writer, importlib.import_module(name), name)), paths)
            data = page.encode("utf-8", "backslashreplace")
            target = os.path.join(folder, name + ".html")
            with open(target + ".partial", "wb") as file:
                file.write(data)
            os.replace(target + ".partial", target)
        except BaseException as error:  # an import may raise anything, SystemExit too
            say(failed=name, reason=f"{type(error).__name__}: {error}")
        else:
            say(done=name, bytes=len(data))


if __name__ == "__main__":
    main()
