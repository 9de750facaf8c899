"""Runs the stage `synthetic` in a process of its own: synthetic_child.py JSON [MOMENT]

JSON has settings, inputs and out. With MOMENT the process is killed at that event (fsync, rename or replace in the main
thread, counted from 0); without, the number of events is printed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from kill_child import Clock, watching

from chatloom import recipe


def main() -> None:
    """Exit code 0 at the end."""
    values = json.loads(sys.argv[1])
    clock = Clock(signal.SIGKILL, int(sys.argv[2])) if len(sys.argv) > 2 else Clock()
    with watching(clock):
        recipe.run_stage("synthetic", values["settings"], values["inputs"], Path(values["out"]), quiet=True)
    print(len(clock.events))
    if clock.action is not None:
        os.kill(os.getpid(), signal.SIGKILL)  # the moment lies after the end


if __name__ == "__main__":
    main()
