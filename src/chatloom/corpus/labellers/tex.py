"""Labels `tex`: what of a LaTeX source is not text for readers (comments, preamble, definitions, references)."""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa

from chatloom.corpus.labellers.code import programming_language
from chatloom.corpus.labellers.spans import KIND_OF_SPAN, apart, flatten, pairs
from chatloom.corpus.labelling import SPANS, Labeller, NoSettings
from chatloom.corpus.record import Document

COMMENT, PREAMBLE, DEFINITION, REFERENCES = range(1, 5)
KINDS = {COMMENT: "comment", PREAMBLE: "before the first section", DEFINITION: "definition", REFERENCES: "references"}
SECTION = re.compile(r"\\(?:chapter|section|subsection|subsubsection|paragraph)\*?\s*[\[{]")
ONLY_TEX = re.compile(
    r"\\(?:documentclass\b|documentstyle\b|(?:chapter|(?:sub){0,2}section)\*?\s*[\[{]|begin\s*\{document\}|input\s*\{"
    r"|(?:re)?newcommand\b|def\\|bibliography\s*\{|usepackage\b)"
)
END = re.compile(
    r"\\(?:appendix\b|begin\s*\{thebibliography\}|bibliography\s*\{|printbibliography\b|end\s*\{document\})"
)
# `%` behind an even number of backslashes begins a comment; a line that only comments goes with its line end.
COMMENT_LINE = re.compile(r"^[ \t]*%[^\n]*(?:\n|\Z)", re.MULTILINE)
COMMENT_REST = re.compile(r"(?<!\\)(?:\\\\)*(%[^\n]*)")
VERBATIM = re.compile(r"\\begin\s*\{((?:verbatim|lstlisting|minted|Verbatim)\*?)\}|\\verb\*?([^a-zA-Z\s*])[^\n]*?\2")
DEFINE = re.compile(
    r"\\(?:(?:re|provide)?newcommand|def|DeclareMathOperator)\*?\s*\{?\s*\\([A-Za-z@]+)\s*\}?"
    r"\s*((?:\[[^\]]{0,100}\]){0,2}|(?:#\d)*)\s*\{"
)
USE = re.compile(r"\\([A-Za-z@]+)(?![A-Za-z@])")
MAX_EXPANSIONS = 10
MAX_GROWTH = 3
BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
LONGEST_DEFINITION, DEEPEST_BRACE = 20_000, 50


class Tex(Labeller[NoSettings]):
    """The treatment of arXiv sources in Lewkowycz et al. 2022 (Minerva) as LLaMA took it over (Touvron et al. 2023,
    section 2.1): everything before the first section, comments and the bibliography go, own macros are expanded.

    tex_cut: spans to cut; tex_cut_kinds: why, one number a span (KINDS: 1 comment, 2 before the first section, 3
    definition of a macro, 4 references and what follows them); tex_cut_share: share of characters in them;
    tex_sections: headings; tex_commands: commands for each 1,000 characters; tex_macros: JSON object of the macros
    without arguments, name -> text, which `expand` puts in their places. A source without headings keeps its
    beginning. All are None for what is no LaTeX (`is_tex`).
    """

    name = "tex"
    columns: Mapping[str, pa.DataType] = {
        "tex_cut": SPANS,
        "tex_cut_kinds": KIND_OF_SPAN,
        "tex_cut_share": pa.float64(),
        "tex_sections": pa.int64(),
        "tex_commands": pa.float64(),
        "tex_macros": pa.string(),
    }
    kinds: ClassVar[Mapping[str, Mapping[int, str]]] = {"tex_cut_kinds": KINDS}
    Settings = NoSettings

    def label(self, documents: Sequence[Document]) -> list[dict[str, Any]]:
        """What could be cut from each document, taken as LaTeX."""
        return [
            self._label(document.text) if is_tex(document) else dict.fromkeys(self.columns) for document in documents
        ]

    def _label(self, text: str) -> dict[str, Any]:
        n_commands = sum(1 for _ in USE.finditer(text))
        verbatim = verbatim_spans(text)
        shown = _Outside(verbatim)
        comments = [span for span in comment_spans(text) if span[0] in shown]
        visible = _Outside([*comments, *verbatim])
        headings = [match.start() for match in SECTION.finditer(text) if match.start() in visible]
        spans = []
        if headings:
            spans.append((0, headings[0], PREAMBLE))
        ends = (match.start() for match in END.finditer(text) if match.start() in visible)
        last = next((at for at in ends if not headings or at > headings[0]), None)
        if last is not None:
            spans.append((last, len(text), REFERENCES))
        macros, definitions = {}, []
        for start, end, name, n_arguments, body in _definitions(text):
            if start in visible:
                definitions.append((start, end, DEFINITION))
                if not n_arguments:
                    macros[name] = body
        # Of spans inside others the outer stay, so that what is left never begins in the middle of something.
        spans += definitions + [(start, end, COMMENT) for start, end in comments]
        cut, kinds = apart(spans)
        return {
            "tex_cut": cut,
            "tex_cut_kinds": kinds,
            "tex_cut_share": sum(end - start for start, end in pairs(cut)) / max(len(text), 1),
            "tex_sections": len(headings),
            "tex_commands": 1000 * n_commands / max(len(text), 1),
            "tex_macros": json.dumps(macros, ensure_ascii=False, sort_keys=True),
        }


def is_tex(document: Document) -> bool:
    """Whether a document is LaTeX: by its name's ending, or a command that formulas in Markdown do not have.

    In anything else `%` is no comment.
    """
    return programming_language(document) == "tex" or (
        "\\" in document.text and ONLY_TEX.search(document.text) is not None
    )


def comment_spans(text: str) -> list[tuple[int, int]]:
    """Comments: whole lines with their line end, and the rest of a line from `%` on; `\\%` is a percent sign."""
    if "%" not in text:
        return []
    whole = [match.span() for match in COMMENT_LINE.finditer(text)]
    starts = {start for start, _ in whole}
    rest = []
    for match in COMMENT_REST.finditer(text):
        line = text.rfind("\n", 0, match.start(1)) + 1
        if line not in starts:
            rest.append(match.span(1))
    return sorted(whole + rest)


def verbatim_spans(text: str) -> list[tuple[int, int]]:
    """Listings, in which `%` and commands are characters like others; one that is never closed is none."""
    spans: list[tuple[int, int]] = []
    never_closed: set[str] = set()
    at = 0
    while "\\" in text and (match := VERBATIM.search(text, at)):
        at = end = match.end()
        if match[1]:
            closing = f"\\end{{{match[1]}}}"
            found = -1 if closing in never_closed else text.find(closing, at)
            if found < 0:
                never_closed.add(closing)
                continue
            at = end = found + len(closing)
        spans.append((match.start(), end))
    return spans


def expand(text: str, macros: Mapping[str, str]) -> str:
    """The text with its own macros (label `tex_macros`, parsed) in full, where they are used.

    Macros inside macros are followed MAX_EXPANSIONS deep; a text that would grow to more than MAX_GROWTH times its
    length is returned as it is.
    """
    if not macros:
        return text
    limit = MAX_GROWTH * len(text) + 1000
    expanded = text
    for _ in range(MAX_EXPANSIONS):
        following = USE.sub(lambda match: _body(match, macros), expanded)
        if len(following) > limit:
            return text
        if following == expanded:
            break
        expanded = following
    return expanded


def _body(match: re.Match[str], macros: Mapping[str, str]) -> str:
    body = macros.get(match[1])
    if body is None:
        return match[0]
    # `\\R x` and `\\R{}x` end the name; a command at the body's end must not run into the letters behind it.
    following = match.string[match.end() : match.end() + 1]
    return f"{body} " if following.isalpha() and re.search(r"\\[A-Za-z@]+$", body) else body


def _definitions(text: str) -> Iterator[tuple[int, int, str, int, str]]:
    """(start, end, name, number of arguments, body) of each definition; one whose braces do not close is none."""
    for match in DEFINE.finditer(text):
        close = _closing(text, match.end() - 1)
        if close is None:
            continue
        arguments = match[2]
        n = int(arguments[1]) if arguments.startswith("[") and arguments[1:2].isdigit() else arguments.count("#")
        body = text[match.end() : close]
        if match[0].startswith("\\DeclareMathOperator"):
            body = f"\\operatorname{{{body}}}"
        end = close + 1
        yield match.start(), end + (text[end : end + 1] == "\n"), match[1], n, body


def _closing(text: str, opening: int) -> int | None:
    """Where the brace that opens here is closed."""
    depth = 0
    for match in BRACES.finditer(text, opening, opening + LONGEST_DEFINITION):
        if match[0] == "{":
            depth += 1
            if depth > DEEPEST_BRACE:
                return None
        elif match[0] == "}":
            depth -= 1
            if not depth:
                return match.start()
    return None


class _Outside:
    """The places of a text that are in none of some spans."""

    def __init__(self, spans: Iterable[tuple[int, int]]) -> None:
        self._edges = flatten(spans)

    def __contains__(self, place: int) -> bool:
        return bisect.bisect_right(self._edges, place) % 2 == 0
