"""The rules for documents written down plainly, with Python's strings, lists and counts: what the fast ones must equal.

`measures(text, language)` gives what each rule measures of one text. Nothing here is shared with the product.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable

UNSPACED = re.compile(
    "[\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U000323af\u2014\u2018-\u201d\u2026\u00b7]"
    "|[^\\s\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U000323af\u2014\u2018-\u201d\u2026\u00b7]+"
)
BROKEN = re.compile("[\ufffd\ue000-\uf8ff]|Ã[\x80-\xbf©¨¤¶¼]|â€|锟斤拷|烫烫烫")
ENGLISH = {"the", "be", "to", "of", "and", "that", "have", "with"}
CHINESE = set("的了是在不有和我他这這就也之其而以者于於為为與与一人上中大")
BULLETS = tuple("•‣▪▶►●○◦■□-*–·‧・※◆")
TERMINAL = tuple(".!?\"'”’:;。！？；：…」』）)]}`>")


def measures(text: str, language: str) -> dict[str, float]:
    """Rule -> value."""
    by_characters = language in ("zh", "ja")
    units = UNSPACED.findall(text) if by_characters else text.split()
    size = sum(map(len, units))
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    paragraphs = [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
    clauses = re.findall(r"[^\W_]+", text) if by_characters else units
    shown = "".join(text.split())
    symbols = len(re.findall("#+", text)) + len(re.findall(r"\.{3,}|…+|。{3,}", text))
    stop = CHINESE & set(units) if by_characters else ENGLISH & {unit.lower().strip(".,;:!?()\"'") for unit in units}

    def of(part: float, whole: float) -> float:
        return part / whole if whole else 0.0

    def share(holds: Callable[[str], bool]) -> float:
        return of(sum(map(holds, lines)), len(lines))

    found = {
        "word_count": float(len(units)),
        "mean_word_length": of(sum(map(len, clauses)), len(clauses)),
        "symbol_share": of(symbols, len(units)),
        "alphabetic_share": of(sum(bool(re.search(r"[^\W\d_]", unit)) for unit in units), len(units)),
        "stop_words": float(len(stop)),
        "bullet_lines": share(lambda line: line.startswith(BULLETS)),
        "ellipsis_lines": share(lambda line: line.endswith(("...", "…", "。。。"))),
        "terminal_punctuation": share(lambda line: line.endswith(TERMINAL)) if len(lines) >= 4 else 1.0,
        "punctuation_share": of(sum(unicodedata.category(char)[0] in "PS" for char in shown), size),
        "digit_share": of(sum(map(str.isdigit, shown)), size),
        "broken_share": of(len(BROKEN.findall(text)), size),
        "repeated_lines": repeated([line for line in lines if len(line) >= 8], lambda part: 1),
        "repeated_line_characters": repeated(lines, len),
        "repeated_paragraphs": repeated(paragraphs, lambda part: 1),
        "repeated_paragraph_characters": repeated(paragraphs, len),
    }
    for n in (2, 3, 4):
        found[f"top_{n}gram"] = top(units, size, 2 * n if by_characters else n)
    for n in range(5, 11):
        found[f"repeated_{n}grams"] = repeated_ngrams(units, size, 2 * n if by_characters else n)
    return found


def repeated(parts: list[str], weight: Callable[[str], int]) -> float:
    """Share of the parts, by weight, that were there before."""
    total = sum(map(weight, parts))
    return sum((n - 1) * weight(part) for part, n in Counter(parts).items()) / total if total else 0.0


def top(units: list[str], size: int, width: int) -> float:
    """Occurrences times length of the most frequent n-gram, of equally frequent ones the earliest."""
    grams = Counter(tuple(units[at : at + width]) for at in range(len(units) - width + 1))
    best = max(grams.values(), default=0)
    if best < 2:
        return 0.0
    gram = next(gram for gram, n in grams.items() if n == best)
    return min(1.0, best * sum(map(len, gram)) / size)


def repeated_ngrams(units: list[str], size: int, width: int) -> float:
    """Share of characters in n-grams that were there before."""
    seen: set[tuple[str, ...]] = set()
    covered = [False] * len(units)
    for at in range(len(units) - width + 1):
        gram = tuple(units[at : at + width])
        if gram in seen:
            covered[at : at + width] = [True] * width
        seen.add(gram)
    return sum(len(unit) for unit, inside in zip(units, covered, strict=True) if inside) / size if size else 0.0
