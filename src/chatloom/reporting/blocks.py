"""What a report is built of: cards, figures, answers, tokens, stages in time; plain data in, finished HTML out.

Every text that comes in is escaped here, whoever wrote it; only values of type `Html` are taken as markup.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from chatloom.progress import duration
from chatloom.reporting.html import Html, breakable, escape, to_html
from chatloom.reporting.tables import MISSING, format_value


def cards(items: Sequence[Mapping[str, Any]]) -> Html:
    """Headline figures: `{"label", "value", "note"?, "tone"?: "good" | "bad"}`; values as text or numbers."""
    out = []
    for item in items:
        tone = item.get("tone", "")
        if tone not in ("", "good", "bad"):
            raise ValueError(f"tone {tone!r} of the card {item.get('label')!r}: expected 'good', 'bad' or nothing")
        note = f'<div class="note">{escape(item["note"])}</div>' if item.get("note") else ""
        out.append(
            f'<div class="card{" " + tone if tone else ""}"><dt>{breakable(item["label"])}</dt>'
            f'<dd><div class="value">{escape(format_value(item["value"]))}</div>{note}</dd></div>'
        )
    return Html(f'<dl class="cards">{"".join(out)}</dl>')


def figure(svg: Html, title: str, caption: str, *, wide: bool = False) -> Html:
    """A figure with its title above and, below, how to read it; a `wide` one scrolls sideways on a phone."""
    if not caption.strip():
        raise ValueError(f"the figure {title!r} has no caption: say how it is to be read")
    drawing = f'<div class="scroll" tabindex="0">{to_html(svg)}</div>' if wide else to_html(svg)
    return Html(f"<figure><h3>{escape(title)}</h3>{drawing}<figcaption>{escape(caption)}</figcaption></figure>")


def side_by_side(*figures: Html) -> Html:
    """Figures beside each other where there is room."""
    return Html(f'<div class="figures">{"".join(figures)}</div>')


def samples(rows: Sequence[Mapping[str, Any]], methods: Sequence[str], *, truth: str = "true answer") -> Html:
    """Answers side by side: `{"prompt", "truth", "answers": {method: text or {"text", "right"?: bool, "note"?: str}}}`.

    Right and wrong are marked in words and signs too, not by colour alone. On a phone each sample is a list.
    """
    has_truth = any(row.get("truth") is not None for row in rows)
    names = ["prompt", *([truth] if has_truth else []), *methods]
    out = ['<div class="table-frame" tabindex="0"><table class="samples"><thead><tr>']
    out += [f'<th scope="col">{escape(name)}</th>' for name in names]
    out.append("</tr></thead><tbody>")
    for row in rows:
        out.append(f'<tr><td class="prompt"><div class="text">{escape(row["prompt"])}</div></td>')
        if has_truth:
            out.append(
                f'<td data-name="{escape(truth)}"><div class="text">{escape(row.get("truth") or MISSING)}</div></td>'
            )
        for method in methods:
            out.append(f'<td data-name="{escape(method)}">{_answer(row.get("answers", {}).get(method))}</td>')
        out.append("</tr>")
    out.append("</tbody></table></div>")
    return Html("".join(out))


def tokens(pieces: Sequence[Mapping[str, Any]], *, legend: bool = True) -> Html:
    """One training sequence token by token: `{"text", "weight", "id"?, "special"?: bool}`; coloured = carries loss.

    `weight` is that of predicting this token. Blanks are kept and newlines shown, since what looks empty can carry
    loss.
    """
    out = []
    for piece in pieces:
        weight = float(piece.get("weight", 0.0))
        names = ["token", *(["loss"] if weight > 0 else []), *(["special"] if piece.get("special") else [])]
        facts = [f"id {piece['id']}"] if "id" in piece else []
        facts.append(f"weight {weight:g}" if weight > 0 else "no loss")
        text = escape(piece["text"]).replace("\n", "↵\n").replace("\t", "⇥\t")
        out.append(f'<span class="{" ".join(names)}" title="{escape(", ".join(facts))}">{text}</span>')
    supervised = sum(float(piece.get("weight", 0.0)) > 0 for piece in pieces)
    told = (
        f'<p class="legend"><span class="token loss">carries loss</span><span class="token">is only read</span> '
        f"{supervised:,} of {len(pieces):,} tokens carry loss</p>"
    )
    return Html(f'{told if legend else ""}<div class="tokens">{"".join(out)}</div>')


def timeline(stages: Sequence[Mapping[str, Any]]) -> Html:
    """Stages in time: `{"name", "seconds", "memory_bytes"?, "start"?, "note"?}`; without `start` one by one."""
    starts, clock = [], 0.0
    for stage in stages:
        start = float(stage["start"]) if stage.get("start") is not None else clock
        starts.append(start)
        clock = max(clock, start + _seconds(stage))
    total = max(clock, 1e-9)
    spent = sum(map(_seconds, stages)) or 1e-9
    out = [
        '<div class="table-frame timeline" tabindex="0"><table><thead><tr><th scope="col">stage</th>'
        '<th scope="col" aria-hidden="true"></th><th scope="col" class="number">time</th>'
        '<th scope="col" class="number">share</th><th scope="col" class="number">peak memory</th></tr></thead><tbody>'
    ]
    for stage, start in zip(stages, starts):
        seconds = _seconds(stage)
        memory = stage.get("memory_bytes")
        note = f' <span class="interval">{escape(stage["note"])}</span>' if stage.get("note") else ""
        place = f"left:{100 * start / total:.2f}%;width:{100 * seconds / total:.2f}%"
        out.append(
            f'<tr><th scope="row">{escape(stage["name"])}{note}</th>'
            f'<td class="wide"><span class="bar"><i style="{place}"></i></span></td>'
            f'<td class="number">{duration(seconds)}</td><td class="number">{100 * seconds / spent:.0f}%</td>'
            f'<td class="number">{size(memory)}</td></tr>'
        )
    peak = max((stage["memory_bytes"] for stage in stages if stage.get("memory_bytes")), default=None)
    out.append(
        f'<tr class="highlight"><th scope="row">all</th><td></td><td class="number">{duration(spent)}</td>'
        f'<td class="number">100%</td><td class="number">{size(peak)}</td></tr></tbody></table></div>'
    )
    return Html("".join(out))


def details(summary: str, *blocks: Html | str) -> Html:
    """Blocks that are shown when asked for (and always on paper)."""
    return Html(f"<details><summary>{escape(summary)}</summary>{''.join(map(to_html, blocks))}</details>")


def pairs(values: Mapping[str, Any]) -> Html:
    """Names and values, such as settings or sizes."""
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(format_value(value))}</dd>" for name, value in values.items())
    return Html(f'<dl class="pairs">{items}</dl>')


def code(text: str) -> Html:
    """Text set as it is: a command, a settings file, a sample."""
    return Html(f"<pre>{escape(text)}</pre>")


def heading(text: str) -> Html:
    """A heading inside a section."""
    return Html(f"<h3>{escape(text)}</h3>")


def size(n_bytes: float | None) -> str:
    """Bytes as a person reads them: `812 MB`, `1.4 GB` (powers of 1000, as everywhere); a dash if not known."""
    if n_bytes is None or not math.isfinite(n_bytes):
        return MISSING
    if n_bytes >= 999.5e6:
        return f"{n_bytes / 1e9:.1f} GB"
    return f"{n_bytes / 1e6:.0f} MB" if n_bytes >= 10e6 else f"{n_bytes / 1e6:.1f} MB"


def _seconds(stage: Mapping[str, Any]) -> float:
    return max(0.0, float(stage["seconds"]))


def _answer(answer: Any) -> str:
    if answer is None:
        return MISSING
    given = answer if isinstance(answer, Mapping) else {"text": answer}
    right = given.get("right") if isinstance(given.get("right"), bool) else None
    css, mark = ("", "") if right is None else (" right", "✓ right") if right else (" wrong", "✗ wrong")
    note = " · ".join(part for part in (mark, str(given.get("note") or "")) if part)
    head = f'<span class="mark">{escape(note)}</span>' if note else ""
    return f'<div class="answer{css}">{head}<div class="text">{escape(given["text"]) or "<em>(empty)</em>"}</div></div>'
