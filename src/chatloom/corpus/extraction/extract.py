"""HTML page -> text with title, address and language hint, by one of four extractors.

`blocks`            lays the page out as a text browser would (blocks.py); keeps definitions, code and indentation;
`resiliparse`       all visible text in reading order, formatting kept;
`resiliparse-main`  the same, main content only (Bevendorff et al. 2018, "Elastic ChatNoir"), ten times as fast;
`trafilatura`       articles without boilerplate (Barbaresi 2021), `fast=True`; the most exact on news pages.

Which one fits is measured in docs/corpus.md. These functions may hang or crash on hostile pages, so the pipeline calls
them in child processes that can be killed (workers.py).
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.html import HTMLParserException, HTMLTree

from chatloom.corpus.extraction.blocks import blocks
from chatloom.corpus.reading.decoding import decode_html

Extractor = Literal["blocks", "resiliparse", "resiliparse-main", "trafilatura"]
# Control characters carry no text; U+0085, U+2028 and U+2029 are line ends in disguise.
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\ufffe\uffff]")
LINE_ENDS = re.compile("\r\n|[\r\x85\u2028\u2029]")
# Spaces of other widths are spaces; the ideographic space (U+3000) is kept, as Chinese pages indent with it.
SPACES = re.compile("[\xa0\u1680\u2000-\u200a\u202f\u205f]")
TRAILING = re.compile(r"[ \t]+$", re.MULTILINE)
ADDRESS = 'link[rel="canonical"], meta[property="og:url"]'
EMPTY_LINES = re.compile(r"\n{4,}")


@dataclass(frozen=True, slots=True)
class Extracted:
    """Text of a page and what its head says; fields are empty where the page says nothing."""

    text: str
    title: str = ""
    url: str = ""
    language_hint: str = ""


class Unreadable(ValueError):
    """A page that no parser takes."""


def extract(html: bytes | str, extractor: Extractor, declared_encoding: str | None = None) -> Extracted:
    """Text of one HTML page. Raises `decoding.Undecodable` for bytes in no known encoding, Unreadable for no HTML."""
    page = decode_html(html, declared_encoding) if isinstance(html, bytes) else html
    try:
        tree = HTMLTree.parse(page)
    except (HTMLParserException, ValueError) as error:
        raise Unreadable(f"not parseable as HTML: {error}") from None
    title, url, hint = _head(tree)
    return Extracted(tidy(_text(page, tree, extractor)), title, url, hint)


def _text(page: str, tree: HTMLTree, extractor: Extractor) -> str:
    if extractor == "blocks":
        return blocks(tree)
    if extractor == "trafilatura":
        import trafilatura  # loads many modules: only where it is asked for

        # Its own parser refuses text with an encoding declaration, hence bytes; None means it found no content.
        return trafilatura.extract(page.encode("utf-8"), fast=True, include_comments=False, include_tables=True) or ""
    return extract_plain_text(tree, preserve_formatting=True, main_content=extractor == "resiliparse-main")


def _head(tree: HTMLTree) -> tuple[str, str, str]:
    title = " ".join((tree.title or "").split())
    root, link = (tree.document.query_selector(query) for query in ("html", ADDRESS)) if tree.document else (None, None)
    hint = (root.getattr("lang") or root.getattr("xml:lang") or "") if root is not None else ""
    url = (link.getattr("href") or link.getattr("content") or "") if link is not None else ""
    return title, url if url.startswith(("http://", "https://")) else "", hint.strip().lower()


def tidy(text: str) -> str:
    """Text with plain line ends and spaces: no control characters, no trailing space, at most two empty lines on end.

    Letters are composed (Unicode NFC); nothing else of the content changes, leading space of a line included.
    """
    text = LINE_ENDS.sub("\n", text)
    text = SPACES.sub(" ", CONTROL.sub("", text))
    text = EMPTY_LINES.sub("\n\n\n", TRAILING.sub("", text))
    return unicodedata.normalize("NFC", text).strip("\n")
