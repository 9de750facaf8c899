"""Bytes -> text without losing a byte: UTF-8, GB18030, a page's declared encoding; what fits none is refused.

`errors="ignore"` and `"replace"` are never used: a page whose bytes cannot be read is set aside and counted, instead
of quietly losing characters.
"""

from __future__ import annotations

import codecs
import re

from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
META_CHARSET = re.compile(rb"<meta[^>]*?charset\s*=\s*[\"']?\s*([A-Za-z0-9_-]+)", re.IGNORECASE)
C1_CONTROL = re.compile("[\x80-\x84\x86-\x9f]")
# Of GB18030's two-byte characters, the share that must look Chinese; Western text misread as GB18030 pairs an accented
# letter with the ASCII letter behind it and stays far below.
MIN_CHINESE_PAIRS = 0.6


class Undecodable(ValueError):
    """Bytes that are no text in any encoding tried; the message says what was tried and where it failed."""


def decode_text(data: bytes) -> str:
    """Plain text from bytes: by byte-order mark, UTF-8, or GB18030 that reads as Chinese; raises Undecodable."""
    encoding = detect_text_encoding(data)
    return _strip_bom(data, encoding).decode(encoding)


def detect_text_encoding(data: bytes, *, complete: bool = True) -> str:
    """Encoding of a text's bytes (with `complete=False` of its beginning, which may end inside a character)."""
    for mark, name in BOMS:
        if data.startswith(mark):
            return name
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data, final=complete)
        return "utf-8"
    except UnicodeDecodeError as error:
        if reads_as_gb18030(data, complete=complete):
            return "gb18030"
        raise _refusal(data, error) from None


def decode_line(data: bytes) -> str:
    """One line of a text file, UTF-8 or GB18030; raises Undecodable. (A line has no byte-order mark of its own.)"""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if reads_as_gb18030(data):
            return data.decode("gb18030")
        raise _refusal(data, error) from None


def decode_html(data: bytes, declared: str | None = None) -> str:
    """Text of an HTML page: byte-order mark, UTF-8, `declared` (HTTP header), the page's meta tag, GB18030, a guess.

    UTF-8 is tried before what is declared: bytes beyond ASCII are hardly ever valid UTF-8 by accident, while wrong
    declarations are common. Raises Undecodable.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        refusal = _refusal(data, error)
    meta = META_CHARSET.search(data, 0, 4096)
    in_page = meta[1].decode("ascii") if meta else None
    chinese = "gb18030" if reads_as_gb18030(data) else None
    marked = next((name for mark, name in BOMS if data.startswith(mark)), None)
    for name in (marked, _codec(declared), _codec(in_page), chinese, detect_encoding(data)):
        if name and name.lower() not in ("utf-8", "utf8"):
            try:
                text = _strip_bom(data, name).decode(name)
            except (UnicodeDecodeError, LookupError):
                continue
            # Some single-byte codecs take any byte; control characters where letters should be give them away.
            if not C1_CONTROL.search(text):
                return text
    raise Undecodable(f"{refusal}; declared {declared or in_page or 'nothing'}, which does not fit either")


def _codec(label: str | None) -> str | None:
    """Python's codec for an encoding's label on the web; GBK and GB2312 are read as GB18030, which contains both."""
    name = map_encoding_to_html5(label, fallback_utf8=False) if label else None
    return "gb18030" if name in ("gbk", "gb2312", "gb18030") else name


def _refusal(data: bytes, error: UnicodeDecodeError) -> Undecodable:
    return Undecodable(f"neither UTF-8 (byte 0x{data[error.start]:02x} at {error.start}) nor Chinese GB18030 text")


def reads_as_gb18030(data: bytes, *, complete: bool = True) -> bool:
    """Whether bytes are valid GB18030 and most of their two-byte characters look Chinese."""
    try:
        codecs.getincrementaldecoder("gb18030")().decode(data, final=complete)
    except UnicodeDecodeError:
        return False
    pairs = chinese = position = 0
    while position + 1 < len(data):
        lead, trail = data[position], data[position + 1]
        if lead < 0x80:
            position += 1
        elif 0x30 <= trail <= 0x39:  # a four-byte character
            position += 4
        else:
            pairs += 1
            chinese += trail >= 0x80
            position += 2
    return pairs > 0 and chinese >= MIN_CHINESE_PAIRS * pairs


def _strip_bom(data: bytes, encoding: str) -> bytes:
    for mark, name in BOMS:
        if encoding == name and data.startswith(mark):
            return data[len(mark) :]
    return data
