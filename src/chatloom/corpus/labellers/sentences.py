"""Labels `sentences`: single sentences that could be cut out of an otherwise good document, each with the reason."""

from __future__ import annotations

import bisect
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from chatloom.corpus.labellers.spans import KIND_OF_SPAN
from chatloom.corpus.labellers.terms import Terms
from chatloom.corpus.labelling import SPANS, Labeller
from chatloom.corpus.record import Document
from chatloom.corpus.text import characters
from chatloom.corpus.text.measures import CHARACTER_LANGUAGES
from chatloom.errors import ChatloomError
from chatloom.settings import Settings

Kind = Literal["long", "short", "no_letters", "boilerplate", "repeated", "other_script"]
LONG, SHORT, NO_LETTERS, BOILERPLATE, REPEATED, OTHER_SCRIPT = range(1, 7)
KINDS: dict[int, Kind] = {
    LONG: "long",
    SHORT: "short",
    NO_LETTERS: "no_letters",
    BOILERPLATE: "boilerplate",
    REPEATED: "repeated",
    OTHER_SCRIPT: "other_script",
}
# What pages say about themselves; phrases of our own, from pages that were looked at.
BOILERPLATE_PHRASES = (
    "©", "all rights reserved", "cookie policy", "cookie settings", "cookie preferences", "uses cookies", "use cookies",
    "use of cookies", "accept cookies", "accept all cookies", "privacy policy", "terms of use", "terms of service",
    "terms and conditions", "click here", "click below", "tap here", "click on the link", "read more",
    "continue reading", "skip to content", "skip to main content", "back to top", "sign in to", "log in to",
    "login to", "sign up for", "sign up to", "subscribe to our", "subscribe now", "share this", "share on facebook",
    "share on twitter", "follow us on", "your email address will not be published", "leave a reply",
    "leave a comment", "enable javascript", "powered by wordpress", "advertisement", "advertisements",
    "版权所有", "版權所有", "保留所有权利", "保留所有權利", "未经授权", "未经许可", "未经允许", "禁止转载", "请勿转载",
    "转载请注明", "轉載請註明", "隐私政策", "隱私權政策", "隐私权", "服务条款", "服務條款", "使用条款", "使用條款",
    "用户协议", "点击这里", "点击此处", "点击查看", "点击下载", "点击进入", "點擊這裡", "點擊此處", "阅读全文",
    "閱讀全文", "阅读更多",
    "阅读原文", "查看更多", "扫一扫", "扫描二维码", "掃描二維碼", "微信公众号", "关注我们", "關注我們", "登录后",
    "登入後",
    "返回顶部", "返回首页", "上一篇", "下一篇", "责任编辑", "責任編輯", "免责声明", "免責聲明", "icp备", "公网安备",
    "启用javascript", "分享到",
)  # fmt: skip


SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, from a broken file: no UTF-8 text
ASIAN = characters.HAN | characters.KANA | characters.HANGUL


class SentencesSettings(Settings):
    """From where on a sentence is too long or too short, in words, or characters where words are not spaced."""

    kinds: tuple[Kind, ...] = Field(
        default=("long", "no_letters", "boilerplate", "repeated", "other_script"),
        min_length=1,
        description="rules whose sentences are marked; `short` is not among them unless asked for",
    )
    max_words: int = Field(default=150, ge=1, description="words of a sentence above which it is too long")
    max_characters: int = Field(default=300, ge=1, description="the same for Chinese and Japanese, in characters")
    min_words: int = Field(default=3, ge=0, description="words of a sentence below which it is too short")
    min_characters: int = Field(default=4, ge=0, description="the same for Chinese and Japanese, in characters")
    repeated_from: int = Field(
        default=20,
        ge=1,
        description="characters (10 for Chinese: half) from which a repeated sentence counts as a copy",
    )
    min_other_letters: int = Field(
        default=12, ge=1, description="letters from which a sentence in another script than its document's is foreign"
    )


class Sentences(Labeller[SentencesSettings]):
    """Rules for sentences, found with sentencex (Wikimedia; rules for some 300 languages, offline).

    Source: the rules for sentences are those of C4 (Raffel et al. 2020, section 2.2) and MassiveText (Rae et al. 2021,
    appendix A1.1) taken down to the sentence; the numbers are our own.

    sentences: how many; sentences_mean, sentences_longest: characters a sentence; sentences_cut: spans of those that a
    rule objects to, with the white space behind them; sentences_cut_kinds: why, one number a span (KINDS: 1 long, 2
    short, 3 no letters, 4 boilerplate, 5 repeats an earlier one, 6 other script); sentences_cut_share: share of the
    text in them. Which rules mark is a setting: a novel's "No!" is short and good.
    """

    name = "sentences"
    version = 2
    columns: Mapping[str, pa.DataType] = {
        "sentences": pa.int64(),
        "sentences_mean": pa.float64(),
        "sentences_longest": pa.int64(),
        "sentences_cut": SPANS,
        "sentences_cut_kinds": KIND_OF_SPAN,
        "sentences_cut_share": pa.float64(),
    }
    kinds: ClassVar[Mapping[str, Mapping[int, str]]] = {"sentences_cut_kinds": KINDS}
    Settings = SentencesSettings
    needs: ClassVar[tuple[str, ...]] = ("language",)

    def label(self, documents: Sequence[Document]) -> list[dict[str, Any]]:
        """Sentences of each document and what is wrong with some. Raises ChatloomError without sentencex."""
        return [self._label(document.text, str(document.labels.get("language") or "en")) for document in documents]

    def _label(self, text: str, language: str) -> dict[str, Any]:
        chinese = language in CHARACTER_LANGUAGES
        seen: set[str] = set()
        cut: list[int] = []
        kinds: list[int] = []
        lengths = []
        boilerplate, foreign = _boilerplate(text), _foreign(text, chinese, self.settings.min_other_letters)
        for start, end in split_sentences(text, language):
            sentence = text[start:end]
            lengths.append(len(sentence))
            kind = self._kind(sentence, chinese, seen, boilerplate(start, end), foreign(start, end))
            if kind and KINDS[kind] in self.settings.kinds:
                cut += (start, _with_space_behind(text, start, end))
                kinds.append(kind)
        return {
            "sentences": len(lengths),
            "sentences_mean": sum(lengths) / len(lengths) if lengths else 0.0,
            "sentences_longest": max(lengths, default=0),
            "sentences_cut": cut,
            "sentences_cut_kinds": kinds,
            "sentences_cut_share": (sum(cut[1::2]) - sum(cut[::2])) / len(text) if text else 0.0,
        }

    def _kind(self, sentence: str, chinese: bool, seen: set[str], boilerplate: bool, foreign: bool) -> int:
        """The first rule that objects, 0 for none."""
        settings = self.settings
        plain = "".join(sentence.split()) if chinese else " ".join(sentence.split())
        size = len(plain) if chinese else plain.count(" ") + 1
        longest, shortest = (
            (settings.max_characters, settings.min_characters) if chinese else (settings.max_words, settings.min_words)
        )
        if size > longest:
            return LONG
        if not any(map(str.isalpha, sentence)):
            return NO_LETTERS
        if boilerplate:
            return BOILERPLATE
        if len(plain) >= (settings.repeated_from // 2 if chinese else settings.repeated_from):
            key = plain.lower()
            if key in seen:
                return REPEATED
            seen.add(key)
        if foreign:
            return OTHER_SCRIPT
        return SHORT if size < shortest else 0


def split_sentences(text: str, language: str) -> Iterator[tuple[int, int]]:
    """(start, end) in characters of each sentence, without the white space around it; lines are never joined.

    Raises ChatloomError where sentencex is not installed.
    """
    text, at = SURROGATE.sub("\ufffd", text), 0
    for sentence in _segmenter()(language, text):
        # Between the chunks into which sentencex parts a long text it loses the empty line.
        start = text.index(sentence, at)
        at = start + len(sentence)
        # A heading and the paragraph under it have only a line's end between them.
        for line in sentence.split("\n"):
            stripped = line.strip()
            if stripped:
                begin = start + len(line) - len(line.lstrip())
                yield begin, begin + len(stripped)
            start += len(line) + 1


def _with_space_behind(text: str, start: int, end: int) -> int:
    """The end of what has to be cut for no double space to stay, or, of a whole line, no empty one."""
    while text[end : end + 1] in (" ", "\t", "\u3000"):
        end += 1
    whole_line = start == 0 or text[start - 1] == "\n"
    return end + 1 if whole_line and text[end : end + 1] == "\n" else end


def _foreign(text: str, chinese: bool, least: int) -> Callable[[int, int], bool]:
    """A question: are most letters between two places of another script than the document's, and `least` or more?

    Latin (or any other) in Chinese, Asian in any other language.
    """
    if text.isascii() and not chinese:
        return lambda start, end: False  # noqa: ARG005
    table = characters.classes()
    found = table.of[characters.code_points(text)]
    letters, asian = (
        np.concatenate([[0], np.cumsum(table.with_flag(flag)[found])]) for flag in (characters.LETTER, ASIAN)
    )

    def question(start: int, end: int) -> bool:
        n_letters, n_asian = int(letters[end] - letters[start]), int(asian[end] - asian[start])
        return n_letters >= least and (n_asian < 0.1 * n_letters if chinese else n_asian > 0.5 * n_letters)

    return question


def _boilerplate(text: str) -> Callable[[int, int], bool]:
    """A question: does a phrase of boilerplate begin between two places of the text?"""
    places = [start for start, _, _ in _phrases().find(text)]
    return lambda start, end: bisect.bisect_left(places, start) < bisect.bisect_left(places, end)


@functools.cache
def _phrases() -> Terms:
    return Terms(BOILERPLATE_PHRASES)


@functools.cache
def _segmenter() -> Callable[[str, str], list[str]]:
    try:
        from sentencex import segment
    except ImportError:
        raise ChatloomError("labeller `sentences`: sentencex is not installed; install it beside chatloom") from None
    found: Callable[[str, str], list[str]] = segment
    return found
