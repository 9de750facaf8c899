"""Run the tests marked `soak` and write what came of them, with date, machine and versions, to docs/soak.md."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Exit code of pytest; the page is written whatever it is."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "soak", "--timeout=3600", f"--junitxml={report}"]
        code = subprocess.run([*command, *sys.argv[1:]], cwd=ROOT, check=False).returncode
        if not report.is_file():
            print("error: pytest wrote no report; docs/soak.md stays as it was", file=sys.stderr)
            return code or 1
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    if not cases:
        print("error: no test is marked `soak`; docs/soak.md stays as it was", file=sys.stderr)
        return 1
    (ROOT / "docs" / "soak.md").write_text(page(cases), encoding="utf-8")
    print("wrote docs/soak.md")
    return code


def page(cases: list[ElementTree.Element]) -> str:
    """The page's text."""
    rows = [(case.get("name", ""), outcome(case), float(case.get("time", "0"))) for case in cases]
    good = sum(result == "passed" for _, result, _ in rows)
    import torch

    lines = [
        "# Soak: the long fault and kill matrices",
        "",
        "Written by `make soak`; do not edit.",
        "",
        f"- {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC: **{good} of {len(rows)} passed**"
        f" in {sum(seconds for _, _, seconds in rows) / 60:.1f} minutes",
        f"- {platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, "
        f"torch {torch.__version__}",
        "",
        "| promise | result | seconds |",
        "|---|---|---|",
        *(f"| {promise(name)} | {result} | {seconds:.1f} |" for name, result, seconds in rows),
    ]
    return "\n".join(lines) + "\n"


def promise(name: str) -> str:
    """A test's name as the sentence it is."""
    return name.removeprefix("test_").replace("_", " ")


def outcome(case: ElementTree.Element) -> str:
    """`passed`, `failed`, `error` or `skipped`."""
    found = {child.tag: child for child in case}
    words = {"error": "error", "failure": "failed", "skipped": "skipped"}
    return next((word for tag, word in words.items() if tag in found), "passed")


if __name__ == "__main__":
    sys.exit(main())
