"""Promises of README and docs: tables, links, tests, commands and names that they show are those of this checkout."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
import typer
from docs_tables import ROOT, TABLE, renewed

import chatloom
from chatloom import stages
from chatloom.cli import app
from chatloom.settings import Settings, override, read_yaml

PAGES = sorted(
    [*ROOT.glob("README*.md"), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]
)
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.S | re.M)
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
everywhere = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def slug(heading: str) -> str:
    """A heading's anchor, as the usual Markdown viewers make it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def command_lines(text: str) -> list[str]:
    """Lines of code blocks that call chatloom or make, without their comments."""
    blocks = [body for language, body in FENCE.findall(text) if language in ("", "bash", "sh", "console")]
    lines = [line for body in blocks for line in body.splitlines()]
    lines += re.findall(r"^    (\S.*)$", FENCE.sub("", text), re.M)
    found = [line.split(" #")[0].split(" && ")[-1].strip() for line in lines]
    return [line for line in found if re.match(r"(\.venv/bin/)?chatloom |make ", line) and "|" not in line]


@everywhere
def test_settings_tables_are_those_of_the_code(page: Path) -> None:
    assert renewed(text_of(page)) == text_of(page), "run `python tests/docs_tables.py`"


def test_every_training_stage_has_a_page_with_its_settings() -> None:
    tables = {kind: page.name for page in PAGES for kind in TABLE.findall(text_of(page))}
    for kind in ("questions", "pretrain", "sft", "own-answers", "reward", "best-of-n", "dpo", "ppo"):
        assert tables.get(kind) == f"{kind}.md"


@everywhere
def test_every_link_leads_somewhere(page: Path) -> None:
    for _, target in LINK.findall(text_of(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), f"{page.name}: {target} is not there"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", text_of(place), re.M)
            assert anchor in {slug(heading) for heading in headings}, f"{page.name}: no heading for {target}"


@everywhere
def test_every_test_that_is_named_exists(page: Path) -> None:
    for name, target in LINK.findall(text_of(page)):
        if re.fullmatch(r"`test_\w+`", name):
            source = (page.parent / target).resolve().read_text(encoding="utf-8")
            assert f"def {name.strip('`')}(" in source, f"{page.name}: {target} has no {name}"


@everywhere
def test_every_command_that_is_shown_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for line in command_lines(text_of(page)):
        program, *words = shlex.split(line)
        if program == "make":
            assert {word for word in words if "=" not in word} <= targets, line
            continue
        name = words[0]
        if name.isupper():
            continue  # a placeholder such as STAGE
        assert name.startswith("-") or name in COMMANDS, line
        if name in COMMANDS:
            known = {option for item in COMMANDS[name].params for option in item.opts} | {"--help", "--debug"}
            assert {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)} <= known, line


def test_commands_are_found_on_a_page() -> None:
    page = "```\nmake demo\n```\n\n    chatloom run x --set a=1  # why\n    cd x && chatloom demo\n"
    assert command_lines(page) == ["make demo", "chatloom run x --set a=1", "chatloom demo"]


@everywhere
def test_settings_files_that_are_shown_can_be_read(page: Path, tmp_path: Path) -> None:
    """A YAML block that begins with `# NAME.yaml`, followed by `chatloom KIND NAME.yaml`, fits that kind of stage."""
    for body in (body for language, body in FENCE.findall(text_of(page)) if language == "yaml"):
        name = re.match(r"# (\S+\.yaml)\n", body)
        used = re.search(rf"chatloom (\S+) {re.escape(name[1])}(.*)", text_of(page)) if name else None
        if not name or not used or used[1] not in stages.kinds():
            continue
        file = tmp_path / name[1]
        file.write_text(body, encoding="utf-8")
        values = override(read_yaml(file), re.findall(r"--set (\S+)", used[2]))
        stage = stages.find(used[1])
        settings = {key: value for key, value in values.items() if key not in {*stage.inputs, *stages.RESERVED}}
        assert isinstance(stage.settings.parse(settings), Settings)
        required = {key for key, item in stage.inputs.items() if item.required}
        assert required <= set(values), f"{page.name}: {name[1]} lacks {required - set(values)}"


@everywhere
def test_python_that_is_shown_names_what_exists(page: Path) -> None:
    for body in (body for language, body in FENCE.findall(text_of(page)) if language == "python"):
        for node in ast.walk(ast.parse(body)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("chatloom"):
                found = __import__(node.module or "", fromlist=["_"])
                for item in node.names:
                    named = getattr(found, item.name, None)
                    assert named is not None or item.name in ("recipe",), f"{page.name}: {node.module}.{item.name}"
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "chatloom":
                assert hasattr(chatloom, node.attr), f"{page.name}: chatloom.{node.attr}"
