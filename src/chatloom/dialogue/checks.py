"""Plain measures of an answer: exact match, token F1, refusal, politeness. No model, and no training stage sees them.

F1 is SQuAD's (Rajpurkar et al. 2016, section 6.1) with tokens that suit both languages: runs of word characters,
each Han, kana or hangul character on its own. The politeness rule is two short lists of English words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from chatloom.dialogue.phrasings import REFUSALS
from chatloom.dialogue.splits import normalise

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_TOKEN = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")

_RUDE = (
    r"obviously|duh|look|okay|dude|genius|freak(?:y|ing|ishly)|damn(?:ed|ing)?|hell|crap(?:py)?|suck(?:s|ed|y)?",
    r"bloody|huh|pathetic|for your information|if you must know|in case you|tell you anyway|come on|already know",
    r"stupid(?:ly)?|idiot(?:ic|s)?|dumb|lame|ridiculous(?:ly)?|annoying(?:ly)?|blah|whatever|seriously|basically",
    r"get it|got it|get (?:over|with|your)|not that hard|isn't (?:that )?hard|what the|can't you|don't you",
    r"(?:god|heaven|pete|goodness|crying|christ)'?s? (?:sake|out loud)",
)
_POLITE = (
    r"please|kindly|thank(?:s| you)?|respectfully|polite(?:ly)?|grateful(?:ly)?|gladly|sorry|pleasure|welcome",
    r"indeed|perhaps|quite|rather|truly|lovely|delightful(?:ly)?|remarkably|actually|suitable|appreciate[ds]?",
    r"i(?:'d| would| am|'m) (?:be )?(?:happy|glad|delighted|pleased)|happy to|glad to|if (?:i|you) may|may i|might i",
    r"would be|could be|might be|may be|i would say|i(?:'d)? suggest|help you|assist you|if you'd like|you may",
)


def _words(patterns: Sequence[str]) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(patterns)})\b")


_RUDE_WORDS, _POLITE_WORDS = _words(_RUDE), _words(_POLITE)


def tokens(text: str) -> list[str]:
    """Return the tokens that F1 counts, normalised (NFKC, case, white space)."""
    return _TOKEN.findall(normalise(text))


def exact_match(answer: str, truth: str) -> bool:
    """Whether answer and truth are the same text after normalisation (NFKC, case, white space; punctuation counts)."""
    return normalise(answer) == normalise(truth)


def token_f1(answer: str, truth: str) -> float:
    """Return F1 of the multiset overlap of tokens, in [0, 1]; 1 where both are empty."""
    ours, theirs = Counter(tokens(answer)), Counter(tokens(truth))
    if not ours or not theirs:
        return float(ours == theirs)
    shared = (ours & theirs).total()
    if shared == 0:
        return 0.0
    precision, recall = shared / ours.total(), shared / theirs.total()
    return 2 * precision * recall / (precision + recall)


def is_refusal(answer: str, language: str | None = None) -> bool:
    """Whether the answer holds the demo's refusal sentence: in `language`, or in any where it is None."""
    wanted = REFUSALS.values() if language is None else (REFUSALS[language],)
    text = normalise(answer)
    return any(normalise(refusal).rstrip(".。") in text for refusal in wanted)


def politeness(answer: str) -> int:
    """Return -1 for an answer with a rude word, else 1 with a polite one, else 0 (English words only)."""
    text = normalise(answer).replace("\u2019", "'")
    if _RUDE_WORDS.search(text):
        return -1
    return int(_POLITE_WORDS.search(text) is not None)


def politeness_accuracy(pairs: Sequence[tuple[str, str]]) -> float:
    """Return the share of (polite, impolite) pairs that the word rule puts in this order; a tie counts half.

    Raises ValueError on no pairs.
    """
    if not pairs:
        raise ValueError("politeness_accuracy needs at least one pair")
    return sum(
        0.5 + 0.5 * ((better > worse) - (better < worse))
        for better, worse in ((politeness(chosen), politeness(rejected)) for chosen, rejected in pairs)
    ) / len(pairs)
