"""HTML -> text that keeps what a documentation page says with its layout: lines, indentation, definitions, code.

Extractors made for articles drop tables, join lines and lose the tie between a term and its definition; a page of
function signatures is then unreadable. Here the DOM (parsed by Lexbor as HTML5 prescribes, through resiliparse) is
laid out as a text browser would, with these rules and no knowledge of any one site:

* white space collapses as in CSS (CSS Text 3, section 4.1), except in `pre` and under `white-space: pre`; no-break
  spaces are kept, as pages indent with them, and written as plain spaces;
* `br` and block elements end a line; paragraphs, lists, tables and headings are set apart by one empty line;
* definitions (`dd`) and quotations are indented by four spaces, list items get `- ` or their number;
* a table's row becomes `cell | cell` where its cells hold phrases only; a layout table's cells follow each other;
* navigation, page footers, forms, scripts, hidden elements and permalink signs are left out.
"""

from __future__ import annotations

import re
from typing import Any

from resiliparse.parse.html import HTMLTree, NodeType

_SKIPPED = """head script style noscript template svg math canvas iframe object embed audio video map nav footer button
    select textarea input datalist dialog"""
SKIPPED = frozenset(_SKIPPED.split())
# Elements that stand on lines of their own -> empty lines wanted around them.
_CLOSE = """address article aside body caption center dd details div dt fieldset figcaption form header hgroup html
    legend li main section summary tbody tfoot thead tr"""
_APART = "blockquote dl figure h1 h2 h3 h4 h5 h6 hr ol p pre table ul"
MARGIN = {**dict.fromkeys(_CLOSE.split(), 0), **dict.fromkeys(_APART.split(), 1)}
LISTS = frozenset({"ul", "ol", "dl"})
BLOCKS_IN_A_CELL = "br, p, div, dl, ul, ol, table, pre, blockquote, h1, h2, h3, h4, h5, h6, hr"
COLLAPSIBLE = re.compile(r"[ \t\n\r\f]+")
HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
PRESERVED = re.compile(r"white-space\s*:\s*(pre|break-spaces)", re.IGNORECASE)
PERMALINKS = frozenset({"¶", "#", "§", "🔗"})
INDENT = 4


def blocks(tree: HTMLTree) -> str:
    """Text of a parsed page, laid out line by line; empty where the page shows nothing."""
    if tree.body is None:
        return ""
    layout = _Layout()
    # An explicit stack: broken pages nest deeper than Python's recursion limit.
    node: Any = tree.body
    open_elements: list[Any] = []
    while True:
        child = None
        if node.type == NodeType.TEXT:
            layout.text(node.value or "")
        elif node.type == NodeType.ELEMENT and not _is_left_out(node):
            layout.enter(node)
            child = node.first_child
            if child is None:
                layout.leave(node)
        if child is not None:
            open_elements.append(node)
            node = child
            continue
        while open_elements and node.next is None:
            node = open_elements.pop()
            layout.leave(node)
        if not open_elements:
            return layout.finish()
        node = node.next


def _is_left_out(node: Any) -> bool:
    tag = node.tag
    if tag in SKIPPED:
        return True
    if tag == "a":
        return node.text.strip() in PERMALINKS
    names = node.attrs
    if not names or tag == "body":
        return False
    return (
        "hidden" in names
        or (node.getattr("aria-hidden") or "") == "true"
        or (node.getattr("role") or "") in ("navigation", "search")
        or bool(HIDDEN.search(node.getattr("style") or ""))
    )


class _Layout:
    """The state of a text browser's cursor: lines written, the line under way, indentation, open lists and rows."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.line: list[str] = []  # pieces of the line under way
        self.at_space = True  # a collapsible space here vanishes: at the start of a line or after another one
        self.blank = 0  # empty lines wanted before the next line
        self.indent = 0
        self.bullet = ""  # written in front of the next line
        self.preserved = 0  # depth of elements that keep white space
        self.lists: list[int] = []  # open lists: an ordered list's next number, else -1
        self.rows: list[int] = []  # open rows: cells begun, or -1 for a row of a layout table

    def text(self, value: str) -> None:
        if self.preserved:
            first, *others = value.replace("\r\n", "\n").replace("\r", "\n").split("\n")
            self.line.append(first)
            for other in others:
                self.new_line(explicit=True)
                self.line.append(other)
            self.at_space = False
            return
        value = COLLAPSIBLE.sub(" ", value)
        if self.at_space and value.startswith(" "):
            value = value[1:]
        if value:
            self.line.append(value)
            self.at_space = value.endswith(" ")

    def new_line(self, *, explicit: bool = False) -> None:
        """End the line under way; one that is empty stays as an empty line if `explicit` (`br`, in `pre`)."""
        text = "".join(self.line).replace("\xa0", " ").expandtabs(8).rstrip()
        self.line.clear()
        self.at_space = True
        if text:
            if self.lines:
                self.lines.extend([""] * self.blank)
            self.lines.append(" " * (self.indent - len(self.bullet)) + self.bullet + text)
            self.blank, self.bullet = 0, ""
        elif explicit:
            self.blank = min(self.blank + 1, 2)

    def enter(self, node: Any) -> None:
        tag = node.tag
        if tag == "br":
            self.new_line(explicit=True)
        elif tag in MARGIN:
            self.begin_block(tag, node)
        elif tag in ("td", "th"):
            self.begin_cell()
        if tag != "body" and _keeps_space(node, tag):
            self.preserved += 1

    def begin_block(self, tag: str, node: Any) -> None:
        self.new_line()
        self.blank = max(self.blank, self.margin(tag))
        if tag in ("dd", "blockquote"):
            self.indent += INDENT
        elif tag == "ol":
            start = node.getattr("start") or ""
            self.lists.append(int(start) if start.isdecimal() and len(start) < 10 else 1)
        elif tag == "ul":
            self.lists.append(-1)
        elif tag == "li":
            self.bullet = "- "
            if self.lists and self.lists[-1] >= 0:
                self.bullet = f"{self.lists[-1]}. "
                self.lists[-1] += 1
            self.indent += INDENT
        elif tag == "tr":
            is_layout = bool(node.query_selector(f":is(td, th) :is({BLOCKS_IN_A_CELL})"))
            self.rows.append(-1 if is_layout else 0)

    def begin_cell(self) -> None:
        if not self.rows or self.rows[-1] < 0:
            self.new_line()
            return
        # A blank cell at the left leaves no sign; between others the column is kept.
        if any(piece.strip() for piece in self.line):
            self.line.append(" | ")
        else:
            self.line.clear()
        self.at_space = True
        self.rows[-1] += 1

    def leave(self, node: Any) -> None:
        tag = node.tag
        if tag != "body" and _keeps_space(node, tag):
            self.preserved -= 1
        if tag in ("td", "th"):
            if not self.rows or self.rows[-1] < 0:
                self.new_line()
            return
        if tag not in MARGIN:
            return
        if tag == "tr" and self.rows and self.rows.pop() >= 0:
            while self.line and self.line[-1].strip(" |\xa0") == "":
                self.line.pop()
        self.new_line()
        if tag in ("dd", "blockquote", "li"):
            self.indent -= INDENT
            self.bullet = ""
        elif tag in ("ul", "ol"):
            self.lists.pop()
        self.blank = max(self.blank, self.margin(tag))

    def margin(self, tag: str) -> int:
        return 0 if tag in LISTS and self.lists else MARGIN[tag]

    def finish(self) -> str:
        self.new_line()
        return "\n".join(self.lines)


def _keeps_space(node: Any, tag: str) -> bool:
    return tag in ("pre", "listing", "xmp") or bool(PRESERVED.search(node.getattr("style") or ""))
