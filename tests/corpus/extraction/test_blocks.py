"""The layout of a text browser, rule by rule."""

from __future__ import annotations

import pytest
from resiliparse.parse.html import HTMLTree

from chatloom.corpus.extraction.blocks import blocks


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>a\n  b</p><p>c", "a b\n\nc"),
        ("a<br>b<br><br>c", "a\nb\n\nc"),
        ("<dl><dt>f(x)<dd>First.<br>&nbsp;<br>&nbsp;&nbsp;code<dt>g()<dd>Second.</dl>",
         "f(x)\n    First.\n\n      code\ng()\n    Second."),
        ("<pre>\n  x = 1\n\n  y\t= 2</pre>z", "  x = 1\n\n  y     = 2\n\nz"),
        ("<pre>a  b</pre>", "a  b"),
        ('<div style="white-space: pre">a  b\n c</div>', "a  b\n c"),
        ("<ul><li>one<li>two<ul><li>in</ul></ul>b", "  - one\n  - two\n      - in\n\nb"),
        ("<ol start=3><li>a<li>b</ol>", " 3. a\n 4. b"),
        ("<blockquote>q<br>r</blockquote>", "    q\n    r"),
        ("<table><tr><th>A<th>B<tr><td>1<td>2<tr><td><td>x</table>z", "A | B\n1 | 2\nx\n\nz"),
        ("<table><tr><td>&nbsp;<td><p>left</p><td><p>right</p></table>", "left\n\nright"),
        ("<nav>menu</nav><div role=navigation>m</div><p>text</p><footer>foot</footer><script>s()</script>", "text"),
        ("<p hidden>no</p><p style='display: none'>no</p><p aria-hidden=true>no</p><p>yes", "yes"),
        ("<h1>T<a class=headerlink href='#t'>¶</a></h1><p>x", "T\n\nx"),
        ("<b>bold</b> and <i>italic</i>, <a href=x>link</a>.", "bold and italic, link."),
        ("a <b> b</b>", "a b"),
        ("<p>中文<br>第二行</p>", "中文\n第二行"),
        ("", ""),
        ("<head><title>t</title></head>", ""),
    ],
)  # fmt: skip
def test_layout(html: str, text: str) -> None:
    assert blocks(HTMLTree.parse(html)) == text


def test_deep_nesting_does_not_exhaust_the_stack() -> None:
    assert blocks(HTMLTree.parse("<div>" * 100_000 + "deep")).strip() in ("deep", "")
    assert "end" in blocks(HTMLTree.parse("<ul><li>" * 400 + "end"))


def test_unbalanced_tables_and_lists_leave_no_state_behind() -> None:
    text = blocks(HTMLTree.parse("<td>cell</td></ul></ol></dl><table><tr><td>a</table></td><li>item</li><p>end"))
    assert text.split("\n")[-1] == "end"
