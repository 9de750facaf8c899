"""The demo's raw pages: what Python's own `pydoc` renders as HTML for the standard library of the running interpreter.

Every machine that can run chatloom has this input, without a network. The pages are rendered by `pydoc_child.py` in a
child process, from the allow-list below: some modules act when imported (`antigravity` opens a browser, `this`
prints, `idlelib` and `turtledemo` want a screen), so nothing outside the list is ever imported. The child gets an
empty environment and a fixed hash seed, so that the bytes do not depend on who renders them.
"""

from __future__ import annotations

import json
import os
import platform
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from chatloom.errors import ChatloomError

# Modules that Python 3.11 and 3.12 both have and that only define things when imported. A module that this platform
# lacks is reported as skipped. Left out: what PEP 594 removes, internal names, and everything that acts on import.
_MODULES = """
    __future__ abc argparse array ast asyncio atexit base64 bdb binascii bisect builtins bz2 cProfile calendar cmath
    cmd code codecs codeop collections collections.abc colorsys compileall concurrent.futures configparser
    contextlib contextvars copy copyreg csv ctypes ctypes.util curses curses.ascii curses.textpad dataclasses
    datetime dbm dbm.dumb decimal difflib dis doctest email email.generator email.header email.message email.parser
    email.utils ensurepip enum errno faulthandler fcntl filecmp fileinput fnmatch fractions ftplib functools gc
    getopt getpass gettext glob graphlib grp gzip hashlib heapq hmac html html.entities html.parser http http.client
    http.cookiejar http.cookies http.server imaplib importlib importlib.abc importlib.machinery importlib.metadata
    importlib.resources importlib.util inspect io ipaddress itertools json json.decoder json.encoder keyword
    linecache locale logging logging.config logging.handlers lzma mailbox marshal math mimetypes mmap modulefinder
    multiprocessing multiprocessing.connection multiprocessing.managers multiprocessing.pool
    multiprocessing.shared_memory netrc ntpath numbers operator optparse os os.path pathlib pdb pickle pickletools
    pkgutil platform plistlib poplib posixpath pprint profile pstats pwd py_compile pyclbr pydoc queue quopri random
    re readline reprlib resource runpy sched secrets select selectors shelve shlex shutil signal site smtplib socket
    socketserver sqlite3 ssl stat statistics string stringprep struct subprocess symtable sys sysconfig syslog
    tabnanny tarfile tempfile termios textwrap threading time timeit token tokenize tomllib trace traceback
    tracemalloc tty types typing unicodedata unittest unittest.mock urllib.error urllib.parse urllib.request
    urllib.robotparser uuid venv warnings wave weakref webbrowser wsgiref.simple_server wsgiref.util xml.dom.minidom
    xml.etree.ElementTree xml.sax xml.sax.handler xml.sax.saxutils xmlrpc.client zipapp zipfile zipimport zlib
    zoneinfo
    """
MODULES: tuple[str, ...] = tuple(_MODULES.split())
CHILD = Path(__file__).with_name("pydoc_child.py")
RENDERER_VERSION = 2  # raised when the same interpreter would give other pages


@dataclass
class Rendering:
    """What was rendered: pages in the allow-list's order, modules left out with the reason, bytes of HTML."""

    pages: list[Path] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    html_bytes: int = 0


def identity() -> dict[str, str | int]:
    """What the pages' content depends on; part of a fingerprint in place of a hash of files that do not exist yet."""
    return {
        "renderer": RENDERER_VERSION,
        "implementation": platform.python_implementation(),
        "python": platform.python_version(),
        "platform": sys.platform,
    }


def render(
    folder: Path, modules: tuple[str, ...] = MODULES, *, module_seconds: float = 30.0, total_seconds: float = 300.0
) -> Rendering:
    """Render `<module>.html` for each module into `folder`.

    A module that fails to import, or takes longer than `module_seconds`, is skipped and named in the result; the child
    is killed and started again behind a module that hangs. Raises ChatloomError where no page at all could be made, a
    name could leave the folder, or `total_seconds` have passed.
    """
    for name in modules:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ChatloomError(f"corpus: {name!r} is not a module's name; expected names such as 'os.path'")
    folder.mkdir(parents=True, exist_ok=True)
    result, waiting, deadline = Rendering(), list(dict.fromkeys(modules)), time.monotonic() + total_seconds
    while waiting:
        hung = _run_child(folder, waiting, result, module_seconds, deadline)
        if hung is None:
            break
        result.skipped[hung] = f"not rendered within {module_seconds:g} s"
        (folder / f"{hung}.html.partial").unlink(missing_ok=True)
        waiting = waiting[waiting.index(hung) + 1 :]
    if not result.pages:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(result.skipped.items())[:5])
        raise ChatloomError(
            f"corpus: pydoc rendered none of {len(modules)} modules ({reasons or 'the list is empty'}); "
            f"check that {sys.executable} can run `import pydoc`"
        )
    return result


def _run_child(
    folder: Path, waiting: list[str], result: Rendering, module_seconds: float, deadline: float
) -> str | None:
    """One child over `waiting`; returns the module it hung or died on, or None when it went through all of them."""
    # -s -P -S: no user folder, no script folder on the path, no site-packages hooks; PYTHONHASHSEED orders sets' reprs
    # (that is why not -I, which ignores it). Nothing of the user's environment reaches a page.
    command = [sys.executable, "-s", "-P", "-S", "-X", "utf8", str(CHILD), str(folder.resolve())]
    environment = {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "TZ": "UTC", "LC_ALL": "C"}
    environment |= {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH") if name in os.environ}
    with tempfile.TemporaryDirectory() as elsewhere, tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment, cwd=elsewhere,
            start_new_session=True,
        )  # fmt: skip
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(json.dumps(waiting).encode())
            child.stdin.close()
            current = _follow(child, folder, result, module_seconds, deadline)
        except BrokenPipeError:
            current = waiting[0]
        finally:
            _kill(child)
        if current is None:
            return None
        if current == "":
            errors.seek(0)
            said = errors.read().decode("utf-8", "replace").strip()[-500:]
            raise ChatloomError(f"corpus: the interpreter that renders pydoc's pages did not start: {said}")
        return current


def _follow(
    child: subprocess.Popen[bytes], folder: Path, result: Rendering, module_seconds: float, deadline: float
) -> str | None:
    """Read the child's report; the module under way when it fell silent, '' when it never spoke, None when it ended."""
    assert child.stdout is not None
    current, buffer = "", b""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise ChatloomError(
                    f"corpus: rendering pydoc's pages took too long and was stopped at module {current!r} "
                    f"after {len(result.pages)} pages; raise the time limit or shorten the list of modules"
                )
            if not selector.select(min(module_seconds, left)):
                if time.monotonic() < deadline:
                    return current
                continue
            data = os.read(child.stdout.fileno(), 65536)
            if not data:
                return None if child.wait() == 0 else current
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                entry = json.loads(line)
                if "begin" in entry:
                    current = entry["begin"]
                elif "done" in entry:
                    result.pages.append(folder / f"{entry['done']}.html")
                    result.html_bytes += entry["bytes"]
                else:
                    result.skipped[entry["failed"]] = entry["reason"]


def _kill(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    if child.stdout is not None:
        child.stdout.close()
