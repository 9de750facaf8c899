"""Where in a text personal data stand: one function a kind, each a pattern and the check that belongs to it.

Every function takes a text and yields (start, end) of what passed its check, in order.
"""

from __future__ import annotations

import datetime
import ipaddress
import math
import re
from collections import Counter
from collections.abc import Iterator

from chatloom.corpus.labellers.url import has_public_suffix

Found = Iterator[tuple[int, int]]

# RFC 5321: at most 64 characters before the sign. What may stand in the name is RFC 5322's atom, less `/` and quotes.
EMAIL_NAME = re.compile(r"[A-Za-z0-9!#$%&*+=?^_{|}~.\-]{1,64}\Z")
EMAIL_DOMAIN = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9\-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z][A-Za-z0-9\-]{0,61}[A-Za-z0-9]"
)
IPV4 = re.compile(r"(?<![\w.])\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}(?!\.?\w)", re.ASCII)
NUMBERING = 20
VERSION = re.compile(
    r"(?:[=<>~]|\bv(?:er(?:sion)?)?|版本号?|第|\bsection|§|\brelease|\bbuild)[\s:：.]*\Z", re.IGNORECASE
)
IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{1,4}:[0-9A-Fa-f:]{1,35}(?:\.\d{1,3}){0,3}(?![\w:])", re.ASCII)
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
# In one piece, or in groups of four, or of four, six and five; not four groups out of a longer row of groups.
CARD = re.compile(
    r"(?<![\w.,+\-/])(?<!\d{4}[ -])[2-6]\d{3}"
    r"(?:\d{8,15}|([ -])\d{4}\1\d{4}\1\d{1,4}(?:\1\d{1,3}(?!\d))?|([ -])\d{6}\2\d{4,5})"
    r"(?!\w|[.,\-/]\d| \d{4}(?![\d/]))",
    re.ASCII,
)
IBAN = re.compile(
    r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?:[A-Z0-9]{11,30}|(?: [A-Z0-9]{4}){2,7}(?: [A-Z0-9]{1,3})?)(?![A-Za-z0-9])"
)
# Length of an IBAN by country (ISO 13616 register).
IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FI FO GL NL SD FK", 19: "MK SI", 20: "AT BA EE KZ LT LU XK MN",
        21: "CH HR LI LV", 22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG", 25: "LY PT ST", 26: "IS TR", 27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HN HU LB NI PL SV", 29: "BR EG PS QA UA", 30: "JO KW MU YE", 31: "MT SC", 32: "LC",
        33: "RU",
    }.items()
    for country in countries.split()
}  # fmt: skip
CHINESE_ID = re.compile(r"(?<![A-Za-z0-9.])[1-9]\d{16}[0-9Xx](?![A-Za-z0-9]|\.\d)", re.ASCII)
PROVINCES = frozenset(
    map(
        str,
        (
            *range(11, 16),
            *range(21, 24),
            *range(31, 38),
            *range(41, 47),
            *range(50, 55),
            *range(61, 66),
            71,
            81,
            82,
            83,
        ),
    )
)
ID_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
# Prefixes that were given out: 130-139, 145-149, 150-153, 155-159, 162, 165-167, 170-178, 180-193, 195-199.
CHINESE_MOBILE = re.compile(
    r"(?<![A-Za-z0-9.,$])(?<![A-Za-z0-9][-_/=])(?:(?:\+|00)86[ -]?)?"
    r"1(?:3\d|4[5-9]|5[0-35-9]|6[2567]|7[0-8]|8\d|9[0-35-9])(?:\d{8}|([ -])\d{4}\1\d{4})(?![A-Za-z0-9$]|[-_./]\d)",
    re.ASCII,
)
# Keys with a form of their own, by what they begin with; then anything that is called a key, if it looks random.
KEYS = {
    prefix: re.compile(rf"(?<![A-Za-z0-9]){pattern}(?![A-Za-z0-9])")
    for prefix, pattern in {
        "AKIA": r"AKIA[0-9A-Z]{16}", "ASIA": r"ASIA[0-9A-Z]{16}", "AIza": r"AIza[0-9A-Za-z_\-]{35}",
        "ghp_": r"ghp_[0-9A-Za-z]{36}", "gho_": r"gho_[0-9A-Za-z]{36}", "ghs_": r"ghs_[0-9A-Za-z]{36}",
        "ghu_": r"ghu_[0-9A-Za-z]{36}", "github_pat_": r"github_pat_[0-9A-Za-z_]{60,90}",
        "glpat-": r"glpat-[0-9A-Za-z_\-]{20,}", "xox": r"xox[abeoprs]-[0-9A-Za-z\-]{20,}",
        "sk_live_": r"sk_live_[0-9A-Za-z]{24,}", "sk-": r"sk-[0-9A-Za-z_\-]{32,}", "hf_": r"hf_[0-9A-Za-z]{34}",
        "npm_": r"npm_[0-9A-Za-z]{36}", "LTAI": r"LTAI[0-9A-Za-z]{16,24}", "AKID": r"AKID[0-9A-Za-z]{32}",
        "eyJ": r"eyJ[0-9A-Za-z_\-]{10,}\.eyJ[0-9A-Za-z_\-]{10,}\.[0-9A-Za-z_\-]{10,}",
    }.items()
}  # fmt: skip
PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----.{16,10000}?-----END [A-Z ]*PRIVATE KEY(?: BLOCK)?-----", re.DOTALL
)
ASSIGNED = re.compile(
    r"(?:api[_-]?key|secret|token|passw(?:or)?d|access[_-]?key|private[_-]?key|密钥|密码|口令)[A-Za-z_]{0,20}"
    r"[\"']?\s*(?:[:=：]|=>|:=)\s*[\"']?([A-Za-z0-9+/=_\-]{16,200})(?![A-Za-z0-9+/=_\-])",
    re.IGNORECASE,
)
ASSIGNED_HINTS = ("key", "secret", "token", "passw", "密钥", "密码", "口令")
MIN_ENTROPY = 3.0  # bits a character; English words written together have about 3 and no digits
MIN_DIGITS = 2


# What a pattern needs is looked for first in the text's shape: digits are 0, capitals A. It is ten times as fast.
SHAPE = bytes(ord("0") if chr(byte) in "0123456789" else ord("A") if 65 <= byte <= 90 else byte for byte in range(256))
LONG_NUMBER = b"0" * 11
MIN_SECRET = 16


def _shape(text: str, without: bytes = b"") -> bytes:
    return text.encode("ascii", "replace").translate(SHAPE, without)


def _has_long_number(text: str) -> bool:
    return LONG_NUMBER in _shape(text, b" -")


def emails(text: str) -> Found:
    """E-mail addresses whose domain ends in a public suffix (so not `logo@2x.png`)."""
    at = text.find("@")
    while at >= 0:
        name, domain = EMAIL_NAME.search(text[max(0, at - 65) : at]), EMAIL_DOMAIN.match(text, at + 1, at + 255)
        at, here = text.find("@", at + 1), at
        if name is None or domain is None:
            continue
        stripped = name[0].lstrip(".!#$%&*+=?^{|}~-")  # punctuation in front of an address, not part of it
        start = here - len(stripped)
        if not stripped or stripped.endswith(".") or ".." in stripped or stripped == "git":
            continue
        if start and text[start - 1] in "/@\\":
            continue
        written = domain[0]
        while "." in written and not has_public_suffix(written.lower()):
            written = written.rpartition(".")[0]  # the next sentence, with no space before it
        if "." in written:
            yield start, here + 1 + len(written)


def ipv4(text: str) -> Found:
    """Public IPv4 addresses; not what is called a version, nor private, reserved and documentation ranges.

    Four numbers all below NUMBERING are a section or a release (unless all are equal, as in 8.8.8.8): among addresses
    one in 27,000 looks so, among such numbers in technical prose nearly all.
    """
    if _shape(text).count(b"0.0") < 2:  # counted without overlap: 0.0.0.0 is two
        return
    for match in IPV4.finditer(text):
        numbers = [int(number) for number in match[0].split(".")]
        if max(numbers) < NUMBERING and len(set(numbers)) > 1:
            continue
        if _is_global(match[0]) and not VERSION.search(text[max(0, match.start() - 12) : match.start()]):
            yield match.span()


def ipv6(text: str) -> Found:
    """Public IPv6 addresses (2000::/3) of two groups or more."""
    if "::" not in text and text.count(":") < 7:
        return
    for match in IPV6.finditer(text):
        written = match[0] if match[0].endswith("::") else match[0].rstrip(":")
        # One group before `::` is a year before a listing in reStructuredText.
        if len(written.replace(":", " ").split()) >= 2 and _is_global(written):
            yield match.start(), match.start() + len(written)


def _is_global(written: str) -> bool:
    try:
        address = ipaddress.ip_address(written)
    except ValueError:
        return False
    if address.version == 6 and address not in GLOBAL_UNICAST:
        return False
    return address.is_global and not address.is_multicast


def cards(text: str) -> Found:
    """Numbers of payment cards: a known issuer's beginning and length, and the Luhn check digit."""
    for match in CARD.finditer(text) if _has_long_number(text) else ():
        digits = match[0].replace(" ", "").replace("-", "")
        if _issued(digits) and luhn(digits):
            yield match.span()


def _issued(digits: str) -> bool:
    """Whether an issuer gives out numbers of this beginning and length."""
    n, two, four = len(digits), int(digits[:2]), int(digits[:4])
    return (
        (digits[0] == "4" and n in (13, 16, 19))  # Visa
        or ((51 <= two <= 55 or 2221 <= four <= 2720) and n == 16)  # Mastercard
        or (two in (34, 37) and n == 15)  # American Express
        or ((four == 6011 or two == 65 or 644 <= int(digits[:3]) <= 649) and n == 16)  # Discover
        or (3528 <= four <= 3589 and n == 16)  # JCB
        or (two == 62 and 16 <= n <= 19)  # UnionPay
        or ((two in (36, 38, 39) or 300 <= int(digits[:3]) <= 305) and n == 14)  # Diners Club
    )


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def ibans(text: str) -> Found:
    """International bank account numbers: length of the country and remainder 1 modulo 97 (ISO 13616, ISO 7064)."""
    for match in IBAN.finditer(text) if b"AA00" in _shape(text) else ():
        length = IBAN_LENGTHS.get(match[0][:2])
        if length is None:
            continue
        end = _end_of(match[0], length)
        if end is not None and iban(match[0][:end].replace(" ", "")):
            yield match.start(), match.start() + end


def _end_of(written: str, length: int) -> int | None:
    """Behind how many characters `length` of them are not spaces; the next group may be an ordinary word."""
    count = 0
    for place, char in enumerate(written):
        count += char != " "
        if count == length:
            return place + 1 if place + 1 == len(written) or written[place + 1] == " " else None
    return None


def iban(account: str) -> bool:
    """Whether an account number without spaces has its country's length and the right check digits."""
    moved = account[4:] + account[:4]
    return (
        len(account) == IBAN_LENGTHS.get(account[:2]) and int("".join(str(int(char, 36)) for char in moved)) % 97 == 1
    )


def chinese_ids(text: str) -> Found:
    """Identity numbers of the People's Republic: province, a day that existed, check character (GB 11643-1999)."""
    for match in CHINESE_ID.finditer(text) if _has_long_number(text) else ():
        if chinese_id(match[0]):
            yield match.span()


def chinese_id(number: str) -> bool:
    """Whether 18 characters are an identity number."""
    if number[:2] not in PROVINCES:
        return False
    try:
        born = datetime.date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    if not 1850 <= born.year <= 2100:
        return False
    remainder = sum(weight * int(digit) for weight, digit in zip(ID_WEIGHTS, number)) % 11
    return "10X98765432"[remainder] == number[17].upper()


def chinese_mobiles(text: str) -> Found:
    """Chinese mobile numbers: eleven digits with a prefix that was given out, with or without +86; no check digit."""
    for match in CHINESE_MOBILE.finditer(text) if _has_long_number(text) else ():
        yield match.span()


def secrets(text: str) -> Found:
    """Keys of known services by their form, private keys, and random-looking values of what is called a key."""
    for prefix, pattern in KEYS.items():
        if prefix in text:
            yield from (match.span() for match in pattern.finditer(text) if _is_key(match[0][len(prefix) :]))
    if "PRIVATE KEY" in text:
        yield from (match.span() for match in PRIVATE_KEY.finditer(text))
    lowered = text.lower()
    if any(hint in lowered for hint in ASSIGNED_HINTS) and max(map(len, text.split())) >= MIN_SECRET:
        for match in ASSIGNED.finditer(text):
            if is_random(match[1]) and sum(map(str.isdigit, match[1])) >= MIN_DIGITS:
                yield match.span(1)


def _is_key(value: str) -> bool:
    has_digit = any(map(str.isdigit, value))
    return is_random(value) and (has_digit or value != value.lower())  # words-put-together have neither


def is_random(value: str) -> bool:
    """Whether a value's characters differ as those of a random one do (entropy of its own counts, in bits)."""
    counts = Counter(value)
    return -sum(n / len(value) * math.log2(n / len(value)) for n in counts.values()) >= MIN_ENTROPY
