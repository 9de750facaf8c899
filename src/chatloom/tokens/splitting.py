"""How text is cut into pieces before any merge, and how often each piece occurs in a text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import regex

from chatloom.tokens.layout import VocabularyError

# Han and kana run on for whole clauses without a space, so they get a branch of their own: no piece mixes scripts.
_CJK = r"\p{Han}\p{Hiragana}\p{Katakana}ー々〆"
_CJK_PUNCTUATION = "\u3000-\u303f\uff00-\uffef"
# GPT-2's own cut (Radford et al. 2019): contractions, words, numbers, signs, each with at most one space before it.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def split_pattern(digits: int = 2, han: int = 0) -> str:
    """The regular expression that cuts text into pieces before any merge, in the manner of GPT-4's.

    Branches, first match wins: English contractions; Han and kana, in runs of at most `han` (0: of any length); a word
    with at most one leading space or sign; up to `digits` digits; signs with the line ends that follow; line ends;
    spaces (the last goes to the word).
    """
    if digits not in (1, 2, 3):
        raise VocabularyError(f"digits is {digits}; digits are grouped by 1, 2 or 3")
    if han < 0:
        raise VocabularyError(f"han is {han}; expected the longest run of Han characters, or 0 for no limit")
    run = f"{{1,{han}}}" if han else "+"
    word = rf"[\p{{L}}\p{{M}}&&[^{_CJK}]]"
    return "|".join(
        (
            r"'(?i:s|t|re|ve|m|ll|d)(?![\p{L}\p{N}])",
            rf"[{_CJK}]{run}",
            rf"[^\r\n\p{{L}}\p{{M}}\p{{N}}{_CJK_PUNCTUATION}]?{word}+",
            rf"\p{{N}}{{1,{digits}}}",
            r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
            r"\s*[\r\n]+",
            r"\s+(?!\S)",
            r"\s+",
        )
    )


def count_pieces(texts: Iterable[str], pattern: str) -> Counter[str]:
    """How often each piece occurs in some texts; memory grows with the number of distinct pieces only."""
    cut = regex.compile(pattern, regex.V1).findall
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(cut(text))
    return counts


class CheckedTexts:
    """Texts on their way to a trainer, counted; raises VocabularyError at what is no Unicode text."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._source = texts
        self.texts = 0
        self.characters = 0

    def __iter__(self) -> Iterator[str]:
        for text in self._source:
            if not isinstance(text, str) or has_surrogate(text):
                raise VocabularyError(f"text number {self.texts + 1}: {why_not_text([text])}")
            self.texts += 1
            self.characters += len(text)
            yield text

    def check(self) -> None:
        """Raise VocabularyError when there was no text at all."""
        if self.characters == 0:
            raise VocabularyError(
                f"no text to learn a vocabulary from: {self.texts} texts with no character among them; "
                "check the input path and what the corpus stage kept"
            )


def check_size(learned: int, wanted: int, seen: CheckedTexts, min_count: int, allow_smaller: bool) -> None:
    """Raise VocabularyError, saying how many entries the texts support, when they are fewer than asked for."""
    if learned < wanted and not allow_smaller:
        raise VocabularyError(
            f"a vocabulary of {wanted} entries was asked for, but these {seen.texts} texts "
            f"({seen.characters} characters) support only {learned} with min_count {min_count}; "
            f"set vocab_size to {learned} or less, or give more text"
        )


def has_surrogate(text: str) -> bool:
    """Whether a str holds half of a surrogate pair, which no UTF-8 text has."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def why_not_text(texts: Iterable[object]) -> str:
    """What is wrong with the first of some values that is no Unicode text."""
    for text in texts:
        if not isinstance(text, str):
            return f"expected a str, found {type(text).__name__}"
        if has_surrogate(text):
            return f"found a lone surrogate in {text[:40]!r}, which is no Unicode text; read it with errors='replace'"
    return "expected a list of str"
