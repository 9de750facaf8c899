"""The look of every page: light, dark and printed, wide and on a phone; no font, image or script is fetched."""

from __future__ import annotations

_LIGHT = """
  --paper: #faf9f6; --surface: #fefefd; --ink: #1b1e23; --muted: #68707c; --line: #e4e2dc; --grid: #dfe2e6;
  --accent: #0d6b68; --tint: #eef4f3; --right: #0b7a55; --wrong: #b3401f;
  --series-1: #1f6fb2; --series-2: #c4500f; --series-3: #0b8763; --series-4: #9c4490; --series-5: #a07100;
  --series-6: #525c6b;
"""

_DARK = """
  --paper: #131518; --surface: #1a1d21; --ink: #e6e8eb; --muted: #98a1ad; --line: #2b3037; --grid: #2e343c;
  --accent: #6cc5bf; --tint: #1b2a2a; --right: #5fcf9f; --wrong: #f0906c;
  --series-1: #6fb3ee; --series-2: #f2905a; --series-3: #4ecba0; --series-4: #dd94d2; --series-5: #dcb04a;
  --series-6: #a3adba;
"""

_TEXT = """
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body {
  margin: 0; background: var(--paper); color: var(--ink); line-height: 1.6; font-size: 16px;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "PingFang SC", "Hiragino Sans GB",
    "Microsoft YaHei", "Noto Sans CJK SC", sans-serif;
  overflow-wrap: break-word; text-rendering: optimizeLegibility;
}
h1, h2 {
  font-family: "Iowan Old Style", "Palatino Linotype", Palatino, "Source Serif 4", "Noto Serif", Georgia, "Songti SC",
    "Noto Serif CJK SC", "Noto Sans CJK SC", serif;
  font-weight: 600; line-height: 1.15; letter-spacing: -0.01em; text-wrap: balance;
}
h1 { font-size: clamp(2rem, 5vw, 3rem); margin: 0.3rem 0 1rem; }
h2 { font-size: 1.75rem; margin: 0 0 0.9rem; }
h2 .other { font-size: 1.1rem; color: var(--muted); font-weight: 400; margin-left: 0.5rem; }
h3 { font-size: 1.02rem; margin: 2rem 0 0.6rem; line-height: 1.35; }
p { margin: 0 0 1rem; max-width: 70ch; text-wrap: pretty; }
a { color: var(--accent); }
code, pre, .tokens {
  font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", "Noto Sans Mono CJK SC", monospace;
  font-size: 0.88em;
}
pre {
  background: var(--surface); border: 1px solid var(--line); border-radius: 8px; padding: 0.8rem 1rem;
  overflow-x: auto; line-height: 1.5; white-space: pre-wrap; margin: 0 0 1.2rem;
}
"""

# Contents stand beside the text where there is room, above it where there is not.
_FRAME = """
.page { max-width: 1060px; margin: 0 auto; padding: 0 1.25rem 5rem; }
header { padding: 3.2rem 0 1.6rem; }
.eyebrow { color: var(--accent); font-size: 0.82rem; letter-spacing: 0.06em; margin: 0; font-weight: 600; }
.lead { font-size: 1.16rem; line-height: 1.55; }
.facts { color: var(--muted); font-size: 0.86rem; margin: 0; max-width: none; }
.facts span + span::before { content: "·"; margin: 0 0.5em; }
nav { border-block: 1px solid var(--line); margin-bottom: 2.6rem; }
nav ol { list-style: none; display: flex; flex-wrap: wrap; gap: 0 1.3rem; margin: 0; padding: 0.3rem 0; }
nav a {
  display: block; padding: 0.35rem 0; color: var(--muted); text-decoration: none; font-size: 0.9rem;
  white-space: nowrap;
}
nav a:hover, nav a:focus-visible { color: var(--accent); }
section { margin: 0 0 4rem; scroll-margin-top: 1.5rem; }
footer { border-top: 1px solid var(--line); padding-top: 1rem; color: var(--muted); font-size: 0.85rem; }
@media (min-width: 1300px) {
  .page.listed {
    max-width: 1300px; display: grid; grid-template-columns: 170px minmax(0, 1fr); column-gap: 3rem;
    grid-template-rows: auto 1fr;
  }
  .listed header, .listed main, .listed footer { grid-column: 2; min-width: 0; }
  .listed nav { grid-column: 1; grid-row: 1 / span 3; border: 0; margin: 0; padding-top: 3.35rem; }
  .listed nav ol { position: sticky; top: 2rem; display: block; }
  .listed nav a { padding: 0.22rem 0; white-space: normal; line-height: 1.35; }
}
"""

_BLOCKS = """
.cards {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 0.9rem; margin: 0 0 1.6rem;
  padding: 0;
}
.card {
  background: var(--surface); border: 1px solid var(--line); border-radius: 10px; padding: 0.95rem 1.1rem 0.9rem;
}
.card dt { color: var(--muted); font-size: 0.84rem; line-height: 1.35; }
.card dd { margin: 0; }
.card .value {
  font-size: 1.85rem; line-height: 1.25; font-weight: 600; letter-spacing: -0.02em; margin: 0.15rem 0;
  font-variant-numeric: tabular-nums; white-space: nowrap;
}
.card .note { font-size: 0.82rem; color: var(--muted); line-height: 1.4; }
.card.good .value { color: var(--right); }
.card.bad .value { color: var(--wrong); }

.figures {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 410px), 1fr)); gap: 1.1rem;
  margin: 0 0 1.4rem;
}
figure {
  margin: 0 0 1.4rem; background: var(--surface); border: 1px solid var(--line); border-radius: 10px;
  padding: 1rem 1.15rem 1.05rem; min-width: 0; break-inside: avoid;
}
.figures > figure { margin: 0; display: flex; flex-direction: column; }
figure h3 { margin: 0 0 0.5rem; }
figure svg { display: block; max-width: 100%; height: auto; margin: auto; overflow: visible; }
/* a rim of the page's colour keeps names readable where lines pass behind them */
figure svg text { paint-order: stroke; stroke: var(--surface); stroke-width: 3px; }
figure .scroll { overflow-x: auto; }
figure .scroll svg { min-width: 560px; }
figcaption {
  color: var(--muted); font-size: 0.87rem; line-height: 1.5; margin-top: 0.7rem; padding-top: 0.6rem; max-width: 80ch;
}

.table-frame {
  overflow-x: auto; margin: 0 0 1.4rem; background: var(--surface); border: 1px solid var(--line);
  border-radius: 10px;
}
table {
  border-collapse: collapse; width: 100%; font-size: 0.9rem; line-height: 1.4; font-variant-numeric: tabular-nums;
}
.table-frame + .note { color: var(--muted); font-size: 0.87rem; margin: -0.8rem 0 1.6rem; max-width: 80ch; }
th, td { text-align: left; padding: 0.5rem 0.65rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th:first-child, td:first-child { padding-left: 1rem; }
thead th { color: var(--muted); font-weight: 500; font-size: 0.82rem; vertical-align: bottom; white-space: nowrap; }
tbody th { font-weight: 500; white-space: nowrap; }
tbody:last-child tr:last-child > * { border-bottom: 0; }
.number { text-align: right; white-space: nowrap; }
.interval { display: block; color: var(--muted); font-size: 0.76rem; white-space: nowrap; }
tr.group th { color: var(--accent); font-weight: 600; padding-top: 1.05rem; white-space: normal; }
tr.highlight > * { background: var(--tint); }

.samples td { min-width: 9.5rem; }
.samples .prompt { font-weight: 500; min-width: 11rem; }
.samples .text { white-space: pre-wrap; overflow-wrap: anywhere; }
.answer { border-left: 3px solid var(--line); padding-left: 0.6rem; }
.answer.right { border-color: var(--right); }
.answer.wrong { border-color: var(--wrong); }
.mark { font-weight: 600; font-size: 0.8rem; display: block; color: var(--muted); }
.right > .mark { color: var(--right); }
.wrong > .mark { color: var(--wrong); }

.tokens {
  background: var(--surface); border: 1px solid var(--line); border-radius: 10px; padding: 0.9rem 1.1rem;
  line-height: 2.05; margin: 0 0 1.4rem;
}
.token {
  white-space: pre-wrap; border-radius: 3px; padding: 0.14em 0; color: var(--muted);
  box-shadow: inset -1px 0 var(--surface), inset 0 -2px var(--line);
}
.token.loss {
  background: color-mix(in srgb, var(--series-1) 17%, transparent); color: var(--ink);
  box-shadow: inset -1px 0 var(--surface), inset 0 -2px var(--series-1);
}
.token.special { font-weight: 700; }
.legend { font-size: 0.84rem; color: var(--muted); margin: 0 0 0.5rem; }
.legend .token { padding: 0.14em 0.4em; margin-right: 0.3em; }

.timeline .bar {
  position: relative; display: block; min-width: 140px; height: 1.15rem; background: var(--paper); border-radius: 3px;
}
.timeline .bar i { position: absolute; inset-block: 0; min-width: 2px; background: var(--accent); border-radius: 3px; }
.timeline td.wide { width: 46%; padding-block: 0.65rem; }

details {
  border: 1px solid var(--line); border-radius: 10px; background: var(--surface); padding: 0 1.1rem;
  margin: 0 0 1.2rem;
}
summary { cursor: pointer; padding: 0.75rem 0; font-weight: 500; }
details[open] summary { margin-bottom: 0.3rem; }
.pairs {
  display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: 0.25rem 1.4rem; margin: 0 0 1.2rem;
  font-size: 0.9rem;
}
.pairs dt { color: var(--muted); }
.pairs dd { margin: 0; font-variant-numeric: tabular-nums; min-width: 0; }
"""

_AMOUNTS = """
.levels { margin: 0.2rem 0 0; font-size: 0.88rem; line-height: 1.35; container-type: inline-size; }
.level { padding: 0.3rem 0; }
.level dt { overflow-wrap: anywhere; }
.level dd { margin: 0; display: flex; align-items: center; gap: 0.7rem; }
.track { position: relative; flex: 1 1 auto; height: 0.85rem; }
.track i {
  position: absolute; inset-block: 0; left: 0; border-radius: 2px;
  background: color-mix(in srgb, var(--muted) 30%, transparent);
}
.track i.part { background: var(--series-1); }
.told { flex: 0 0 12.5rem; font-variant-numeric: tabular-nums; }
.told .interval { display: inline; margin-left: 0.35rem; white-space: normal; }

@container (min-width: 800px) {
  .level { display: grid; grid-template-columns: 16rem minmax(0, 1fr); column-gap: 1rem; align-items: center; }
  .level dt { text-align: right; }
}

.shades td {
  background: color-mix(in srgb, var(--series-2) calc(var(--shade) * 0.75), transparent); padding: 0.5rem 0.45rem;
  text-align: center;
}
.shades th.number { text-align: center; }
.named tbody th, .named thead th { white-space: normal; }
.named tbody th:first-child { overflow-wrap: anywhere; min-width: 10rem; }
.listing > details { margin: 0; border-radius: 0; border-bottom-width: 0; }
.listing > details:first-child { border-radius: 10px 10px 0 0; }
.listing > details:last-child { border-radius: 0 0 10px 10px; border-bottom-width: 1px; }
.listing > details:only-child { border-radius: 10px; }
.listing > details[open] { padding-bottom: 0.5rem; }
.listing { margin-bottom: 1.4rem; }

.examples {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); column-gap: 1.5rem;
}
.example { border-top: 1px solid var(--line); padding: 0.9rem 0 0.4rem; min-width: 0; }
.example .why { margin: 0 0 0.15rem; font-weight: 500; font-size: 0.92rem; max-width: none; }
.example .facts { font-size: 0.8rem; overflow-wrap: anywhere; margin-bottom: 0.5rem; }
.excerpt {
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: 0.9rem; line-height: 1.55; max-height: 15rem;
  overflow-y: auto; background: var(--paper); border-radius: 6px; padding: 0.6rem 0.8rem; margin-bottom: 0.7rem;
}
.excerpt del { background: color-mix(in srgb, var(--wrong) 18%, transparent); color: var(--wrong); }
.excerpt ins {
  background: color-mix(in srgb, var(--right) 18%, transparent); color: var(--right); text-underline-offset: 3px;
}
.gap { color: var(--muted); font-size: 0.8rem; white-space: nowrap; padding: 0 0.3em; }
"""

_PHONE = """
@media (max-width: 700px) {
  .told { flex-basis: 8.5rem; }
  .told .interval { display: block; margin-left: 0; }
  .named tbody th:first-child { min-width: 7.5rem; }
  .page { padding: 0 1rem 3rem; }
  header { padding-top: 2rem; }
  figure { padding: 0.85rem 0.8rem; }
  .card .value { font-size: 1.4rem; }
  .card { padding: 0.8rem 0.85rem; }
  .cards { grid-template-columns: repeat(auto-fit, minmax(138px, 1fr)); gap: 0.6rem; }
  nav ol { flex-wrap: nowrap; overflow-x: auto; }
  tr.group span { display: inline-block; max-width: calc(100vw - 4rem); }
  tbody th { position: sticky; left: 0; background: var(--surface); }
  tr.highlight th { background: var(--tint); }
  .samples, .samples tbody, .samples tr, .samples td { display: block; width: 100%; }
  .samples thead { display: none; }
  .samples tr { border-bottom: 2px solid var(--line); padding: 0.5rem 0; }
  .samples td { border: 0; padding: 0.35rem 0.9rem; }
  .samples td[data-name]::before {
    content: attr(data-name); display: block; color: var(--muted); font-size: 0.78rem;
  }
  .pairs { grid-template-columns: 1fr; gap: 0; }
  .pairs dd { margin-bottom: 0.5rem; }
}
"""

_PAPER = """
@media print {
  body { font-size: 10.5pt; background: #fff; }
  nav { display: none; }
  header { padding-top: 0; }
  section { margin-bottom: 1.6rem; }
  h2, h3 { break-after: avoid; }
  tr, .card, .tokens { break-inside: avoid; }
  .table-frame, figure .scroll { overflow: visible; }
  table { font-size: 7.5pt; }
  .interval { font-size: 6.5pt; }
  th, td { padding: 0.2rem 0.3rem; }
  .samples td, .samples .prompt { min-width: 0; }
  .figures { grid-template-columns: 1fr 1fr; }
  details::details-content { content-visibility: visible; block-size: auto; }
}
"""

STYLESHEET = (
    f":root {{{_LIGHT} color-scheme: light dark; }}\n"
    f"@media (prefers-color-scheme: dark) {{ :root {{{_DARK}}} }}\n"
    f"@media print {{ :root {{{_LIGHT} color-scheme: light; }} }}\n"
    f"{_TEXT}{_FRAME}{_BLOCKS}{_AMOUNTS}{_PHONE}{_PAPER}"
)
