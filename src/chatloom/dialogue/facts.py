"""Reads facts off cleaned documentation pages: a function's name and the first sentence that describes it.

The input is text only, laid out as the corpus stage leaves a `pydoc` page: the module's name on line 1, then
sections ("Functions", "class Name(Base)", "Methods defined here:") whose definitions are a signature at column 0
with the description indented under it. Nothing is imported or inspected: if cleaning was poor, facts are missing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from chatloom.dialogue.record import DialogueError

# Name and version ("json (version 2.0.9)") or date in brackets, as pydoc titles a page.
_TITLE = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*)(?: \(.*\))?")
_CLASS = re.compile(r"(?:([A-Za-z_]\w*) = )?class ([A-Za-z_]\w*)(?:\(.*)?$")
_MEMBERS = re.compile(
    r"(Methods|Static methods|Class methods|Data descriptors|Data and other attributes|Readonly properties) "
    r"(defined here|inherited from \S+):"
)
_SECTIONS = ("Functions", "Data", "Classes", "Modules", "Package Contents")
_DEFINITION = re.compile(r"(?:async )?([A-Za-z_]\w*)(?: = [\w.]+)?\(")
_MEMBER = re.compile(r"(?:async )?([A-Za-z_]\w*)\b")
# A first sentence: a capital letter, then up to the first full stop that ends a word.
_SENTENCE = re.compile(r"[A-Z].*?[^.\s]\.(?=\s|$)")
_ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|etc|cf|vs|incl|approx|resp)|\b[A-Z])\.$")
INDENT = 4


class SourceDocument(Protocol):
    """What is needed of a cleaned document."""

    @property
    def id(self) -> str: ...

    @property
    def text(self) -> str: ...


@dataclass(frozen=True)
class Fact:
    """`text[start:end] == sentence` in the document named; `owner` is the module or module.Class, `part` the rest."""

    name: str
    kind: str  # "function" or "method"
    module: str
    owner: str
    part: str
    sentence: str
    document: str
    start: int
    end: int


@dataclass(frozen=True)
class Catalogue:
    """All that the documents define: candidate facts, every known name, and counts of what was passed over."""

    facts: list[Fact]
    names: frozenset[str]
    parts: list[str]
    passed_over: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Definition:
    name: str
    kind: str
    module: str
    owner: str
    part: str
    body: list[tuple[int, str]]  # (character offset, line without indent)
    documented_here: bool


def read_facts(
    documents: Iterable[SourceDocument], *, min_chars: int = 20, max_chars: int = 90, allow_private: bool = False
) -> Catalogue:
    """Return the catalogue of `documents`; facts are sorted by name and no two share a name or a sentence.

    A sentence is kept when it stands on one line (so that it is a verbatim piece of the document), has `min_chars` to
    `max_chars` characters, starts with a capital and ends with a full stop, and when no other name has the same one.
    Raises DialogueError when the documents hold no fact at all.
    """
    found: dict[str, Fact] = {}
    names: set[str] = set()
    passed: Counter[str] = Counter()
    parts: set[str] = set()
    sentences: dict[str, set[str]] = {}
    count = 0
    for document in documents:
        count += 1
        title = _TITLE.fullmatch(document.text.split("\n", 1)[0].strip())
        if title is None:
            passed["document without a module's name on line 1"] += 1
            continue
        for definition in _definitions(title[1], document.text, names):
            names.add(definition.name)
            if definition.kind == "other" or not definition.documented_here:
                continue
            if definition.part.startswith("_") and not allow_private:
                passed["private name"] += 1
                continue
            parts.add(definition.part)
            outcome = _first_sentence(definition)
            if isinstance(outcome, str):
                passed[outcome] += 1
                continue
            start, sentence = outcome
            sentences.setdefault(sentence, set()).add(definition.name)
            if not min_chars <= len(sentence) <= max_chars:
                passed["sentence too short or too long"] += 1
            elif definition.name in found:
                passed["name defined twice"] += 1
            else:
                found[definition.name] = Fact(
                    definition.name,
                    definition.kind,
                    definition.module,
                    definition.owner,
                    definition.part,
                    sentence,
                    document.id,
                    start,
                    start + len(sentence),
                )
    facts = [fact for _, fact in sorted(found.items()) if len(sentences[fact.sentence]) == 1]
    passed["sentence shared by several names"] = len(found) - len(facts)
    if not facts:
        raise DialogueError(
            f"no fact was found in {count} documents (passed over: {dict(passed)}); "
            "expected pydoc pages with the module's name on line 1, sections such as 'Functions', signatures at "
            "column 0 and descriptions indented by four spaces. Look at the corpus stage's kept documents"
        )
    return Catalogue(facts, frozenset(names), sorted(parts), dict(passed))


def _definitions(module: str, text: str, names: set[str]) -> Iterator[_Definition]:
    """Walk one page; adds module and section entries to `names`, yields every definition."""
    lines: list[tuple[int, str]] = []
    offset = 0
    for line in text.split("\n"):
        lines.append((offset, line))
        offset += len(line) + 1
    names.update(module.rsplit(".", depth)[0] for depth in range(module.count(".") + 1))
    section, owner, kind, here = "", module, "other", True
    for index, (_, line) in enumerate(lines):
        if not line or line[0] == " ":
            continue
        members = _MEMBERS.fullmatch(line)
        heading = _CLASS.fullmatch(line)
        if line in _SECTIONS and not lines[index - 1][1]:
            section, owner, here = line, module, True
            kind = "function" if line == "Functions" else "other"
        elif members and owner != module:
            section, here = members[1], members[2] == "defined here"
            kind = "method" if "ethods" in members[1] else "other"
        elif heading and section != "Data":
            section, owner, kind = "", f"{module}.{heading[1] or heading[2]}", "other"
            names.add(owner)
        elif section in ("Modules", "Package Contents"):
            names.add(f"{module}.{line.split(' ')[0]}")
        elif section and section != "Classes":
            match = (_DEFINITION if kind != "other" else _MEMBER).match(line)
            if match:
                body = _indented(lines, index + 1)
                yield _Definition(f"{owner}.{match[1]}", kind, module, owner, match[1], body, here)


def _indented(lines: list[tuple[int, str]], start: int) -> list[tuple[int, str]]:
    body: list[tuple[int, str]] = []
    for offset, line in lines[start:]:
        if line and not line.startswith(" " * INDENT):
            break
        body.append((offset + INDENT, line[INDENT:]))
    while body and not body[-1][1].strip():
        body.pop()
    return body


def _first_sentence(definition: _Definition) -> tuple[int, str] | str:
    """Return (offset, sentence), or the reason why there is none."""
    signature = re.compile(rf"(?:[\w.]+\.)?{re.escape(definition.part)}\s*\(|.*->")
    lines = [(at, line) for at, line in definition.body if line.strip() and not signature.match(line)]
    if not definition.body:
        return "no description"
    if not lines:
        return "description is a signature only"
    at, line = lines[0]
    match = _SENTENCE.match(line)
    while match and _ABBREVIATION.search(match[0]):
        longer = re.compile(re.escape(match[0]) + r".*?[^.\s]\.(?=\s|$)").match(line)
        match = longer
    if match is None:
        return "no sentence on the first line"
    sentence = match[0]
    if sentence.count("(") != sentence.count(")") or ">>>" in sentence:
        return "sentence breaks inside brackets"
    return at, sentence
