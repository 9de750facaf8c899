"""Rules that tell text from garbage: each measures one number and keeps it within limits that depend on the language.

The numbers become labels of the document, so that other limits can be tried without reading the pages again. Most
rules and their English limits are those of Gopher (Rae et al. 2021, "Scaling Language Models", appendix A1.1 and
table A1); the Chinese variants count characters and are our own choice, checked on the texts named in docs/corpus.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from chatloom.corpus.text.measures import CHARACTER_LANGUAGES, Floats, Texts, repeated_share, share

Limits = tuple[float | None, float | None]
RULE_LABEL = "rule_"  # a rule's measure is the label `rule_<name>`

# Gopher's eight; a text in another language that uses Latin letters rarely has two of them.
ENGLISH_STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
# Function characters of modern and classical Chinese, simplified and traditional.
CHINESE_STOP_CHARACTERS = "的了是在不有和我他这這就也之其而以者于於为為与與一人上中大"
AROUND_WORDS = frozenset(".,;:!?()\"'")  # what may stand between a stop word and the white space
BULLETS = frozenset("•‣▪▶►●○◦■□-*–·‧・※◆")
ELLIPSES = ("...", "…", "。。。")
TERMINAL = frozenset(".!?\"'”’:;。！？；：…」』）)]}`>")
FEW_LINES = 4
# Closing brackets, rulers and heading marks repeat in every good text with code; Gopher counts them, we do not.
SHORT_LINE = 8
# Runs, each with what must be in the text for one: looking for that first is ten times as fast as the pattern.
SYMBOLS = {first: re.compile(pattern) for first, pattern in (
    ("#", "##*"), ("...", r"\.\.\.\.*"), ("…", "……*"), ("。。。", "。。。。*"))}  # fmt: skip
# U+FFFD and private characters, UTF-8 read as Latin-1, and the classic of GB18030 read twice.
BROKEN = re.compile("[\ufffd\ue000-\uf8ff]|Ã[\x80-\xbf©¨¤¶¼]|â€|锟斤拷|烫烫烫")
MEASURED_AT_ONCE = 1 << 18  # characters: what is looked at together stays in the processor's cache


@dataclass(frozen=True, slots=True)
class Rule:
    """A named measure with its limits (lowest, highest) by language; `*` stands for every language not named.

    `values` measures many texts at once, [texts].
    """

    name: str
    about: str
    source: str
    values: Callable[[Texts], Floats]
    limits: Mapping[str, Limits]
    version: int = 1


def measure_texts(texts: Sequence[str], languages: Sequence[str]) -> dict[str, Floats]:
    """What every rule measures of texts whose languages are known: rule -> [texts].

    The numbers are those of `Rule.measure` for each text by itself, to the last bit.
    """
    values = {name: np.zeros(len(texts)) for name in RULES}
    for rows, by_characters in _chunks(texts, languages):
        together = Texts([texts[row] for row in rows], by_characters=by_characters)
        for name, rule in RULES.items():
            values[name][rows] = rule.values(together)
    return values


def _chunks(texts: Sequence[str], languages: Sequence[str]) -> Iterator[tuple[list[int], bool]]:
    for by_characters in (False, True):
        rows: list[int] = []
        size = 0
        for row, language in enumerate(languages):
            if (language in CHARACTER_LANGUAGES) != by_characters:
                continue
            if rows and size + len(texts[row]) > MEASURED_AT_ONCE:
                yield rows, by_characters
                rows, size = [], 0
            rows.append(row)
            size += len(texts[row])
        if rows:
            yield rows, by_characters


def limits_of(language: str, limits: Mapping[str, Limits]) -> Limits:
    """The limits of a language, without its own those of `*`; Japanese takes the Chinese ones."""
    key = "zh" if language == "ja" and "ja" not in limits else language
    return limits.get(key, limits.get("*", (None, None)))


def judge(value: float, language: str, limits: Mapping[str, Limits]) -> str | None:
    """None if the value may stay, else what was measured and what the limit is. Limits are inclusive."""
    low, high = limits_of(language, limits)
    if low is not None and value < low:
        return f"{value:.4g} is below {low:g}"
    if high is not None and value > high:
        return f"{value:.4g} is above {high:g}"
    return None


def word_count(texts: Texts) -> Floats:
    """Words, or characters where words are not spaced."""
    return texts.n_units.astype(np.float64)


def mean_word_length(texts: Texts) -> Floats:
    """Characters a word; for Chinese, characters a clause (between punctuation marks, spaces and line ends)."""
    if not texts.by_characters:
        return share(texts.n_characters, texts.n_units)
    n_clauses, n_characters = texts.clauses
    return share(n_characters, n_clauses)


def symbol_share(texts: Texts) -> Floats:
    """Number signs (a heading's `##` is one) and ellipses for each word (or character)."""
    runs = [sum(len(run.findall(text)) for first, run in SYMBOLS.items() if first in text) for text in texts.texts]
    return share(np.array(runs), texts.n_units)


def alphabetic_share(texts: Texts) -> Floats:
    """Share of words with a letter in them; for Chinese, share of characters that are letters or Han characters."""
    return share(texts.n_units_with_letter, texts.n_units)


def stop_words(texts: Texts) -> Floats:
    """How many different stop words occur."""
    if texts.by_characters:
        return np.array([float(sum(char in text for char in CHINESE_STOP_CHARACTERS)) for text in texts.texts])
    return np.array([float(_english_stop_words(text)) for text in texts.texts])


def _english_stop_words(text: str) -> int:
    text = f" {text.lower()} "
    return sum(f" {word} " in text or _stands_alone(word, text) for word in ENGLISH_STOP_WORDS)


def _stands_alone(word: str, text: str) -> bool:
    """Whether the word occurs with nothing but punctuation between it and the white space on both sides."""
    at = text.find(word)
    while at >= 0:
        before, after = at - 1, at + len(word)
        at = text.find(word, after)
        while text[before] in AROUND_WORDS:
            before -= 1
        while text[after] in AROUND_WORDS:
            after += 1
        if text[before].isspace() and text[after].isspace():
            return True
    return False


def bullet_lines(texts: Texts) -> Floats:
    """Share of lines that begin with a bullet."""
    return _mean([[line[0] in BULLETS for line in lines] for lines in texts.lines])


def ellipsis_lines(texts: Texts) -> Floats:
    """Share of lines that end in an ellipsis."""
    return _mean([[line[-1] in ".…。" and line.endswith(ELLIPSES) for line in lines] for lines in texts.lines])


def terminal_punctuation(texts: Texts) -> Floats:
    """Share of lines that end in a punctuation mark; 1 for a text of so few lines that the share says nothing."""
    return _mean([[line[-1] in TERMINAL for line in lines] for lines in texts.lines], fewest=FEW_LINES, otherwise=1.0)


def _mean(holds: Sequence[list[bool]], fewest: int = 1, otherwise: float = 0.0) -> Floats:
    """Share of True in each list; `otherwise` for one of less than `fewest` entries."""
    return np.array([sum(own) / len(own) if len(own) >= fewest else otherwise for own in holds])


def punctuation_share(texts: Texts) -> Floats:
    """Share of characters that are punctuation or symbols."""
    return share(texts.n_marks, texts.n_characters)


def digit_share(texts: Texts) -> Floats:
    """Share of characters that are digits."""
    return share(texts.n_digits, texts.n_characters)


def repeated_lines(texts: Texts) -> Floats:
    """Share of lines that repeat an earlier line; lines of fewer than SHORT_LINE characters are not looked at."""
    long = ([line for line in lines if len(line) >= SHORT_LINE] for lines in texts.lines)
    return np.array([repeated_share(lines, by_characters=False) for lines in long])


def _copies(parts: Sequence[list[str]], *, by_characters: bool) -> Floats:
    return np.array([repeated_share(own, by_characters=by_characters) for own in parts])


def broken_share(texts: Texts) -> Floats:
    """Share of characters that come from a wrong decoding."""
    found = [len(BROKEN.findall(text)) if n else 0 for text, n in zip(texts.texts, texts.n_suspects)]
    return share(np.array(found), texts.n_characters)


def _repetition(
    name: str, about: str, values: Callable[[Texts], Floats], highest: float, zh: float | None = None
) -> Rule:
    limits: dict[str, Limits] = {"*": (None, highest)}
    if zh is not None:
        limits["zh"] = (None, zh)
    return Rule(name, about, "Gopher, Rae et al. 2021, table A1", values, limits)


def _top(n: int) -> Callable[[Texts], Floats]:
    return lambda texts: texts.top_ngram_share(n)


def _repeated(n: int) -> Callable[[Texts], Floats]:
    return lambda texts: texts.repeated_ngram_share(n)


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
                    lambda texts: _copies(texts.lines, by_characters=True), 0.20),
        _repetition("repeated_paragraphs", "share of paragraphs that repeat an earlier one",
                    lambda texts: _copies(texts.paragraphs, by_characters=False), 0.30),
        _repetition("repeated_paragraph_characters", "share of characters in paragraphs that repeat an earlier one",
                    lambda texts: _copies(texts.paragraphs, by_characters=True), 0.20),
        *(_repetition(f"top_{n}gram", f"share of characters in the most frequent {n}-gram", _top(n), highest)
          for n, highest in ((2, 0.20), (3, 0.18), (4, 0.16))),
        *(_repetition(f"repeated_{n}grams", f"share of characters in {n}-grams that occurred before", _repeated(n),
                      highest, zh=highest + 0.1)
          for n, highest in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))),
    )
}  # fmt: skip
