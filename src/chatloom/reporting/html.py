"""Text becomes HTML here and nowhere else: all is escaped but `Html`, which only building blocks make."""

from __future__ import annotations

import html
import re
from typing import Any

# Characters that HTML cannot hold: controls other than tab and newline, half of a surrogate pair, non-characters.
_UNHOLDABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
# Marks that change the direction of all text after them: a model's answer must not turn the page around.
_DIRECTION = re.compile("[\u202a-\u202e\u2066-\u2069]")


class Html(str):
    """Text that is finished HTML; a plain str never is."""

    __slots__ = ()


def escape(text: Any) -> str:
    """Text made safe to stand in HTML, in an attribute too; characters that HTML cannot hold become U+FFFD."""
    return html.escape(clean(text), quote=True)


def clean(text: Any) -> str:
    """Text without characters that HTML and SVG cannot hold; newlines become \\n."""
    text = str(text).replace("\r\n", "\n").replace("\r", "\n")
    return _DIRECTION.sub("\ufffd", _UNHOLDABLE.sub("\ufffd", text))


def breakable(name: Any) -> Html:
    """A name that may be broken between the parts that dots and underscores part, not inside a word."""
    return Html(re.sub(r"([._])(?=\w)", r"\1<wbr>", escape(name)))


def to_html(block: Html | str) -> Html:
    """A block as it is; plain text as an escaped paragraph, one for each part between blank lines."""
    if isinstance(block, Html):
        return block
    parts = [part.strip() for part in re.split(r"\n\s*\n", block) if part.strip()]
    return Html("".join(f"<p>{escape(part)}</p>" for part in parts))
