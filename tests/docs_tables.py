"""Write the settings tables of docs/*.md from the stages' own declarations: `python tests/docs_tables.py`.

A table stands between `<!-- settings of KIND -->` and `<!-- end of settings -->`; what is between them is replaced.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chatloom import stages
from chatloom.cli.stages import setting_rows
from chatloom.settings import Settings
from chatloom.training.adapters import AdapterSettings
from chatloom.training.settings import LoopSettings

ROOT = Path(__file__).resolve().parents[1]
TABLE = re.compile(r"<!-- settings of (\S+) -->\n.*?<!-- end of settings -->", re.S)
# Groups that are the same for every training stage, so they have tables of their own, and where those are.
SHARED: dict[str, tuple[type[Settings], str]] = {
    "loop": (LoopSettings, "how it runs, see [training](training.md#how-it-runs)"),
    "adapter": (AdapterSettings, "what is trained instead of the model, see [adapters](adapters.md#settings)"),
}


def main() -> int:
    """Bring every page up to date and name those that changed."""
    for path in sorted((ROOT / "docs").glob("*.md")):
        old = path.read_text(encoding="utf-8")
        new = renewed(old)
        if new != old:
            path.write_text(new, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    return 0


def renewed(page: str) -> str:
    """A page with each of its tables made anew."""
    return TABLE.sub(lambda found: f"<!-- settings of {found[1]} -->\n{table(found[1])}<!-- end of settings -->", page)


def table(kind: str) -> str:
    """The settings of a kind of stage (or of a shared group), with the defaults that it runs with."""
    model = SHARED[kind][0] if kind in SHARED else stages.find(kind).settings
    defaults = model().everything()
    lines = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    for name, type_text, own, about in setting_rows(model):
        group, dot, _ = name.partition(".")
        if group in SHARED:
            row = f"| `{group}.*` | | | {SHARED[group][1]} |"
            if dot and row not in lines:
                lines.append(row)
            continue
        value: Any = defaults
        *groups, last = name.rstrip("*").split(".")
        for part in groups:
            value = value and value[part]  # a group that is null by default has defaults of its own
        default = own if value is None else shown(value[last])
        lines.append(f"| `{name}` | {_cell(type_text)} | {_cell(default)} | {_cell(about)} |")
    return "\n".join(lines) + "\n"


def shown(value: Any) -> str:
    """A value as YAML has it, numbers as short as they go."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {shown(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return f"[{', '.join(shown(item) for item in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
