"""Labels `url`: whether a document's address is on a block-list, and signs in it of pages that nobody wants to read."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import re
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import Field

from chatloom.corpus.labellers.lists import HashedSet, entries
from chatloom.corpus.labelling import Labeller
from chatloom.corpus.record import Document
from chatloom.settings import Settings

# Signs of our own and how much each adds: 1 - (1 - a)(1 - b)... is the score. Words are whole words of the address
# ("essex", "specialist" and "cockpit" hold none); Chinese ones are pinyin or hanzi, and hanzi need no word's end.
STRONG_WORDS = frozenset(
    ("porn", "porno", "xxx", "hentai", "camgirls", "milf", "blowjob", "gangbang", "viagra", "cialis", "casino",
     "casinos", "slots", "baccarat", "sportsbook", "warez", "keygen", "payday", "replica", "seqing", "huangse",
     "bocai", "duchang",
     "dubo", "yulecheng")
)  # fmt: skip
WEAK_WORDS = frozenset(
    ("adult", "sex", "sexy", "nude", "naked", "erotic", "escort", "escorts", "dating", "poker", "betting", "bet",
     "lottery", "jackpot", "loan", "loans", "torrent", "torrents", "cracked", "coupon", "coupons", "cheap", "discount",
     "outlet", "wholesale", "pills", "pharmacy", "caipiao", "qipai", "wangzhuan", "daikuan")
)  # fmt: skip
HANZI = re.compile("色情|成人视频|成人視頻|赌场|賭場|博彩|百家乐|百家樂|时时彩|六合彩|棋牌|网贷|代开发票|办证")
STRONG, WEAK, NUMBER, DIGITS, HYPHENS, DEEP, LONG = 0.8, 0.3, 0.6, 0.3, 0.3, 0.2, 0.2
MANY_DIGITS, MANY_HYPHENS, MANY_LABELS, MANY_CHARACTERS = 5, 3, 5, 200
WORD = re.compile("[a-z]+|[0-9]+")


class UrlSettings(Settings):
    """Lists that the user brings; none come with chatloom."""

    domains: tuple[Path, ...] = Field(
        default=(), description="files of blocked domains, one a line; a domain blocks all under it"
    )
    urls: tuple[Path, ...] = Field(
        default=(), description="files of blocked addresses (host/path without http://); one blocks all that begin so"
    )
    words: tuple[Path, ...] = Field(default=(), description="files of words that may not be in an address")


class Url(Labeller[UrlSettings]):
    """Block-lists as RefinedWeb uses them (Penedo et al. 2023, arXiv 2306.01116, appendix G.1), and a score of signs.

    url_domain: registered domain by the public suffix list inside tldextract (no network), or the number of a host
    without a name; url_blocked: on a user's list; url_score: 0 (no sign) .. 1; url_signs: which, comma-separated. All
    are None for a document without an address, url_blocked also where no list was given.
    """

    name = "url"
    columns: Mapping[str, pa.DataType] = {
        "url_domain": pa.string(),
        "url_blocked": pa.bool_(),
        "url_score": pa.float64(),
        "url_signs": pa.string(),
    }
    Settings = UrlSettings

    def files(self) -> Sequence[Path]:
        """The user's lists."""
        return (*self.settings.domains, *self.settings.urls, *self.settings.words)

    @functools.cached_property
    def _lists(self) -> tuple[HashedSet, HashedSet, frozenset[str]]:
        domains = HashedSet(_plain(entry) for path in self.settings.domains for entry in entries(path))
        urls = HashedSet(_plain(entry) for path in self.settings.urls for entry in entries(path))
        return domains, urls, frozenset(word for path in self.settings.words for word in entries(path))

    def label(self, documents: Sequence[Document]) -> list[dict[str, Any]]:
        """What the address of each document says."""
        return [self._label(document.url) if document.url else dict.fromkeys(self.columns) for document in documents]

    def _label(self, url: str) -> dict[str, Any]:
        host, rest, port = split_url(url)
        domain, labels = registered_domain(host), host.split(".")
        decoded = urllib.parse.unquote(f"{host}{rest}").lower()
        words = set(WORD.findall(decoded))
        strong = [*sorted(words & STRONG_WORDS), *sorted(set(HANZI.findall(decoded)))]
        signs = [(f"word:{word}", STRONG) for word in strong]
        signs += [(f"word:{word}", WEAK) for word in sorted(words & WEAK_WORDS)]
        if _is_number(host):
            signs.append(("number", NUMBER))
        elif sum(char.isdigit() for char in domain) >= MANY_DIGITS:
            signs.append(("digits", DIGITS))
        if domain.count("-") >= MANY_HYPHENS:
            signs.append(("hyphens", HYPHENS))
        if len(labels) > MANY_LABELS and not _is_number(host):
            signs.append(("deep", DEEP))
        if port not in (None, 80, 443):
            signs.append(("port", DEEP))
        if len(url) > MANY_CHARACTERS:
            signs.append(("long", LONG))
        good = 1.0
        for _, weight in signs:
            good *= 1.0 - weight
        return {
            "url_domain": domain,
            "url_blocked": self._blocked(host, rest, decoded, words) if self.files() else None,
            "url_score": round(1.0 - good, 6),
            "url_signs": ",".join(name for name, _ in signs),
        }

    def _blocked(self, host: str, rest: str, decoded: str, words: set[str]) -> bool:
        domains, urls, own_words = self._lists
        labels = host.split(".")
        if any(domains.contains([".".join(labels[at:]) for at in range(len(labels))])):
            return True
        if not words.isdisjoint(own_words) or any(word in decoded for word in own_words if not word.isascii()):
            return True
        if not len(urls):
            return False
        parts = rest.partition("?")[0].strip("/").lower().split("/")
        host = host.removeprefix("www.")
        return any(urls.contains([*(f"{host}/{'/'.join(parts[:n])}".rstrip("/") for n in range(len(parts) + 1))]))


def split_url(url: str) -> tuple[str, str, int | None]:
    """Host in lower case (international ones in their own script), what follows it, and the port if one is named."""
    if "//" not in url:
        url = f"//{url}"
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:  # a port that is no number, an IPv6 address with one bracket
        return "", url, None
    if "xn--" in host:
        with contextlib.suppress(UnicodeError):
            host = host.encode("ascii").decode("idna")
    return host, parts.path + (f"?{parts.query}" if parts.query else ""), port


def registered_domain(host: str) -> str:
    """`example.co.uk` of `www.example.co.uk`; the host itself where it has no public suffix."""
    found: str = _extractor()(host).top_domain_under_public_suffix
    return found or host


def has_public_suffix(host: str) -> bool:
    """Whether a host's ending exists (`png` and `local` do not)."""
    return bool(_extractor()(host).suffix) and bool(_extractor()(host).domain)


@functools.cache
def _extractor() -> Callable[[str], Any]:
    from tldextract import TLDExtract

    # Without these it would fetch a newer list, and write it to the user's home.
    return functools.lru_cache(maxsize=1 << 14)(TLDExtract(suffix_list_urls=(), cache_dir=None).extract_str)


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _plain(entry: str) -> str:
    entry = re.sub("^[a-z]+://", "", entry)
    return entry.removeprefix("www.").rstrip("/.").lstrip(".")
