"""What a fault is tried on: a stage, run by the command line in a folder of its own.

A row of the matrix has one expectation, and counts only when the fault is proved to have happened and the expectation
was looked at:

    identical    after it, or after running the same command again where it stopped, every byte and count is the same
    clear stop   the command ends with a sentence that names what is wrong and what to do, and nothing half-made exists
    set aside    the run goes on, what is bad is counted with its reason, everything else is the same
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from chatloom import artifact
from chatloom.artifact import Artifact

IDENTICAL, STOP, ASIDE = "identical", "clear stop", "set aside"
COMMAND = [sys.executable, "-c", "import sys; from chatloom.cli import main; sys.exit(main(sys.argv[1:]))"]
AGENT = Path(__file__).with_name("agent")
STAGES = ("documents", "labels", "duplicates", "selection", "tokenizer", "tokens")
WORKED = ("documents", "labels", "duplicates", "selection")  # stages whose work is done by processes
TWO = {"engine": {"workers": 2}}
SETTINGS: dict[str, dict[str, Any]] = {
    "documents": {
        "extraction": {"extractor": "resiliparse"},
        "shards": {"part_megabytes": 0.02, "shard_megabytes": 0.02},
        **TWO,
    },
    "labels": {"labellers": {"language": {}, "length": {}, "rules": {}}, **TWO},
    "duplicates": {"held_out_share": 0.2, **TWO},
    "selection": {"rules": {"preset": "curated"}, **TWO},
    "tokenizer": {"vocab_size": 400, "curve_points": 1},
    "tokens": {},
}
INPUTS: dict[str, dict[str, Any]] = {
    "documents": {"pages": "sources"},
    "labels": {"documents": "documents"},
    "duplicates": {"documents": "documents"},
    "selection": {"documents": "documents", "labels": ["labels"], "duplicates": "duplicates"},
    "tokenizer": {"documents": ["selection"]},
    "tokens": {"documents": ["selection"], "vocabulary": "tokenizer"},
}
TIMED = re.compile(r"(^|/)(page\.html$|report\.html$|receipts/)")  # they tell how long it took, or where it lies


@dataclass(frozen=True)
class Ended:
    """A command that has ended: its exit status (negative: the signal) and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The error it ended with, in one line."""
        return " ".join(self.err.partition("error: ")[2].split())


@dataclass
class Bench:
    """One row's own `folder`; `whole` holds the sources and the undisturbed artifacts; `note` writes to the report."""

    whole: Path
    folder: Path
    note: Callable[[str, object], None]
    expectation: str = ""
    proofs: list[str] = field(default_factory=list)
    looked_at: set[str] = field(default_factory=set)

    def row(self, fault: str, stage: str, expectation: str) -> None:
        """Say which row of the matrix this is."""
        self.expectation = expectation
        for name, value in (("fault", fault), ("stage", stage), ("expectation", expectation)):
            self.note(name, value)

    def finish(self) -> None:
        """Refuse a row that proved or looked at nothing."""
        assert self.proofs, "nothing shows that the fault happened"
        assert self.expectation in self.looked_at, f"nobody looked whether it is: {self.expectation}"

    # How stages are run.

    def target(self, stage: str) -> Path:
        """Where the stage's artifact of this row goes."""
        return self.folder / "run" / stage

    def partial(self, stage: str) -> Path:
        """Where it is while it is made."""
        return artifact.partial_of(self.target(stage))

    def command(self, stage: str, *more: str, inputs: Mapping[str, Any] | None = None, **changes: Any) -> list[str]:
        """The command line; `inputs` and settings replace those of the undisturbed run."""

        def located(item: str | Path) -> dict[str, str]:
            return {"path": str(self.whole / item)}  # an absolute path stays what it is

        given = {**INPUTS[stage], **(inputs or {})}
        values = {k: [located(i) for i in v] if isinstance(v, list) else located(v) for k, v in given.items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{stage}.yaml"
        file.write_text(yaml.safe_dump({**SETTINGS[stage], **values, **changes}), encoding="utf-8")
        return [*COMMAND, stage, str(file), "--out", str(self.target(stage)), *more]

    def environment(self, fault: Mapping[str, Any] | None = None, **more: str) -> dict[str, str]:
        """This process's, with a fault for the agent."""
        path = [str(AGENT)] if fault else []
        path += [str(self.folder / "own"), *filter(None, [os.environ.get("PYTHONPATH")])]
        found = {**os.environ, "PYTHONPATH": os.pathsep.join(path), **more}
        return {**found, "SOAK_FAULT": json.dumps(fault)} if fault else found

    def fault(self, role: str, do: str, *, at: str = "touch", **more: Any) -> dict[str, Any]:
        """What the agent is told."""
        return {"role": role, "do": do, "at": at, "where": "/run/", "log": str(self.folder / "fault"), **more}

    def run(
        self,
        stage: str,
        *more: str,
        fault: Mapping[str, Any] | None = None,
        inputs: Mapping[str, Any] | None = None,
        wrap: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        streams: Mapping[str, Any] | None = None,
        before: Callable[[], None] | None = None,
        **changes: Any,
    ) -> Ended:
        """Run a stage to its end."""
        command = [*wrap, *self.command(stage, *more, inputs=inputs, **changes)]
        how: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **(streams or {})}
        environ = self.environment(fault, **(environment or {}))
        ended = subprocess.run(
            command, check=False, env=environ, timeout=240, preexec_fn=before, encoding="utf-8", errors="replace", **how
        )
        return Ended(ended.returncode, ended.stdout or "", ended.stderr or "")

    def start(self, stage: str, fault: Mapping[str, Any] | None = None, **changes: Any) -> subprocess.Popen[str]:
        """Start a stage."""
        return subprocess.Popen(
            self.command(stage, **changes),
            env=self.environment(fault),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )

    # What is looked at.

    def happened(self, times: int | None = None) -> int:
        """Prove by the agent's notes that the fault happened (so many times); how often it did."""
        found = len(list(self.folder.glob("fault.*")))
        assert found if times is None else found == times, f"the fault happened {found} times"
        self.proofs.append(f"{found} times")
        return found

    def prove(self, truth: object, what: str) -> None:
        """Prove otherwise."""
        assert truth, f"not so: {what}"
        self.proofs.append(what)

    def stopped(self, ended: Ended, stage: str, *words: str, code: int = 1) -> None:
        """A clear stop: the exit status, a sentence with these words (patterns), no traceback, no artifact."""
        assert ended.code == code, ended.err
        assert "Traceback" not in ended.err, ended.err
        for word in words:
            assert re.search(word, ended.sentence), f"no {word!r} in: {ended.sentence}"
        assert not artifact.exists(self.target(stage)), "an artifact is there although it stopped"
        self.looked_at.add(STOP)
        self.note("outcome", f"stopped: {ended.sentence.replace(str(self.folder), '').replace(str(self.whole), '')}")

    def done(self, ended: Ended, stage: str) -> Artifact:
        """The artifact of a command that ended well, every byte as its manifest says."""
        assert ended.code == 0, ended.err
        return artifact.load(self.target(stage), verify=True)

    def identical(self, ended: Ended, stage: str, expected: Path | None = None, *, again: bool = False) -> Artifact:
        """It ended well with the bytes and the counts of the undisturbed run (or of `expected`)."""
        made = self.done(ended, stage)
        whole = artifact.load(expected or self.whole / stage)
        for found, wanted in ((content(made), content(whole)), (counters(made), counters(whole))):
            names = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
            assert not names, f"not the same: {[(name, wanted.get(name), found.get(name)) for name in names[:4]]}"
        assert made.fingerprint == whole.fingerprint or expected is not None
        assert not self.partial(stage).exists()
        self.looked_at.add(IDENTICAL)
        self.note("outcome", "run again: identical" if again else "identical")
        return made

    def again(self, stage: str, *more: str, **how: Any) -> Artifact:
        """Run the same command again: identical."""
        return self.identical(self.run(stage, *more, **how), stage, again=True)

    def set_aside(self, what: str) -> None:
        """Tell what was set aside; the caller has looked at the rest."""
        self.looked_at.add(ASIDE)
        self.note("outcome", f"set aside: {what}; all else the same")


def content(made: Artifact) -> dict[str, str]:
    """sha256 of every file that does not tell the time."""
    files = made.manifest["files"]
    return {name: entry["sha256"] for name, entry in files.items() if not TIMED.search(name)}


def counters(made: Artifact) -> dict[str, Any]:
    """Metrics, and what each receipt counts."""
    timed = {"seconds", "megabytes_per_second"}
    found: dict[str, Any] = {key: value for key, value in made.metrics.items() if key not in timed}
    for file in sorted(made.path.rglob("receipts/*.json")):
        found[file.relative_to(made.path).as_posix()] = json.loads(file.read_text(encoding="utf-8"))["counts"]
    return found


def wait_until(truth: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for something; fails when it does not come."""
    end = time.monotonic() + seconds
    while not truth():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
