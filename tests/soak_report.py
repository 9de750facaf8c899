"""Run the tests marked `soak` and write what came of them, with date, machine and versions, to docs/soak.md.

soak_report.py            all matrices
soak_report.py faults     one of them; the page keeps what it says of the others
"""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from xml.etree.ElementTree import Element, parse

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "soak.md"
FILES = {
    "faults": "test_faults_*.py",
    "kills": "test_kills.py",
    "disks": "test_training_disks.py",
    "parallel": "test_parallel_*.py",
}
TITLES = {
    "faults": "Faults of the corpus chapter",
    "kills": "Kills of the training stages",
    "disks": "Full disks under training",
    "parallel": "Training on several processes",
}
PACKAGES = ("torch", "pyarrow", "tokenizers", "ray")
LONGEST = 220
HEAD = """# Soak: the long fault and kill matrices

Written by `make soak`; do not edit. What is tried lies in [tests/soak](../tests/soak). Every fault really happens
(signals are sent, disks are full, files are damaged), and a row counts only when its test has seen it happen.

- **identical**: after the fault, or after the same command was given again where it stopped, every byte and every count
  is that of a run that nothing disturbed
- **clear stop**: the command ends with a sentence that names what is wrong and what to do, without a traceback, and
  leaves no artifact; most rows then mend the cause, give the same command again and compare as above
- **set aside**: what is bad is counted with its reason, everything else is the same
"""


def main(names: Sequence[str]) -> int:
    """Exit code of pytest; the page is written whatever it is."""
    if unknown := set(names) - set(FILES):
        print(f"error: no matrix {', '.join(sorted(unknown))}; there are {', '.join(FILES)}", file=sys.stderr)
        return 2
    worst, sections = 0, old_sections()
    for name in names or FILES:
        code, cases, seconds = run(name)
        if not cases:
            print(f"error: pytest ran no test of `{name}`; docs/soak.md keeps what it says of it", file=sys.stderr)
            worst = worst or code or 1
            continue
        worst = worst or code
        sections[TITLES[name]] = section(name, cases, seconds)
        PAGE.write_text(page(sections), encoding="utf-8")
        print(f"wrote `{name}` to docs/soak.md")
    return worst


def run(name: str) -> tuple[int, list[Element], float]:
    """Run one matrix: pytest's exit code, its test cases and the seconds that it took."""
    files = sorted(str(file) for file in (ROOT / "tests" / "soak").glob(FILES[name]))
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        started = time.monotonic()
        options = ["-m", "soak", "--timeout=3600", "-n", "2", f"--junitxml={report}"]
        code = subprocess.run([sys.executable, "-m", "pytest", *options, *files], cwd=ROOT, check=False).returncode
        cases = list(parse(report).getroot().iter("testcase")) if report.is_file() else []
        return code, cases, time.monotonic() - started


def old_sections() -> dict[str, str]:
    """What the page says now, by title."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    parts = [part.partition("\n") for part in text.split("\n## ")[1:]]
    return {title: body.strip() for title, _, body in parts if title in TITLES.values()}


def page(sections: dict[str, str]) -> str:
    """The page's text, its sections in a fixed order."""
    shown = [f"## {title}\n\n{sections[title]}\n" for title in TITLES.values() if title in sections]
    return "\n".join([HEAD, *shown])


def section(name: str, cases: Sequence[Element], seconds: float) -> str:
    """What came of one matrix: when, where, and a row a test."""
    results = [outcome(case) for case in cases]
    counts = f"**{results.count('passed')} of {len(results)} as expected**"
    counts += "".join(f", {results.count(word)} {word}" for word in ("skipped", "failed", "error") if word in results)
    found = [f"{item} {metadata.version(item)}" for item in PACKAGES if installed(item)]
    head = [
        f"- {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC: {counts}, in {seconds / 60:.0f} minutes",
        f"- {platform.system()} {platform.machine()}, {os.cpu_count()} CPUs (other work running on them), "
        f"Python {platform.python_version()}, {', '.join(found)}",
        "",
    ]
    if name == "faults":
        order = {"documents": 0, "labels": 1, "duplicates": 2, "selection": 3, "tokenizer": 4, "tokens": 5}
        rows = sorted((fault_row(case) for case in cases), key=lambda row: (order.get(row[1], 9), row[0]))
        head += ["| fault | stage | expectation | outcome | seconds |", "|---|---|---|---|---|"]
    else:
        rows = [(promise(case.get("name", "")), outcome(case), seconds_of(case)) for case in cases]
        head += ["| promise | result | seconds |", "|---|---|---|"]
    return "\n".join([*head, *(f"| {' | '.join(map(cell, row))} |" for row in rows)])


def fault_row(case: Element) -> tuple[str, ...]:
    """Fault, stage, expectation, what came of it and seconds, as the test told them."""
    told: dict[str, list[str]] = {}
    for item in case.iter("property"):
        told.setdefault(item.get("name", ""), []).append(item.get("value", ""))
    first = {name: values[0] for name, values in told.items()}
    result = outcome(case)
    came = "; ".join(told.get("outcome", [])) if result == "passed" else f"**{result}**"
    return (
        first.get("fault", promise(case.get("name", ""))),
        first.get("stage", ""),
        first.get("expectation", ""),
        came,
        seconds_of(case),
    )


def cell(text: str) -> str:
    """Text that stays in its cell of a table."""
    plain = re.sub(r"\s+", " ", re.sub(r"[\x00-\x1f\x7f]|\x1b\[[0-9;]*m", " ", text)).strip()
    short = plain if len(plain) <= LONGEST else f"{plain[: LONGEST - 1].rstrip()}…"
    short += "`" * (short.count("`") % 2)
    return short.replace("|", "\\|").replace("<", "&lt;")


def seconds_of(case: Element) -> str:
    """How long a test took."""
    return f"{float(case.get('time', '0')):.0f}"


def promise(name: str) -> str:
    """A test's name as the sentence it is."""
    return name.removeprefix("test_").replace("_", " ")


def outcome(case: Element) -> str:
    """`passed`, `failed`, `error` or `skipped`."""
    found = {child.tag: child for child in case}
    words = {"error": "error", "failure": "failed", "skipped": "skipped"}
    return next((word for tag, word in words.items() if tag in found), "passed")


def installed(name: str) -> bool:
    """Whether a package is here."""
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
