"""Equal documents: by their text (lower-cased, white space collapsed) or by their address; out of core.

write_hashes / write_urls   (a shard)          (128-bit hash, name), 24 bytes a document
write_equals                (a range of hashes)  edges (name, first name) of documents with equal hashes
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import numpy as np
import xxhash

from chatloom.corpus.duplicates.external_sort import MEMORY, external_sort, merge, open_runs
from chatloom.corpus.duplicates.grouping import followers
from chatloom.corpus.duplicates.near import EDGES
from chatloom.corpus.duplicates.places import names
from chatloom.corpus.ranged import partition
from chatloom.corpus.text.units import U64

HASHES, URLS = "text hashes", "url hashes"
COLUMNS = ("hash_high", "hash_low", "name")
AT_ONCE = 4096
SESSION = re.compile(r";(?:jsessionid|phpsessid|sid)=[^/?#;]*", re.IGNORECASE)
# Parameters that say where a visitor came from, or who they are; the page is the same without them.
TRACKING = re.compile(
    r"utm_\w+|fbclid|gclid|dclid|msclkid|yclid|twclid|igshid|mc_[ce]id|_ga|_gl|_hs(?:enc|mi)|spm|scm|"
    r"jsessionid|phpsessid|sessionid|sid",
    re.IGNORECASE,
)
DEFAULT_PORTS = {"http": 80, "https": 443}
PERCENT = re.compile("%[0-9a-fA-F]{2}")
UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
KEPT_IN_PATHS = "/:@!$&'()*+,;=-._~%"


def normalised(text: str) -> str:
    """What exact equality looks at: lower case, white space as single spaces."""
    return " ".join(text.lower().split())


def normalised_url(url: str) -> str | None:
    """One spelling for addresses of one page, or None for what is no address of a host.

    RFC 3986, section 6.2.2 and 6.2.3 (case, percent-encoding, dots, default port), and what crawls need on top: http
    is https, no `www.`, no fragment, no session or tracking parameters, the others sorted, no slash at the end.
    """
    try:
        parts = urlsplit(url.strip())
        port = parts.port
        host = (parts.hostname or "").rstrip(".")
        host = host.encode("idna").decode("ascii") if not host.isascii() else host
    except (ValueError, UnicodeError):
        return None
    if not host:
        return None
    host = host.removeprefix("www.")
    if port is not None and port != DEFAULT_PORTS.get(parts.scheme.lower()):
        host += f":{port}"
    path = PERCENT.sub(_percent, quote(SESSION.sub("", parts.path), KEPT_IN_PATHS, errors="surrogatepass"))
    query = [item for item in parse_qsl(parts.query, keep_blank_values=True) if not TRACKING.fullmatch(item[0])]
    text = host + _without_dots(path).rstrip("/")
    return text + ("?" + urlencode(sorted(query), errors="surrogatepass") if query else "")


def _percent(match: re.Match[str]) -> str:
    """One percent-encoded byte as RFC 3986 wants it: itself where it need not be encoded, else in upper case."""
    character = chr(int(match.group()[1:], 16))
    return character if character in UNRESERVED else match.group().upper()


def _without_dots(path: str) -> str:
    """A path without `.` and `..` (RFC 3986, section 5.2.4)."""
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            if len(kept) > 1:
                kept.pop()
        elif segment != ".":
            kept.append(segment)
    return "/".join(kept)


def write_hashes(documents: Iterable[tuple[str, str]], path: Path, *, memory_bytes: int = MEMORY) -> int:
    """Run of (text hash, name) of (id, text); returns the number of records. A text without letters counts too."""
    keyed = ((name, normalised(text)) for name, text in documents)
    return external_sort(_records(keyed), path, HASHES, COLUMNS, memory_bytes=memory_bytes)


def write_urls(documents: Iterable[tuple[str, str | None]], path: Path, *, memory_bytes: int = MEMORY) -> int:
    """Run of (hash of the normalised address, name) of (id, url); documents without an address have no record."""
    keyed = ((name, normalised_url(url)) for name, url in documents if url)
    known = ((name, url) for name, url in keyed if url is not None)
    return external_sort(_records(known), path, URLS, COLUMNS, memory_bytes=memory_bytes)


def write_equals(
    paths: Sequence[Path], path: Path, kind: str = HASHES, *, part: int = 0, parts: int = 1, memory_bytes: int = MEMORY
) -> int:
    """Edges (name, first name) of documents with equal hashes, of one range of hashes; returns their number."""
    within = partition(part, parts)
    found = followers(merge(open_runs(paths, kind, within=within), *within, unique=True, memory_bytes=memory_bytes), 2)
    return external_sort((edges[:, ::-1] for edges in found), path, EDGES, ("a", "b"), memory_bytes=memory_bytes)


def _records(keyed: Iterable[tuple[str, str]]) -> Iterator[U64]:
    ids: list[str] = []
    digests: list[bytes] = []
    for name, key in keyed:
        ids.append(name)
        digests.append(xxhash.xxh3_128_digest(key.encode("utf-8", "surrogatepass")))
        if len(ids) >= AT_ONCE:
            yield _table(ids, digests)
            ids, digests = [], []
    yield _table(ids, digests)


def _table(ids: list[str], digests: list[bytes]) -> U64:
    hashes = np.frombuffer(b"".join(digests), ">u8").astype(np.uint64).reshape(-1, 2)
    return np.concatenate([hashes, names(ids)[:, None]], axis=1)
