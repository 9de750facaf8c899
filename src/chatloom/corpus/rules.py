"""Rules that tell text from garbage: each measures one number and keeps it within limits that depend on the language.

The numbers become labels of the document, so that other limits can be tried without reading the pages again. Most
rules and their English limits are those of Gopher (Rae et al. 2021, "Scaling Language Models", appendix A1.1 and
table A1); the Chinese variants count characters and are our own choice, checked on the texts named in docs/corpus.md.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from chatloom.corpus.measures import TextView, repeated_share

Limits = tuple[float | None, float | None]

# Gopher's eight; a text in another language that uses Latin letters rarely has two of them.
ENGLISH_STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
# Function characters of modern and classical Chinese, simplified and traditional.
CHINESE_STOP_CHARACTERS = frozenset("的了是在不有和我他这這就也之其而以者于於为為与與一人上中大")
BULLETS = tuple("•‣▪▶►●○◦■□-*–·‧・※◆")
ELLIPSES = ("...", "…", "。。。")
TERMINAL = tuple(".!?\"'”’:;。！？；：…」』）)]}`>")
FEW_LINES = 4
# Closing brackets, rulers and heading marks repeat in every good text with code; Gopher counts them, we do not.
SHORT_LINE = 8
ELLIPSIS = re.compile(r"\.{3,}|…+|。{3,}")
HASHES = re.compile("#+")
ALPHABETIC = re.compile(r"[^\W\d_]")
CLAUSE = re.compile(r"[^\W_]+")
# U+FFFD and private characters, UTF-8 read as Latin-1, and the classic of GB18030 read twice.
BROKEN = re.compile("[\ufffd\ue000-\uf8ff]|Ã[\x80-\xbf©¨¤¶¼]|â€|锟斤拷|烫烫烫")


@dataclass(frozen=True, slots=True)
class Rule:
    """A named measure with its limits (lowest, highest) by language; `*` stands for every language not named."""

    name: str
    about: str
    source: str
    measure: Callable[[TextView], float]
    limits: Mapping[str, Limits]
    version: int = 1


def judge(value: float, language: str, limits: Mapping[str, Limits]) -> str | None:
    """None if the value may stay, else what was measured and what the limit is.

    Limits are inclusive; a language without its own takes those of `*`, Japanese the Chinese ones (both count
    characters).
    """
    key = "zh" if language == "ja" and "ja" not in limits else language
    low, high = limits.get(key, limits.get("*", (None, None)))
    if low is not None and value < low:
        return f"{value:.4g} is below {low:g}"
    if high is not None and value > high:
        return f"{value:.4g} is above {high:g}"
    return None


def word_count(view: TextView) -> float:
    """Words, or characters where words are not spaced."""
    return float(len(view.units))


def mean_word_length(view: TextView) -> float:
    """Characters a word; for Chinese, characters a clause (between punctuation marks, spaces and line ends)."""
    parts = CLAUSE.findall(view.text) if view.by_characters else view.units
    return sum(map(len, parts)) / len(parts) if parts else 0.0


def symbol_share(view: TextView) -> float:
    """Number signs (a heading's `##` is one) and ellipses for each word (or character)."""
    symbols = len(HASHES.findall(view.text)) + len(ELLIPSIS.findall(view.text))
    return symbols / len(view.units) if view.units else 0.0


def alphabetic_share(view: TextView) -> float:
    """Share of words with a letter in them; for Chinese, share of characters that are letters or Han characters."""
    if not view.units:
        return 0.0
    return sum(1 for unit in view.units if ALPHABETIC.search(unit)) / len(view.units)


def stop_words(view: TextView) -> float:
    """How many different stop words occur."""
    if view.by_characters:
        return float(len(CHINESE_STOP_CHARACTERS.intersection(view.units)))
    return float(len(ENGLISH_STOP_WORDS.intersection(unit.lower().strip(".,;:!?()\"'") for unit in view.units)))


def bullet_lines(view: TextView) -> float:
    """Share of lines that begin with a bullet."""
    return sum(line.startswith(BULLETS) for line in view.lines) / len(view.lines) if view.lines else 0.0


def ellipsis_lines(view: TextView) -> float:
    """Share of lines that end in an ellipsis."""
    return sum(line.endswith(ELLIPSES) for line in view.lines) / len(view.lines) if view.lines else 0.0


def terminal_punctuation(view: TextView) -> float:
    """Share of lines that end in a punctuation mark; 1 for a text of so few lines that the share says nothing."""
    if len(view.lines) < FEW_LINES:
        return 1.0
    return sum(line.endswith(TERMINAL) for line in view.lines) / len(view.lines)


def punctuation_share(view: TextView) -> float:
    """Share of characters that are punctuation or symbols."""
    marks = sum(n for char, n in view.character_counts.items() if unicodedata.category(char)[0] in "PS")
    return marks / view.n_characters if view.n_characters else 0.0


def digit_share(view: TextView) -> float:
    """Share of characters that are digits."""
    digits = sum(n for char, n in view.character_counts.items() if char.isdigit())
    return digits / view.n_characters if view.n_characters else 0.0


def repeated_lines(view: TextView) -> float:
    """Share of lines that repeat an earlier line; lines of fewer than SHORT_LINE characters are not looked at."""
    return repeated_share([line for line in view.lines if len(line) >= SHORT_LINE], by_characters=False)


def broken_share(view: TextView) -> float:
    """Share of characters that come from a wrong decoding."""
    return len(BROKEN.findall(view.text)) / view.n_characters if view.n_characters else 0.0


def _repetition(
    name: str, about: str, measure: Callable[[TextView], float], highest: float, zh: float | None = None
) -> Rule:
    limits: dict[str, Limits] = {"*": (None, highest)}
    if zh is not None:
        limits["zh"] = (None, zh)
    return Rule(name, about, "Gopher, Rae et al. 2021, table A1", measure, limits)


def _top(n: int) -> Callable[[TextView], float]:
    return lambda view: view.top_ngram_share(n)


def _repeated(n: int) -> Callable[[TextView], float]:
    return lambda view: view.repeated_ngram_share(n)


GOPHER = "Gopher, Rae et al. 2021, appendix A1.1"
RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("word_count", "number of words (Chinese: characters)", GOPHER, word_count,
             {"*": (50, 100_000), "zh": (50, 200_000)}),
        Rule("mean_word_length", "mean length of a word (Chinese: of a clause)", GOPHER, mean_word_length,
             {"*": (3, 10), "zh": (1.5, 40)}),
        Rule("symbol_share", "number signs and ellipses for each word (Chinese: character)", GOPHER, symbol_share,
             {"*": (None, 0.1), "zh": (None, 0.05)}),
        Rule("alphabetic_share", "share of words with a letter (Chinese: of characters that are letters)", GOPHER,
             alphabetic_share, {"*": (0.8, None), "zh": (0.5, None)}),
        Rule("stop_words", "different stop words (English, Chinese)", GOPHER, stop_words,
             {"en": (2, None), "zh": (2, None)}),
        Rule("bullet_lines", "share of lines that begin with a bullet", GOPHER, bullet_lines, {"*": (None, 0.9)}),
        Rule("ellipsis_lines", "share of lines that end in an ellipsis", GOPHER, ellipsis_lines, {"*": (None, 0.3)}),
        Rule("terminal_punctuation", "share of lines that end in a punctuation mark",
             "FineWeb, Penedo et al. 2024, section 3.6 (its 0.12 counts fewer marks)", terminal_punctuation,
             {"*": (0.05, None)}),
        Rule("punctuation_share", "share of characters that are punctuation or symbols", "own choice",
             punctuation_share, {"*": (0.002, 0.35), "zh": (0.01, 0.4)}),
        Rule("digit_share", "share of characters that are digits", "own choice", digit_share, {"*": (None, 0.25)}),
        Rule("broken_share", "share of characters that come from a wrong decoding", "own choice", broken_share,
             {"*": (None, 0.005), "zh": (None, 0.02)}),
        _repetition("repeated_lines", "share of lines that repeat an earlier line",
                    repeated_lines, 0.30),
        _repetition("repeated_line_characters", "share of characters in lines that repeat an earlier line",
                    lambda view: repeated_share(view.lines, by_characters=True), 0.20),
        _repetition("repeated_paragraphs", "share of paragraphs that repeat an earlier one",
                    lambda view: repeated_share(view.paragraphs, by_characters=False), 0.30),
        _repetition("repeated_paragraph_characters", "share of characters in paragraphs that repeat an earlier one",
                    lambda view: repeated_share(view.paragraphs, by_characters=True), 0.20),
        *(_repetition(f"top_{n}gram", f"share of characters in the most frequent {n}-gram", _top(n), highest)
          for n, highest in ((2, 0.20), (3, 0.18), (4, 0.16))),
        *(_repetition(f"repeated_{n}grams", f"share of characters in {n}-grams that occurred before", _repeated(n),
                      highest, zh=highest + 0.1)
          for n, highest in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))),
    )
}  # fmt: skip
