"""Python runs this file at the start of every process whose PYTHONPATH holds its folder: a fault from inside.

The environment variable SOAK_FAULT is JSON: {"role", "at", "number", "do", "log", "times", "match", "where"}.
In processes of the role, the `number`-th event (counted from 0) called `at` does `do`, in all processes together at
most `times` times; each time a file `log`.N is made first, by which a test knows that it happened. The product has no
hooks for this.

Roles: driver (the command), worker (a child of it), page (a child of a worker, where pages are extracted and documents
labelled carefully), ray (a worker of Ray). Events: `touch` (a file below `where` is opened, made, renamed, removed or
flushed by the main thread), `flush` (the last of these alone) and `module:function` (it is called by a worker, with
`match` in the id of its first argument).
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

TOUCHES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link"}
WORKER = "chatloom.corpus.workers"


def role():
    """What this process is."""
    if any("default_worker.py" in item for item in sys.orig_argv):
        return "ray"
    if WORKER not in sys.orig_argv:
        return "driver"
    import psutil

    return "page" if WORKER in psutil.Process().parent().cmdline() else "worker"


class Fault:
    """Counts events and acts at one of them."""

    def __init__(self, values):
        self.values, self.count = values, 0

    def event(self):
        """One event is about to happen."""
        number, self.count = self.count, self.count + 1
        wanted = self.values.get("number", 0)
        if (number >= wanted if self.values.get("ever") else number == wanted) and self.claim():
            self.act()

    def claim(self):
        """Whether it is this process's turn: at most `times` processes in all act."""
        for turn in range(self.values.get("times", 1)):
            try:
                handle = os.open(f"{self.values['log']}.{turn}", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                continue
            os.write(handle, str(os.getpid()).encode())
            os.close(handle)
            return True
        return False

    def act(self):
        """The fault itself."""
        what, _, argument = self.values["do"].partition(" ")
        if what == "signal":
            os.kill(os.getpid(), signal.Signals[argument])
        elif what == "power-cut":  # every process of the command at once; the children are in sessions of their own
            import psutil

            me = psutil.Process()
            for process in [*me.children(recursive=True), me]:
                process.kill()
        elif what == "memory":
            held = []
            while True:
                held.append(bytearray(1 << 28))
        elif what == "sleep":
            time.sleep(float(argument))
        elif what == "append":
            with open(argument, "ab") as file:
                file.write(b'{"text": "a line that came later"}\n')
        elif what == "halve":
            os.truncate(argument, os.path.getsize(argument) // 2)
        elif what == "fill":  # some other program fills the disk
            with open(argument, "wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(4096))
                except OSError:
                    pass
        elif what == "move":
            os.rename(argument, os.path.splitext(argument)[0] + ".away")
        elif what == "clock":
            real = time.time
            time.time = lambda: real() - float(argument)
        else:
            raise ValueError(self.values["do"])

    def watch_files(self):
        """Count what touches files below `where`."""
        where = self.values["where"]

        def audit(event, arguments):
            main = threading.current_thread() is threading.main_thread()
            if main and event in TOUCHES and arguments and where in str(arguments[0]):
                self.event()

        if self.values["at"] == "touch":
            sys.addaudithook(audit)
        fsync = os.fsync

        def counted(handle):
            if threading.current_thread() is threading.main_thread():
                self.event()
            return fsync(handle)

        os.fsync = counted

    def watch_calls(self, module_name, name):
        """Count calls of a function that is looked up by name."""
        import importlib

        original = importlib.import_module

        def import_module(wanted, package=None):
            module = original(wanted, package)
            if wanted == module_name and not hasattr(getattr(module, name), "counted"):
                function = getattr(module, name)

                def counted(*arguments):
                    if self.values.get("match", "") in str(getattr(arguments[0], "id", "")):
                        self.event()
                    return function(*arguments)

                counted.counted = True
                setattr(module, name, counted)
            return module

        importlib.import_module = import_module


def start(values):
    """Watch, where this process is of the role."""
    if role() != values["role"]:
        return
    fault = Fault(values)
    module, _, name = values["at"].partition(":")
    if name:
        fault.watch_calls(module, name)
    else:
        fault.watch_files()
    if count := values.get("count"):
        import atexit

        atexit.register(lambda: Path(count).write_text(str(fault.count), encoding="utf-8"))


if "SOAK_FAULT" in os.environ:
    start(json.loads(os.environ["SOAK_FAULT"]))
