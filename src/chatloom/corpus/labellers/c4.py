"""Labels `c4`: the rules of the Colossal Clean Crawled Corpus, line by line, for English and for Chinese."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field

from chatloom.corpus.labellers.spans import flatten
from chatloom.corpus.labellers.terms import Terms
from chatloom.corpus.labelling import SPANS, Labeller
from chatloom.corpus.record import Document
from chatloom.corpus.text.measures import CHARACTER_LANGUAGES
from chatloom.settings import Settings

# A line's last character: "a period, exclamation mark, question mark, or end quotation mark" (section 2.2); and theirs
# in Chinese, with the closing brackets that may follow them there.
TERMINAL = frozenset(".!?\"'”’")
CHINESE_TERMINAL = TERMINAL | frozenset("。！？…；”’」』）)》】")
JAVASCRIPT = re.compile(r"javascript|(?:启用|啟用|开启|禁用)\s*js\b|浏览器不支持|瀏覽器不支援", re.IGNORECASE)
POLICY = re.compile(
    r"terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies"
    r"|隐私政策|隱私政策|隐私条款|隐私声明|使用条款|使用條款|服务条款|用户协议|使用\s*cookie|cookie\s*政策|版权所有|版權所有|ICP备",
    re.IGNORECASE,
)
LOREM_IPSUM = re.compile(r"lorem ipsum|占位文[字本]|這裡是文字內容|此处添加(?:文字|标题|内容)", re.IGNORECASE)
CITATION = re.compile(r"\[(?:\d{1,3}|edit|citation needed|编辑|編輯|来源请求|來源請求)\]")
SENTENCE_END = re.compile("(?:[.!?]+[\"'”’)\\]]*(?=\\s|$)|[。！？…]+[”’」』）]*)")
# What two of a line's rules look for, in lower case: where none is in a text, no line has to be looked at for it.
HINTS = ("javascript", "js", "浏览器", "瀏覽器")
POLICY_HINTS = ("terms of use", "privacy", "cookie", "条款", "條款", "政策", "声明", "协议", "版权", "版權", "icp备")
SPAN_SENTENCES = 3


class C4Settings(Settings):
    """What the rules for lines need; the rules for documents are measured, selection decides them."""

    min_line_words: int = Field(default=5, ge=0, description="words below which a line is cut")
    min_line_characters: int = Field(
        default=8, ge=0, description="the same for Chinese and Japanese: characters other than white space"
    )
    max_word_characters: int = Field(
        default=1000, ge=1, description="length of a word above which its line is cut (not for Chinese)"
    )
    bad_words: tuple[Path, ...] = Field(
        default=(), description="files of words or phrases, one a line; Chinese entries are found inside words too"
    )


class C4(Labeller[C4Settings]):
    """Raffel et al. 2020, "Exploring the Limits of Transfer Learning" (arXiv 1910.10683), section 2.2.

    c4_cut: lines to cut, with their line ends: no terminal punctuation (or an ellipsis of three points), too few
    words, JavaScript, a notice about policies or cookies, a word of absurd length; c4_lines: lines with text;
    c4_lines_cut: how many of them are cut; c4_sentences: sentences in what stays (the paper keeps pages from 3, its
    code from 5 on); c4_citations: Wikipedia's citation marks, to cut; c4_repeated: spans of three sentences that
    occurred earlier in the document, to cut; c4_curly_brackets, c4_lorem_ipsum: how many in the document (the paper
    drops it for one); c4_bad_words: how many, None without a list.
    """

    name = "c4"
    columns: Mapping[str, pa.DataType] = {
        "c4_cut": SPANS,
        "c4_lines": pa.int64(),
        "c4_lines_cut": pa.int64(),
        "c4_sentences": pa.int64(),
        "c4_citations": SPANS,
        "c4_repeated": SPANS,
        "c4_curly_brackets": pa.int64(),
        "c4_lorem_ipsum": pa.int64(),
        "c4_bad_words": pa.int64(),
    }
    Settings = C4Settings
    needs: ClassVar[tuple[str, ...]] = ("language",)

    def files(self) -> Sequence[Path]:
        """The user's lists of bad words."""
        return self.settings.bad_words

    @functools.cached_property
    def _bad_words(self) -> Terms | None:
        return Terms.read(self.settings.bad_words) if self.settings.bad_words else None

    def label(self, documents: Sequence[Document]) -> list[dict[str, Any]]:
        """What the rules say of each document."""
        return [self._label(document) for document in documents]

    def _label(self, document: Document) -> dict[str, Any]:
        text, chinese = document.text, document.labels.get("language") in CHARACTER_LANGUAGES
        lowered = text.lower()
        script = any(hint in lowered for hint in HINTS)
        policy = any(hint in lowered for hint in POLICY_HINTS)
        cut, kept, n_lines, n_cut = [], [], 0, 0
        for start, end, line in lines(text):
            if not line:
                continue
            n_lines += 1
            if (
                not self._is_prose(line, chinese)
                or (script and JAVASCRIPT.search(line))
                or (policy and POLICY.search(line))
            ):
                n_cut += 1
                cut.append((start, end))
            else:
                kept.append((start, end))
        sentences = [span for start, end in kept for span in _sentences(text, start, end)]
        return {
            "c4_cut": flatten(cut),
            "c4_lines": n_lines,
            "c4_lines_cut": n_cut,
            "c4_sentences": len(sentences),
            "c4_citations": flatten(m.span() for m in CITATION.finditer(text)) if "[" in text else [],
            "c4_repeated": flatten(_repeated(text, sentences)),
            "c4_curly_brackets": text.count("{") + text.count("｛"),
            "c4_lorem_ipsum": len(LOREM_IPSUM.findall(text)),
            "c4_bad_words": None if self._bad_words is None else len(self._bad_words.find(text)),
        }

    def _is_prose(self, line: str, chinese: bool) -> bool:
        if line[-1] not in (CHINESE_TERMINAL if chinese else TERMINAL) or line.endswith("..."):
            return False
        words = line.split()
        if chinese:
            return sum(map(len, words)) >= self.settings.min_line_characters
        return len(words) >= self.settings.min_line_words and max(map(len, words)) <= self.settings.max_word_characters


def lines(text: str) -> Iterator[tuple[int, int, str]]:
    """(start, end, line without space around it) of each line; the end is behind the line's `\\n`."""
    start = 0
    for line in text.split("\n"):
        end = start + len(line)
        yield start, min(end + 1, len(text)), line.strip()
        start = end + 1


def _sentences(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    at = start
    for match in SENTENCE_END.finditer(text, start, end):
        yield at, match.end()
        at = match.end()
    if text[at:end].strip():
        yield at, end


def _repeated(text: str, sentences: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Spans of three sentences that are equal to an earlier three, but for white space and case."""
    plain = ["".join(text[start:end].split()).lower() for start, end in sentences]
    if len(set(plain)) == len(plain):
        return
    seen: dict[tuple[str, ...], int] = {}
    for at in range(len(plain) - SPAN_SENTENCES + 1):
        key = tuple(plain[at : at + SPAN_SENTENCES])
        first = seen.setdefault(key, at)
        # One that overlaps its first occurrence ("No. No. No. No.") stays as much as it repeats.
        if first + SPAN_SENTENCES <= at:
            yield sentences[at][0], sentences[at + SPAN_SENTENCES - 1][1]
